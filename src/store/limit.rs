//! One limit that instances share: the leases on its keys, and what it does without them.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Common, Store};
use crate::control::gcra::{Gcra, Nanos, Room, nanos};
use crate::control::key_store::{Key, KeyStore};
use crate::control::lease::{Answer, Ask, Lease, Standing};
use crate::metrics::{Counter, Labels};

/// What a key is called in the store: the beginning of a SHA-256, so that nobody reads there what was counted.
pub type Digest = [u8; 16];

/// What all instances count together.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The name of the limit, the same everywhere.
    pub name: String,
    /// Time in which the bucket gets one request more.
    pub step: Duration,
    /// Requests that may come at once.
    pub burst: NonZeroU32,
    /// Keys remembered at most.
    pub max_keys: usize,
}

/// An instance's hold on a limit that is shared. It keeps the store that it is shared through.
#[derive(Clone)]
pub struct Shared {
    store: Arc<Store>,
    limit: Arc<Limit>,
}

pub(super) struct Limit {
    pub(super) rule: Rule,
    /// What the store is told of it.
    pub(super) step_micros: String,
    common: Arc<Common>,
    shards: Vec<Shard>,
    most_in_shard: usize,
    /// What each key has had of this instance's own share.
    own: KeyStore,
    start: Instant,
    by_lease: Counter,
    by_share: Counter,
}

#[derive(Default)]
struct Shard {
    keys: Mutex<HashMap<u64, Known, RandomState>>,
    /// An answer has come, for whichever key.
    news: Notify,
}

struct Known {
    digest: Digest,
    lease: Lease,
}

/// A key of a limit about which the store is to be asked.
pub(super) struct Note {
    pub(super) limit: Arc<Limit>,
    pub(super) key: u64,
}

const SHARDS: usize = 16;
/// A key that nobody has asked for in this time gives back what it has left.
const IDLE: Nanos = 1_000_000_000;
/// An empty bucket is not asked again before this, or before it has got a quarter of its burst.
const PAUSE: Duration = Duration::from_millis(50);

impl Shared {
    /// Counts what `rule` says through `store`.
    #[must_use]
    pub fn new(store: &Arc<Store>, rule: Rule, labels: Labels<'_>) -> Self {
        let common = &store.common;
        let counter = |by: &'static str| {
            let labels: Vec<_> = labels.iter().copied().chain([("by", by)]).collect();
            let help = "Requests that a shared rate limit decided on, and by what.";
            common.registry.counter("headworks_rate_limit_shared_total", help, &labels)
        };
        let shards = rule.max_keys.clamp(1, SHARDS);
        let limit = Arc::new(Limit {
            step_micros: format!("{:.3}", rule.step.as_secs_f64() * 1e6),
            common: Arc::clone(common),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            most_in_shard: rule.max_keys / shards,
            own: KeyStore::new(rule.max_keys),
            start: Instant::now(),
            by_lease: counter("lease"),
            by_share: counter("share"),
            rule,
        });
        common.enlist(&limit);
        Self { store: Arc::clone(store), limit }
    }

    /// Whether it is shared through this store.
    #[must_use]
    pub fn is_through(&self, store: &Arc<Store>) -> bool {
        Arc::ptr_eq(&self.store, store)
    }

    /// Whether a request for `key` can be decided on. If not, the store has been asked, and [`Shared::answered`] waits.
    #[must_use]
    pub fn is_known(&self, key: Key, digest: impl FnOnce(&Store) -> Digest) -> bool {
        let limit = &self.limit;
        if !limit.common.is_up() {
            return true;
        }
        let Some(shard) = limit.shard(key) else { return true };
        let standing = {
            let mut keys = shard.keys();
            let len = keys.len();
            match keys.entry(key.0) {
                Entry::Occupied(mut known) => known.get_mut().lease.look(limit.now()),
                // There is no room for its lease: the instance's own share decides.
                Entry::Vacant(_) if len >= limit.most_in_shard => Standing::Known,
                Entry::Vacant(place) => {
                    let known = Known { digest: digest(&self.store), lease: Lease::default() };
                    place.insert(known).lease.look(limit.now())
                }
            }
        };
        limit.follow(key, standing)
    }

    /// Waits until the store has said enough about `key`, until it is away, or until `store.wait` from `since` on. To drop the future takes nothing.
    pub async fn answered(&self, key: Key, since: Instant) {
        let limit = &self.limit;
        let until = since + limit.common.wait;
        let Some(shard) = limit.shard(key) else { return };
        loop {
            let mut news = std::pin::pin!(shard.news.notified());
            news.as_mut().enable();
            let look = |known: &mut Known| known.lease.look_again(limit.now());
            let standing = shard.keys().get_mut(&key.0).map_or(Standing::Known, look);
            if !limit.common.is_up() || limit.follow(key, standing) || timeout_at(until, news).await.is_err() {
                return;
            }
        }
    }

    /// Takes one request: from the lease on `key`, or where that says nothing from this instance's share of the limit.
    pub fn take(&self, key: Key) -> Result<Room, Duration> {
        let limit = &self.limit;
        let now = limit.now();
        let is_up = limit.common.is_up();
        let Some(shard) = limit.shard(key) else { return limit.take_own(key, now) };
        let mut keys = shard.keys();
        let Some(known) = keys.get_mut(&key.0) else {
            drop(keys);
            return limit.take_own(key, now);
        };
        let taken = if is_up { known.lease.take(now) } else { known.lease.take_rest(now).map(Ok) };
        let runs_low = is_up && known.lease.runs_low(now);
        let decided = match taken {
            Some(Ok(remaining)) => {
                limit.by_lease.inc();
                Ok(Room { remaining: remaining.into(), next: limit.rule.step })
            }
            Some(Err(wait)) => {
                limit.by_lease.inc();
                Err(Duration::from_nanos(wait))
            }
            None => {
                let own = limit.take_own(key, now);
                if own.is_ok() {
                    known.lease.owe(limit.own_burst().get());
                }
                own
            }
        };
        drop(keys);
        if runs_low {
            limit.ask(key);
        }
        decided
    }

    /// Keys that it has a lease on.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.limit.keys()
    }

    /// Undoes [`Shared::take`]: the request was refused by another limit.
    pub fn give_back(&self, key: Key) {
        if let Some(shard) = self.limit.shard(key)
            && let Some(known) = shard.keys().get_mut(&key.0)
        {
            known.lease.give_back();
        }
    }
}

