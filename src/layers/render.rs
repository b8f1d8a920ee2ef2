//! Turns a [`ProxyError`] into a whole HTTP answer. Above this layer nothing can fail.
//!
//! The answer carries `Retry-After` (whole seconds, at least 1) and `retry-after-ms`, `x-should-retry` for the SDKs that
//! obey it, `Proxy-Status` (RFC 9209) with the reason, and an `application/problem+json` body (RFC 9457) with the
//! request's id. A gRPC call gets a trailers-only answer instead.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::Body;
use crate::body::kind::is_grpc;
use crate::context::{Request, RequestContext, Response};
use crate::entropy;
use crate::error::{Exit, ProxyError, Reason};

static PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
static RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
static SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Beyond this SDKs fall back to their own short back-off.
const LONGEST: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenderLayer;

impl<S> Layer<S> for RenderLayer {
    type Service = Render<S>;

    fn layer(&self, inner: S) -> Render<S> {
        Render { inner }
    }
}

/// The service of [`RenderLayer`].
#[derive(Clone, Debug)]
pub struct Render<S> {
    inner: S,
}

impl<S> Service<Request> for Render<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Rendering<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Rendering<S::Future> {
        let context = request.extensions().get::<RequestContext>().cloned();
        let grpc = is_grpc(request.headers());
        Rendering { inner: self.inner.call(request), context, grpc }
    }
}

pin_project! {
    /// The future of [`Render`].
    #[derive(Debug)]
    pub struct Rendering<F> {
        #[pin]
        inner: F,
        context: Option<RequestContext>,
        grpc: bool,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Rendering<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // Nothing below is polled again; it ends when this future is dropped, right after the answer.
        let cancelled = this.context.as_ref().and_then(|context| Some((context, context.cancelled()?)));
        let result = match cancelled {
            Some((context, reason)) => {
                context.answer_cancelled();
                Err(reason.into())
            }
            None => ready!(this.inner.poll(cx)),
        };
        Poll::Ready(Ok(match result {
            Ok(response) => response,
            Err(error) => {
                if let Some(context) = this.context {
                    context.notes().set_reason(error.reason);
                }
                log(&error, this.context.as_ref());
                if *this.grpc { trailers_only(error) } else { problem(error, this.context.as_ref()) }
            }
        }))
    }
}

/// A refusal is a row of the access log; what failed is worth a look only to one who looks for it.
fn log(error: &ProxyError, context: Option<&RequestContext>) {
    let id = context.map(|context| context.id().to_string());
    if error.reason == Reason::Internal {
        tracing::error!(request = id, %error, "the proxy failed");
    } else if error.reason.exit() != Exit::Refused {
        tracing::debug!(request = id, %error, "no answer from the upstream");
    }
}

/// The answer to any call but gRPC.
fn problem(error: ProxyError, context: Option<&RequestContext>) -> Response {
    let reason = error.reason;
    let status = error.status.unwrap_or(reason.status());
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": reason.text(),
        "reason": reason.label(),
        "request_id": context.map(|context| context.id().to_string()),
    });
    let mut response = Response::new(Body::full(format!("{body}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    common(headers, error);
    response
}

/// gRPC over HTTP/2, "Trailers-Only": one header block, status 200, no body.
fn trailers_only(error: ProxyError) -> Response {
    let mut response = Response::new(Body::empty());
    let code = match error.status.unwrap_or(error.reason.status()) {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => 8, // RESOURCE_EXHAUSTED
        StatusCode::GATEWAY_TIMEOUT => 4,                                   // DEADLINE_EXCEEDED
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => 12, // UNIMPLEMENTED
        StatusCode::BAD_REQUEST => 3,                                       // INVALID_ARGUMENT
        StatusCode::INTERNAL_SERVER_ERROR => 13,                            // INTERNAL
        _ => 14,                                                            // UNAVAILABLE
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    headers.insert("grpc-message", HeaderValue::from_static(error.reason.text()));
    common(headers, error);
    response
}

fn common(headers: &mut HeaderMap, error: ProxyError) {
    let reason = error.reason;
    let details = format!("headworks; error={}; details=\"{}\"", reason.proxy_status(), reason.label());
    if let Ok(value) = HeaderValue::try_from(details) {
        headers.insert(&PROXY_STATUS, value);
    }
    if let Some(wait) = error.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(reason, wait, entropy::unit())));
        headers.insert(&RETRY_AFTER_MS, HeaderValue::from(whole_millis(wait)));
    }
    if let Some(should) = should_retry(reason, error.retry_after) {
        headers.insert(&SHOULD_RETRY, HeaderValue::from_static(if should { "true" } else { "false" }));
    }
    headers.extend(error.headers.into_iter().map(|(name, value)| (Some(name), value)));
}

