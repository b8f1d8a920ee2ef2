//! How specific a match is, as a key that sorts the most specific first.

use std::cmp::Reverse;

use crate::config::{Match, PathPattern};

/// Path before fields before methods before listener.
pub(super) type Rank = (Reverse<(u8, usize)>, Reverse<usize>, bool, bool);

pub(super) fn of(matcher: &Match) -> Rank {
    let path = match &matcher.path {
        Some(PathPattern::Exact(path)) => (2, path.len()),
        Some(PathPattern::Prefix(prefix)) => (1, prefix.len()),
        None => (0, 0),
    };
    // `false` sorts first, so a condition that is there must say false.
    (Reverse(path), Reverse(matcher.headers.len()), matcher.methods.is_empty(), matcher.listener.is_none())
}
