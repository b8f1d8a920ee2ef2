//! Holds the bodies of requests to a size, and their clients to a pace.
//!
//! Refuses with `body_too_large` (413) at once when the length is known, and cuts what comes without one at the first
//! byte too many. Cuts with `upload_stalled` and `upload_slow` (408) a client that is waited for and sends nothing, or
//! next to nothing. What is cut before the answer's head is told so; the upstream's call is aborted and it is not
//! blamed. The messages of a gRPC call come when they come: it has a size, but no pace of its own, and its silence is
//! that of both sides together. There is none over HTTP/1, whatever a client may call its body.
//!
//! Stands above admission: what is too large takes no credit, and the upload is not read.
//!
//! ```toml
//! [[route]]
//! max_body_size = "10MiB"
//! stream = { upload_timeout = "30s", upload_rate = "100B" }
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Version;
use http_body::Body as _;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::UploadBounds;
use crate::body::kind::is_grpc;
use crate::context::{Request, Response};
use crate::error::{ProxyError, Reason};

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct UploadLayer {
    bounds: UploadBounds,
}

impl UploadLayer {
    /// A layer that holds bodies to these bounds.
    #[must_use]
    pub fn new(bounds: UploadBounds) -> Self {
        Self { bounds }
    }
}

impl<S> Layer<S> for UploadLayer {
    type Service = Upload<S>;

    fn layer(&self, inner: S) -> Upload<S> {
        Upload { inner, bounds: self.bounds }
    }
}

/// The service of [`UploadLayer`].
#[derive(Clone, Debug)]
pub struct Upload<S> {
    inner: S,
    bounds: UploadBounds,
}

impl<S> Service<Request> for Upload<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Uploading<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Uploading<S::Future> {
        if request.body().is_end_stream() {
            return Uploading { inner: Some(self.inner.call(request)) };
        }
        let least = request.body().size_hint().lower();
        if self.bounds.max_size.is_some_and(|most| least > most) {
            return Uploading { inner: None };
        }
        let mut bounds = self.bounds;
        if request.version() == Version::HTTP_2 && is_grpc(request.headers()) {
            (bounds.silence, bounds.rate) = (None, None);
        }
        Uploading { inner: Some(self.inner.call(request.map(|body| body.bound(bounds)))) }
    }
}

pin_project! {
    /// The future of [`Upload`].
    #[derive(Debug)]
    pub struct Uploading<F> {
        // None: refused for its size.
        #[pin]
        inner: Option<F>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Uploading<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().inner.as_pin_mut() {
            Some(inner) => inner.poll(cx),
            None => Poll::Ready(Err(Reason::BodyTooLarge.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{Body, BodyError};
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, channel::Channel};
    use std::time::Duration;

    const BOUNDS: UploadBounds = UploadBounds { max_size: Some(8), silence: Some(Duration::from_secs(30)), rate: None };

    /// What an upstream that reads everything makes of a request.
    async fn send(request: Request) -> Result<usize, Reason> {
        let reader = tower::service_fn(|request: Request| async move {
            let read =
                request.into_body().collect().await.map_err(|error: BodyError| ProxyError::from(error.reason))?;
            Ok(Response::new(Body::full(read.to_bytes())))
        });
        let response = UploadLayer::new(BOUNDS).layer(reader).call(request).await.map_err(|error| error.reason)?;
        Ok(response.into_body().collect().await.expect("a full body").to_bytes().len())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_is_refused_by_its_length_or_cut_without_one() {
        assert_eq!(send(Request::new(Body::full("12345678"))).await, Ok(8));
        assert_eq!(send(Request::new(Body::full("123456789"))).await, Err(Reason::BodyTooLarge));
        let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(4);
        for part in ["1234", "5678", "9"] {
            sender.send_data(Bytes::from(part)).await.expect("room");
        }
        assert_eq!(send(Request::new(Body::boxed(channel))).await, Err(Reason::BodyTooLarge));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut_and_a_grpc_call_is_not() {
        let silent = || {
            let (sender, channel) = Channel::<Bytes, std::io::Error>::new(4);
            (sender, Request::new(Body::boxed(channel)))
        };
        let (_sender, request) = silent();
        assert_eq!(send(request).await, Err(Reason::UploadStalled));
        let call = |version| {
            let (sender, mut request) = silent();
            request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
            *request.version_mut() = version;
            (sender, request)
        };
        let (_sender, request) = call(Version::HTTP_11);
        assert_eq!(send(request).await, Err(Reason::UploadStalled));
        let (_sender, request) = call(Version::HTTP_2);
        assert!(tokio::time::timeout(Duration::from_secs(3600), send(request)).await.is_err());
    }
}
