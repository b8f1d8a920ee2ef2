//! How many retries an upstream may be asked for: a share of its first attempts, and a few a second. A service that
//! fails gets little more to do than one that does not, however many clients want it to try again.
//!
//! A token bucket after Finagle's `RetryBudget`, in millionths of a retry and whole numbers only, so that no rounding
//! adds up: from any moment on, what the retries cost is at most the burst of ten, and the share of each first attempt
//! since ten seconds before, and the floor for each second. What first attempts have brought is good for ten seconds.
//! Hedges are retries that have a second, smaller share for themselves.

use std::time::Duration;

use tokio::time::Instant;

/// What a retry costs.
const COST: u64 = 1_000_000;
/// What may be saved up beside the last ten seconds: a service that is seldom asked can fail, too.
const BURST: u64 = 10 * COST;
/// Seconds for which a first attempt counts.
const MEMORY: usize = 10;
/// In milliseconds, what the floor is paid for at most: it fills the burst by then.
const MOST_PAID: u64 = 10_000;
/// Retries at once that are always allowed.
const FEW: usize = 3;
/// Beyond those, one retry in so many that are in flight.
const ONE_IN: usize = 5;
/// What a first attempt brings for hedges: one request in fifty may have one.
const HEDGE_SHARE: u64 = COST / 50;

/// What is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What each first attempt brings, in millionths of a retry.
    pub share: u32,
    /// Retries a second, whatever happens.
    pub floor: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { share: 100_000, floor: 2 }
    }
}

/// Why there is no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The budget is used up.
    Budget,
    /// Too many retries are in flight.
    InFlight,
}

/// See the module's text.
#[derive(Debug)]
pub struct RetryBudget {
    settings: Settings,
    began: Instant,
    tokens: u64,
    /// For hedges, which take from both.
    hedges: u64,
    /// Until when the floor has been paid, in milliseconds since the beginning.
    paid: u64,
    /// The second that is under way.
    second: u64,
    /// What first attempts brought in each of the last seconds.
    earned: [u64; MEMORY],
    in_flight: usize,
}

impl RetryBudget {
    /// A budget with all of its burst.
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Self {
        let earned = [0; MEMORY];
        Self { settings, began: now, tokens: BURST, hedges: 0, paid: 0, second: 0, earned, in_flight: 0 }
    }

    /// Brings other settings in force. What was saved up stays.
    pub fn apply(&mut self, settings: Settings, now: Instant) {
        self.pay(now);
        self.settings = settings;
    }

    /// A first attempt was made.
    pub fn on_first(&mut self, now: Instant) {
        if now.saturating_duration_since(self.began).as_secs() > self.second {
            self.pay(now);
        }
        let share = u64::from(self.settings.share);
        self.tokens += share;
        self.hedges = (self.hedges + HEDGE_SHARE).min(BURST);
        if let Some(earned) = self.earned_in(self.second) {
            *earned += share;
        }
    }

    /// Takes what a retry costs, while `others` of its upstream are in flight beside it. Tell
    /// [`RetryBudget::on_end`] when it is over.
    pub fn take(&mut self, others: usize, now: Instant) -> Result<(), Denied> {
        self.pay(now);
        if self.tokens < COST {
            return Err(Denied::Budget);
        }
        if self.in_flight >= FEW && self.in_flight + 1 > (others + 1) / ONE_IN {
            return Err(Denied::InFlight);
        }
        self.tokens -= COST;
        self.in_flight += 1;
        Ok(())
    }

    /// Whether there is a hedge left in its own share.
    #[must_use]
    pub fn has_hedge(&self) -> bool {
        self.hedges >= COST
    }

    /// The same as [`RetryBudget::take`] for a hedge.
    pub fn take_for_hedge(&mut self, others: usize, now: Instant) -> Result<(), Denied> {
        if !self.has_hedge() {
            return Err(Denied::Budget);
        }
        self.take(others, now)?;
        self.hedges -= COST;
        Ok(())
    }

