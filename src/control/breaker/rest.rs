//! The rest that an endpoint asks for: 429, 503 or `RESOURCE_EXHAUSTED`, with the time to come back.
//!
//! Until then it gets fewer requests, in proportion to what it refuses: of those that were in flight when it began, as
//! large a share as it took of its last answers, and one at least. So a service that refuses one client keeps nearly
//! all of its credits, and one that refuses everybody keeps a single one.

use tokio::time::Instant;

use crate::control::report::{Report, Verdict};

/// Fewer answers than these count as so many: one refusal alone is not a share of all.
const LEAST: u32 = 8;

/// The rest of one class of requests. Of the last 32 answers each is remembered exactly.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest {
    /// Bits of the last answers: 1 was refused.
    answers: u32,
    known: u32,
    now: Option<Until>,
}

#[derive(Clone, Copy, Debug)]
struct Until {
    at: Instant,
    in_flight: usize,
}

impl Rest {
    /// An attempt is over; so many were in flight with it.
    pub(super) fn on_report(&mut self, report: &Report, in_flight: usize, now: Instant) {
        let is_refused = match report.verdict {
            Verdict::Overloaded => true,
            Verdict::Good | Verdict::Begun | Verdict::ServerError => false,
            Verdict::Unreachable | Verdict::Broken | Verdict::Unknown => return,
        };
        self.answers = self.answers << 1 | u32::from(is_refused);
        self.known = (self.known + 1).min(u32::BITS);
        let Some(rest) = report.rest.filter(|rest| is_refused && !rest.is_zero()) else { return };
        let before = self.now.filter(|until| now < until.at);
        self.now = Some(Until {
            at: before.map_or(now + rest, |until| until.at.max(now + rest)),
            in_flight: before.map_or(in_flight, |until| until.in_flight.max(in_flight)),
        });
    }

    /// How many may be in flight; none while there is no rest.
    pub(super) fn cap(&self, now: Instant) -> Option<usize> {
        let until = self.now.filter(|until| now < until.at)?;
        let all = self.known.max(LEAST) as usize;
        let taken = all.saturating_sub(self.answers.count_ones() as usize);
        Some(until.in_flight.saturating_mul(taken).div_ceil(all).max(1))
    }

    /// When it ends.
    pub(super) fn until(&self) -> Option<Instant> {
        self.now.map(|until| until.at)
    }

    /// Whether it has just ended, which is told once.
    pub(super) fn has_ended(&mut self, now: Instant) -> bool {
        self.now.take_if(|until| until.at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn report(verdict: Verdict, rest: Option<Duration>) -> Report {
        Report { verdict, latency: Duration::ZERO, rest }
    }

    fn refused(seconds: u32) -> Report {
        report(Verdict::Overloaded, Some(SECOND * seconds))
    }

    #[test]
    fn one_who_is_refused_hardly_counts_and_all_leave_one() {
        let now = Instant::now();
        let mut rest = Rest::default();
        for _ in 0..40 {
            rest.on_report(&report(Verdict::Good, None), 64, now);
        }
        assert_eq!(rest.cap(now), None);
        rest.on_report(&refused(5), 64, now);
        assert_eq!(rest.cap(now), Some(62));
        for _ in 0..32 {
            rest.on_report(&refused(1), 10, now);
        }
        assert_eq!(rest.cap(now), Some(1));
        for _ in 0..16 {
            rest.on_report(&report(Verdict::Good, None), 1, now);
        }
        assert_eq!(rest.cap(now), Some(32), "half is refused");
        assert_eq!((rest.cap(now + 5 * SECOND), rest.until()), (None, Some(now + 5 * SECOND)), "the longest wait");
        assert!(!rest.has_ended(now) && rest.has_ended(now + 5 * SECOND) && !rest.has_ended(now + 6 * SECOND));
    }

    #[test]
    fn the_first_refusal_of_all_takes_no_more_than_its_share() {
        let now = Instant::now();
        let mut rest = Rest::default();
        rest.on_report(&refused(1), 8, now);
        assert_eq!(rest.cap(now), Some(7));
        let mut silent = Rest::default();
        silent.on_report(&report(Verdict::Overloaded, None), 8, now);
        silent.on_report(&refused(0), 8, now);
        assert_eq!(silent.cap(now), None, "no time was named");
    }
}
