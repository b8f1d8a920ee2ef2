//! What is known of one endpoint, and whether it is under suspicion.

use tokio::time::Instant;

use super::gate::{Gate, Shown};
use super::rest::Rest;
use super::shares::{Counts, Shares};
use super::{Cause, Settings};
use crate::control::ask::Class;
use crate::control::report::Verdict;

/// Fewer requests of an endpoint within ten seconds are no share.
const LEAST_REQUESTS: u32 = 20;
/// An endpoint of which more succeed is not left out for its share.
const GOOD_SHARE: f64 = 0.5;
/// Nor is one that does not do worse than the pool by more than this.
const WORSE_BY: f64 = 0.3;
/// What has a smaller chance than this does not happen by chance.
const CHANCE: f64 = 1e-7;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) gate: Gate,
    /// Why it was left out the last time.
    pub(super) cause: Cause,
    pub(super) shares: Shares,
    /// Requests in a row that found no connection, or got no answer.
    pub(super) failures: u32,
    /// Those in a row that found no connection.
    pub(super) unreachable: u32,
    pub(super) rests: [Rest; 2],
    pub(super) is_draining: bool,
    /// By its health check.
    pub(super) is_down: bool,
}

impl Member {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            gate: Gate::new(now),
            cause: Cause::Failures,
            shares: Shares::new(now),
            failures: 0,
            unreachable: 0,
            rests: [Rest::default(); 2],
            is_draining: false,
            is_down: false,
        }
    }

    pub(super) fn rest(&mut self, class: Class) -> &mut Rest {
        let [unary, streams] = &mut self.rests;
        match class {
            Class::Unary => unary,
            Class::Stream => streams,
        }
    }

    /// Why it is under suspicion, if it is; and whether that may be chance, judged by the others of the pool, which has
    /// had `pool` requests: where a third fails everywhere, five failures in a row mean nothing.
    pub(super) fn suspicion(&mut self, settings: &Settings, pool: Counts, now: Instant) -> Option<(Cause, bool)> {
        let own = self.shares.counts(now);
        let others = pool.without(own).success();
        if self.unreachable >= settings.failures {
            Some((Cause::Unreachable, false))
        } else if self.failures >= settings.failures {
            Some((Cause::Failures, f64::from(self.failures) < chance(others)))
        } else {
            let is_low = own.success() + own.doubt() < GOOD_SHARE.max(others - WORSE_BY);
            (own.all() >= LEAST_REQUESTS && is_low).then_some((Cause::Share, false))
        }
    }

    pub(super) fn count(&mut self, verdict: Verdict, now: Instant) {
        match verdict {
            Verdict::Good | Verdict::Begun | Verdict::Overloaded => (self.failures, self.unreachable) = (0, 0),
            Verdict::ServerError => self.unreachable = 0,
            Verdict::Broken => (self.failures, self.unreachable) = (self.failures.saturating_add(1), 0),
            Verdict::Unreachable => {
                (self.failures, self.unreachable) =
                    (self.failures.saturating_add(1), self.unreachable.saturating_add(1));
            }
            Verdict::Unknown => {}
        }
        if let Some(is_good) = is_good(verdict) {
            self.shares.count(is_good, now);
        }
    }

    /// Whether it is left out although it takes connections.
    pub(super) fn is_out_by_share(&self) -> bool {
        !self.gate.is_closed() && self.cause != Cause::Unreachable
    }

    pub(super) fn forget(&mut self) {
        (self.failures, self.unreachable) = (0, 0);
        self.shares.forget();
    }
}

/// How many failures in a row are no chance any more where this share succeeds.
fn chance(success: f64) -> f64 {
    if success > 0.0 { CHANCE.ln() / (1.0 - success).ln() } else { f64::INFINITY }
}

/// Whether a request succeeded, as far as shares go.
pub(super) fn is_good(verdict: Verdict) -> Option<bool> {
    match verdict {
        Verdict::Good => Some(true),
        Verdict::ServerError | Verdict::Broken | Verdict::Unreachable => Some(false),
        Verdict::Begun | Verdict::Overloaded | Verdict::Unknown => None,
    }
}

/// What a trial has shown, of an endpoint or a pool that is to be judged by its shares or not.
pub(super) fn shown(verdict: Verdict, by_share: bool) -> Shown {
    match verdict {
        Verdict::Good | Verdict::Begun | Verdict::Overloaded => Shown::Good,
        Verdict::ServerError if !by_share => Shown::Good,
        Verdict::ServerError | Verdict::Broken | Verdict::Unreachable => Shown::Bad,
        Verdict::Unknown => Shown::Nothing,
    }
}