impl Limit {
    fn now(&self) -> Nanos {
        nanos(self.start.elapsed())
    }

    fn shard(&self, key: Key) -> Option<&Shard> {
        let wide = u128::from(key.0) * self.shards.len() as u128;
        self.shards.get(usize::try_from(wide >> 64).unwrap_or(0))
    }

    /// Asks where somebody must. Whether the request can be decided on: also when it cannot be asked, by the share.
    fn follow(self: &Arc<Self>, key: Key, standing: Standing) -> bool {
        match standing {
            Standing::Known => true,
            Standing::Asked => false,
            Standing::Ask => !self.ask(key),
        }
    }

    /// Whether there is room for one more that asks.
    fn ask(self: &Arc<Self>, key: Key) -> bool {
        let note = Note { limit: Arc::clone(self), key: key.0 };
        let is_sent = self.common.asks.try_send(note).is_ok();
        if !is_sent {
            self.common.metrics.dropped.inc();
            self.unanswered(key.0, None);
        }
        is_sent
    }

    /// By this instance's share alone.
    fn take_own(&self, key: Key, now: Nanos) -> Result<Room, Duration> {
        self.by_share.inc();
        let share = Gcra::new(self.rule.step.saturating_mul(self.common.instances()), self.own_burst());
        let (full_at, _) = self.own.update(key, |full_at| share.take(full_at.unwrap_or(now), now))?;
        Ok(share.room(full_at, now))
    }

    fn own_burst(&self) -> NonZeroU32 {
        NonZeroU32::new(self.rule.burst.get() / self.common.instances()).unwrap_or(NonZeroU32::MIN)
    }

    /// How many one ask may bring: so few that what lies unused here is not missed elsewhere.
    fn most_in_batch(&self) -> u32 {
        (self.own_burst().get() / 2).max(1)
    }

    /// What to say to the store about a key, and what the key is called there.
    pub(super) fn question(&self, key: u64) -> Option<(Digest, Ask)> {
        let mut keys = self.shard(Key(key))?.keys();
        let known = keys.get_mut(&key)?;
        Some((known.digest, known.lease.ask(self.most_in_batch())))
    }

    pub(super) fn answer(&self, key: u64, answer: Answer) {
        let Some(shard) = self.shard(Key(key)) else { return };
        if let Some(known) = shard.keys().get_mut(&key) {
            let pause = PAUSE.min(self.rule.step.saturating_mul(self.rule.burst.get()) / 4);
            known.lease.answer(answer, self.now(), self.most_in_batch(), nanos(pause));
        }
        shard.news.notify_waiters();
    }

    pub(super) fn unanswered(&self, key: u64, ask: Option<Ask>) {
        let Some(shard) = self.shard(Key(key)) else { return };
        if let Some(known) = shard.keys().get_mut(&key) {
            known.lease.unanswered(ask, self.own_burst().get());
        }
        shard.news.notify_waiters();
    }

    /// Nothing that was asked is answered any more.
    pub(super) fn all_unanswered(&self) {
        for shard in &self.shards {
            for known in shard.keys().values_mut() {
                known.lease.unanswered(None, self.own_burst().get());
            }
            shard.news.notify_waiters();
        }
    }

    /// Lets go of the keys that nobody asks for. What is to be said of them is added to `said`, which stays below `most`.
    pub(super) fn sweep(&self, said: &mut Vec<(Digest, Ask)>, most: usize) {
        let now = self.now();
        for shard in &self.shards {
            shard.keys().retain(|_, known| {
                if !known.lease.is_idle(now, IDLE) {
                    return true;
                }
                match known.lease.settle() {
                    None => false,
                    Some(_) if said.len() >= most => true,
                    Some(ask) => {
                        said.push((known.digest, ask));
                        false
                    }
                }
            });
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.keys().len()).sum()
    }
}

impl Shard {
    fn keys(&self) -> MutexGuard<'_, HashMap<u64, Known, RandomState>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("rule", &self.limit.rule).finish_non_exhaustive()
    }
}
