//! The live state of one limit.

use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::clock::{Clock, Now, wall};
use super::settings::Rule;
use super::told::{Fields, Told};
use super::{Settings, View};
use crate::context::{Key, Request};
use crate::control::gcra::{Nanos, Room, nanos};
use crate::control::key_store::{Key as Hash, KeyStore, Place};
use crate::control::surge::Raise;
use crate::control::talkers::{Talker, Talkers};
use crate::metrics::{Counter, Gauge, Registry};
use crate::store::{Shared, Store};

/// The live state of one limit. It outlives a reload that leaves its settings as they are.
#[derive(Debug)]
pub struct Limiter {
    route: Arc<str>,
    settings: Settings,
    rule: Rule,
    /// Decides in place of the buckets.
    shared: Option<Shared>,
    /// For each key when its bucket is full again, in the limit's own time.
    buckets: KeyStore,
    clock: Clock,
    /// No client knows it, and so none can choose a hash.
    seed: RandomState,
    told: Told,
    talk: Option<Talk>,
    allowed: Counter,
    refused: Counter,
    keys: Gauge,
    evictions: Counter,
    /// Would have been refused since the log last said so, and when that was.
    unsaid: AtomicU64,
    said_at: AtomicU64,
}

/// Those who ask most.
#[derive(Debug)]
struct Talk {
    by: Key,
    /// Of the bucket that they share.
    rule: Rule,
    /// Nobody waits for it: who finds it taken is not counted this time.
    talkers: Mutex<Talkers>,
}

/// A request before its limit.
#[derive(Debug)]
pub(super) struct Asked {
    key: Hash,
    /// The bucket that the top talkers share, if the request is one of theirs.
    own: Option<Hash>,
    now: Now,
}

/// A request that its limit has let through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) room: Room,
    /// Taken from the talkers' bucket too.
    own: Option<Hash>,
}

/// Who is charged for bytes, and who talks.
#[derive(Debug)]
pub(super) struct Account {
    key: Hash,
    own: Option<Hash>,
    talker: Option<(u64, Box<str>)>,
}

/// How often the log tells of what would have been refused.
const SAY_EVERY: Nanos = 10_000_000_000;

impl Limiter {
    /// A limit that nobody has used yet.
    #[must_use]
    pub fn new(settings: Settings, registry: &Registry, route: &str) -> Self {
        Self::with_wall(settings, registry, route, wall)
    }

