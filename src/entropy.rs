//! Random numbers for ids and jitter, cheap and per thread. Not for secrets: whoever sees a few outputs can tell the next.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};

thread_local!(static STATE: Cell<[u64; 2]> = Cell::new(seed()));

/// 128 random bits.
#[must_use]
pub fn random_u128() -> u128 {
    u128::from(random_u64()) << 64 | u128::from(random_u64())
}

/// 64 random bits.
#[must_use]
pub fn random_u64() -> u64 {
    STATE.with(|state| {
        let (result, next) = step(state.get());
        state.set(next);
        result
    })
}

/// A number from 0 up to, not including, 1.
#[must_use]
pub fn unit() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
    let numerator = (random_u64() >> 11) as f64;
    numerator / 9_007_199_254_740_992.0
}

/// xoroshiro128++. Its state is 128 bits wide, so that the sequences of many threads and processes do not meet: two
/// that met would repeat each other's ids from there on.
fn step([low, high]: [u64; 2]) -> (u64, [u64; 2]) {
    let result = low.wrapping_add(high).rotate_left(17).wrapping_add(low);
    let mixed = high ^ low;
    (result, [low.rotate_left(49) ^ mixed ^ (mixed << 21), mixed.rotate_left(28)])
}

/// From the operating system's randomness, by way of the keys that std gives its hash maps. Never all zero, a state
/// from which the generator would not move.
fn seed() -> [u64; 2] {
    [RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8) | 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_sequence_is_that_of_the_published_generator() {
        let (first, state) = step([1, 2]);
        let (second, state) = step(state);
        let (third, _) = step(state);
        assert_eq!([first, second, third], [393_217, 669_327_710_093_319, 1_732_421_326_133_921_491]);
    }

    #[test]
    fn threads_draw_different_numbers() {
        let draw = || (0..10_000).map(|_| random_u128()).collect::<Vec<_>>();
        let other = std::thread::spawn(draw).join().expect("no panic");
        let all: HashSet<u128> = draw().into_iter().chain(other).collect();
        assert_eq!(all.len(), 20_000);
    }

    #[test]
    fn every_bit_is_used() {
        let (mut ones, mut zeros) = (0, 0);
        for _ in 0..200 {
            let drawn = random_u128();
            ones |= drawn;
            zeros |= !drawn;
        }
        assert_eq!((ones, zeros), (u128::MAX, u128::MAX));
    }

    #[test]
    fn unit_stays_in_its_interval() {
        let numbers: Vec<_> = (0..10_000).map(|_| unit()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        assert!((numbers.iter().sum::<f64>() / 10_000.0 - 0.5).abs() < 0.05);
    }
}
