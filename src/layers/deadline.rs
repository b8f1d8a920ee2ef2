//! One clock over the whole exchange, from the request's receipt to the last byte of the answer: the route's, or the
//! time that the client says it waits, whichever ends first.
//!
//! While no head has come, refuses with `total_timeout` (504) when the route's time is over, and when the client's is,
//! with `deadline_passed` (504) if no upstream was asked yet and `deadline_exceeded` (504) if one was. A time that is
//! over on arrival is refused at once. Cuts the body afterwards. Streams and upgrades are not cut once their head is
//! there: they end by silence or stall, not by age; and a gRPC call whose time is over is ended by its two ends, which
//! both know it.
//!
//! Stands above everything that waits. What the client said is left in the request's extensions, so that each attempt
//! can say what is left of it.
//!
//! ```toml
//! [[route]]
//! timeout.total = "1m"
//! deadline = { from = ["grpc-timeout", "x-request-timeout"], max = "5m", send = ["x-request-timeout"] }
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::Clocks;
use crate::body::kind::{Kind, is_grpc, of_response};
use crate::context::{Request, RequestContext, Response};
use crate::control::allowance::{Allowance, Field, Fields};
use crate::error::{ProxyError, Reason};

/// A body of at most this length is on its way as a whole once the head is here: it fits into the windows and buffers
/// between a client and us.
const SENT_AT_ONCE: u64 = 64 << 10;

/// How long exchanges may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The fields in which clients are believed.
    pub believed: Fields,
    /// A longer time that a client says counts as this.
    pub max: Option<Duration>,
    /// The fields in which the upstream is told what is left, also where the client said nothing.
    pub send: Fields,
}

impl Default for Settings {
    fn default() -> Self {
        Self { believed: Fields::all(), max: None, send: Fields::default() }
    }
}

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    total: Option<Duration>,
    settings: Settings,
}

impl DeadlineLayer {
    /// A layer that allows each exchange `total`, or less where its client says so. None where neither has a say.
    #[must_use]
    pub fn new(total: Option<Duration>, settings: Settings) -> Option<Self> {
        (total.is_some() || !settings.believed.is_empty()).then_some(Self { total, settings })
    }

    fn deadline(&self, request: &mut Request) -> Option<Deadline> {
        let mut said = self.said(request);
        let head = said.head().into_iter().chain(self.total).min()?;
        let whole = said.whole().into_iter().chain(self.total).min();
        let is_clients = self.total.is_none_or(|total| head < total);
        if !self.settings.send.is_empty() {
            let grpc = is_grpc(request.headers());
            for field in self.settings.send.iter().filter(|field| grpc || *field != Field::Grpc) {
                said.state(request.headers_mut(), field, head);
            }
        }
        if !said.is_empty() {
            request.extensions_mut().insert(said);
        }
        let context = request.extensions().get::<RequestContext>();
        let received_at = context.map_or_else(Instant::now, RequestContext::received_at);
        if let Some(context) = context {
            context.set_deadline(received_at + head);
        }
        Some(Deadline {
            head: received_at + head,
            whole: whole.map(|whole| received_at + whole),
            is_past: head == Duration::ZERO,
            client: context.filter(|_| is_clients).cloned(),
            is_clients,
        })
    }

    fn said(&self, request: &Request) -> Allowance {
        let body = request.body();
        let is_sent = || body.is_end_stream() || body.size_hint().exact().is_some_and(|length| length <= SENT_AT_ONCE);
        Allowance::read(request.headers(), self.settings.believed, self.settings.max, is_sent)
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed { inner, layer: *self }
    }
}

/// The service of [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct Timed<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S> Service<Request> for Timed<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Limited<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Limited<S::Future> {
        let deadline = self.layer.deadline(&mut request);
        let sleep = deadline.as_ref().map(|deadline| tokio::time::sleep_until(deadline.head));
        let is_past = deadline.as_ref().is_some_and(|deadline| deadline.is_past);
        Limited { inner: (!is_past).then(|| self.inner.call(request)), deadline, sleep }
    }
}

