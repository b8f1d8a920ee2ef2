//! What an attempt tells about its endpoint: the one form in which the outcome of a request reaches whatever judges
//! endpoints.
//!
//! An endpoint that is ill, one that has too much to do and one that cannot be reached are told apart, since each calls
//! for something else. What the client did, and what the proxy itself refused, says nothing about the endpoint.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::error::Reason;

/// No endpoint is spared for longer, whatever it asks for.
pub const LONGEST_REST: Duration = Duration::from_secs(30);
/// What a gRPC service means that is exhausted and does not say for how long.
const USUAL_REST: Duration = Duration::from_secs(1);

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What an attempt says about the health of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A gRPC call has begun to be answered; its status follows at its end, as another report.
    Begun,
    /// An answer, be it that the request was wrong.
    Good,
    /// An answer that admits a fault of the service: 5xx, or a gRPC status to the same effect.
    ServerError,
    /// The service has too much to do: 429, 503, `RESOURCE_EXHAUSTED`. No illness.
    Overloaded,
    /// No connection could be made: the request has not been sent.
    Unreachable,
    /// A connection was there and no whole answer: closed, reset, unreadable, too late; or the 502 and 504 of another
    /// proxy.
    Broken,
    /// Nothing was learned: the client left, or the reason lies with the proxy.
    Unknown,
}

impl Verdict {
    /// Those that end an attempt, as metrics show them.
    pub const FINAL: [Self; 6] =
        [Self::Good, Self::ServerError, Self::Overloaded, Self::Unreachable, Self::Broken, Self::Unknown];

    /// The name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Good => "good",
            Self::ServerError => "server_error",
            Self::Overloaded => "overloaded",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Unknown => "unknown",
        }
    }

    /// That of a request that got no answer.
    #[must_use]
    pub fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::DnsFailed | Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => Self::Unreachable,
            Reason::FirstByteTimeout | Reason::UpstreamClosed | Reason::UpstreamProtocol => Self::Broken,
            _ => Self::Unknown,
        }
    }

    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Self::Overloaded,
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Self::Broken,
            status if status.is_server_error() => Self::ServerError,
            _ => Self::Good,
        }
    }

    /// The statuses by which a gRPC service admits a fault are `UNKNOWN`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS`.
    fn of_grpc(status: &HeaderValue) -> Self {
        match status.as_bytes() {
            b"8" => Self::Overloaded,
            b"2" | b"13" | b"14" | b"15" => Self::ServerError,
            _ => Self::Good,
        }
    }
}

/// See the module's text. Each attempt makes one; a gRPC call that is answered mostly two, see [`Verdict::Begun`]; and an
/// answer that breaks off a second one that it is broken, which leaves half of what it said at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it says about the endpoint's health.
    pub verdict: Verdict,
    /// From the last byte of the request to the head of the answer, or to the failure. Without the wait for a credit.
    pub latency: Duration,
    /// How long an endpoint that has too much to do asks to be spared, [`LONGEST_REST`] at most.
    pub rest: Option<Duration>,
}

impl Report {
    /// There was no answer, for that reason.
    #[must_use]
    pub fn failed(reason: Reason, latency: Duration) -> Self {
        Self { verdict: Verdict::of_reason(reason), latency, rest: None }
    }

    /// Nothing was learned.
    #[must_use]
    pub fn unknown(latency: Duration) -> Self {
        Self { verdict: Verdict::Unknown, latency, rest: None }
    }

    /// What the head of an answer says. `is_grpc` tells whether a gRPC status may follow in the trailers. The time of
    /// day is asked for where a date must be understood.
    #[must_use]
    pub fn of_head(
        status: StatusCode,
        headers: &HeaderMap,
        latency: Duration,
        is_grpc: bool,
        now: impl FnOnce() -> SystemTime,
    ) -> Self {
        if is_grpc && status == StatusCode::OK {
            let begun = Self { verdict: Verdict::Begun, latency, rest: None };
            return Self::of_grpc(headers, latency).unwrap_or(begun);
        }
        let verdict = Verdict::of_status(status);
        let rest = if verdict == Verdict::Overloaded { retry_after(headers, now) } else { None };
        Self { verdict, latency, rest: rest.map(|rest| rest.min(LONGEST_REST)) }
    }

    /// What the trailers of a gRPC call say, or its head when it has no trailers. None without a status.
    #[must_use]
    pub fn of_grpc(fields: &HeaderMap, latency: Duration) -> Option<Self> {
        let verdict = Verdict::of_grpc(fields.get(GRPC_STATUS)?);
        let pushback = fields.get(GRPC_PUSHBACK).map(|value| number(value).map(Duration::from_millis));
        let rest = match (verdict, pushback) {
            // A negative number forbids to try again, and says nothing about when.
            (Verdict::Overloaded, Some(said)) => said.map(|rest| rest.min(LONGEST_REST)),
            (Verdict::Overloaded, None) => Some(USUAL_REST),
            _ => None,
        };
        Some(Self { verdict, latency, rest })
    }
}