/// Rounded up: coming back at the printed time must not be too early. Times that were spread over clients stay so: each
/// is rounded to either side, so that they are right on average. `luck` is from 0 to 1.
fn whole_seconds(reason: Reason, wait: Duration, luck: f64) -> u64 {
    let part = wait.as_secs_f64().fract();
    let is_up = if is_spread(reason) { luck < part } else { part > 0.0 };
    (wait.as_secs() + u64::from(is_up)).max(1)
}

/// Rounded up too. Nobody sees that a time that was spread is one later.
fn whole_millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// Whether each client has got a time of its own: that of a place in the queue.
fn is_spread(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::QueueFull
            | Reason::QueueTimeout
            | Reason::QueueShed
            | Reason::QueueDropped
            | Reason::DeadlineUnmeetable
    )
}

/// What the SDKs of language models go by, before the status: they would send again what has no chance, and would not
/// wait for longer than a minute.
fn should_retry(reason: Reason, wait: Option<Duration>) -> Option<bool> {
    match (reason, wait) {
        (Reason::LoopDetected | Reason::UpgradeRefused | Reason::VersionRefused | Reason::QueueReplaced, _) => {
            Some(false)
        }
        (_, Some(wait)) => Some(wait <= LONGEST),
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    async fn call(request: Request, error: fn() -> ProxyError) -> Response {
        let inner = tower::service_fn(move |_: Request| async move { Err::<Response, _>(error()) });
        match RenderLayer.layer(inner).call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    #[tokio::test]
    async fn a_refusal_is_a_whole_answer() {
        let refused = || ProxyError::from(Reason::QueueFull).retry_after(Duration::from_secs(2));
        let response = call(Request::default(), refused).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(
            (&response.headers()["retry-after-ms"], &response.headers()["x-should-retry"]),
            (&"2000".parse().unwrap(), &"true".parse().unwrap())
        );
        assert_eq!(
            response.headers()["proxy-status"],
            "headworks; error=connection_limit_reached; details=\"queue_full\""
        );
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = response.into_body().collect().await.expect("a whole body").to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((&problem["status"], &problem["reason"]), (&503.into(), &"queue_full".into()));
    }

    #[tokio::test]
    async fn a_grpc_call_gets_its_status_in_the_head() {
        let mut request = Request::default();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        let response = call(request, || Reason::RateLimited.into()).await;
        assert_eq!((response.status().as_u16(), response.headers()["grpc-status"].as_bytes()), (200, b"8".as_slice()));
        assert!(http_body::Body::is_end_stream(response.body()));
    }

    #[test]
    fn seconds_round_up_and_never_say_zero() {
        let seconds = |millis| whole_seconds(Reason::RateLimited, Duration::from_millis(millis), 0.9);
        assert_eq!([0, 2000, 2001].map(seconds), [1, 2, 3]);
        assert_eq!([0, 1, 1000, 16_667].map(|micros| whole_millis(Duration::from_micros(micros))), [1, 1, 1, 17]);
    }

    #[test]
    fn times_that_were_spread_are_right_on_average() {
        let seconds = |luck| whole_seconds(Reason::QueueFull, Duration::from_millis(2_250), luck);
        assert_eq!([0.0, 0.24, 0.26, 0.99].map(seconds), [3, 3, 2, 2]);
        assert_eq!(whole_seconds(Reason::QueueShed, Duration::from_millis(10), 0.5), 1);
    }

    #[test]
    fn who_has_no_chance_is_told_not_to_come_back() {
        let wait = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(should_retry(Reason::QueueFull, wait(30)), Some(true));
        assert_eq!(should_retry(Reason::RateLimited, wait(3600)), Some(false));
        assert_eq!(should_retry(Reason::QueueReplaced, None), Some(false));
        assert_eq!(should_retry(Reason::UpstreamReset, None), None);
    }
}
