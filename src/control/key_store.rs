//! Remembers the state of many rate-limited keys in memory of a fixed size.
//!
//! Built like a processor's cache: a key may lie in one set of sixteen slots, chosen by its hash, and a key that finds
//! its set full takes the place of the one with the smallest state. The state is the bucket's theoretical arrival time
//! (TAT), so that the smallest belongs to the fullest bucket, and to forget it gives away least: while a million
//! strangers pass, whoever has used up a limit stays limited. Nothing is ever swept, nothing grows, and no call does
//! more than look at sixteen slots.
//!
//! While no more than half of the capacity is in active use, fewer than one key in a thousand meets a full set; near
//! the capacity it is one in ten.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use governor::nanos::Nanos;
use governor::state::StateStore;

/// A hash of what is counted, under a secret seed: a client that could choose it could crowd one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub [u64; 2]);

/// Is told what happens to the keys.
pub trait Notice {
    /// One more key is remembered.
    fn added(&self) {}
    /// A key with the state `lost` made room for one with the state `gained`.
    fn replaced(&self, _lost: Nanos, _gained: Nanos) {}
}

impl Notice for () {}

/// See the module's text. A cheap clone; all clones are one store.
pub struct KeyStore<N = ()>(Arc<Inner<N>>);

struct Inner<N> {
    /// Each a whole number of sets, and all of the same length.
    shards: Vec<Mutex<Vec<Slot>>>,
    ways: usize,
    notice: N,
}

/// Twenty-four bytes a key. An empty slot has the state 0, which no key has: so it is taken before any other.
#[derive(Clone, Copy, Default)]
struct Slot {
    key: [u64; 2],
    state: u64,
}

const SHARDS: usize = 16;
const WAYS: usize = 16;

impl<N: Notice> KeyStore<N> {
    /// A store for about `capacity` keys and never more, at least one. All its memory is taken now.
    pub fn new(capacity: usize, notice: N) -> Self {
        let ways = capacity.clamp(1, WAYS);
        let sets = (capacity / ways).max(1);
        let shards = sets.min(SHARDS);
        let slots = sets / shards * ways;
        Self(Arc::new(Inner {
            shards: (0..shards).map(|_| Mutex::new(vec![Slot::default(); slots])).collect(),
            ways,
            notice,
        }))
    }

    /// The state of `key`, if it is remembered.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Nanos> {
        self.with_set(key, |set| held(set, key).map(|slot| Nanos::new(slot.state)))
    }

    /// Undoes a use of `key` that moved its state forward by `step`. What happened in between stays valid: each use
    /// adds its own step.
    pub fn give_back(&self, key: &Key, step: Nanos) {
        self.with_set(key, |set| {
            if let Some(slot) = held(set, key) {
                slot.state = slot.state.saturating_sub(step.as_u64()).max(1);
            }
        });
    }

    /// How many keys are remembered. Looks at every slot.
    #[must_use]
    pub fn len(&self) -> usize {
        let used = |shard: &Mutex<Vec<Slot>>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.iter().filter(|slot| slot.state != 0).count()
        };
        self.0.shards.iter().map(used).sum()
    }

    /// Whether no key is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn with_set<R>(&self, key: &Key, work: impl FnOnce(&mut [Slot]) -> R) -> R {
        let Key([high, low]) = *key;
        let Some(shard) = self.0.shards.get(scale(high, self.0.shards.len())) else { return work(&mut []) };
        let mut slots = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let first = scale(low, slots.len() / self.0.ways) * self.0.ways;
        work(slots.get_mut(first..first + self.0.ways).unwrap_or_default())
    }
}

fn held<'a>(set: &'a mut [Slot], key: &Key) -> Option<&'a mut Slot> {
    set.iter_mut().find(|slot| slot.key == key.0 && slot.state != 0)
}

/// Maps a hash to `0..count` evenly.
fn scale(hash: u64, count: usize) -> usize {
    usize::try_from((u128::from(hash) * count as u128) >> 64).unwrap_or(0)
}

