//! Turns requests away while the proxy itself has too much to do, or too little room: what matters least goes first,
//! and what is protected never.
//!
//! Refuses with `proxy_busy` (503) by the level that [`Strain`] has, and with `memory_exhausted` (503) while so much
//! of `server.memory` is reserved that the rest is for requests that matter more. Stands below the layer that knows
//! what a request matters, and above all that costs something.
//!
//! ```toml
//! [server]
//! overload = { delay = "250ms", memory = "75%" }
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{Priority, Request, RequestContext, Response};
use crate::control::overload::{self, Level};
use crate::entropy;
use crate::error::{ProxyError, Reason};

/// In millionths.
const WHOLE: u32 = 1_000_000;

/// How much is turned away because tasks run late. One for the process.
#[derive(Debug, Default)]
pub struct Strain(AtomicU32);

impl Strain {
    /// Sets the level.
    pub fn set(&self, level: Level) {
        self.0.store(level.0, Relaxed);
    }

    fn level(&self) -> Level {
        Level(self.0.load(Relaxed))
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct ShedLayer {
    strain: Arc<Strain>,
    /// The share of the memory budget, in millionths, beyond which background requests find no room.
    memory: Option<u32>,
}

impl ShedLayer {
    /// A layer that turns away by `strain`, and background requests beyond so many millionths of the memory budget.
    #[must_use]
    pub fn new(strain: Arc<Strain>, memory: Option<u32>) -> Self {
        Self { strain, memory }
    }

    fn refuses(&self, context: &RequestContext) -> Option<ProxyError> {
        let priority = context.priority();
        let level = self.strain.level();
        if level.is_shedding() && entropy::unit() * f64::from(overload::WHOLE) < f64::from(level.share(priority)) {
            return Some(ProxyError::from(Reason::ProxyBusy).retry_soon());
        }
        let most = share(self.memory?, priority)?;
        context.is_crowded(most).then(|| ProxyError::from(Reason::MemoryExhausted).retry_soon())
    }
}

/// The share of the memory budget, in millionths, that may be reserved when a request of this priority comes; none where
/// only the budget itself bounds it.
fn share(background: u32, priority: Priority) -> Option<u32> {
    let rest = WHOLE.saturating_sub(background);
    match priority {
        Priority::Background => Some(background),
        Priority::Default => Some(WHOLE - rest / 5),
        Priority::Critical => Some(WHOLE - rest / 10),
        Priority::Protected => None,
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { inner, layer: self.clone() }
    }
}

/// The service of [`ShedLayer`].
#[derive(Clone, Debug)]
pub struct Shed<S> {
    inner: S,
    layer: ShedLayer,
}

impl<S> Service<Request> for Shed<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Shedding<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Shedding<S::Future> {
        let context = request.extensions().get::<RequestContext>();
        let refusal = context.and_then(|context| self.layer.refuses(context));
        Shedding { inner: refusal.is_none().then(|| self.inner.call(request)), refusal }
    }
}

pin_project! {
    /// The future of [`Shed`].
    #[derive(Debug)]
    pub struct Shedding<F> {
        // None: turned away.
        #[pin]
        inner: Option<F>,
        refusal: Option<ProxyError>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Shedding<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.inner.as_pin_mut() {
            Some(inner) => inner.poll(cx),
            None => Poll::Ready(Err(this.refusal.take().unwrap_or_else(|| Reason::ProxyBusy.into()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, RequestId};
    use std::time::{Duration, SystemTime};

    fn context(priority: Priority) -> RequestContext {
        let connection = Arc::new(Connection::new("test".into(), None, None, false, Duration::ZERO));
        let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), connection, None);
        context.set_priority(priority);
        context
    }

    async fn refused(layer: &ShedLayer, priority: Priority) -> Option<ProxyError> {
        let mut request = Request::default();
        request.extensions_mut().insert(context(priority));
        let inner = tower::service_fn(|_: Request| async { Ok::<_, ProxyError>(Response::default()) });
        layer.layer(inner).call(request).await.err()
    }

    #[tokio::test]
    async fn what_matters_least_is_turned_away_first() {
        let strain = Arc::new(Strain::default());
        let layer = ShedLayer::new(Arc::clone(&strain), Some(750_000));
        for (level, expected) in [
            (0, [false, false, false, false]),
            (1000, [true, false, false, false]),
            (2000, [true, true, false, false]),
            (3000, [true, true, true, false]),
        ] {
            strain.set(Level(level));
            for (priority, expected) in Priority::ALL.into_iter().zip(expected) {
                let refusal = refused(&layer, priority).await;
                assert_eq!(refusal.is_some(), expected, "{priority:?} at {level}");
                if let Some(refusal) = refusal {
                    let wait = refusal.retry_after.expect("a time to come back");
                    assert_eq!(refusal.reason, Reason::ProxyBusy);
                    assert!((1.0..3.0).contains(&wait.as_secs_f64()), "{wait:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn of_a_class_that_is_shed_in_part_the_rest_passes() {
        let strain = Arc::new(Strain::default());
        strain.set(Level(1250));
        let layer = ShedLayer::new(strain, None);
        let mut count = 0;
        for _ in 0..2000 {
            count += u32::from(refused(&layer, Priority::Default).await.is_some());
        }
        assert!((400..600).contains(&count), "{count} of 2000");
    }

    #[test]
    fn the_last_of_the_memory_is_for_what_matters_most() {
        let shares = |background| Priority::ALL.map(|priority| share(background, priority));
        assert_eq!(shares(750_000), [Some(750_000), Some(950_000), Some(975_000), None]);
        assert_eq!(shares(WHOLE), [Some(WHOLE), Some(WHOLE), Some(WHOLE), None]);
    }
}
