//! Who talks most: the heaviest of any number of keys, in memory of a fixed size.
//!
//! A [`Sketch`] counts all, and a short list keeps those with the highest counts: whoever is estimated above the least
//! of them takes its place, and from then on is counted exactly. All counts are halved each half-life, so that they
//! tell of the last minute and not of the last month.

use super::gcra::Nanos;
use super::sketch::Sketch;

/// How long until a count weighs half.
const HALF_LIFE: Nanos = 30_000_000_000;
/// Characters of a label at most.
const LABEL: usize = 128;

/// See the module's text.
#[derive(Debug)]
pub struct Talkers {
    sketch: Sketch,
    /// How many are called top.
    count: usize,
    /// Twice as many are listed, so that one who comes and goes at the edge is not counted anew each time.
    listed: Vec<Talker>,
    total: u64,
    halved_at: Nanos,
}

/// One of those who talk most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Talker {
    key: u64,
    /// Counted of late.
    pub count: u64,
    /// What it is called.
    pub label: Box<str>,
}

impl Talkers {
    /// Nobody has said anything. `count` of them are called top.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let listed = Vec::with_capacity(count * 2);
        Self { sketch: Sketch::default(), count, listed, total: 0, halved_at: 0 }
    }

    /// Counts a key, a hash under a secret seed. `label` is asked for when the key gets into the list.
    pub fn add(&mut self, key: u64, times: u64, now: Nanos, label: impl FnOnce() -> String) {
        self.decay(now);
        self.total = self.total.saturating_add(times);
        let estimate = self.sketch.add(key, times);
        if let Some(talker) = self.listed.iter_mut().find(|talker| talker.key == key) {
            talker.count = talker.count.saturating_add(times);
            return;
        }
        let is_full = self.listed.len() >= self.count * 2;
        let least = self.listed.iter_mut().min_by_key(|talker| talker.count).filter(|_| is_full);
        let label = || label().chars().take(LABEL).collect();
        match least {
            Some(least) if least.count < estimate => *least = Talker { key, count: estimate, label: label() },
            Some(_) => {}
            None => self.listed.push(Talker { key, count: estimate, label: label() }),
        }
    }

    /// Whether a key is one of the top, and has a share worth the name: half of what each would have if they had all.
    #[must_use]
    pub fn is_top(&self, key: u64) -> bool {
        let Some(found) = self.listed.iter().find(|talker| talker.key == key) else { return false };
        let heavier = self.listed.iter().filter(|talker| talker.count > found.count).count();
        heavier < self.count && found.count.saturating_mul(2 * self.count as u64) >= self.total
    }

    /// The top, the heaviest first.
    pub fn top(&mut self, now: Nanos) -> Vec<Talker> {
        self.decay(now);
        let mut top = self.listed.clone();
        top.sort_by_key(|talker| std::cmp::Reverse(talker.count));
        top.truncate(self.count);
        top
    }

    /// All that was counted of late.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    fn decay(&mut self, now: Nanos) {
        let times = now.saturating_sub(self.halved_at) / HALF_LIFE;
        if times == 0 {
            return;
        }
        self.halved_at += times * HALF_LIFE;
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        let halved = |count: u64| count.checked_shr(times).unwrap_or(0);
        self.sketch.halve(times);
        self.total = halved(self.total);
        self.listed.iter_mut().for_each(|talker| talker.count = halved(talker.count));
        self.listed.retain(|talker| talker.count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::random_u64;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn add(talkers: &mut Talkers, key: u64, times: u64, now: Nanos) {
        talkers.add(key, times, now, || format!("key {key}"));
    }

    fn told(talkers: &mut Talkers, now: Nanos) -> Vec<(String, u64)> {
        talkers.top(now).into_iter().map(|talker| (talker.label.into(), talker.count)).collect()
    }

    #[test]
    fn the_heaviest_come_first_and_the_light_are_no_top() {
        let mut talkers = Talkers::new(2);
        for (key, times) in [(1, 500), (2, 90), (3, 300), (4, 5), (5, 5)] {
            add(&mut talkers, key, times, 0);
        }
        assert_eq!(told(&mut talkers, 0), [("key 1".into(), 500), ("key 3".into(), 300)]);
        assert_eq!([1, 2, 3, 4, 9].map(|key| talkers.is_top(key)), [true, false, true, false, false]);
        assert_eq!(talkers.total(), 900);
        let mut even = Talkers::new(2);
        (0..100).for_each(|key| add(&mut even, key, 3, 0));
        assert!((0..100).all(|key| !even.is_top(key)), "nobody stands out");
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut talkers = Talkers::new(2);
        add(&mut talkers, 1, 100, 0);
        add(&mut talkers, 2, 30, HALF_LIFE);
        assert_eq!(told(&mut talkers, HALF_LIFE), [("key 1".into(), 50), ("key 2".into(), 30)]);
        add(&mut talkers, 2, 30, 2 * HALF_LIFE);
        assert_eq!(told(&mut talkers, 2 * HALF_LIFE), [("key 2".into(), 45), ("key 1".into(), 25)]);
        assert_eq!(told(&mut talkers, 100 * HALF_LIFE), []);
        assert_eq!(talkers.total(), 0);
    }

    #[test]
    fn heavy_keys_are_found_among_many_strangers_in_memory_of_a_fixed_size() {
        let mut talkers = Talkers::new(5);
        let heavy: Vec<u64> = (0..5).map(|_| random_u64()).collect();
        for round in 0..200_000_usize {
            add(&mut talkers, random_u64(), 1, 0);
            if round.is_multiple_of(10) {
                add(&mut talkers, heavy[round / 10 % 5], 1, 0);
            }
        }
        let top = talkers.top(0);
        assert_eq!(top.len(), 5);
        assert!(heavy.iter().all(|key| top.iter().any(|talker| talker.key == *key)), "{top:?}");
        assert!(talkers.listed.len() <= 10 && talkers.listed.capacity() <= 16);
    }

    #[test]
    fn a_label_has_a_bound() {
        let mut talkers = Talkers::new(1);
        talkers.add(1, 1, 0, || "é".repeat(10_000));
        assert_eq!(talkers.top(0)[0].label.chars().count(), LABEL);
    }

    proptest! {
        #[test]
        fn whoever_has_more_than_the_rest_is_top(
            others in prop::collection::vec(2_u64..500, 1..400),
            at in 0_usize..400,
        ) {
            let mut talkers = Talkers::new(3);
            let mut exact: HashMap<u64, u64> = HashMap::new();
            for (place, other) in others.iter().enumerate() {
                add(&mut talkers, *other, 1, 0);
                *exact.entry(*other).or_default() += 1;
                if place == at % others.len() {
                    add(&mut talkers, 1, others.len() as u64 + 1, 0);
                }
            }
            prop_assert!(talkers.is_top(1));
            let first = &talkers.top(0)[0];
            prop_assert!(first.key == 1 && first.count > others.len() as u64);
            for talker in talkers.top(0) {
                prop_assert!(talker.key == 1 || talker.count >= exact[&talker.key]);
            }
        }
    }
}
