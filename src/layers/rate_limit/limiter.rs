//! The live state of one limit, and what it tells the client.

use std::hash::RandomState;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::Settings;
use crate::context::{Key, Request};
use crate::control::gcra::{Gcra, Room, nanos};
use crate::control::key_store::{Key as Hash, KeyStore, Place};
use crate::metrics::{Counter, Gauge, Registry};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The live state of one limit. It outlives a reload that leaves its settings as they are.
#[derive(Debug)]
pub struct Limiter {
    by: Key,
    rule: Gcra,
    /// For each key when its bucket is full again, counted from `start`.
    buckets: KeyStore,
    start: Instant,
    /// No client knows it, and so none can choose a hash.
    seed: RandomState,
    /// The name as a String item of RFC 9651.
    name: String,
    policy: HeaderValue,
    allowed: Counter,
    refused: Counter,
    keys: Gauge,
    evictions: Counter,
}

/// Fields of an answer.
pub(super) type Fields = [(HeaderName, HeaderValue); 2];

impl Limiter {
    /// A limit that nobody has used yet.
    #[must_use]
    pub fn new(settings: Settings, registry: &Registry, route: &str) -> Self {
        let Settings { name, by, amount, period, burst, max_keys } = settings;
        let labels: [(&'static str, &str); 2] = [("route", route), ("limit", &name)];
        let requests = |result| {
            let [route, limit] = labels;
            registry.counter(
                "headworks_rate_limit_requests_total",
                "Requests that a rate limit decided on.",
                &[route, limit, ("result", result)],
            )
        };
        let evictions = registry.counter(
            "headworks_rate_limit_evictions_total",
            "Keys forgotten before their bucket was full again, for want of max_keys.",
            &labels,
        );
        let keys = registry.gauge("headworks_rate_limit_keys", "Keys that a rate limit remembers.", &labels);
        let name = string_item(&name);
        let policy = format!("{name};q={amount};w={}", period.as_secs().max(1));
        Self {
            by,
            rule: Gcra::new(period / amount.get(), burst),
            buckets: KeyStore::new(max_keys),
            start: Instant::now(),
            seed: RandomState::new(),
            name,
            policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("")),
            allowed: requests("allowed"),
            refused: requests("refused"),
            keys,
            evictions,
        }
    }

    /// Which bucket the request counts against.
    pub(super) fn hash(&self, request: &Request) -> Hash {
        Hash(self.by.hash(request, &self.seed))
    }

    /// Takes one request out of the key's bucket, or says how long it will be until there is one.
    pub(super) fn take(&self, key: Hash, now: Instant) -> Result<Room, Duration> {
        let now = nanos(now.saturating_duration_since(self.start));
        let (full_at, place) = self.buckets.update(key, |full_at| self.rule.take(full_at.unwrap_or(now), now))?;
        match place {
            Place::Empty => self.keys.inc(),
            // A bucket that is full is as good as forgotten.
            Place::Taken(full_at) if full_at > now => self.evictions.inc(),
            Place::Taken(_) | Place::Kept => {}
        }
        Ok(self.rule.room(full_at, now))
    }

    /// Undoes [`Limiter::take`]: the request was refused by another limit.
    pub(super) fn give_back(&self, key: Hash) {
        self.buckets.update_if_kept(key, |full_at| self.rule.give_back(full_at));
    }

    /// `RateLimit` and `RateLimit-Policy`.
    pub(super) fn fields(&self, room: Room) -> Fields {
        let seconds = room.next.as_secs() + u64::from(room.next.subsec_nanos() > 0);
        let mut state = Vec::with_capacity(self.name.len() + 32);
        // Writing to memory does not fail.
        let _ = write!(state, "{};r={};t={seconds}", self.name, room.remaining);
        let state = HeaderValue::from_maybe_shared(Bytes::from(state)).unwrap_or(HeaderValue::from_static(""));
        [(RATE_LIMIT, state), (RATE_LIMIT_POLICY, self.policy.clone())]
    }

    pub(super) fn count_allowed(&self) {
        self.allowed.inc();
    }

    pub(super) fn count_refused(&self) {
        self.refused.inc();
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.keys.add(-i64::try_from(self.buckets.len()).unwrap_or(i64::MAX));
    }
}

/// A String item of RFC 9651, which is printable ASCII in quotes.
fn string_item(text: &str) -> String {
    let mut item = String::with_capacity(text.len() + 2);
    item.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => item.extend(['\\', character]),
            ' '..='~' => item.push(character),
            _ => item.push('?'),
        }
    }
    item.push('"');
    item
}