    /// The same with a wall clock of its own.
    pub(super) fn with_wall(settings: Settings, registry: &Registry, route: &str, wall: fn() -> Nanos) -> Self {
        let labels: [(&'static str, &str); 2] = [("route", route), ("limit", &settings.name)];
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
        let talk = settings.top_talkers.as_ref().map(|top| Talk {
            by: top.by.clone(),
            rule: Rule::share(&settings, top.percent),
            talkers: Mutex::new(Talkers::new(top.count)),
        });
        Self {
            route: route.into(),
            rule: Rule::new(&settings),
            shared: None,
            // Where the store decides, the buckets here are never asked.
            buckets: KeyStore::new(if settings.shared { 1 } else { settings.max_keys }),
            clock: Clock::new(&settings.surge, wall),
            seed: RandomState::new(),
            told: Told::new(&settings),
            talk,
            allowed: requests("allowed"),
            refused: requests(if settings.dry_run { "dry_run" } else { "refused" }),
            keys: registry.gauge("headworks_rate_limit_keys", "Keys that a rate limit remembers.", &labels),
            evictions,
            unsaid: AtomicU64::new(0),
            said_at: AtomicU64::new(0),
            settings,
        }
    }

    /// Counts together with all instances that use this store.
    #[must_use]
    pub fn shared(mut self, store: &Arc<Store>) -> Self {
        let labels = [("route", &*self.route), ("limit", &*self.settings.name)];
        self.shared = Some(Shared::new(store, self.settings.shared_rule(&self.route), &labels));
        self
    }

    /// Whether it is shared through this store, or through none.
    #[must_use]
    pub fn is_through(&self, store: Option<&Arc<Store>>) -> bool {
        match (&self.shared, store) {
            (Some(shared), Some(store)) => shared.is_through(store),
            (None, None) => true,
            _ => false,
        }
    }

    /// The key of a request that cannot be decided on: the store has been asked about it.
    pub(super) fn unknown(&self, request: &Request) -> Option<Hash> {
        let shared = self.shared.as_ref()?;
        let key = Hash(self.settings.by.hash(request, &self.seed));
        let is_known = shared.is_known(key, |store| store.digest(&self.settings.by.spelled(request)));
        (!is_known).then_some(key)
    }

    /// Waits for what the store says; not for long.
    pub(super) async fn answered(&self, key: Hash, since: Instant) {
        if let Some(shared) = &self.shared {
            shared.answered(key, since).await;
        }
    }

    /// What the configuration says of it.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The route it stands in.
    #[must_use]
    pub fn route(&self) -> &Arc<str> {
        &self.route
    }

    /// Which bucket the request counts against.
    pub(super) fn ask(&self, request: &Request, now: Instant) -> Asked {
        let key = Hash(self.settings.by.hash(request, &self.seed));
        let now = self.clock.read(now);
        let own = self.talk.as_ref().filter(|talk| talk.hears(self, request, now.real)).map(|_| own(key));
        Asked { key, own, now }
    }

    /// Takes one request out of the key's bucket, or says how long it will be until there is one. Of a limit in bytes
    /// nothing is taken: the key has to be in credit.
    ///
    /// One of those who ask most leaves half of the bucket to the others, or takes from the share of their own too.
    pub(super) fn take(&self, asked: &Asked) -> Result<Grant, Duration> {
        if let Some(shared) = &self.shared {
            return shared.take(asked.key).map(|room| Grant { room, own: None });
        }
        let now = asked.now;
        let taken = match (asked.own, &self.talk) {
            (Some(own), Some(talk)) => self
                .take_from(&self.rule, asked.key, now.paced, true)
                .map(|room| Grant { room, own: None })
                .or_else(|until_half| {
                    let room = self.take_from(&self.rule, asked.key, now.paced, false)?;
                    match self.take_from(&talk.rule, own, now.paced, false) {
                        Ok(_) => Ok(Grant { room, own: Some(own) }),
                        Err(wait) => {
                            self.give_back_to(&self.rule, asked.key);
                            Err(wait.min(until_half))
                        }
                    }
                }),
            _ => self.take_from(&self.rule, asked.key, now.paced, false).map(|room| Grant { room, own: None }),
        };
        match taken {
            Ok(Grant { room, own }) => Ok(Grant { room: Room { next: self.clock.wait(now, room.next), ..room }, own }),
            Err(wait) => Err(self.clock.wait(now, wait)),
        }
    }

    /// The one place where buckets are asked. Half of the bucket is the reserve.
    fn take_from(&self, rule: &Rule, key: Hash, now: Nanos, leaves_reserve: bool) -> Result<Room, Duration> {
        let reserve = if leaves_reserve { self.settings.burst.get() / 2 } else { 0 };
        let full_at = match rule {
            Rule::Requests(gcra) => {
                let reserve = u32::try_from(reserve).unwrap_or(u32::MAX);
                let take = |now: Nanos| {
                    self.buckets.update(key, |full_at| gcra.take_beyond(full_at.unwrap_or(now), now, reserve))
                };
                let (full_at, place) = take(now).or_else(|wait| {
                    // One that looked at the clock later may have been here sooner: then what is missing is there.
                    let later = self.clock.read(Instant::now()).paced;
                    if later.saturating_sub(now) < nanos(wait) { Err(wait) } else { take(later) }
                })?;
                self.count(place, now);
                full_at
            }
            Rule::Bytes(bucket) => {
                let full_at = self.buckets.get(key).unwrap_or(now);
                bucket.ask(full_at, now, reserve)?;
                full_at
            }
        };
        Ok(rule.room(full_at, now))
    }

    /// Undoes [`Limiter::take`]: the request was refused by another limit.
    pub(super) fn give_back(&self, asked: &Asked, grant: &Grant) {
        if let Some(shared) = &self.shared {
            return shared.give_back(asked.key);
        }
        self.give_back_to(&self.rule, asked.key);
        if let (Some(own), Some(talk)) = (grant.own, &self.talk) {
            self.give_back_to(&talk.rule, own);
        }
    }

    fn give_back_to(&self, rule: &Rule, key: Hash) {
        if let Rule::Requests(rule) = rule {
            self.buckets.update_if_kept(key, |full_at| rule.give_back(full_at));
        }
    }

    /// Whose bytes those of the request are.
    pub(super) fn account(&self, request: &Request, asked: &Asked, grant: Option<&Grant>) -> Account {
        let talker = self.talk.as_ref().map(|talk| {
            let label = talk.by.label(request, &self.seed).into();
            (talk.by.hash(request, &self.seed), label)
        });
        Account { key: asked.key, own: grant.and_then(|grant| grant.own), talker }
    }

    /// Bytes have passed.
    pub(super) fn charge(&self, account: &Account, bytes: u64, now: Instant) {
        let now = self.clock.read(now);
        self.charge_to(&self.rule, account.key, bytes, now.paced);
        if let (Some(own), Some(talk)) = (account.own, &self.talk) {
            self.charge_to(&talk.rule, own, bytes, now.paced);
        }
        if let (Some((key, label)), Some(talk)) = (&account.talker, &self.talk) {
            talk.lock().add(*key, bytes, now.real, || label.to_string());
        }
    }

    fn charge_to(&self, rule: &Rule, key: Hash, bytes: u64, now: Nanos) {
        let Rule::Bytes(bucket) = rule else { return };
        let charge = |full_at: Option<Nanos>| Ok(bucket.charge(full_at.unwrap_or(now), now, bytes));
        if let Ok((_, place)) = self.buckets.update::<()>(key, charge) {
            self.count(place, now);
        }
    }

    fn count(&self, place: Place, now: Nanos) {
        match place {
            Place::Empty => self.keys.inc(),
            // A bucket that is full is as good as forgotten.
            Place::Taken(full_at) if full_at > now => self.evictions.inc(),
            Place::Taken(_) | Place::Kept => {}
        }
    }

    /// `RateLimit` and `RateLimit-Policy`.
    pub(super) fn fields(&self, room: Room) -> Fields {
        self.told.fields(room, self.clock.factor())
    }

    pub(super) fn count_allowed(&self) {
        self.allowed.inc();
    }

    /// A request was refused, or would have been.
    pub(super) fn count_refused(&self, now: &Asked) {
        self.refused.inc();
        if !self.settings.dry_run {
            return;
        }
        let (real, said_at) = (now.now.real, self.said_at.load(Relaxed));
        self.unsaid.fetch_add(1, Relaxed);
        let is_time = said_at == 0 || real.saturating_sub(said_at) >= SAY_EVERY;
        if is_time && self.said_at.compare_exchange(said_at, real.max(1), Relaxed, Relaxed).is_ok() {
            let requests = self.unsaid.swap(0, Relaxed);
            let (route, limit) = (&self.route, &self.settings.name);
            tracing::info!(%route, %limit, requests, "a rate limit would have refused requests");
        }
    }

    /// Raises the rate for a while, in place of what was raised by hand before.
    pub fn raise(&self, raise: Raise) {
        self.clock.raise(raise, Instant::now());
    }

    /// Lets what was raised by hand come down; whether it was up.
    pub fn lower(&self) -> bool {
        self.clock.lower(Instant::now())
    }

    /// What an operator sees. Looks at every key.
    #[must_use]
    pub fn view(&self) -> View {
        let now = self.clock.read(Instant::now());
        View {
            factor: self.clock.factor(),
            raised_for: self.clock.raised_for(now),
            keys: self.shared.as_ref().map_or_else(|| self.buckets.len(), Shared::keys),
            allowed: self.allowed.get(),
            refused: self.refused.get(),
        }
    }

    /// Those who ask most, the heaviest first, and all that was counted of late; none when nobody counts.
    #[must_use]
    pub fn talkers(&self) -> Option<(Vec<Talker>, u64)> {
        let now = self.clock.read(Instant::now()).real;
        let mut talkers = self.talk.as_ref()?.lock();
        let top = talkers.top(now);
        Some((top, talkers.total()))
    }
}

impl Talk {
    /// Counts a request; whether it is of one who asks most. A limit in bytes counts those instead.
    fn hears(&self, limit: &Limiter, request: &Request, now: Nanos) -> bool {
        let key = self.by.hash(request, &limit.seed);
        let Ok(mut talkers) = self.talkers.try_lock() else { return false };
        if let Rule::Requests(_) = self.rule {
            talkers.add(key, 1, now, || self.by.label(request, &limit.seed));
        }
        talkers.is_top(key)
    }

    fn lock(&self) -> MutexGuard<'_, Talkers> {
        self.talkers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bucket that the top talkers of a key share. A hash under a secret seed meets no other so.
fn own(key: Hash) -> Hash {
    Hash(!key.0.rotate_left(32))
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.keys.add(-i64::try_from(self.buckets.len()).unwrap_or(i64::MAX));
    }
}
