//! Remembers the state of many rate-limited keys in memory of a fixed size.
//!
//! Built like a processor's cache: a key may lie in one set of sixteen slots, chosen by its hash, and a key that finds
//! its set full takes the place of the one with the smallest state. The state is the time at which the bucket is full
//! again, so that the smallest belongs to the fullest bucket, and to forget it gives away least: while a million
//! strangers pass, whoever has used up a limit stays limited. Nothing is ever swept, nothing grows, and no call does
//! more than look at sixteen slots.
//!
//! While no more than half of the capacity is in active use, fewer than one key in a thousand meets a full set; near
//! the capacity it is one in ten.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A hash of what is counted, under a secret seed: a client that could choose it could crowd one set, or share the
/// bucket of another. That two of a million keys share one by chance is less likely than one in ten million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub u64);

/// How a key came by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It was remembered.
    Kept,
    /// It took an empty one.
    Empty,
    /// A key of this state was forgotten for it.
    Taken(u64),
}

/// See the module's text.
pub struct KeyStore {
    /// Each a whole number of sets, and all of the same length.
    shards: Vec<Mutex<Vec<Slot>>>,
    ways: usize,
}

/// Sixteen bytes a key. An empty slot has the state 0, which no key has: so it is taken before any other.
#[derive(Clone, Copy, Default)]
struct Slot {
    key: u64,
    state: u64,
}

const SHARDS: usize = 16;
const WAYS: usize = 16;

impl KeyStore {
    /// A store for about `capacity` keys and never more, at least one. All its memory is taken now.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let ways = capacity.clamp(1, WAYS);
        let sets = (capacity / ways).max(1);
        let shards = sets.min(SHARDS);
        let slots = sets / shards * ways;
        Self { shards: (0..shards).map(|_| Mutex::new(vec![Slot::default(); slots])).collect(), ways }
    }

    /// The state of `key`, if it is remembered.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<u64> {
        self.with_set(key, |set| held(set, key).map(|slot| slot.state))
    }

    /// Gives `key` the state that `decide` makes of the one it has, if any; an error changes nothing.
    pub fn update<E>(&self, key: Key, decide: impl FnOnce(Option<u64>) -> Result<u64, E>) -> Result<(u64, Place), E> {
        self.with_set(key, |set| {
            if let Some(slot) = held(set, key) {
                slot.state = decide(Some(slot.state))?.max(1);
                return Ok((slot.state, Place::Kept));
            }
            let state = decide(None)?.max(1);
            let mut place = Place::Empty;
            if let Some(slot) = set.iter_mut().min_by_key(|slot| slot.state) {
                if slot.state != 0 {
                    place = Place::Taken(slot.state);
                }
                *slot = Slot { key: key.0, state };
            }
            Ok((state, place))
        })
    }

    /// The same for a key that may have been forgotten, and then stays so.
    pub fn update_if_kept(&self, key: Key, change: impl FnOnce(u64) -> u64) {
        self.with_set(key, |set| {
            if let Some(slot) = held(set, key) {
                slot.state = change(slot.state).max(1);
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
        self.shards.iter().map(used).sum()
    }

    /// Whether no key is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn with_set<R>(&self, key: Key, work: impl FnOnce(&mut [Slot]) -> R) -> R {
        let (shard, rest) = scale(key.0, self.shards.len());
        let Some(shard) = self.shards.get(shard) else { return work(&mut []) };
        let mut slots = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let (set, _) = scale(rest, slots.len() / self.ways);
        let first = set * self.ways;
        work(slots.get_mut(first..first + self.ways).unwrap_or_default())
    }
}

fn held(set: &mut [Slot], key: Key) -> Option<&mut Slot> {
    set.iter_mut().find(|slot| slot.key == key.0 && slot.state != 0)
}

/// Maps a hash to `0..count` evenly. What is left of it is good for another choice.
fn scale(hash: u64, count: usize) -> (usize, u64) {
    let wide = u128::from(hash) * count as u128;
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    let rest = wide as u64;
    (usize::try_from(wide >> 64).unwrap_or(0), rest)
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStore").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::random_u64;
    use std::convert::Infallible;

    fn random() -> Key {
        Key(random_u64())
    }

    fn put(store: &KeyStore, key: Key, state: u64) -> (Option<u64>, Place) {
        let mut old = None;
        let Ok((_, place)) = store.update(key, |found| {
            old = found;
            Ok::<_, Infallible>(state)
        });
        (old, place)
    }

    #[test]
    fn a_key_keeps_its_state_until_it_is_replaced() {
        let store = KeyStore::new(1000);
        let (one, two) = (random(), random());
        assert_eq!(put(&store, one, 5), (None, Place::Empty));
        assert_eq!(put(&store, two, 6), (None, Place::Empty));
        assert_eq!(put(&store, one, 9), (Some(5), Place::Kept));
        assert_eq!(store.get(one), Some(9));
        store.update_if_kept(one, |state| state - 2);
        assert_eq!(store.get(one), Some(7));
        store.update_if_kept(random(), |_| 1);
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn a_refusal_changes_nothing() {
        let store = KeyStore::new(1000);
        assert_eq!(store.update(random(), |_| Err("no")), Err("no"));
        assert!(store.is_empty());
    }

    #[test]
    fn it_never_holds_more_than_its_capacity_and_uses_most_of_it() {
        for capacity in [0, 1, 7, 16, 17, 300, 10_000] {
            let store = KeyStore::new(capacity);
            let mut taken = 0;
            for state in 1..=40_000 {
                taken += usize::from(matches!(put(&store, random(), state).1, Place::Taken(_)));
            }
            let len = store.len();
            assert!(len <= capacity.max(1) && len * 10 >= capacity * 8, "{len} of {capacity}");
            assert_eq!(taken, 40_000 - len);
        }
    }

    #[test]
    fn half_full_it_forgets_next_to_nothing() {
        let store = KeyStore::new(100_000);
        let taken = (0..50_000).filter(|_| put(&store, random(), 1).1 == Place::Taken(1)).count();
        // Forty on the average, and ten more or less.
        assert!(taken < 100, "{taken}");
    }

    #[test]
    fn the_fullest_bucket_goes_first() {
        let store = KeyStore::new(1000);
        let abuser = random();
        put(&store, abuser, 2_000_000);
        for state in 1..=100_000 {
            put(&store, random(), state);
        }
        assert_eq!(store.get(abuser), Some(2_000_000));
    }
}
