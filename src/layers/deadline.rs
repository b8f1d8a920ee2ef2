//! One clock over the whole exchange, from the request's receipt to the last byte of the answer.
//!
//! Refuses with `total_timeout` (504) while no head has come, and cuts the body afterwards. Streams and upgrades are
//! not cut once their head is there: they end by silence or stall, not by age.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::Clocks;
use crate::body::kind::{Kind, of_response};
use crate::context::{Request, RequestContext, Response};
use crate::error::{ProxyError, Reason};

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    total: Duration,
}

impl DeadlineLayer {
    /// A layer that allows each exchange this long.
    #[must_use]
    pub fn new(total: Duration) -> Self {
        Self { total }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, total: self.total }
    }
}

/// The service of [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    total: Duration,
}

impl<S> Service<Request> for Deadline<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Limited<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Limited<S::Future> {
        let context = request.extensions().get::<RequestContext>();
        let deadline = context.map_or_else(Instant::now, RequestContext::received_at) + self.total;
        if let Some(context) = context {
            context.set_deadline(deadline);
        }
        Limited { inner: self.inner.call(request), deadline, sleep: tokio::time::sleep_until(deadline) }
    }
}

pin_project! {
    /// The future of [`Deadline`].
    #[derive(Debug)]
    pub struct Limited<F> {
        #[pin]
        inner: F,
        deadline: Instant,
        #[pin]
        sleep: Sleep,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Limited<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.inner.poll(cx) {
            Poll::Ready(Ok(response)) if of_response(response.status(), response.headers()) == Kind::Unary => {
                let clocks = Clocks { deadline: Some(*this.deadline), ..Clocks::default() };
                Poll::Ready(Ok(response.map(|body| body.time(clocks))))
            }
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => this.sleep.poll(cx).map(|()| Err(Reason::TotalTimeout.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use http_body_util::BodyExt as _;
    use http_body_util::channel::Channel;

    const TOTAL: Duration = Duration::from_secs(5);

    async fn call(response: impl Future<Output = Result<Response, ProxyError>>) -> Result<Response, ProxyError> {
        let mut response = Some(response);
        let inner = tower::service_fn(move |_: Request| response.take().expect("called once"));
        DeadlineLayer::new(TOTAL).layer(inner).call(Request::default()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_is_told() {
        let error = call(std::future::pending()).await.expect_err("no head");
        assert_eq!(error.reason, Reason::TotalTimeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_cut_and_a_stream_is_not() {
        for (content_type, cut) in [("text/plain", true), ("text/event-stream", false)] {
            let (_sender, channel) = Channel::<bytes::Bytes, std::io::Error>::new(1);
            let mut response = Response::new(Body::boxed(channel));
            response.headers_mut().insert("content-type", http::HeaderValue::from_static(content_type));
            let mut body = call(async { Ok(response) }).await.expect("a head").into_body();
            let frame = tokio::time::timeout(TOTAL * 2, body.frame()).await;
            assert_eq!(frame.is_ok_and(|frame| frame.is_some_and(|frame| frame.is_err())), cut, "{content_type}");
        }
    }
}
