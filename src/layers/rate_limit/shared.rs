//! Limits that several instances share: what is not known here is asked for before the limits decide.
//!
//! Stands right above the limits, and only on routes with one that is shared. A request whose keys are known passes at
//! once; another waits for the store, `store.wait` at most. Refuses nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::Limiter;
use crate::context::{Request, Response};
use crate::error::ProxyError;

/// Stands around the limits; see the module's text.
#[derive(Clone, Debug)]
pub struct AskLayer {
    limits: Arc<[Arc<Limiter>]>,
}

impl AskLayer {
    /// None: nothing is shared.
    #[must_use]
    pub fn new(limits: &[Arc<Limiter>]) -> Option<Self> {
        let shared: Arc<[_]> = limits.iter().filter(|limit| limit.settings().shared).cloned().collect();
        (!shared.is_empty()).then_some(Self { limits: shared })
    }
}

impl<S> Layer<S> for AskLayer {
    type Service = Ask<S>;

    fn layer(&self, inner: S) -> Ask<S> {
        Ask { inner, limits: Arc::clone(&self.limits) }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Ask<S> {
    inner: S,
    limits: Arc<[Arc<Limiter>]>,
}

impl<S> Service<Request> for Ask<S>
where
    S: Service<Request, Response = Response, Error = ProxyError, Future: Send> + Clone + Send + 'static,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Asking<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Asking<S::Future> {
        // All are asked before any is waited for. What is empty is not allocated.
        let asked = |limit: &Arc<Limiter>| Some((Arc::clone(limit), limit.unknown(&request)?));
        let asked: Vec<_> = self.limits.iter().filter_map(asked).collect();
        let course = if asked.is_empty() {
            Course::Known { inner: self.inner.call(request) }
        } else {
            // Layers are always ready, so a fresh clone may be called.
            let (mut inner, since) = (self.inner.clone(), Instant::now());
            let decided = async move {
                for (limit, key) in asked {
                    limit.answered(key, since).await;
                }
                inner.call(request).await
            };
            Course::Asked { inner: Box::pin(decided) }
        };
        Asking { course }
    }
}

pin_project! {
    /// The future of [`Ask`].
    pub struct Asking<F> {
        #[pin]
        course: Course<F>,
    }
}

pin_project! {
    #[project = CourseOf]
    enum Course<F> {
        Known {
            #[pin]
            inner: F,
        },
        Asked { inner: Pin<Box<dyn Future<Output = Result<Response, ProxyError>> + Send>> },
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Asking<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().course.project() {
            CourseOf::Known { inner } => inner.poll(cx),
            CourseOf::Asked { inner } => inner.as_mut().poll(cx),
        }
    }
}
