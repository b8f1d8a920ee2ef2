//! How much the proxy turns away when it is too busy itself, by how late its own tasks run.
//!
//! The rule is that of controlled delay (Nichols and Jacobson, RFC 8289): a burst makes tasks late for a moment, and
//! only a delay that never falls below the bound for a whole window is one that stands. Each window in which it stands
//! raises the level, the more the longer the delay, and each in which it has fallen lowers it; so what is turned away
//! grows until tasks run in time, and shrinks slowly enough not to swing. A process that was stopped for a while has
//! been late once, and that is no window.

use std::time::Duration;

use tokio::time::Instant;

use crate::context::Priority;

/// A delay that does not fall below the bound for so long stands.
const WINDOW: Duration = Duration::from_secs(1);
/// And it was seen so often.
const LEAST_SAMPLES: u32 = 3;
/// What one window adds to the level or takes from it; four times as much is added at four times the bound and above.
const STEP: u32 = WHOLE / 4;
/// All requests of a priority.
pub const WHOLE: u32 = 1000;

/// Follows one delay.
#[derive(Debug, Default)]
pub struct Overload {
    window: Option<Window>,
    level: Level,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    samples: u32,
    least: Duration,
}

/// What is turned away, in thousandths of a priority: from 0, nothing, over 1000, all of [`Priority::Background`], and
/// 2000, all of [`Priority::Default`] as well, to 3000, everything that is not protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub u32);

impl Level {
    /// Of a [`WHOLE`] of requests of this priority, those that are turned away.
    #[must_use]
    pub fn share(self, priority: Priority) -> u32 {
        let before = match priority {
            Priority::Background => 0,
            Priority::Default => WHOLE,
            Priority::Critical => 2 * WHOLE,
            Priority::Protected => return 0,
        };
        self.0.saturating_sub(before).min(WHOLE)
    }

    /// Whether anything is turned away.
    #[must_use]
    pub fn is_shedding(self) -> bool {
        self.0 > 0
    }
}

impl Overload {
    /// Takes note that a task ran so late, and tells the level. `bound` is what may stand.
    pub fn sample(&mut self, now: Instant, late: Duration, bound: Duration) -> Level {
        let window = self.window.get_or_insert(Window { began: now, samples: 0, least: late });
        window.samples += 1;
        window.least = window.least.min(late);
        if window.samples >= LEAST_SAMPLES && now.duration_since(window.began) >= WINDOW {
            self.level = Level(moved(self.level.0, window.least, bound));
            self.window = None;
        }
        self.level
    }
}

/// The level after a window in which the delay never fell below `least`.
fn moved(level: u32, least: Duration, bound: Duration) -> u32 {
    if least < bound / 2 {
        level.saturating_sub(STEP)
    } else if least < bound {
        level
    } else {
        let times = least.as_micros() * u128::from(STEP) / bound.as_micros().max(1);
        let step = u32::try_from(times).unwrap_or(u32::MAX).min(4 * STEP);
        (level + step).min(3 * WHOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: Duration = Duration::from_millis(250);
    const TICK: Duration = Duration::from_millis(100);

    const ALL: [u32; 4] = [WHOLE, WHOLE, WHOLE, 0];

    struct World {
        overload: Overload,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { overload: Overload::default(), now: Instant::now() }
        }

        /// Ticks that come so late, for so many of them.
        fn late(&mut self, millis: u64, ticks: u32) -> Level {
            let late = Duration::from_millis(millis);
            (0..ticks).fold(self.overload.level, |_, _| {
                self.now += TICK + late;
                self.overload.sample(self.now, late, BOUND)
            })
        }
    }

    fn shares(level: Level) -> [u32; 4] {
        Priority::ALL.map(|priority| level.share(priority))
    }

    #[test]
    fn what_does_not_stand_sheds_nothing() {
        let mut world = World::new();
        for _ in 0..100 {
            // Two late ticks and one in time, over and over: bursts.
            world.late(400, 2);
            assert!(!world.late(1, 1).is_shedding());
        }
        assert!(!world.late(200, 100).is_shedding(), "below the bound");
    }

    #[test]
    fn a_process_that_was_stopped_was_late_once() {
        let mut world = World::new();
        world.late(0, 50);
        world.late(60_000, 1);
        assert!(!world.late(0, 50).is_shedding());
    }

    #[test]
    fn the_least_goes_first_and_the_protected_never() {
        let mut world = World::new();
        let mut seen = Vec::new();
        for _ in 0..200 {
            seen.push(shares(world.late(300, 1)));
        }
        assert!(seen.is_sorted_by(|a, b| a <= b), "it only grows while the delay stands");
        for [background, default, critical, protected] in &seen {
            let in_turn = (*critical == 0 || *default == WHOLE) && (*default == 0 || *background == WHOLE);
            assert!(in_turn && *protected == 0);
        }
        assert_eq!(*seen.last().unwrap(), ALL);
        assert_eq!(seen.iter().filter(|share| share[0] == 0).count(), 3, "the first window has to end");
    }

    #[test]
    fn it_ends_when_tasks_run_in_time() {
        let mut world = World::new();
        world.late(2000, 20);
        assert_eq!(shares(world.overload.level), ALL);
        world.late(200, 50);
        assert_eq!(shares(world.overload.level), ALL, "between half the bound and the bound it stays");
        let before = world.now;
        while world.overload.level.is_shedding() {
            world.late(1, 1);
        }
        assert!(world.now - before <= Duration::from_secs(16), "{:?}", world.now - before);
    }

    #[test]
    fn it_settles_where_the_delay_does() {
        // A proxy whose delay falls with what it turns away: 1 s at full load, nothing once 60 % are gone.
        let mut world = World::new();
        let mut levels = Vec::new();
        for _ in 0..2000 {
            let late = 1000 - 1000 * u64::from(world.overload.level.0.min(1800)) / 1800;
            levels.push(world.late(late, 1));
        }
        let last = &levels[1000..];
        let (low, high) = (last.iter().min().unwrap().0, last.iter().max().unwrap().0);
        assert!(low > 1000 && high < 2500 && high - low <= 500, "{low} to {high}");
    }

    proptest! {
        #[test]
        fn shares_are_shares(samples in proptest::collection::vec((0_u64..5000, 1_u32..20), 0..50)) {
            let mut world = World::new();
            for (millis, ticks) in samples {
                let level = world.late(millis, ticks);
                prop_assert!(level.0 <= 3 * WHOLE && shares(level).iter().sum::<u32>() == level.0);
            }
        }
    }
}
