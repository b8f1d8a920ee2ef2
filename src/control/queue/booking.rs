//! When those who are refused should come back: each gets a time of its own.
//!
//! A constant, or the length of the queue over its rate, sends all home until the same moment, and they come back as
//! the herd that they were. So each refusal books one of the credits that will come free, at three tenths of the rate:
//! the others are for those who come for the first time.

use std::time::Duration;

use tokio::time::Instant;

/// The part of the rate that is promised.
const SHARE: f64 = 0.3;
/// SDKs fall back to their own short back-off above a minute, and nobody waits that long for a place.
const LONGEST: f64 = 30.0;
/// Clocks and networks bring together what was apart, in seconds.
const SCATTER: f64 = 0.05;

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Booking {
    /// Up to when everything is promised.
    until: Option<Instant>,
}

impl Booking {
    /// How long one who is refused should stay away, when `drain` credits come free in a second. `luck` is from 0 to 1.
    pub(super) fn book(&mut self, now: Instant, drain: f64, luck: f64) -> Duration {
        let share = (SHARE * drain).max(1.0);
        let promised = self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let wait = promised.as_secs_f64() + 1.0 / share;
        if wait > LONGEST {
            // There is nothing left to promise: anywhere in the second half.
            return Duration::from_secs_f64(LONGEST * (0.5 + 0.5 * luck));
        }
        self.until = Some(now + Duration::from_secs_f64(wait));
        Duration::from_secs_f64(wait * (1.0 + 0.2 * luck) + SCATTER * luck)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_a_time_of_its_own_at_three_tenths_of_the_rate() {
        let (mut booking, now) = (Booking::default(), Instant::now());
        let waits: Vec<_> = (0..90).map(|_| booking.book(now, 100.0, 0.0).as_secs_f64()).collect();
        assert!((waits[0] - 1.0 / 30.0).abs() < 1e-6 && (waits[89] - 3.0).abs() < 1e-6, "{waits:?}");
        let later = booking.book(now + Duration::from_secs(2), 100.0, 0.0).as_secs_f64();
        assert!((later - 31.0 / 30.0).abs() < 1e-6, "{later}");
        let rested = booking.book(now + Duration::from_secs(60), 100.0, 1.0).as_secs_f64();
        assert!((rested - (1.2 / 30.0 + 0.05)).abs() < 1e-6, "{rested}");
    }

    #[test]
    fn nobody_is_sent_away_for_longer_than_clients_obey() {
        let (mut booking, now) = (Booking::default(), Instant::now());
        let waits: Vec<_> = (0..1000).map(|n| booking.book(now, 0.0, f64::from(n % 10) / 10.0)).collect();
        assert!(waits.iter().all(|wait| wait.as_secs_f64() <= 36.1), "{waits:?}");
        let spread = waits[900..].iter().map(Duration::as_secs).collect::<std::collections::BTreeSet<_>>();
        assert!(spread.len() > 5 && spread.iter().all(|wait| (15..30).contains(wait)), "{spread:?}");
    }
}
