//! Carries the W3C trace context (level 1) to the upstream.
//!
//! | client sends | upstream gets |
//! |---|---|
//! | a valid `traceparent` | the same trace id and sampled flag under a parent id of ours; `tracestate` untouched |
//! | none, several or an invalid one | a trace that begins here, without `tracestate` |
//!
//! Refuses nothing. Stands below the record, so that every line of the access log has a trace id. A later version than 00
//! is read as far as version 00 reaches and passed on as 00, as the specification demands.

use std::fmt;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue};
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{Request, RequestContext, TraceId};
use crate::entropy;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Puts [`Trace`] around a service.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
}

impl<S: Service<Request>> Service<Request> for Trace<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        let parent = carry(request.headers_mut());
        if let Some(context) = request.extensions().get::<RequestContext>() {
            let _ = context.notes().trace.set(parent.trace);
        }
        self.inner.call(request)
    }
}

/// Replaces the fields in `headers` and says what was written.
fn carry(headers: &mut HeaderMap) -> TraceParent {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let received = match (values.next(), values.next()) {
        (Some(value), None) => TraceParent::parse(value.as_bytes()),
        _ => None,
    };
    let parent = received.map_or_else(TraceParent::begin, TraceParent::child);
    if received.is_none() {
        headers.remove(TRACESTATE);
    }
    if let Ok(value) = HeaderValue::from_bytes(&parent.bytes()) {
        headers.insert(TRACEPARENT, value);
    }
    parent
}

/// A `traceparent` of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, the same at every hop.
    pub trace: TraceId,
    /// The span of the hop that sends it; never zero.
    pub parent: u64,
    /// Whether that hop may have recorded the trace. Other flags are reserved and written as zero.
    pub sampled: bool,
}

impl TraceParent {
    /// Begins a trace. It is marked as sampled: otherwise the usual samplers behind the proxy would follow suit and
    /// record nothing at all.
    #[must_use]
    pub fn begin() -> Self {
        Self { trace: TraceId::random(), parent: random_span(), sampled: true }
    }

    /// The same trace, one hop on.
    #[must_use]
    pub fn child(self) -> Self {
        Self { parent: random_span(), ..self }
    }

    /// Reads a field value; none when it breaks the rules.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_first_chunk::<55>()?;
        let text = std::str::from_utf8(head).ok()?;
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let parent = hex(parts.next()?, 16)?;
        let flags = hex(parts.next()?, 2)?;
        let room_for_more = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        if parts.next().is_some() || parent == 0 || !room_for_more {
            return None;
        }
        Some(Self { trace: TraceId::new(trace)?, parent: u64::try_from(parent).ok()?, sampled: flags & 1 == 1 })
    }
}

impl TraceParent {
    /// The field's value. Written digit by digit, since it is written for each request.
    fn bytes(self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let (trace, parent) = (self.trace.get(), u128::from(self.parent));
        for (at, number, digits) in [(3, trace, 32), (36, parent, 16), (53, u128::from(self.sampled), 2)] {
            let places = text.iter_mut().skip(at).take(digits);
            for (place, shift) in places.zip((0..digits).rev()) {
                let digit = usize::try_from((number >> (4 * shift)) & 0xf).unwrap_or(0);
                *place = b"0123456789abcdef".get(digit).copied().unwrap_or(b'0');
            }
        }
        text
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.bytes()).unwrap_or_default())
    }
}

/// A number of exactly `digits` hexadecimal digits in lower case, the only case that is allowed.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != digits || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

