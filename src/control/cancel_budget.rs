//! How much begun work a client may throw away on one connection.
//!
//! A stream that is opened and reset at once costs its client two small frames, and the service behind the proxy a
//! request (CVE-2023-44487, CVE-2025-8671). Clients do cancel, so each connection has a budget: a burst, and back comes
//! half a cancellation for each answer that was taken whole, and one each second.

use std::num::NonZeroU32;

use tokio::time::Instant;

/// Counted in halves of a cancellation.
#[derive(Debug)]
pub struct CancelBudget {
    most: u64,
    left: u64,
    /// Answers taken so far, as of the last look.
    taken: u64,
    looked_at: Instant,
}

impl CancelBudget {
    /// A full budget.
    #[must_use]
    pub fn new(burst: NonZeroU32, now: Instant) -> Self {
        let most = 2 * u64::from(burst.get());
        Self { most, left: most, taken: 0, looked_at: now }
    }

    /// Pays for one cancellation; `taken` is the number of answers taken whole so far. False when there is nothing left
    /// to pay with.
    pub fn cancel(&mut self, taken: u64, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.looked_at).as_secs();
        self.looked_at += std::time::Duration::from_secs(seconds);
        let earned = taken.saturating_sub(self.taken).saturating_add(seconds.saturating_mul(2));
        self.taken = self.taken.max(taken);
        self.left = self.left.saturating_add(earned).min(self.most);
        let paid = self.left.checked_sub(2);
        self.left = paid.unwrap_or(self.left);
        paid.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn budget(burst: u32) -> (CancelBudget, Instant) {
        let now = Instant::now();
        (CancelBudget::new(NonZeroU32::new(burst).unwrap(), now), now)
    }

    #[test]
    fn the_burst_is_all_that_an_idle_talker_gets() {
        let (mut budget, now) = budget(100);
        assert!((0..100).all(|_| budget.cancel(0, now)));
        assert!(!budget.cancel(0, now));
    }

    #[test]
    fn answers_that_are_taken_pay_for_half() {
        let (mut budget, now) = budget(1);
        // Two answers for each cancellation go on for ever; one for each does not.
        assert!((1..10_000).all(|n| budget.cancel(2 * n, now)));
        let still = (1..100).take_while(|n| budget.cancel(20_000 + n, now)).count();
        assert!(still <= 2, "{still}");
    }

    #[test]
    fn time_pays_for_one_each_second_and_never_more_than_the_burst() {
        let (mut budget, start) = budget(3);
        let at = |millis| start + Duration::from_millis(millis);
        assert!((0..3).all(|_| budget.cancel(0, at(10))));
        assert!(!budget.cancel(0, at(999)));
        assert!(budget.cancel(0, at(1000)));
        assert!(!budget.cancel(0, at(1999)));
        assert!(budget.cancel(0, at(2001)), "parts of a second are not lost");
        assert_eq!((0..10).filter(|_| budget.cancel(0, at(3_600_000))).count(), 3);
    }
}
