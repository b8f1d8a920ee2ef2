//! What the breakers and health checks of an upstream do, told to operators: in the log and in metrics.

use std::sync::Arc;

use crate::control::breaker::{Cause, Event, State};
use crate::metrics::{Counter, Gauge, Registry};

/// News that are kept until somebody logs them.
pub(super) const MOST_NEWS: usize = 64;

/// Something for the log.
#[derive(Debug)]
pub(super) struct News {
    pub(super) upstream: Arc<str>,
    /// The endpoint that it is about, or else the upstream as a whole.
    pub(super) endpoint: Option<Arc<str>>,
    pub(super) event: Event,
}

impl News {
    /// Writes it down. Not under a lock: it may take its time.
    pub(super) fn log(&self) {
        let Self { upstream, endpoint, event } = self;
        let endpoint = endpoint.as_deref().unwrap_or("-");
        match event {
            Event::Opened { cause, open, .. } => {
                let (cause, seconds) = (cause.label(), open.as_secs_f64());
                tracing::warn!(%upstream, %endpoint, %cause, seconds, "left out for a while");
            }
            Event::HalfOpen { .. } => tracing::debug!(%upstream, %endpoint, "tried again"),
            Event::Closed { .. } => tracing::info!(%upstream, %endpoint, "back in service"),
            Event::Panicked => {
                tracing::warn!(%upstream, "no endpoint is beyond suspicion, so none is left out for what it answers");
            }
        }
    }
}

/// The metrics of one breaker.
#[derive(Debug)]
pub(super) struct BreakerMetrics {
    states: [Gauge; State::LABELS.len()],
    opened: [Counter; Cause::ALL.len()],
}

impl BreakerMetrics {
    /// Those of an endpoint.
    pub(super) fn endpoint(registry: &Registry, upstream: &str, endpoint: &str) -> Self {
        Self {
            states: State::LABELS.map(|state| {
                let labels = [("upstream", upstream), ("endpoint", endpoint), ("state", state)];
                let help = "1 for the state of the endpoint's breaker.";
                registry.gauge("headworks_endpoint_breaker_state", help, &labels)
            }),
            opened: Cause::ALL.map(|cause| {
                let labels = [("upstream", upstream), ("endpoint", endpoint), ("cause", cause.label())];
                let help = "How often the endpoint was left out.";
                registry.counter("headworks_endpoint_breaker_opened_total", help, &labels)
            }),
        }
    }

    /// Those of an upstream as a whole.
    pub(super) fn upstream(registry: &Registry, upstream: &str) -> Self {
        Self {
            states: State::LABELS.map(|state| {
                let help = "1 for the state of the breaker of the upstream as a whole.";
                registry.gauge("headworks_upstream_breaker_state", help, &[("upstream", upstream), ("state", state)])
            }),
            opened: Cause::ALL.map(|cause| {
                let labels = [("upstream", upstream), ("cause", cause.label())];
                let help = "How often the upstream as a whole was closed.";
                registry.counter("headworks_upstream_breaker_opened_total", help, &labels)
            }),
        }
    }

    pub(super) fn show(&self, state: State) {
        for (label, gauge) in State::LABELS.into_iter().zip(&self.states) {
            gauge.set(i64::from(label == state.label()));
        }
    }

    pub(super) fn opened(&self, cause: Cause) {
        for (known, counter) in Cause::ALL.into_iter().zip(&self.opened) {
            if known == cause {
                counter.inc();
            }
        }
    }
}

/// The metrics of the health checks of an endpoint.
#[derive(Debug)]
pub(super) struct CheckMetrics {
    down: Gauge,
    passed: Counter,
    failed: Counter,
}

impl CheckMetrics {
    pub(super) fn new(registry: &Registry, upstream: &str, endpoint: &str) -> Self {
        let count = |result| {
            let labels = [("upstream", upstream), ("endpoint", endpoint), ("result", result)];
            registry.counter("headworks_endpoint_checks_total", "Health checks that are over.", &labels)
        };
        let help = "1 while its health checks condemn the endpoint.";
        let labels = [("upstream", upstream), ("endpoint", endpoint)];
        Self {
            down: registry.gauge("headworks_endpoint_down", help, &labels),
            passed: count("passed"),
            failed: count("failed"),
        }
    }

    pub(super) fn show(&self, is_down: bool) {
        self.down.set(i64::from(is_down));
    }

    pub(super) fn count(&self, has_passed: bool) {
        if has_passed { &self.passed } else { &self.failed }.inc();
    }
}