/// The time that `Retry-After` names, as seconds or as a date, or `retry-after-ms`. Not bounded. None when there is no
/// such field, or none that can be read.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Option<Duration> {
    if let Some(millis) = headers.get(RETRY_AFTER_MS).and_then(number) {
        return Some(Duration::from_millis(millis));
    }
    let value = headers.get(RETRY_AFTER)?;
    if let Some(seconds) = number(value) {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    Some(date.duration_since(now()).unwrap_or_default())
}

fn number(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    let is_plain = !text.is_empty() && text.len() <= 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENCY: Duration = Duration::from_millis(7);

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        fields.iter().map(field).collect()
    }

    fn head(status: u16, given: &[(&'static str, &str)], is_grpc: bool) -> (Verdict, Option<Duration>) {
        let status = StatusCode::from_u16(status).expect("a status");
        let now = || SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let report = Report::of_head(status, &fields(given), LATENCY, is_grpc, now);
        assert_eq!(report.latency, LATENCY);
        (report.verdict, report.rest)
    }

    #[test]
    fn overload_is_told_from_illness() {
        assert_eq!(head(200, &[("retry-after", "5")], false), (Verdict::Good, None));
        assert_eq!(head(404, &[], false).0, Verdict::Good);
        assert_eq!(head(500, &[("retry-after", "5")], false), (Verdict::ServerError, None));
        for status in [502, 504] {
            assert_eq!(head(status, &[], false).0, Verdict::Broken);
        }
        for status in [429, 503] {
            assert_eq!(head(status, &[], false), (Verdict::Overloaded, None));
            let said = head(status, &[("retry-after", "5")], false);
            assert_eq!(said, (Verdict::Overloaded, Some(Duration::from_secs(5))));
        }
    }

    #[test]
    fn a_rest_is_seconds_or_milliseconds_or_a_date_and_bounded() {
        let rest = |given| head(503, given, false).1.map(|rest| rest.as_millis());
        assert_eq!(rest(&[("retry-after", "2")]), Some(2000));
        assert_eq!(rest(&[("retry-after", "9"), ("retry-after-ms", "250")]), Some(250));
        assert_eq!(rest(&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")]), Some(3000));
        assert_eq!(rest(&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")]), Some(0), "that was before");
        assert_eq!(rest(&[("retry-after", "999999999999")]), Some(30_000));
        for nonsense in ["", "-1", "1.5", "soon", "99999999999999999999", "+3"] {
            assert_eq!(head(503, &[("retry-after", nonsense)], false).1, None, "{nonsense}");
        }
    }

    #[test]
    fn a_grpc_status_stands_in_the_head_or_in_the_trailers() {
        assert_eq!(head(200, &[], true), (Verdict::Begun, None));
        assert_eq!(head(200, &[("grpc-status", "0")], true).0, Verdict::Good);
        assert_eq!(head(200, &[("grpc-status", "0")], false).0, Verdict::Good);
        assert_eq!(head(502, &[], true).0, Verdict::Broken);
        let trailers = |given: &[(&'static str, &str)]| {
            Report::of_grpc(&fields(given), LATENCY).map(|report| (report.verdict, report.rest))
        };
        assert_eq!(trailers(&[("x-checksum", "8")]), None);
        assert_eq!(trailers(&[("grpc-status", "5")]), Some((Verdict::Good, None)));
        assert_eq!(trailers(&[("grpc-status", "14")]), Some((Verdict::ServerError, None)));
        assert_eq!(trailers(&[("grpc-status", "8")]), Some((Verdict::Overloaded, Some(USUAL_REST))));
        let pushed = |millis| trailers(&[("grpc-status", "8"), ("grpc-retry-pushback-ms", millis)]);
        assert_eq!(pushed("400"), Some((Verdict::Overloaded, Some(Duration::from_millis(400)))));
        assert_eq!(pushed("-1"), Some((Verdict::Overloaded, None)));
    }

    #[test]
    fn what_the_proxy_or_the_client_did_says_nothing() {
        for reason in Reason::ALL {
            let verdict = Verdict::of_reason(*reason);
            let is_about_endpoint = reason.exit() == crate::error::Exit::Failed
                && !matches!(
                    reason,
                    Reason::PoolExhausted
                        | Reason::TotalTimeout
                        | Reason::DeadlineExceeded
                        | Reason::UpgradeFailed
                        | Reason::Internal
                );
            assert_eq!(verdict != Verdict::Unknown, is_about_endpoint, "{reason}");
        }
    }
}
