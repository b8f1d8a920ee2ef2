//! A limit that is raised for a while, by a schedule or by hand: its clock runs faster.
//!
//! A bucket is refilled evenly in time. While its limit is raised, its time passes so many times faster; nothing else
//! changes, and no bucket is touched. So a raise may begin, fall and end at any moment, and over any stretch of it a
//! bucket gives at most its burst and what was refilled meanwhile, exactly.
//!
//! At the end a raise falls back in small steps, halfway between their ends, so that who came with it is not all
//! refused at once. Where several raises meet, the highest counts.

use std::time::Duration;

use super::gcra::{Nanos, nanos};

/// A factor in thousandths; at least one whole.
pub type Permille = u32;

/// The usual pace.
pub const USUAL: Permille = 1000;

const SECOND: Nanos = 1_000_000_000;
const DAY: Nanos = 24 * 3600 * SECOND;
const WEEK: Nanos = 7 * DAY;
/// The first of January 1970 was a Thursday.
const FIRST_DAY: Nanos = 3 * DAY;
/// In how many steps a raise falls, if each is a second or more.
const STEPS: Nanos = 64;
/// How long another reading of the wall clock may go unnoticed.
const TRUST: Nanos = 60 * SECOND;
/// Changes of pace that a forecast looks at; what comes after them is told at the usual pace.
const FORECAST: usize = 256;

/// Hours of some days of the week, in UTC, in which a limit is raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Bit 0 is Monday. The day counts on which it begins.
    pub days: u8,
    /// Time of day.
    pub from: Duration,
    /// At most a day.
    pub length: Duration,
    /// How much faster.
    pub factor: Permille,
    /// How long it falls afterwards; at most a day.
    pub ramp: Duration,
}

/// A raise by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// How much faster.
    pub factor: Permille,
    /// For how long.
    pub length: Duration,
    /// How long it falls afterwards.
    pub ramp: Duration,
}

/// The time of a limit. Times are [`Nanos`] since an origin of the owner's.
#[derive(Clone, Debug)]
pub struct Pace {
    windows: Box<[Window]>,
    /// With its beginning.
    raise: Option<(Nanos, Raise)>,
    /// What to add to a time for the wall's, which is counted from 1970; wraps.
    wall: Nanos,
    piece: Piece,
}

/// A stretch of even pace.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: Nanos,
    until: Nanos,
    factor: Permille,
    /// The limit's own time at `from`.
    paced: Nanos,
}

impl Piece {
    fn paced_at(&self, now: Nanos) -> Nanos {
        let passed = u128::from(now.saturating_sub(self.from)) * u128::from(self.factor) / u128::from(USUAL);
        self.paced.saturating_add(u64::try_from(passed).unwrap_or(Nanos::MAX))
    }

    /// When the limit's own time is `paced`.
    fn reaches(&self, paced: Nanos) -> Nanos {
        let missing = u128::from(paced.saturating_sub(self.paced)) * u128::from(USUAL);
        let time = missing.div_ceil(u128::from(self.factor.max(1)));
        self.from.saturating_add(u64::try_from(time).unwrap_or(Nanos::MAX))
    }
}

impl Pace {
    /// A clock that shows `now` at `now`.
    #[must_use]
    pub fn new(windows: impl Into<Box<[Window]>>, now: Nanos) -> Self {
        let piece = Piece { from: now, until: now, factor: USUAL, paced: now };
        Self { windows: windows.into(), raise: None, wall: 0, piece }
    }

    /// What it shows. `wall` is asked once a minute at most. A time before the last one asked for may be told late.
    pub fn at(&mut self, now: Nanos, wall: impl FnOnce() -> Nanos) -> Nanos {
        if now >= self.piece.until {
            self.wall = wall().wrapping_sub(now);
            while now >= self.piece.until {
                let piece = self.next(&self.piece);
                // What is ahead is looked at again after a while, since the wall clock may be set.
                self.piece = Piece { until: piece.until.min(piece.from.max(now).saturating_add(TRUST)), ..piece };
            }
        }
        self.piece.paced_at(now)
    }

