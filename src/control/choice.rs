//! Which of the endpoints that have a free credit gets the next request.

/// Endpoints take turns. They are named by their accounts in the ledger.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// Where it goes on.
    next: usize,
}

impl Choice {
    /// One of the first `count` accounts that has room; none when no one has.
    pub fn choose(&mut self, count: usize, has_room: impl Fn(usize) -> bool) -> Option<usize> {
        let found = (self.next..count).chain(0..self.next.min(count)).find(|at| has_room(*at))?;
        self.next = if found + 1 == count { 0 } else { found + 1 };
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns_and_full_ones_are_passed_over() {
        let mut choice = Choice::default();
        let order: Vec<_> = (0..4).filter_map(|_| choice.choose(3, |_| true)).collect();
        assert_eq!(order, [0, 1, 2, 0]);
        assert_eq!(choice.choose(3, |at| at != 1), Some(2));
        assert_eq!(choice.choose(3, |_| false), None);
        assert_eq!(choice.choose(2, |_| true), Some(0));
    }
}