fn random_span() -> u64 {
    entropy::random_u64().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use crate::context::{Connection, RequestId, Response};
    use proptest::prelude::*;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};
    use tower::ServiceExt as _;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn carried(fields: &[(&'static str, &str)]) -> (HeaderMap, TraceParent) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a field value"));
        }
        let parent = carry(&mut headers);
        assert_eq!(headers.get_all(TRACEPARENT).iter().count(), 1);
        assert_eq!(TraceParent::parse(headers[TRACEPARENT].as_bytes()), Some(parent));
        (headers, parent)
    }

    #[test]
    fn a_valid_trace_goes_on_under_our_own_span() {
        let (headers, parent) = carried(&[("traceparent", VALID), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        assert_eq!(parent.trace.to_string(), TRACE);
        assert_ne!(parent.parent, 0x00f0_67aa_0ba9_02b7);
        assert!(parent.sampled);
        assert_eq!(headers.get_all(TRACESTATE).iter().count(), 2);
    }

    #[test]
    fn reserved_flags_and_later_versions_become_version_00() {
        let (_, parent) = carried(&[("traceparent", &VALID.replace("-01", "-fe"))]);
        assert!(!parent.sampled);
        assert!(parent.to_string().ends_with("-00"));
        for later in [VALID.replacen("00", "cc", 1), format!("{}-what-comes-later", VALID.replacen("00", "cc", 1))] {
            let (headers, parent) = carried(&[("traceparent", &later), ("tracestate", "a=1")]);
            assert_eq!(parent.trace.to_string(), TRACE);
            assert!(headers.contains_key(TRACESTATE));
        }
    }

    #[test]
    fn what_is_invalid_begins_a_trace_and_loses_its_state() {
        let invalid = [
            String::new(),
            VALID.to_uppercase(),
            VALID.replacen("00", "ff", 1),
            VALID.replacen("00-", "0x-", 1),
            format!("{VALID}-"),
            format!("{VALID}0"),
            format!("{}.", VALID.replacen("00", "01", 1)),
            VALID.replace('-', "_"),
            VALID.replace(TRACE, &"0".repeat(32)),
            VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
            VALID.replace("-00f067aa0ba902b7-", "0-0f067aa0ba902b7-"),
            VALID.replace("-01", "-+1"),
        ];
        for value in &invalid {
            let (headers, parent) = carried(&[("traceparent", value), ("tracestate", "a=1")]);
            assert_ne!(parent.trace.to_string(), TRACE, "{value}");
            assert!(!headers.contains_key(TRACESTATE), "{value}");
        }
        let (_, parent) = carried(&[("traceparent", VALID), ("traceparent", VALID)]);
        assert_ne!(parent.trace.to_string(), TRACE, "two fields are invalid");
        let (headers, parent) = carried(&[("tracestate", "a=1")]);
        assert!(parent.sampled && !headers.contains_key(TRACESTATE));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(trace in 1_u128.., parent in 1_u64.., sampled: bool) {
            let parent = TraceParent { trace: TraceId::new(trace).expect("not zero"), parent, sampled };
            prop_assert_eq!(TraceParent::parse(parent.to_string().as_bytes()), Some(parent));
        }

        #[test]
        fn what_is_read_is_printed_alike(value in "0[0-9a-f]-[0-9a-f]{32}-[0-9a-f]{16}-0[01](-x)?") {
            if let Some(parent) = TraceParent::parse(value.as_bytes()) {
                prop_assert_eq!(&parent.to_string()[3..], &value[3..55]);
            }
        }

        #[test]
        fn no_bytes_make_it_fail(value: Vec<u8>) {
            let _ = TraceParent::parse(&value);
        }
    }

    #[tokio::test]
    async fn the_trace_id_is_noted_for_the_log() {
        let echo = tower::service_fn(|request: Request| async move {
            let mut response = Response::new(Body::empty());
            response.headers_mut().extend(request.headers().clone());
            Ok::<_, Infallible>(response)
        });
        let connection = Arc::new(Connection::new("public".into(), None, None, false, Duration::from_secs(1)));
        let context = RequestContext::new(RequestId::new(SystemTime::now(), 0), connection, None);
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(context.clone());
        let response = TraceLayer.layer(echo).oneshot(request).await.expect("infallible");
        let noted = context.notes().trace.get().expect("noted").to_string();
        assert_eq!(response.headers()[TRACEPARENT].to_str().expect("text").get(3..35), Some(noted.as_str()));
    }
}
