//! The live state of one limit, and what it tells the client.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use governor::clock::{Clock, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter};
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::{Key, Settings};
use crate::context::Request;
use crate::control::key_store::{Key as Hash, KeyStore, Notice};
use crate::metrics::{Counter, Gauge, Registry};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The live state of one limit. It outlives a reload that leaves its settings as they are.
#[derive(Debug)]
pub struct Limiter<C: Clock<Instant = Nanos> = TokioClock> {
    by: Key,
    bucket: RateLimiter<Hash, KeyStore<Forgotten>, C, NoOpMiddleware<Nanos>>,
    /// The same store that `bucket` uses; governor itself can neither tell a state nor take a use back.
    store: KeyStore<Forgotten>,
    /// What states count from.
    start: Nanos,
    /// Time in which the bucket gets one request more.
    step: Nanos,
    burst: u32,
    /// For a hash of 128 bits, under seeds that no client knows.
    seeds: (RandomState, RandomState),
    /// The name as a String item of RFC 9651.
    name: String,
    policy: HeaderValue,
    allowed: Counter,
    refused: Counter,
    keys: Gauge,
}

/// What a limit has left for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) remaining: u32,
    /// Until one more.
    pub(super) next: Duration,
}

/// Fields of an answer.
pub(super) type Fields = [(HeaderName, HeaderValue); 2];

impl Limiter {
    /// A limit that nobody has used yet.
    #[must_use]
    pub fn new(settings: Settings, registry: &Registry, route: &str) -> Self {
        Self::with_clock(settings, registry, route, TokioClock::default())
    }
}

impl<C: Clock<Instant = Nanos> + Clone> Limiter<C> {
    /// The same by another clock.
    pub fn with_clock(settings: Settings, registry: &Registry, route: &str, clock: C) -> Self {
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
        let keys = registry.gauge("headworks_rate_limit_keys", "Keys that a rate limit remembers.", &labels);
        let step = (period / amount.get()).max(Duration::from_nanos(1));
        let evictions = registry.counter(
            "headworks_rate_limit_evictions_total",
            "Keys forgotten before their bucket was full again, for want of max_keys.",
            &labels,
        );
        let store = KeyStore::new(max_keys, Forgotten { keys: keys.clone(), evictions, step: step.into() });
        // Beyond a century of saving up nobody can tell the difference, and governor's arithmetic would overflow.
        let longest = Duration::from_secs(100 * 365 * 24 * 3600).as_nanos() / step.as_nanos();
        let burst = burst.get().min(u32::try_from(longest).unwrap_or(u32::MAX)).max(1);
        let quota = Quota::with_period(step).unwrap_or(Quota::per_second(amount));
        let quota = quota.allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
        let name = string_item(&name);
        let policy = format!("{name};q={amount};w={}", period.as_secs().max(1));
        Self {
            by,
            start: clock.now(),
            bucket: RateLimiter::new(quota, store.clone(), clock),
            store,
            step: step.into(),
            burst,
            seeds: (RandomState::new(), RandomState::new()),
            name,
            policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("")),
            allowed: requests("allowed"),
            refused: requests("refused"),
            keys,
        }
    }

    /// Which bucket the request counts against.
    pub(super) fn hash(&self, request: &Request) -> Hash {
        self.by.with_value(request, |value| Hash([self.seeds.0.hash_one(value), self.seeds.1.hash_one(value)]))
    }

    /// Takes one request out of the key's bucket, or says how long it will be until there is one.
    pub(super) fn take(&self, key: &Hash) -> Result<Room, Duration> {
        self.bucket.check_key(key).map_err(|refusal| refusal.wait_time_from(self.bucket.clock().now()))?;
        let now = self.bucket.clock().now().duration_since(self.start);
        let full_at = self.store.get(key).unwrap_or(now);
        let missing = full_at.saturating_sub(now).as_u64();
        let step = self.step.as_u64();
        let used = u32::try_from(missing.div_ceil(step)).unwrap_or(u32::MAX);
        // The bucket is whole again at `full_at`, and gets its requests back at whole steps before that.
        let next = missing.checked_sub(1).map_or(0, |rest| rest % step + 1);
        Ok(Room { remaining: self.burst.saturating_sub(used), next: Duration::from_nanos(next) })
    }

    /// Undoes [`Limiter::take`]: the request was refused by another limit.
    pub(super) fn give_back(&self, key: &Hash) {
        self.store.give_back(key, self.step);
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

impl<C: Clock<Instant = Nanos>> Drop for Limiter<C> {
    fn drop(&mut self) {
        self.keys.add(-i64::try_from(self.store.len()).unwrap_or(i64::MAX));
    }
}

/// Counts the keys, and those whose loss gave something away.
#[derive(Debug)]
struct Forgotten {
    keys: Gauge,
    evictions: Counter,
    step: Nanos,
}

impl Notice for Forgotten {
    fn added(&self) {
        self.keys.inc();
    }

    /// A new key's bucket lacks one request and is full again a step from now: so `gained` less a step is now, and a
    /// bucket that was full by then is as good as forgotten.
    fn replaced(&self, lost: Nanos, gained: Nanos) {
        if lost > gained.saturating_sub(self.step) {
            self.evictions.inc();
        }
    }
}

/// Tokio's clock, which tests can pause, counted from its making.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock(Instant);

impl Default for TokioClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
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