impl<N: Notice> StateStore for KeyStore<N> {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.with_set(key, |set| {
            if let Some(slot) = held(set, key) {
                let (outcome, state) = decide(Some(Nanos::new(slot.state)))?;
                slot.state = state.as_u64();
                return Ok(outcome);
            }
            let (outcome, state) = decide(None)?;
            if let Some(slot) = set.iter_mut().min_by_key(|slot| slot.state) {
                match slot.state {
                    0 => self.0.notice.added(),
                    lost => self.0.notice.replaced(Nanos::new(lost), state),
                }
                *slot = Slot { key: key.0, state: state.as_u64() };
            }
            Ok(outcome)
        })
    }
}

impl<N> Clone for KeyStore<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<N> fmt::Debug for KeyStore<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStore").field("shards", &self.0.shards.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::random_u64;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[derive(Default)]
    struct Tally {
        added: AtomicUsize,
        replaced: AtomicUsize,
    }

    impl Notice for Arc<Tally> {
        fn added(&self) {
            self.added.fetch_add(1, Relaxed);
        }
        fn replaced(&self, lost: Nanos, gained: Nanos) {
            assert!(lost.as_u64() > 0 && gained.as_u64() > 0);
            self.replaced.fetch_add(1, Relaxed);
        }
    }

    fn random() -> Key {
        Key([random_u64(), random_u64()])
    }

    fn put<N: Notice>(store: &KeyStore<N>, key: Key, state: u64) -> Option<Nanos> {
        let replace = |old| Ok::<_, Infallible>((old, Nanos::new(state)));
        let Ok(old) = store.measure_and_replace(&key, replace);
        old
    }

    #[test]
    fn a_key_keeps_its_state_until_it_is_replaced() {
        let store = KeyStore::new(1000, ());
        let (one, two) = (random(), random());
        assert_eq!(put(&store, one, 5), None);
        assert_eq!(put(&store, two, 6), None);
        assert_eq!(put(&store, one, 9), Some(Nanos::new(5)));
        assert_eq!(store.get(&one), Some(Nanos::new(9)));
        store.give_back(&one, Nanos::new(2));
        assert_eq!(store.get(&one), Some(Nanos::new(7)));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn a_refusal_changes_nothing() {
        let store = KeyStore::new(1000, ());
        let key = random();
        assert_eq!(store.measure_and_replace(&key, |_| Err::<((), Nanos), _>("no")), Err("no"));
        assert!(store.is_empty());
    }

    #[test]
    fn it_never_holds_more_than_its_capacity_and_uses_most_of_it() {
        for capacity in [0, 1, 7, 16, 17, 300, 10_000] {
            let tally = Arc::new(Tally::default());
            let store = KeyStore::new(capacity, Arc::clone(&tally));
            for state in 1..=40_000 {
                put(&store, random(), state);
            }
            let len = store.len();
            assert!(len <= capacity.max(1) && len * 10 >= capacity * 8, "{len} of {capacity}");
            assert_eq!(tally.added.load(Relaxed), len);
            assert_eq!(tally.replaced.load(Relaxed), 40_000 - len);
        }
    }

    #[test]
    fn half_full_it_forgets_next_to_nothing() {
        let tally = Arc::new(Tally::default());
        let store = KeyStore::new(100_000, Arc::clone(&tally));
        for _ in 0..50_000 {
            put(&store, random(), 1);
        }
        assert!(tally.replaced.load(Relaxed) < 70, "{}", tally.replaced.load(Relaxed));
    }

    #[test]
    fn the_fullest_bucket_goes_first() {
        let store = KeyStore::new(1000, ());
        let abuser = random();
        put(&store, abuser, 2_000_000);
        for state in 1..=100_000 {
            put(&store, random(), state);
        }
        assert_eq!(store.get(&abuser), Some(Nanos::new(2_000_000)));
    }
}
