//! Count-Min: how often each of any number of keys was seen, in memory of a fixed size, never told too low.
//!
//! Four rows of counters; a key has one in each, chosen by its hash, and shares it with others. The least of its four
//! is nearest to the truth, and only counters that are below the new estimate are raised (conservative update: Estan
//! and Varghese, 2002). With the width below an estimate is too high by a two-thousandth of all that was counted in
//! less than one key of fifty, and so it may *suggest* who is heavy, but nobody is refused by it alone.

const ROWS: usize = 4;
/// Counters in a row; two bytes of a hash choose one.
const WIDTH: usize = 1 << 12;

/// See the module's text. It takes 128 KiB.
#[derive(Debug)]
pub struct Sketch {
    rows: [Box<[u64]>; ROWS],
}

impl Default for Sketch {
    fn default() -> Self {
        Self { rows: std::array::from_fn(|_| vec![0; WIDTH].into()) }
    }
}

impl Sketch {
    /// Counts a key so many times, and estimates how often that was so far. The key is a hash under a secret seed.
    pub fn add(&mut self, key: u64, times: u64) -> u64 {
        let estimate = self.estimate(key).saturating_add(times);
        for (row, place) in self.rows.iter_mut().zip(places(key)) {
            if let Some(counter) = row.get_mut(place) {
                *counter = estimate.max(*counter);
            }
        }
        estimate
    }

    /// How often a key was counted, or more.
    #[must_use]
    pub fn estimate(&self, key: u64) -> u64 {
        let counters = self.rows.iter().zip(places(key)).filter_map(|(row, place)| row.get(place));
        counters.copied().min().unwrap_or(0)
    }

    /// Divides all that was counted by two, so many times.
    pub fn halve(&mut self, times: u32) {
        let halve = |counter: &mut u64| *counter = counter.checked_shr(times).unwrap_or(0);
        self.rows.iter_mut().flat_map(|row| row.iter_mut()).for_each(halve);
    }
}

fn places(key: u64) -> impl Iterator<Item = usize> {
    [0, 16, 32, 48].into_iter().map(move |shift| usize::try_from(key >> shift & 0xFFFF).unwrap_or(0) % WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::random_u64;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn few_keys_are_counted_exactly() {
        let mut sketch = Sketch::default();
        assert_eq!([sketch.add(1, 2), sketch.add(2 << 16, 5), sketch.add(1, 1)], [2, 5, 3]);
        sketch.halve(1);
        assert_eq!((sketch.estimate(1), sketch.estimate(2 << 16)), (1, 2));
        sketch.halve(64);
        assert_eq!(sketch.estimate(2 << 16), 0);
    }

    #[test]
    fn a_hundred_thousand_strangers_hide_no_heavy_key_and_make_none() {
        let mut sketch = Sketch::default();
        let heavy = random_u64();
        let mut wrong = 0;
        for round in 0..100_000_u64 {
            sketch.add(heavy, 1);
            let stranger = random_u64();
            sketch.add(stranger, 1);
            wrong += u64::from(sketch.estimate(stranger) > 1 + round / 1000);
        }
        let estimate = sketch.estimate(heavy);
        assert!((100_000..100_200).contains(&estimate), "{estimate}");
        assert!(wrong < 2000, "{wrong}");
    }

    proptest! {
        #[test]
        fn no_key_is_told_too_low(keys in prop::collection::vec((0_u64..40, 1_u64..9), 1..300)) {
            let mut sketch = Sketch::default();
            let mut exact: HashMap<u64, u64> = HashMap::new();
            for (key, times) in keys {
                // So that keys meet in most rows.
                let key = key * 0x0001_1000_1001_1000;
                *exact.entry(key).or_default() += times;
                prop_assert!(sketch.add(key, times) >= exact[&key]);
            }
            for (key, times) in &exact {
                prop_assert!(sketch.estimate(*key) >= *times);
            }
        }
    }
}
