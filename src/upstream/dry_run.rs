//! What a dry run of admission lets through, told to operators: in metrics and in the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::admission::reason_of;
use crate::control::credits::{Dismissal, Would};
use crate::metrics::{Counter, Registry};

/// How often the log tells at most.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Why one can be sent away on arrival.
const REFUSALS: [Dismissal; 2] = [Dismissal::Full, Dismissal::TooLate];

/// Counts of one upstream.
#[derive(Debug)]
pub(super) struct DryRun {
    upstream: Arc<str>,
    waits: Counter,
    refusals: [Counter; REFUSALS.len()],
    said_at: Option<Instant>,
    unsaid: u64,
}

/// Something for the log.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "it does not say itself"]
pub(super) struct Said {
    upstream: Arc<str>,
    requests: u64,
}

impl DryRun {
    pub(super) fn new(registry: &Registry, upstream: &Arc<str>) -> Self {
        let count = |would, reason| {
            let labels = [("upstream", &**upstream), ("would", would), ("reason", reason)];
            let help = "Requests that went ahead without a free credit, since `limit.dry_run` is set.";
            registry.counter("headworks_admission_dry_run_total", help, &labels)
        };
        Self {
            upstream: Arc::clone(upstream),
            waits: count("wait", "none"),
            refusals: REFUSALS.map(|why| count("refuse", reason_of(why).label())),
            said_at: None,
            unsaid: 0,
        }
    }

    /// One more. What there is for the log is not to be written under a lock.
    pub(super) fn count(&mut self, would: Would, now: Instant) -> Option<Said> {
        match would {
            Would::Wait => self.waits.inc(),
            Would::Refuse(why) => {
                if let Some((_, counter)) = REFUSALS.iter().zip(&self.refusals).find(|(known, _)| **known == why) {
                    counter.inc();
                }
            }
        }
        self.unsaid += 1;
        if self.said_at.is_some_and(|said| now.saturating_duration_since(said) < SAY_EVERY) {
            return None;
        }
        self.said_at = Some(now);
        Some(Said { upstream: Arc::clone(&self.upstream), requests: std::mem::take(&mut self.unsaid) })
    }
}

impl Said {
    pub(super) fn log(&self) {
        let Self { upstream, requests } = self;
        tracing::info!(%upstream, requests, "admission would have held requests back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_at_most_every_ten_seconds_and_leaves_nobody_out() {
        let mut dry_run = DryRun::new(&Registry::new(), &"app".into());
        let began = Instant::now();
        let mut said = |seconds| dry_run.count(Would::Wait, began + Duration::from_secs(seconds));
        let counts = [0, 1, 9, 10, 11, 20].map(|seconds| said(seconds).map(|said| said.requests));
        assert_eq!(counts, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