    /// When it will show `paced`, as far as it is known at the last time asked for.
    #[must_use]
    pub fn reaches(&self, paced: Nanos) -> Nanos {
        let mut piece = self.piece;
        for _ in 0..FORECAST {
            let at = piece.reaches(paced);
            if at <= piece.until {
                return at;
            }
            piece = self.next(&piece);
        }
        Piece { factor: USUAL, ..piece }.reaches(paced)
    }

    /// The pace at the last time asked for.
    #[must_use]
    pub fn factor(&self) -> Permille {
        self.piece.factor
    }

    /// Raises the limit by hand, in place of what was raised by hand before.
    pub fn raise(&mut self, raise: Raise, now: Nanos, wall: impl FnOnce() -> Nanos) {
        self.begin_anew(now, wall);
        self.raise = Some((now, raise));
        self.piece.until = now;
    }

    /// Lets what was raised by hand fall from here on; whether there was anything.
    pub fn lower(&mut self, now: Nanos, wall: impl FnOnce() -> Nanos) -> bool {
        self.begin_anew(now, wall);
        self.piece.until = now;
        let Some((began, raise)) = &mut self.raise else { return false };
        let passed = Duration::from_nanos(now.saturating_sub(*began));
        let was_up = passed < raise.length;
        raise.length = raise.length.min(passed);
        was_up
    }

    /// When the raise by hand begins to fall, and when it is over; none when there is none.
    #[must_use]
    pub fn raised_until(&self, now: Nanos) -> Option<(Nanos, Nanos)> {
        let (began, raise) = self.raise?;
        let top = began.saturating_add(nanos(raise.length));
        let end = top.saturating_add(nanos(raise.ramp));
        (now < end).then_some((top, end))
    }

    /// Begins a piece at `now`, or where the last one begins if that is later.
    fn begin_anew(&mut self, now: Nanos, wall: impl FnOnce() -> Nanos) {
        let paced = self.at(now, wall);
        let from = now.max(self.piece.from);
        self.piece = Piece { from, paced, ..self.piece };
    }

    /// What follows a piece.
    fn next(&self, last: &Piece) -> Piece {
        let from = last.until;
        let mut factor = USUAL;
        let mut lasts = Nanos::MAX;
        let mut meet = |(height, time): (Permille, Nanos)| {
            factor = factor.max(height);
            lasts = lasts.min(time);
        };
        if let Some((began, raise)) = self.raise
            && let Some(level) = level(raise.factor, nanos(raise.length), nanos(raise.ramp), from.saturating_sub(began))
        {
            meet(level);
        }
        let wall = from.wrapping_add(self.wall).wrapping_add(FIRST_DAY);
        for window in &self.windows {
            for day in (0..7_u8).filter(|day| window.days >> day & 1 == 1) {
                let begins = u64::from(day) * DAY + nanos(window.from);
                let since = (wall % WEEK + WEEK - begins % WEEK) % WEEK;
                let level = level(window.factor, nanos(window.length), nanos(window.ramp), since);
                meet(level.unwrap_or((USUAL, WEEK - since)));
            }
        }
        Piece { from, until: from.saturating_add(lasts), factor, paced: last.paced_at(from) }
    }
}

/// How high a raise stands so long after its beginning, and for how long; none when it is over.
fn level(factor: Permille, length: Nanos, ramp: Nanos, since: Nanos) -> Option<(Permille, Nanos)> {
    if since < length {
        return Some((factor, length - since));
    }
    let fallen = since - length;
    if fallen >= ramp {
        return None;
    }
    let step = (ramp / STEPS).max(SECOND);
    let (steps, done) = (ramp.div_ceil(step), fallen / step);
    let above = u64::from(factor.saturating_sub(USUAL)) * (2 * (steps - done) - 1) / (2 * steps);
    Some((USUAL + u32::try_from(above).unwrap_or(0), ((done + 1) * step).min(ramp) - fallen))
}

