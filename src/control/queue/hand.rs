//! Which of a fixed number of queues a key may stand in: shuffle sharding.
//!
//! Each key is dealt a small hand of them, and stands in the shortest. Two keys seldom have the same hand, so one that
//! fills all of its queues leaves others somewhere else to stand. It takes the same memory for any number of keys.

use std::num::NonZeroU16;

/// Queues that a key may stand in, at most.
const LARGEST: usize = 8;

/// How many queues there are, and how many of them a key is dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hands {
    queues: NonZeroU16,
    hand: usize,
}

impl Hands {
    /// Two of 64: enough to tell a few hundred clients apart.
    #[must_use]
    pub fn for_strangers() -> Self {
        Self::new(NonZeroU16::MIN.saturating_add(63), 2)
    }

    /// At most eight queues to a hand, and as many as there are.
    #[must_use]
    pub fn new(queues: NonZeroU16, hand: usize) -> Self {
        Self { queues, hand: hand.clamp(1, LARGEST.min(usize::from(queues.get()))) }
    }

    /// The hand of a key, which has been hashed under a secret seed.
    pub(super) fn deal(self, key: u64) -> impl Iterator<Item = u64> {
        let (mut dealt, mut luck) = ([u64::MAX; LARGEST], key);
        let left = self.queues.get();
        for (count, place) in (0_u64..).zip(dealt.iter_mut().take(self.hand)) {
            // A draw without putting back, as a draw from those that are left: each one dealt before that is not
            // greater is stepped over.
            let among = u64::from(left) - count;
            *place = luck % among;
            luck = mix((luck / among) ^ key.rotate_left(32));
        }
        spread(&mut dealt, self.hand);
        dealt.into_iter().take(self.hand)
    }
}

/// Turns places among those left into numbers of queues.
fn spread(dealt: &mut [u64; LARGEST], hand: usize) {
    let mut known = [u64::MAX; LARGEST];
    for (count, place) in dealt.iter_mut().take(hand).enumerate() {
        for taken in known.iter().take(count) {
            if *taken <= *place {
                *place += 1;
            }
        }
        if let Some(free) = known.get_mut(count) {
            *free = *place;
        }
        known.sort_unstable();
    }
}

/// The last step of `SplitMix64`.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn hands(queues: u16, hand: usize) -> Hands {
        Hands::new(NonZeroU16::new(queues).unwrap(), hand)
    }

    #[test]
    fn a_hand_has_different_queues_that_are_there_and_is_always_the_same() {
        for (queues, hand) in [(1, 1), (2, 2), (3, 8), (8, 8), (64, 2), (64, 8), (1000, 4)] {
            let hands = hands(queues, hand);
            for key in 0..1000 {
                let key = mix(key);
                let dealt: Vec<_> = hands.deal(key).collect();
                let unique: HashSet<_> = dealt.iter().collect();
                assert_eq!((dealt.len(), unique.len()), (hands.hand, hands.hand), "{dealt:?}");
                assert!(dealt.iter().all(|queue| *queue < u64::from(queues)), "{dealt:?}");
                assert_eq!(dealt, hands.deal(key).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn queues_are_dealt_evenly_and_few_share_a_whole_hand() {
        let hands = hands(64, 4);
        let mut counts = [0; 64];
        let mut seen = HashSet::new();
        for key in 0..16_000 {
            let mut dealt: Vec<_> = hands.deal(mix(key + 1)).collect();
            for queue in &dealt {
                counts[usize::try_from(*queue).unwrap()] += 1;
            }
            dealt.sort_unstable();
            seen.insert(dealt);
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        assert!(seen.len() > 15_600, "{} hands", seen.len());
    }
}
