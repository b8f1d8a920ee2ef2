//! Trying again, where that helps and does no harm.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Retry`]: what is set; and the metrics |
//! | `policy.rs` | which outcome is worth another attempt, and after which pause |
//! | `spare.rs` | [`Spare`](spare::Spare): what is needed to send a request once more |
//! | `replay.rs` | [`Replay`](replay::Replay): a body that can be sent from its beginning |
//!
//! The loop itself is in `call.rs`, the second attempt beside the first in `call/hedge.rs`, and the budget in
//! `control/retry_budget.rs`.

pub(super) mod policy;
pub(super) mod replay;
pub(super) mod spare;

use std::sync::Arc;
use std::time::Duration;

use crate::control::retry_budget;
use crate::metrics::{Counter, Gauge, Registry};

pub use policy::On;
pub(super) use policy::{Cause, Denied};

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts beyond the first, for one request. None: only what no service has seen is sent again, by the pool.
    pub attempts: u32,
    /// After what.
    pub on: On,
    /// How many, over all requests of an upstream.
    pub budget: retry_budget::Settings,
    /// Bytes of a request's body that are kept for another attempt; a longer one is not sent twice.
    pub max_body: usize,
    /// The longest pause before the first retry; each further one may be twice as long.
    pub backoff: Duration,
    /// When a second attempt is made beside the first.
    pub hedge: Hedge,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: On::default(),
            budget: retry_budget::Settings::default(),
            max_body: 64 * 1024,
            backoff: Duration::from_millis(25),
            hedge: Hedge::Off,
        }
    }
}

/// When a second attempt is made beside the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hedge {
    /// Never.
    #[default]
    Off,
    /// When the first takes longer than 95 % did of late.
    Slowest,
    /// After this time.
    After(Duration),
}

/// What is counted for an upstream.
#[derive(Debug)]
pub(super) struct Metrics {
    retries: [Counter; Cause::ALL.len()],
    denied: [Counter; Denied::ALL.len()],
    won: Counter,
    lost: Counter,
    pub(super) left: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry, upstream: &str) -> Self {
        let retries = |cause: Cause| {
            let labels = [("upstream", upstream), ("after", cause.label())];
            registry.counter("headworks_retries_total", "Attempts beyond the first, by what they came after.", &labels)
        };
        let denied = |denied: Denied| {
            let labels = [("upstream", upstream), ("by", denied.label())];
            registry.counter(
                "headworks_retries_denied_total",
                "Retries that were not made, by what forbade them.",
                &labels,
            )
        };
        let hedges = |result| {
            let labels = [("upstream", upstream), ("result", result)];
            registry.counter("headworks_hedges_total", "Second attempts beside the first, by how they ended.", &labels)
        };
        let left = "Retries that the budget allows at once, as of the last time that somebody wanted one.";
        Self {
            retries: Cause::ALL.map(retries),
            denied: Denied::ALL.map(denied),
            won: hedges("won"),
            lost: hedges("lost"),
            left: registry.gauge("headworks_retry_budget", left, &[("upstream", upstream)]),
        }
    }

    pub(super) fn retry(&self, cause: Cause) {
        if let Some(counter) = self.retries.get(cause as usize) {
            counter.inc();
        }
    }

    pub(super) fn deny(&self, denied: Denied) {
        if let Some(counter) = self.denied.get(denied as usize) {
            counter.inc();
        }
    }

    pub(super) fn hedge(&self, has_won: bool) {
        if has_won { self.won.inc() } else { self.lost.inc() }
    }
}

/// Statuses after which a request is tried again.
pub(super) type Statuses = Arc<[http::StatusCode]>;
