//! Which outcome of an attempt is worth another one.
//!
//! Never an answer that a client may have seen of, and never a refusal of our own: those come from admission, which is
//! not asked here. What surely reached no service may be sent again whatever its method is. Everything else only when
//! the method is idempotent (RFC 9110, section 9.2.2), or when its client says by `Idempotency-Key` that the service
//! knows it again.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::{Retry, Statuses};
use crate::body::kind::is_grpc;
use crate::context::{Request, Response};
use crate::control::report::retry_after;
use crate::control::retry_budget;
use crate::error::{ProxyError, Reason};
use crate::upstream::failure::is_unprocessed;

/// What a service is told of the attempts before this one; a client, or another proxy, tells it us.
pub(in crate::upstream) static RETRY_COUNT: HeaderName = HeaderName::from_static("x-retry-count");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Who has tried so often before is not helped here: retries of several hops multiply.
const TRIED_ENOUGH: u32 = 2;
/// A client that waits longer than this for a retry is better off with the answer there is, and its `Retry-After`.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// `UNAVAILABLE`, "most likely a transient condition".
const UNAVAILABLE: &[u8] = b"14";

/// Why an attempt is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Cause {
    /// It surely reached no service: there was no connection, or its stream was refused.
    Connect,
    /// The service closed the connection without an answer.
    Reset,
    /// The service did not answer in time.
    Timeout,
    /// By the status of its answer.
    Status,
    /// gRPC's `UNAVAILABLE`, without any message.
    Unavailable,
}

impl Cause {
    pub(in crate::upstream) const ALL: [Self; 5] =
        [Self::Connect, Self::Reset, Self::Timeout, Self::Status, Self::Unavailable];

    /// The name in metrics.
    pub(in crate::upstream) const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why an attempt that could be repeated is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Denied {
    /// The budget is used up.
    Budget,
    /// Too many retries are in flight.
    InFlight,
    /// Others wait for a credit.
    Queue,
    /// There is not time enough left.
    Deadline,
    /// The service wants to be left alone, or for so long that the client had better come back itself.
    RetryAfter,
    /// The client, or a proxy before us, has tried often enough.
    Client,
    /// The request's body was too long to keep.
    Body,
}

impl Denied {
    pub(in crate::upstream) const ALL: [Self; 7] =
        [Self::Budget, Self::InFlight, Self::Queue, Self::Deadline, Self::RetryAfter, Self::Client, Self::Body];

    /// The name in metrics.
    pub(in crate::upstream) const fn label(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::InFlight => "in_flight",
            Self::Queue => "queue",
            Self::Deadline => "deadline",
            Self::RetryAfter => "retry_after",
            Self::Client => "client",
            Self::Body => "body",
        }
    }
}

impl From<retry_budget::Denied> for Denied {
    fn from(denied: retry_budget::Denied) -> Self {
        match denied {
            retry_budget::Denied::Budget => Self::Budget,
            retry_budget::Denied::InFlight => Self::InFlight,
        }
    }
}

/// After what a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the configuration, alone or with others")]
pub struct On {
    /// When it reached no service.
    pub connect: bool,
    /// When the connection broke before the answer.
    pub reset: bool,
    /// After `timeout.first_byte`.
    pub timeout: bool,
    /// After gRPC's `UNAVAILABLE`, whatever the method: a word of the operator that calls can be repeated.
    pub unavailable: bool,
    /// After answers with one of these statuses.
    pub statuses: Statuses,
}

impl Default for On {
    fn default() -> Self {
        let statuses = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE];
        Self { connect: true, reset: true, timeout: false, unavailable: false, statuses: statuses.into() }
    }
}

/// An outcome that may be worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Failure {
    pub(in crate::upstream) cause: Cause,
    /// What the service asks for; `Err`: not to come back.
    after: Result<Duration, ()>,
}