#[cfg(test)]
mod tests {
    use super::super::gcra::Gcra;
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    const HOUR: Nanos = 3600 * SECOND;
    /// Monday, the fifth of January 1970.
    const MONDAY: Nanos = 4 * DAY;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn raise(factor: Permille, length: u64, ramp: u64) -> Raise {
        Raise { factor, length: seconds(length), ramp: seconds(ramp) }
    }

    fn mornings(ramp: u64) -> Window {
        Window { days: 0b1_1111, from: seconds(8 * 3600), length: seconds(2 * 3600), factor: 3000, ramp: seconds(ramp) }
    }

    #[test]
    fn without_a_raise_it_is_a_clock() {
        let mut pace = Pace::new([], 7);
        for now in [7, 8, 1_000_000, HOUR, 400 * DAY] {
            assert_eq!((pace.at(now, || MONDAY), pace.factor()), (now, USUAL));
            assert_eq!(pace.reaches(now + 5), now + 5);
        }
        assert_eq!(pace.at(3, || MONDAY), HOUR + TRUST, "an earlier time is told late, and nothing wraps");
    }

    #[test]
    fn a_raise_by_hand_ends_by_itself() {
        let mut pace = Pace::new([], 0);
        assert_eq!(pace.at(10 * SECOND, || 0), 10 * SECOND);
        pace.raise(raise(2500, 100, 0), 10 * SECOND, || 0);
        assert_eq!(pace.at(14 * SECOND, || 0), 20 * SECOND);
        assert_eq!(pace.factor(), 2500);
        assert_eq!(pace.raised_until(14 * SECOND), Some((110 * SECOND, 110 * SECOND)));
        assert_eq!(pace.reaches(30 * SECOND), 18 * SECOND);
        assert_eq!(pace.reaches(270 * SECOND), 120 * SECOND, "250 while raised, and then ten more");
        assert_eq!(pace.at(120 * SECOND, || 0), 270 * SECOND);
        assert_eq!((pace.factor(), pace.raised_until(120 * SECOND)), (USUAL, None));
    }

    #[test]
    fn it_falls_in_steps_whose_mean_is_a_straight_line() {
        let mut pace = Pace::new([], 0);
        pace.raise(raise(3000, 10, 100), 0, || 0);
        let mut last = 3001;
        for second in 10..110 {
            pace.at(second * SECOND, || 0);
            assert!(pace.factor() <= last && pace.factor() > USUAL, "{}", pace.factor());
            last = pace.factor();
        }
        // Ten seconds at three, a hundred at two on the average.
        let shown = pace.at(110 * SECOND, || 0);
        assert!(shown.abs_diff(230 * SECOND) < SECOND / 5, "{shown}");
        assert_eq!(pace.factor(), USUAL);
    }

    #[test]
    fn what_is_lowered_falls_from_there() {
        let mut pace = Pace::new([], 0);
        assert!(!pace.lower(0, || 0));
        pace.raise(raise(2000, 100, 10), 0, || 0);
        assert!(pace.lower(20 * SECOND, || 0));
        assert!(!pace.lower(21 * SECOND, || 0), "it falls already");
        assert_eq!(pace.raised_until(21 * SECOND), Some((20 * SECOND, 30 * SECOND)));
        assert_eq!(pace.at(30 * SECOND, || 0), 55 * SECOND);
        assert_eq!((pace.at(40 * SECOND, || 0), pace.factor()), (65 * SECOND, USUAL));
    }

    #[test]
    fn a_schedule_follows_the_wall() {
        let mut pace = Pace::new([mornings(0)], 0);
        let mut factor_at = |wall: Nanos| {
            // The wall is that much ahead.
            pace.at(wall - MONDAY, || wall);
            pace.factor()
        };
        for day in 0..9 {
            let midnight = MONDAY + day * DAY;
            let raised = if day % 7 < 5 { 3000 } else { USUAL };
            let seen = [7, 8, 9, 10, 23].map(|hour| factor_at(midnight + hour * HOUR));
            assert_eq!(seen, [USUAL, raised, raised, USUAL, USUAL], "day {day}");
        }
    }

