//! The metrics of one route.

use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;

use crate::access_log::AccessLog;
use crate::error::Reason;
use crate::metrics::{Counter, Gauge, Histogram, Registry};

/// The handles of one route.
#[derive(Debug)]
pub(super) struct Route {
    name: Box<str>,
    registry: Registry,
    pub(super) log: Option<AccessLog>,
    pub(super) in_flight: Gauge,
    duration: Histogram,
    pub(super) first_byte: Histogram,
    pub(super) request_bytes: Counter,
    pub(super) response_bytes: Counter,
    /// By class and reason, resolved when first needed: few of the pairs ever occur.
    requests: Box<[OnceLock<Counter>]>,
    /// By reason.
    aborts: Box<[OnceLock<Counter>]>,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Reasons, and none.
const ROWS: usize = Reason::ALL.len() + 1;

impl Route {
    pub(super) fn new(name: &str, registry: &Registry, log: Option<AccessLog>) -> Self {
        let labels: [(&'static str, &str); 1] = [("route", name)];
        let table = |rows: usize| (0..rows).map(|_| OnceLock::new()).collect();
        Self {
            in_flight: registry.gauge("headworks_requests_in_flight", "Requests whose answer is not over.", &labels),
            duration: registry.histogram(
                "headworks_request_duration_seconds",
                "From the receipt of a request to the end of its answer.",
                &labels,
            ),
            first_byte: registry.histogram(
                "headworks_first_byte_seconds",
                "From the receipt of a request to the upstream's response head.",
                &labels,
            ),
            request_bytes: registry.counter(
                "headworks_request_bytes_total",
                "Bytes of request bodies that were read from clients.",
                &labels,
            ),
            response_bytes: registry.counter(
                "headworks_response_bytes_total",
                "Bytes of response bodies that were handed to clients.",
                &labels,
            ),
            requests: table(CLASSES.len() * ROWS),
            aborts: table(Reason::ALL.len()),
            name: name.into(),
            registry: registry.clone(),
            log,
        }
    }

    /// Closes the books on one exchange.
    pub(super) fn count(&self, status: StatusCode, reason: Option<Reason>, broke_off: bool, total: Duration) {
        self.duration.observe(total);
        self.in_flight.dec();
        self.count_request(status, reason);
        if let Some(reason) = reason.filter(|_| broke_off) {
            self.count_abort(reason);
        }
    }

    fn count_request(&self, status: StatusCode, reason: Option<Reason>) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let row = reason.map_or(0, |reason| reason as usize + 1);
        let (Some(label), Some(cell)) = (CLASSES.get(class), self.requests.get(class * ROWS + row)) else { return };
        let resolve = || {
            let labels = [("route", &*self.name), ("class", label), ("reason", reason.map_or("none", Reason::label))];
            self.registry.counter("headworks_requests_total", "Requests whose answer is over.", &labels)
        };
        cell.get_or_init(resolve).inc();
    }

    fn count_abort(&self, reason: Reason) {
        let Some(cell) = self.aborts.get(reason as usize) else { return };
        let resolve = || {
            let labels = [("route", &*self.name), ("reason", reason.label())];
            let help = "Answers that broke off after their head.";
            self.registry.counter("headworks_streams_ended_total", help, &labels)
        };
        cell.get_or_init(resolve).inc();
    }
}