    /// A retry or a hedge is over.
    pub fn on_end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Retries and hedges that are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Retries that may be made at once, as of the last look.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.tokens / COST
    }

    /// Pays the floor, and lets go of what is older than the memory.
    fn pay(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.began);
        let millis = millis(elapsed);
        let earned = u64::from(self.settings.floor) * (COST / 1000) * millis.saturating_sub(self.paid).min(MOST_PAID);
        self.tokens += earned;
        self.paid = self.paid.max(millis);
        let passed = elapsed.as_secs().saturating_sub(self.second).min(MEMORY as u64);
        for back in 0..passed {
            if let Some(earned) = self.earned_in(elapsed.as_secs() - back) {
                *earned = 0;
            }
        }
        self.second = self.second.max(elapsed.as_secs());
        self.tokens = self.tokens.min(self.earned.iter().sum::<u64>() + BURST);
    }

    fn earned_in(&mut self, second: u64) -> Option<&mut u64> {
        let at = usize::try_from(second % MEMORY as u64).ok()?;
        self.earned.get_mut(at)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget(share: u32, floor: u32) -> (RetryBudget, Instant) {
        let now = Instant::now();
        (RetryBudget::new(Settings { share, floor }, now), now)
    }

    /// Retries that are granted and over at once.
    fn granted(budget: &mut RetryBudget, wanted: usize, now: Instant) -> usize {
        (0..wanted).filter(|_| budget.take(usize::MAX / 2, now).inspect(|()| budget.on_end()).is_ok()).count()
    }

    #[test]
    fn a_service_that_only_fails_gets_a_tenth_more() {
        let (mut budget, began) = budget(100_000, 0);
        let mut retries = 0;
        for request in 0..100_000 {
            let now = began + Duration::from_millis(request);
            budget.on_first(now);
            retries += granted(&mut budget, 1, now);
        }
        assert_eq!(retries, 10_000 + 10);
    }

    #[test]
    fn what_is_saved_up_is_ten_seconds_worth_and_ten() {
        let (mut budget, began) = budget(100_000, 0);
        for request in 0..60_000 {
            budget.on_first(began + Duration::from_millis(request));
        }
        let last = began + Duration::from_secs(60);
        // Nine whole seconds and the one that begins.
        assert_eq!(granted(&mut budget, 10_000, last), 900 + 10);
        assert_eq!(granted(&mut budget, 10_000, last + Duration::from_secs(3600)), 0, "a quiet hour brings nothing");
    }

    #[test]
    fn the_floor_is_paid_whatever_happens() {
        let (mut budget, began) = budget(100_000, 2);
        assert_eq!(granted(&mut budget, 99, began), 10);
        assert_eq!(granted(&mut budget, 99, began + Duration::from_millis(499)), 0);
        assert_eq!(granted(&mut budget, 99, began + Duration::from_millis(500)), 1);
        assert_eq!(granted(&mut budget, 99, began + Duration::from_secs(3600)), 10, "not more than the burst");
    }

    #[test]
    fn a_fifth_of_what_is_in_flight_are_retries_and_three_may_always_be() {
        let (mut budget, now) = budget(1_000_000, 0);
        let at_once = |budget: &mut RetryBudget, others: usize| {
            let taken = (0..100).take_while(|more| budget.take(others + more, now).is_ok()).count();
            (0..taken).for_each(|_| budget.on_end());
            taken
        };
        (0..1000).for_each(|_| budget.on_first(now));
        assert_eq!(at_once(&mut budget, 1), 3);
        assert_eq!(at_once(&mut budget, 16), 4, "of twenty");
        assert_eq!(at_once(&mut budget, 80), 20, "of a hundred");
        (0..3).for_each(|_| budget.take(0, now).expect("always"));
        assert_eq!(budget.take(0, now), Err(Denied::InFlight));
    }

    #[test]
    fn one_request_in_fifty_is_hedged() {
        let (mut budget, now) = budget(1_000_000, 0);
        let mut hedges = 0;
        for _ in 0..1000 {
            budget.on_first(now);
            hedges += usize::from(budget.take_for_hedge(100, now).inspect(|()| budget.on_end()).is_ok());
        }
        assert_eq!(hedges, 20);
    }

    proptest! {
        /// In millionths, and for every span of time that begins with a request.
        #[test]
        fn no_more_is_granted_than_was_brought(
            share in 0_u32..=1_000_000,
            floor in 0_u32..20,
            steps in proptest::collection::vec((0_u64..3000, 0_usize..30, 0_usize..30), 1..60),
        ) {
            let (mut budget, began) = budget(share, floor);
            let (mut now, mut firsts, mut retries) = (0, Vec::new(), Vec::new());
            for (pause, requests, wanted) in steps {
                now += pause;
                let at = began + Duration::from_millis(now);
                (0..requests).for_each(|_| { budget.on_first(at); firsts.push(now); });
                let got = granted(&mut budget, wanted, at);
                retries.extend(std::iter::repeat_n(now, got));
                // Nothing is refused that is there.
                prop_assert!(got == wanted || budget.tokens < COST);
                for from in retries.iter().copied() {
                    let made = retries.iter().filter(|at| **at >= from).count() as u64 * COST;
                    let since = from.saturating_sub(MEMORY as u64 * 1000);
                    let brought = firsts.iter().filter(|at| **at >= since).count() as u64 * u64::from(share);
                    prop_assert!(made <= BURST + brought + u64::from(floor) * (now - from) * (COST / 1000));
                }
            }
        }

        /// Within ten seconds nothing is forgotten, so the sum is exact.
        #[test]
        fn not_a_millionth_is_lost(
            share in 0_u32..=1_000_000,
            steps in proptest::collection::vec((0_u64..300, 0_usize..30, 0_usize..30), 1..30),
        ) {
            let (mut budget, began) = budget(share, 0);
            let (mut now, mut sum) = (0, BURST);
            for (pause, requests, wanted) in steps {
                now += pause;
                let at = began + Duration::from_millis(now);
                (0..requests).for_each(|_| budget.on_first(at));
                sum += requests as u64 * u64::from(share);
                sum -= granted(&mut budget, wanted, at) as u64 * COST;
                prop_assert_eq!(budget.tokens, sum);
            }
        }
    }
}
