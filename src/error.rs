//! Why a request did not simply succeed, as one closed table.
//!
//! Three exits are kept apart. A request is *refused* before any upstream saw it, it has *failed* when no response
//! head came, and it is *aborted* when the head was already out: then no status is possible any more and the stream
//! is reset, never ended cleanly.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::entropy;

/// The boxed cause of an error; it goes to the log and never to a client.
pub type Source = Box<dyn StdError + Send + Sync>;

/// Which of the three exits a [`Reason`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Answered by the proxy before an upstream was called.
    Refused,
    /// The upstream was called, but no response head came.
    Failed,
    /// The response was under way and was cut.
    Aborted,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $label:literal, $proxy_status:literal, $exit:ident, $retry:literal, $text:literal;)*) => {
        /// One row per way to fail. The label is used alike in logs, metrics and `Proxy-Status` details.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            const fn row(self) -> Row {
                match self { $(Reason::$name => Row {
                    status: $status, label: $label, proxy_status: $proxy_status, exit: Exit::$exit, retry: $retry, text: $text,
                },)* }
            }
        }
    };
}

struct Row {
    status: u16,
    label: &'static str,
    proxy_status: &'static str,
    exit: Exit,
    retry: bool,
    text: &'static str,
}

reasons! {
    // variant          status  label                  RFC 9209 error type           exit     retry  client text
    /// The request cannot be read unambiguously.
    BadRequest        = 400, "bad_request",        "http_request_error",          Refused, false, "The request is malformed.";
    /// The head is too long or has too many fields.
    HeaderTooLarge    = 431, "header_too_large",   "http_request_error",          Refused, false, "The request's head is too large.";
    /// The head was not complete in time.
    HeaderTimeout     = 408, "header_timeout",     "http_request_error",          Refused, false, "The request's head did not come in time.";
    /// A version of HTTP that is not spoken here.
    VersionRefused    = 505, "version_refused",    "http_request_error",          Refused, false, "This version of HTTP is not spoken here.";
    /// The method cannot be proxied (CONNECT).
    MethodRefused     = 405, "method_refused",     "http_request_denied",         Refused, false, "This method is not served here.";
    /// No route matches.
    NoRoute           = 404, "no_route",           "destination_not_found",       Refused, false, "Nothing is served under this address.";
    /// The route does not speak the protocol that an HTTP/2 client wants its stream to become.
    UpgradeRefused    = 501, "upgrade_refused",    "http_request_denied",         Refused, false, "This protocol is not spoken here.";
    /// The request expects something else than to be told when to send its body.
    ExpectationFailed = 417, "expectation_failed", "http_request_error",          Refused, false, "This expectation cannot be met.";
    /// The request's body is longer than `max_body_size`.
    BodyTooLarge      = 413, "body_too_large",     "http_request_error",          Refused, false, "The request body is too large.";
    /// A rate limit of the route is used up.
    RateLimited       = 429, "rate_limited",       "http_request_denied",         Refused, false, "Too many requests; come back after the time in Retry-After.";
    /// A fault that was ordered: the request is aborted on purpose, with any status.
    FaultInjected     = 503, "fault_injected",     "proxy_internal_response",     Refused, false, "This answer is a fault made on purpose, to see what comes of it.";
    /// What all requests may hold together is reserved.
    MemoryExhausted   = 503, "memory_exhausted",   "connection_limit_reached",    Refused, false, "The proxy has no room for another request.";
    /// The proxy itself has too much to do.
    ProxyBusy         = 503, "proxy_busy",         "proxy_internal_response",     Refused, false, "The proxy is too busy for this request.";
    /// Too few requests of the route succeed to try all of them.
    LowSuccessRate    = 503, "low_success_rate",   "proxy_internal_response",     Refused, false, "Too many requests to the service fail; this one was not tried.";
    /// The waiting queue of the upstream is full.
    QueueFull         = 503, "queue_full",         "connection_limit_reached",    Refused, false, "The service is at its capacity and its queue is full.";
    /// The request waited its full time and no credit came free.
    QueueTimeout      = 503, "queue_timeout",      "connection_limit_reached",    Refused, false, "The service is at its capacity and no place came free in time.";
    /// The time that the client allows was over before an upstream was asked.
    DeadlinePassed    = 504, "deadline_passed",    "http_request_denied",         Refused, false, "The time that the request allows was over before it could be served.";
    /// More comes than is served, and the request waited longer than would help anybody.
    QueueShed         = 503, "queue_shed",         "connection_limit_reached",    Refused, false, "The service is overloaded; this request had to make room.";
    /// The request waited, and another got its place.
    QueueDropped      = 503, "queue_dropped",      "connection_limit_reached",    Refused, false, "The service is at its capacity; this request had to make room.";
    /// The request waited, and a newer one of the same key got its place.
    QueueReplaced     = 503, "queue_replaced",     "connection_limit_reached",    Refused, false, "A newer request has taken the place of this one.";
    /// By the request's own deadline no answer can be there.
    DeadlineUnmeetable = 503, "deadline_unmeetable", "connection_limit_reached",  Refused, false, "The service is too busy to answer within the time that the request has.";
    /// The request has passed this program too often.
    LoopDetected      = 508, "loop_detected",      "proxy_loop_detected",         Refused, false, "The request runs in a circle.";
    /// No endpoint of the upstream can take a request.
    NoEndpoint        = 503, "no_endpoint",        "destination_unavailable",     Refused, false, "No server is available for this request.";
    /// All endpoints of the upstream are left out for a while.
    BreakerOpen       = 503, "breaker_open",       "destination_unavailable",     Refused, false, "The service fails at the moment; come back after the time in Retry-After.";
    /// The endpoint's connection cap was reached and none came free in the connect time.
    PoolExhausted     = 503, "pool_exhausted",     "connection_limit_reached",    Failed,  true,  "All connections to the service are in use.";
    /// The upstream's name did not resolve.
    DnsFailed         = 502, "dns_failed",         "dns_error",                   Failed,  true,  "The service's address could not be resolved.";
    /// No connection could be opened.
    ConnectFailed     = 502, "connect_failed",     "connection_refused",          Failed,  true,  "The service could not be reached.";
    /// Opening a connection took longer than `timeout.connect`.
    ConnectTimeout    = 504, "connect_timeout",    "connection_timeout",          Failed,  true,  "The service could not be reached in time.";
    /// The TLS handshake with the upstream failed.
    TlsFailed         = 502, "tls_failed",         "tls_protocol_error",          Failed,  true,  "No secure connection to the service could be made.";
    /// No response head within `timeout.first_byte`.
    FirstByteTimeout  = 504, "first_byte_timeout", "http_response_timeout",       Failed,  false, "The service did not answer in time.";
    /// The whole exchange took longer than `timeout.total`.
    TotalTimeout      = 504, "total_timeout",      "http_response_timeout",       Failed,  false, "The request took longer than allowed.";
    /// The time that the client allows was over before a response head.
    DeadlineExceeded  = 504, "deadline_exceeded",  "http_response_timeout",       Failed,  false, "The service did not answer within the time that the request allows.";
    /// The upstream closed or reset the connection before a response head.
    UpstreamClosed    = 502, "upstream_closed",    "connection_terminated",       Failed,  false, "The service closed the connection without an answer.";
    /// The upstream's answer cannot be read.
    UpstreamProtocol  = 502, "upstream_protocol",  "http_protocol_error",         Failed,  false, "The service's answer could not be read.";
    /// The switch of protocols went wrong.
    UpgradeFailed     = 502, "upgrade_failed",     "http_upgrade_failed",         Failed,  false, "The switch to another protocol failed.";
    /// A fault of the proxy itself.
    Internal          = 500, "internal",           "proxy_internal_error",        Failed,  false, "The proxy failed; the fault has been logged.";
    /// The client went away. 499 appears in logs and metrics only.
    ClientGone        = 499, "client_gone",        "http_request_error",          Aborted, false, "The client closed the connection.";
    /// The client took nothing for `stall_timeout`.
    ClientStalled     = 499, "client_stalled",     "connection_write_timeout",    Aborted, false, "The client read nothing for too long.";
    /// The client threw away more begun work than `server.cancel_budget` allows.
    CancelBudget      = 429, "cancel_budget",      "http_request_denied",         Aborted, false, "Too many requests were cancelled.";
    /// The client sent too many HTTP/2 frames that carry nothing.
    ClientFlood       = 429, "client_flood",       "http_request_denied",         Aborted, false, "Too many frames that carry nothing.";
    /// The client's request body broke off.
    RequestIncomplete = 400, "request_incomplete", "http_request_error",          Aborted, false, "The request body ended early.";
    /// The client's request body can be read in more than one way, or in none.
    MalformedBody     = 400, "malformed_body",     "http_request_error",          Aborted, false, "The request body is malformed.";
    /// The client sent nothing of its body for `upload_timeout` while it was waited for.
    UploadStalled     = 408, "upload_stalled",     "http_request_error",          Aborted, false, "The request body stopped coming.";
    /// The client's body came slower than `upload_rate`.
    UploadSlow        = 408, "upload_slow",        "http_request_error",          Aborted, false, "The request body came too slowly.";
    /// The upstream sent nothing for `timeout.idle` in the middle of a body.
    UpstreamStalled   = 504, "upstream_stalled",   "connection_read_timeout",     Aborted, false, "The service fell silent in the middle of its answer.";
    /// The upstream broke off in the middle of a body.
    UpstreamReset     = 502, "upstream_reset",     "http_response_incomplete",    Aborted, false, "The service broke off in the middle of its answer.";
    /// `timeout.total`, or the time that the client allows, passed in the middle of a body.
    Deadline          = 504, "deadline",           "http_response_timeout",       Aborted, false, "The answer took longer than allowed.";
    /// An operator cancelled the exchange, or ended its connection.
    Cancelled         = 503, "cancelled_by_operator", "connection_terminated",    Aborted, false, "An operator cancelled the request.";
    /// A fault that was ordered: the request is cut without an answer.
    FaultReset        = 503, "fault_reset",        "connection_terminated",       Aborted, false, "The request was cut on purpose.";
    /// Cut at shutdown, after the grace time.
    Drained           = 503, "drained",            "connection_terminated",       Aborted, false, "The proxy shut down before the answer was complete.";
}