    #[test]
    fn a_window_may_pass_midnight_and_the_week() {
        let window = Window { days: 0b100_0000, from: seconds(22 * 3600), length: seconds(4 * 3600), ..mornings(0) };
        let factor_at = |wall: Nanos| {
            let mut pace = Pace::new([window.clone()], 0);
            pace.at(1, || wall + 1);
            pace.factor()
        };
        let sunday = MONDAY + 6 * DAY;
        let seen = [21 * HOUR, 22 * HOUR, 25 * HOUR, 26 * HOUR].map(|time| factor_at(sunday + time));
        assert_eq!(seen, [USUAL, 3000, 3000, USUAL]);
        assert_eq!(factor_at(MONDAY + HOUR), 3000, "the first hours of the week belong to Sunday");
    }

    #[test]
    fn the_highest_counts_and_a_clock_that_is_set_is_noticed() {
        let mut pace = Pace::new([mornings(0)], 0);
        pace.raise(raise(2000, 3600, 0), 0, || MONDAY);
        pace.at(1, || MONDAY);
        assert_eq!(pace.factor(), 2000);
        pace.at(TRUST / 2, || MONDAY + 9 * HOUR);
        assert_eq!(pace.factor(), 2000, "nobody looks at the wall so often");
        pace.at(TRUST + 1, || MONDAY + 9 * HOUR);
        assert_eq!(pace.factor(), 3000);
    }

    #[test]
    fn a_month_of_idleness_is_made_up_for() {
        let mut pace = Pace::new([mornings(600)], 0);
        let shown = pace.at(28 * DAY, || MONDAY + 28 * DAY);
        // Twenty mornings of two more hours each of two, and ten minutes that are twice as long.
        let expected = 28 * DAY + 20 * (4 * HOUR + 600 * SECOND);
        assert!(shown.abs_diff(expected) < 20 * SECOND, "{shown} and not {expected}");
    }

    proptest! {
        /// The definition: over any stretch, no more than the burst and what the pace has refilled; and who is told a
        /// time has room then, and not before, if nobody raises anything in between.
        #[test]
        fn it_stays_exact_through_every_change(
            step in 1_u64..30,
            burst in 1_u32..5,
            moves in prop::collection::vec((0_u64..40, 0_u8..12, 1000_u32..5000, 0_u64..60, 0_u64..60), 1..80),
        ) {
            let rule = Gcra::new(seconds(step), NonZeroU32::new(burst).expect("positive"));
            let mut pace = Pace::new([], 0);
            let (mut now, mut full_at) = (0, 0);
            // What was admitted, with the sum of factor and time by then.
            let mut admitted: Vec<u128> = Vec::new();
            let mut sum: u128 = 0;
            for (pause, what, factor, length, ramp) in moves {
                for _ in 0..pause * 4 {
                    pace.at(now, || 0);
                    sum += u128::from(pace.factor()) * u128::from(SECOND / 4);
                    now += SECOND / 4;
                }
                match what {
                    0 => pace.raise(raise(factor, length, ramp), now, || 0),
                    1 => { pace.lower(now, || 0); }
                    _ => {}
                }
                let paced = pace.at(now, || 0);
                match rule.take(full_at, paced) {
                    Ok(later) => {
                        full_at = later;
                        admitted.push(sum);
                        for (before, at) in admitted.iter().enumerate() {
                            let count = (admitted.len() - before) as u128;
                            let refilled = (sum - at) / 1000;
                            prop_assert!((count - 1) * u128::from(step * SECOND)
                                <= u128::from(burst - 1) * u128::from(step * SECOND) + refilled + 1);
                        }
                    }
                    Err(wait) => {
                        let then = pace.reaches(paced + nanos(wait));
                        prop_assert!(rule.take(full_at, pace.clone().at(then - 1, || 0)).is_err());
                        prop_assert!(rule.take(full_at, pace.clone().at(then, || 0)).is_ok());
                    }
                }
            }
        }
    }
}