impl Failure {
    /// What has failed without an answer.
    pub(in crate::upstream) fn of_error(error: &ProxyError, on: &On) -> Option<Self> {
        let source = || error.source.as_deref().map(|source| source as &(dyn StdError + 'static));
        let cause = match error.reason {
            reason if reason.retry_is_safe() => on.connect.then_some(Cause::Connect),
            Reason::UpstreamClosed if source().is_some_and(is_unprocessed) => on.connect.then_some(Cause::Connect),
            Reason::UpstreamClosed => on.reset.then_some(Cause::Reset),
            Reason::FirstByteTimeout => on.timeout.then_some(Cause::Timeout),
            _ => None,
        };
        cause.map(|cause| Self { cause, after: Ok(Duration::ZERO) })
    }

    /// What the head of an answer tells.
    pub(in crate::upstream) fn of_answer(response: &Response, on: &On) -> Option<Self> {
        let headers = response.headers();
        if on.statuses.contains(&response.status()) {
            return Some(Self {
                cause: Cause::Status,
                after: Ok(retry_after(headers, SystemTime::now).unwrap_or_default()),
            });
        }
        // Both in one head: there is no message that a client could have got.
        let is_unavailable = || headers.get(&GRPC_STATUS).is_some_and(|status| status.as_bytes() == UNAVAILABLE);
        (on.unavailable && is_grpc(headers) && is_unavailable())
            .then(|| Self { cause: Cause::Unavailable, after: pushback(headers) })
    }

    /// The pause before the next attempt, when `made` have failed beyond the first: full jitter, and never shorter
    /// than the service asks for. `luck` is in 0..1.
    pub(in crate::upstream) fn pause(&self, retry: &Retry, made: u32, luck: f64) -> Result<Duration, Denied> {
        let after = self.after.map_err(|()| Denied::RetryAfter)?;
        if after > LONGEST_PAUSE {
            return Err(Denied::RetryAfter);
        }
        let most = retry.backoff.saturating_mul(1 << made.min(16)).min(LONGEST_PAUSE);
        Ok(most.mul_f64(luck).max(after))
    }
}

/// Whether a request can be made twice with the effect of once.
pub(in crate::upstream) fn is_repeatable(request: &Request) -> bool {
    let method = request.method();
    method.is_idempotent() || request.headers().contains_key(&IDEMPOTENCY_KEY)
}

/// Whether it only asks.
pub(in crate::upstream) fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// How often this request has been tried before, as far as the client and the proxies before us tell: ours, Envoy's
/// (which counts the first), and that of Stainless' SDKs.
pub(in crate::upstream) fn tried_before(headers: &HeaderMap) -> u32 {
    let names = [RETRY_COUNT.as_str(), "x-envoy-attempt-count", "x-stainless-retry-count"];
    names.iter().filter_map(|name| number(headers.get(*name)?)).max().unwrap_or(0)
}

/// Whether that was often enough.
pub(in crate::upstream) fn has_tried_enough(headers: &HeaderMap) -> bool {
    tried_before(headers) >= TRIED_ENOUGH
}

fn number(value: &HeaderValue) -> Option<u32> {
    value.to_str().ok()?.trim().parse().ok()
}

/// `grpc-retry-pushback-ms` (gRFC A6): a negative number, or none, forbids another attempt.
fn pushback(headers: &HeaderMap) -> Result<Duration, ()> {
    let Some(value) = headers.get(&PUSHBACK) else { return Ok(Duration::ZERO) };
    number(value).map(|millis| Duration::from_millis(millis.into())).ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    fn answer(status: u16, fields: &[(&str, &str)]) -> Response {
        let response = http::Response::builder().status(status);
        let response = fields.iter().fold(response, |response, (name, value)| response.header(*name, *value));
        response.body(Body::empty()).expect("a response")
    }

    fn pause(fields: &[(&str, &str)], luck: f64) -> Result<Duration, Denied> {
        let failure = Failure::of_answer(&answer(503, fields), &On::default()).expect("503 is tried again");
        failure.pause(&Retry::default(), 0, luck)
    }

    #[test]
    fn what_reached_no_service_is_apart_from_what_may_have() {
        let on = On::default();
        let cause = |reason: Reason| Failure::of_error(&reason.into(), &on).map(|failure| failure.cause);
        for reason in Reason::ALL.iter().copied() {
            let expected = match reason {
                reason if reason.retry_is_safe() => Some(Cause::Connect),
                Reason::UpstreamClosed => Some(Cause::Reset),
                _ => None,
            };
            assert_eq!(cause(reason), expected, "{reason}");
        }
        let all = On { timeout: true, connect: false, ..on };
        assert_eq!(Failure::of_error(&Reason::ConnectFailed.into(), &all), None);
        let failure = Failure::of_error(&Reason::FirstByteTimeout.into(), &all).expect("it was asked for");
        assert_eq!(failure.cause, Cause::Timeout);
    }

    #[test]
    fn the_pause_has_full_jitter_and_a_floor() {
        assert_eq!(pause(&[], 0.0), Ok(Duration::ZERO));
        assert_eq!(pause(&[], 0.5), Ok(Duration::from_micros(12_500)));
        assert_eq!(pause(&[("retry-after", "1")], 0.9), Ok(Duration::from_secs(1)));
        assert_eq!(pause(&[("retry-after", "1"), ("retry-after-ms", "120")], 0.9), Ok(Duration::from_millis(120)));
        for forever in ["30", "99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            assert_eq!(pause(&[("retry-after", forever)], 0.0), Err(Denied::RetryAfter), "{forever}");
        }
        assert_eq!(pause(&[("retry-after", "Sat, 01 Jan 2000 00:00:00 GMT")], 0.0), Ok(Duration::ZERO));
        let failure = Failure { cause: Cause::Reset, after: Ok(Duration::ZERO) };
        let longest = |made| failure.pause(&Retry::default(), made, 1.0).expect("a pause");
        assert_eq!((longest(2), longest(60)), (Duration::from_millis(100), LONGEST_PAUSE));
    }

    #[test]
    fn a_grpc_call_is_tried_again_when_it_got_nothing_and_its_service_allows_it() {
        let on = On { unavailable: true, ..On::default() };
        let grpc = ("content-type", "application/grpc");
        let pause = |fields: &[(&str, &str)]| {
            let failure = Failure::of_answer(&answer(200, fields), &on)?;
            assert_eq!(failure.cause, Cause::Unavailable);
            Some(failure.pause(&Retry::default(), 0, 0.0))
        };
        assert_eq!(pause(&[grpc]), None, "messages follow");
        assert_eq!(pause(&[grpc, ("grpc-status", "8")]), None);
        assert_eq!(pause(&[("grpc-status", "14")]), None);
        assert_eq!(pause(&[grpc, ("grpc-status", "14")]), Some(Ok(Duration::ZERO)));
        let pushed = |by| pause(&[grpc, ("grpc-status", "14"), ("grpc-retry-pushback-ms", by)]);
        assert_eq!(pushed("250"), Some(Ok(Duration::from_millis(250))));
        for no in ["-1", "60000", "later"] {
            assert_eq!(pushed(no), Some(Err(Denied::RetryAfter)), "{no}");
        }
        assert_eq!(Failure::of_answer(&answer(200, &[grpc, ("grpc-status", "14")]), &On::default()), None);
    }

    #[test]
    fn only_what_can_be_repeated_is() {
        let request = |method: &str, key: bool| {
            let mut request = http::Request::builder().method(method).body(Body::empty()).expect("a request");
            if key {
                request.headers_mut().insert("idempotency-key", HeaderValue::from_static("\"1\""));
            }
            is_repeatable(&request)
        };
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert!(request(method, false), "{method}");
        }
        for method in ["POST", "PATCH", "PURGE"] {
            assert!(!request(method, false) && request(method, true), "{method}");
        }
    }

    #[test]
    fn who_has_tried_twice_is_not_helped() {
        for (name, value, enough) in [
            ("x-retry-count", "1", false),
            ("x-retry-count", "2", true),
            ("x-envoy-attempt-count", "1", false),
            ("x-envoy-attempt-count", "2", true),
            ("x-stainless-retry-count", "3", true),
            ("x-retry-count", "-1", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(has_tried_enough(&headers), enough, "{name}: {value}");
        }
    }
}