impl Reason {
    /// The status a client gets, or the log shows when no status could be sent any more.
    #[must_use]
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The stable name in logs, metrics and `Proxy-Status`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        self.row().label
    }

    /// The error type of RFC 9209, section 2.3.
    #[must_use]
    pub const fn proxy_status(self) -> &'static str {
        self.row().proxy_status
    }

    /// Which exit this is.
    #[must_use]
    pub const fn exit(self) -> Exit {
        self.row().exit
    }

    /// Whether the upstream surely saw nothing of the request, so that any method may be sent again.
    #[must_use]
    pub const fn retry_is_safe(self) -> bool {
        self.row().retry
    }

    /// What the client is told. Never carries internals.
    #[must_use]
    pub const fn text(self) -> &'static str {
        self.row().text
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What a layer returns instead of a response. One layer renders it.
#[derive(Debug)]
pub struct ProxyError {
    /// The row of the table.
    pub reason: Reason,
    /// Instead of the status of that row.
    pub status: Option<StatusCode>,
    /// When the client may come back; printed as `Retry-After` and `retry-after-ms`.
    pub retry_after: Option<Duration>,
    /// Fields to add to the answer, such as `RateLimit`.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// For the log.
    pub source: Option<Source>,
}

impl ProxyError {
    /// An error with a cause for the log.
    pub fn new(reason: Reason, source: impl Into<Source>) -> Self {
        Self { source: Some(source.into()), ..Self::from(reason) }
    }

    /// Answers with another status than the reason's own.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// Adds the time after which the client may come back.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same where nobody knows the time: some seconds, others for each, so that not all come back together.
    #[must_use]
    pub fn retry_soon(self) -> Self {
        self.retry_after(Duration::from_secs_f64(1.0 + 2.0 * entropy::unit()))
    }
}

impl From<Reason> for ProxyError {
    fn from(reason: Reason) -> Self {
        Self { reason, status: None, retry_after: None, headers: Vec::new(), source: None }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.label())?;
        let mut cause = self.source.as_deref().map(|source| source as &dyn StdError);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for ProxyError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_statuses_valid() {
        let labels: HashSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(reason.status().as_u16(), reason.row().status);
        }
    }

    #[test]
    fn an_error_prints_its_chain_of_causes() {
        let cause = std::io::Error::other("no route to host");
        assert_eq!(ProxyError::new(Reason::ConnectFailed, cause).to_string(), "connect_failed: no route to host");
    }
}
