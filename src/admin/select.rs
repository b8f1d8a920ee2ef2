//! How many rows are shown, and which: `?limit=` and `?sort=`.

use http::Request;

use super::parameter;

/// Rows, unless more are asked for.
const USUAL: usize = 100;
/// Rows at most: a page is one text in memory.
const MOST: usize = 10_000;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) limit: usize,
    pub(super) sort: Option<String>,
}

impl Selection {
    /// What the query says; a limit that cannot be read is none.
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let limit = parameter(request, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(USUAL);
        Self { limit: limit.min(MOST), sort: parameter(request, "sort").map(str::to_owned) }
    }
}

/// Keeps the items with the largest keys, of any number that is shown to it, in the memory of twice as many.
#[derive(Debug)]
pub(super) struct Largest<T> {
    limit: usize,
    seen: usize,
    kept: Vec<(u64, T)>,
}

impl<T> Largest<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, seen: 0, kept: Vec::new() }
    }

    pub(super) fn show(&mut self, key: u64, item: T) {
        self.seen += 1;
        self.kept.push((key, item));
        if self.kept.len() >= (2 * self.limit).max(64) {
            self.trim();
        }
    }

    fn trim(&mut self) {
        // Those that came first stay first among equals.
        self.kept.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
        self.kept.truncate(self.limit);
    }

    /// The items, the largest first, and how many were seen.
    pub(super) fn finish(mut self) -> (impl Iterator<Item = T>, usize) {
        self.trim();
        (self.kept.into_iter().map(|(_, item)| item), self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_and_all_are_counted() {
        let mut largest = Largest::new(3);
        for number in [5, 1, 9, 7, 7, 0].iter().cycle().take(6000) {
            largest.show(*number, *number);
            assert!(largest.kept.len() < 64);
        }
        let (kept, seen) = largest.finish();
        assert_eq!((kept.collect::<Vec<_>>(), seen), (vec![9, 9, 9], 6000));
        let mut none = Largest::new(0);
        none.show(1, ());
        assert_eq!(none.finish().1, 1);
    }

    #[test]
    fn a_selection_is_read_from_the_query() {
        let of = |query: &str| {
            let request = Request::get(format!("/streams{query}")).body(()).expect("a request");
            let Selection { limit, sort } = Selection::of(&request);
            (limit, sort.unwrap_or_default())
        };
        assert_eq!(of(""), (100, String::new()));
        assert_eq!(of("?sort=bytes&limit=5"), (5, "bytes".into()));
        assert_eq!(of("?limit=99999999"), (10_000, String::new()));
        assert_eq!(of("?limit=x&limit=3"), (100, String::new()));
    }
}