/// When an exchange must be over.
#[derive(Debug)]
struct Deadline {
    /// When the head must be there.
    head: Instant,
    /// When the last byte must be.
    whole: Option<Instant>,
    /// Whether the time was over on arrival.
    is_past: bool,
    /// Whether the head's time is the client's.
    is_clients: bool,
    /// Knows then whether an upstream was asked.
    client: Option<RequestContext>,
}

impl Deadline {
    fn reason(&self) -> Reason {
        let is_asked = || self.client.as_ref().is_some_and(|context| context.notes().endpoint.get().is_some());
        match () {
            () if !self.is_clients => Reason::TotalTimeout,
            () if is_asked() => Reason::DeadlineExceeded,
            () => Reason::DeadlinePassed,
        }
    }
}

pin_project! {
    /// The future of [`Timed`].
    #[derive(Debug)]
    pub struct Limited<F> {
        // None: the time was over on arrival.
        #[pin]
        inner: Option<F>,
        deadline: Option<Deadline>,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Limited<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else { return Poll::Ready(Err(Reason::DeadlinePassed.into())) };
        let outcome = inner.poll(cx);
        let Some(deadline) = this.deadline else { return outcome };
        match outcome {
            Poll::Ready(Ok(response)) if of_response(response.status(), response.headers()) == Kind::Unary => {
                let clocks = Clocks { deadline: deadline.whole, ..Clocks::default() };
                let is_timed = clocks.deadline.is_some() && !response.body().is_end_stream();
                Poll::Ready(Ok(if is_timed { response.map(|body| body.time(clocks)) } else { response }))
            }
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => match this.sleep.as_pin_mut() {
                Some(sleep) => sleep.poll(cx).map(|()| Err(deadline.reason().into())),
                None => Poll::Pending,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use crate::context::{Connection, RequestId};
    use bytes::Bytes;
    use http::HeaderValue;
    use http_body_util::BodyExt as _;
    use http_body_util::channel::Channel;
    use std::sync::Arc;
    use std::time::SystemTime;

    const TOTAL: Duration = Duration::from_secs(5);

    fn request(fields: &[(&'static str, &'static str)]) -> Request {
        let mut request = Request::default();
        let connection = Arc::new(Connection::new("test".into(), None, None, false, TOTAL));
        let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), connection, None);
        request.extensions_mut().insert(context);
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    async fn call(
        total: Option<Duration>,
        request: Request,
        response: impl Future<Output = Result<Response, ProxyError>>,
    ) -> Result<Response, ProxyError> {
        let mut response = Some(response);
        let inner = tower::service_fn(move |_: Request| response.take().expect("called once"));
        DeadlineLayer::new(total, Settings::default()).expect("a layer").layer(inner).call(request).await
    }

    /// The reason for which a request gets no head, and when it is told.
    async fn refused(total: Option<Duration>, request: Request) -> (Reason, Duration) {
        let began = Instant::now();
        let error = call(total, request, std::future::pending()).await.expect_err("no head");
        (error.reason, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_is_told() {
        assert_eq!(refused(Some(TOTAL), request(&[])).await, (Reason::TotalTimeout, TOTAL));
        let says = |value| request(&[("x-request-timeout", value)]);
        assert_eq!(refused(Some(TOTAL), says("9")).await, (Reason::TotalTimeout, TOTAL));
        assert_eq!(refused(Some(TOTAL), says("2")).await, (Reason::DeadlinePassed, Duration::from_secs(2)));
        assert_eq!(refused(None, says("2")).await, (Reason::DeadlinePassed, Duration::from_secs(2)));
        let asked = says("2");
        let context = asked.extensions().get::<RequestContext>().expect("a context").clone();
        context.notes().endpoint.add("http://a".into());
        assert_eq!(refused(None, asked).await, (Reason::DeadlineExceeded, Duration::from_secs(2)));
        assert_eq!(context.deadline(), Some(context.received_at() + Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_is_over_is_refused_on_arrival() {
        let inner = tower::service_fn(|_: Request| async { unreachable!("nobody is asked") });
        let mut layer = DeadlineLayer::new(None, Settings::default()).expect("a layer").layer(inner);
        let answer: Result<Response, ProxyError> = layer.call(request(&[("grpc-timeout", "0n")])).await;
        assert_eq!(answer.expect_err("no time").reason, Reason::DeadlinePassed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_cut_and_a_stream_is_not() {
        for (content_type, field, cut) in [
            ("text/plain", ("a", "b"), true),
            ("text/event-stream", ("a", "b"), false),
            ("text/event-stream", ("x-request-timeout", "2"), false),
            ("application/grpc", ("grpc-timeout", "2S"), false),
        ] {
            let (_sender, channel) = Channel::<Bytes, std::io::Error>::new(1);
            let mut response = Response::new(Body::boxed(channel));
            response.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
            let answer = call(Some(TOTAL), request(&[field]), async { Ok(response) }).await;
            let frame = tokio::time::timeout(TOTAL * 2, answer.expect("a head").into_body().frame()).await;
            assert_eq!(frame.is_ok_and(|frame| frame.is_some_and(|frame| frame.is_err())), cut, "{content_type}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_for_the_head_does_not_cut_the_body() {
        for (field, cut) in [("x-request-timeout", true), ("x-stainless-timeout", false)] {
            let (_sender, channel) = Channel::<Bytes, std::io::Error>::new(1);
            let response = async { Ok(Response::new(Body::boxed(channel))) };
            let body = call(None, request(&[(field, "2")]), response).await.expect("a head").into_body();
            let mut body = body;
            let frame = tokio::time::timeout(TOTAL, body.frame()).await;
            assert_eq!(frame.is_ok(), cut, "{field}");
        }
    }

    #[test]
    fn silence_of_a_long_upload_is_not_counted_from_its_head() {
        let layer = DeadlineLayer::new(None, Settings::default()).expect("a layer");
        let said = |length: usize| {
            let mut request = Request::new(Body::full(vec![b'x'; length]));
            request.headers_mut().insert("x-stainless-read-timeout", HeaderValue::from_static("600"));
            layer.said(&request).head()
        };
        assert_eq!((said(0), said(64 << 10)), (Some(TOTAL * 120), Some(TOTAL * 120)));
        assert_eq!(said((64 << 10) + 1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_upstream_is_told_where_it_is_wanted() {
        let settings = Settings { send: [Field::XRequest, Field::Grpc].into_iter().collect(), ..Settings::default() };
        let layer = DeadlineLayer::new(Some(TOTAL), settings).expect("a layer");
        let mut plain = request(&[]);
        layer.deadline(&mut plain).expect("a deadline");
        assert_eq!(
            (&plain.headers()["x-request-timeout"], plain.headers().get("grpc-timeout")),
            (&"5.000".parse().expect("text"), None)
        );
        let mut call = request(&[("content-type", "application/grpc"), ("grpc-timeout", "9S")]);
        layer.deadline(&mut call).expect("a deadline");
        let mut said = call.extensions_mut().remove::<Allowance>().expect("what was said");
        said.spend(call.headers_mut(), Duration::from_secs(1));
        assert_eq!(
            (&call.headers()["x-request-timeout"], &call.headers()["grpc-timeout"]),
            (&"4.000".parse().expect("text"), &"4000000u".parse().expect("text"))
        );
    }

    #[test]
    fn where_nobody_has_a_say_there_is_no_layer() {
        let nobody = Settings { believed: Fields::default(), ..Settings::default() };
        assert!(DeadlineLayer::new(None, nobody).is_none());
        assert!(DeadlineLayer::new(Some(TOTAL), nobody).is_some());
    }
}
