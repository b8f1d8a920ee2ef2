//! Which route serves a request. Immutable; built from the configuration, generic over what a route leads to.
//!
//! The most specific route wins: an exact host before a suffix (the longer the earlier) before any host; then an
//! exact path before a prefix (the longer the earlier) before any path; then the number of further conditions; then
//! the order of the file. A host without a matching route falls back to the less specific hosts.
//!
//! Hosts are found by hashing, so that the cost of a match does not grow with the routes of other hosts.

mod rank;

use std::collections::HashMap;

use http::HeaderMap;
use http::request::Parts;

use crate::config::{HostPattern, Match, PathPattern};
use crate::context::{asked_authority, plain_host, strip_path, without_port};

/// See the module's text.
#[derive(Debug)]
pub struct Router<T> {
    leaves: Vec<T>,
    exact: HashMap<Box<str>, Vec<Candidate>>,
    suffix: HashMap<Box<str>, Vec<Candidate>>,
    any: Vec<Candidate>,
}

/// A route among those of the same host, with its place in `leaves`.
#[derive(Clone, Debug)]
struct Candidate {
    matcher: Match,
    leaf: usize,
}

impl<T> Router<T> {
    /// A router over `routes`, in file order.
    pub fn new(routes: impl IntoIterator<Item = (Match, T)>) -> Self {
        let mut this = Self { leaves: Vec::new(), exact: HashMap::new(), suffix: HashMap::new(), any: Vec::new() };
        for (leaf, (matcher, target)) in routes.into_iter().enumerate() {
            this.leaves.push(target);
            let bucket = match matcher.host.clone() {
                Some(HostPattern::Exact(host)) => this.exact.entry(host).or_default(),
                Some(HostPattern::Suffix(suffix)) => this.suffix.entry(suffix).or_default(),
                None => &mut this.any,
            };
            bucket.push(Candidate { matcher, leaf });
        }
        for bucket in this.exact.values_mut().chain(this.suffix.values_mut()).chain([&mut this.any]) {
            // The sort is stable, which keeps the file's order among equals.
            bucket.sort_by_key(|candidate| rank::of(&candidate.matcher));
        }
        this
    }

    /// The route of a request that came in on `listener`.
    #[must_use]
    pub fn find(&self, listener: &str, request: &Parts) -> Option<&T> {
        let host = host(request);
        let host = plain_host(host);
        let search = |bucket: Option<&Vec<Candidate>>| {
            bucket?.iter().find(|candidate| accepts(&candidate.matcher, listener, request)).map(|found| found.leaf)
        };
        let leaf = search(self.exact.get(&*host))
            .or_else(|| self.suffixes(&host).find_map(|suffix| search(self.suffix.get(suffix))))
            .or_else(|| search(Some(&self.any)))?;
        self.leaves.get(leaf)
    }

    /// What stands after each dot of `host`, the longest first; nothing when no route asks for a suffix.
    fn suffixes<'a>(&self, host: &'a str) -> impl Iterator<Item = &'a str> {
        let dots = if self.suffix.is_empty() { "" } else { host };
        dots.match_indices('.').filter_map(|(at, _)| host.get(at + 1..))
    }

    /// All leaves, in file order.
    pub fn leaves(&self) -> impl Iterator<Item = &T> {
        self.leaves.iter()
    }
}

/// The host that the request is for.
fn host(request: &Parts) -> &str {
    without_port(asked_authority(&request.uri, &request.headers))
}

fn accepts(matcher: &Match, listener: &str, request: &Parts) -> bool {
    matcher.listener.as_deref().is_none_or(|name| name == listener)
        && matcher.path.as_ref().is_none_or(|pattern| path_matches(pattern, request.uri.path()))
        && (matcher.methods.is_empty() || matcher.methods.contains(&request.method))
        && headers_match(matcher, &request.headers)
}

fn path_matches(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Exact(exact) => strip_path(path, exact) == Some(""),
        PathPattern::Prefix(prefix) => {
            strip_path(path, prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

fn headers_match(matcher: &Match, headers: &HeaderMap) -> bool {
    matcher.headers.iter().all(|wanted| match &wanted.value {
        Some(value) => headers.get_all(&wanted.name).iter().any(|found| found == value),
        None => headers.contains_key(&wanted.name),
    })
}

#[cfg(test)]
mod tests;
