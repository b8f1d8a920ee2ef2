//! Edits fields of the request before it is forwarded and of the response before it is sent.
//!
//! ```toml
//! headers = { request = { set = { x-tenant = "a" }, remove = ["cookie"] }, response = { add = { x-served-by = "hw" } } }
//! ```
//!
//! Answers of the proxy itself (refusals, failures) are not edited: they pass this layer as errors.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderName, HeaderValue};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{Request, Response};
use crate::error::ProxyError;

/// What to edit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Before the request is forwarded.
    pub request: Edit,
    /// Before the response is sent.
    pub response: Edit,
}

impl Settings {
    /// Whether there is anything to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One side's changes, in this order: remove, set, add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Fields that go.
    pub remove: Vec<HeaderName>,
    /// Fields that get exactly this value.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that get one more value.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl Edit {
    /// Whether there is anything to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Makes the changes.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct HeadersLayer {
    settings: Arc<Settings>,
}

impl HeadersLayer {
    /// A layer that makes these edits.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self { settings: Arc::new(settings.clone()) }
    }
}

impl<S> Layer<S> for HeadersLayer {
    type Service = Headers<S>;

    fn layer(&self, inner: S) -> Headers<S> {
        Headers { inner, settings: Arc::clone(&self.settings) }
    }
}

/// The service of [`HeadersLayer`].
#[derive(Clone, Debug)]
pub struct Headers<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> Service<Request> for Headers<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Editing<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Editing<S::Future> {
        self.settings.request.apply(request.headers_mut());
        Editing { inner: self.inner.call(request), settings: Arc::clone(&self.settings) }
    }
}

pin_project! {
    /// The future of [`Headers`].
    #[derive(Debug)]
    pub struct Editing<F> {
        #[pin]
        inner: F,
        settings: Arc<Settings>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Editing<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        this.settings.response.apply(response.headers_mut());
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    }

    #[tokio::test]
    async fn both_sides_are_edited_in_order() {
        let settings = Settings {
            request: Edit {
                remove: vec![HeaderName::from_static("cookie")],
                set: vec![field("x-tenant", "b")],
                add: vec![field("x-tenant", "c")],
            },
            response: Edit { set: vec![field("server", "hidden")], ..Edit::default() },
        };
        let echo = tower::service_fn(|request: Request| async move {
            let mut response = Response::default();
            *response.headers_mut() = request.headers().clone();
            Ok::<_, ProxyError>(response)
        });
        let mut request = Request::default();
        request.headers_mut().extend([field("cookie", "secret"), field("x-tenant", "a")]);
        let response = HeadersLayer::new(&settings).layer(echo).call(request).await.expect("a response");
        let tenants: Vec<_> = response.headers().get_all("x-tenant").iter().collect();
        assert_eq!(tenants, ["b", "c"]);
        assert_eq!(response.headers().get("cookie"), None);
        assert_eq!(response.headers()["server"], "hidden");
    }
}
