//! Holds a rate per key.
//!
//! ```toml
//! rate_limit = [
//!   { name = "per-key", by = "header:authorization", rate = "60/min", burst = 10 },
//!   { name = "all", rate = "1000/s" },
//! ]
//! ```
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | the layer, which asks several limits |
//! | `limiter.rs` | [`Limiter`]: the live state of one limit, and what it tells the client |
//!
//! **Does.** Every limit of the route must have room. A request that one of them refuses takes nothing from the
//! others, and is told the longest of the waits, after which all have room unless others came in between. Refuses with
//! `rate_limited` (429). Stands above admission, so that a refusal costs no credit.
//!
//! **Means.** A limit is a bucket of `burst` requests that is refilled evenly, one request each `period / amount`
//! (GCRA). So over any time `x` a key gets at most `burst + x · amount / period` requests; there is no window that
//! begins anew and lets two bursts through at its edge.
//!
//! **Tells.** Answers and refusals carry the fields of the tightest limit in the form of the IETF draft:
//! `RateLimit-Policy: "per-key";q=60;w=60` and `RateLimit: "per-key";r=7;t=1`. For such a bucket `q` and `w` are the
//! sustained rate, the amount and the period in seconds, and not what may come at once; `r` is what may come at once
//! just now, from 0 to `burst`, be that less or more than `q`; `t` is the time until `r` grows by one, rounded up, and
//! on a refusal the same as `Retry-After`. Fields of the upstream stay beside ours.

mod limiter;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

pub use limiter::Limiter;

use crate::context::{Key, Request, RequestContext, Response};
use crate::control::gcra::Room;
use crate::error::{ProxyError, Reason};
use limiter::Fields;

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// For `RateLimit`, logs and metrics.
    pub name: Arc<str>,
    /// What is counted apart.
    pub by: Key,
    /// Requests per `period`.
    pub amount: NonZeroU32,
    /// One second, minute or hour.
    pub period: Duration,
    /// Requests that may come at once; the amount of one period when absent in the file.
    pub burst: NonZeroU32,
    /// Keys remembered at most, at 16 bytes each.
    pub max_keys: usize,
}

/// Puts [`RateLimit`] around a service.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limits: Arc<[Arc<Limiter>]>,
}

impl RateLimitLayer {
    /// All of `limits` must have room. They are live state: whoever builds the route keeps them across reloads.
    pub fn new(limits: impl Into<Arc<[Arc<Limiter>]>>) -> Self {
        Self { limits: limits.into() }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit { inner, limits: Arc::clone(&self.limits) }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    limits: Arc<[Arc<Limiter>]>,
}

impl<S> Service<Request> for RateLimit<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = RateLimited<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> RateLimited<S::Future> {
        match admit(&self.limits, &request) {
            Ok(fields) => RateLimited { inner: Some(self.inner.call(request)), refusal: None, fields },
            Err(refusal) => RateLimited { inner: None, refusal: Some(refusal), fields: None },
        }
    }
}

/// Takes one request from every limit, or from none. Gives the fields of the tightest. The request counts for the
/// time of its receipt, which is known already.
fn admit(limits: &[Arc<Limiter>], request: &Request) -> Result<Option<Fields>, ProxyError> {
    let now = request.extensions().get().map_or_else(Instant::now, RequestContext::received_at);
    if let [limit] = limits {
        return admit_by_one(limit, request, now);
    }
    let asked: Vec<_> = limits
        .iter()
        .map(|limit| {
            let key = limit.hash(request);
            (limit, key, limit.take(key, now))
        })
        .collect();
    let refusals = asked.iter().filter_map(|(limit, _, taken)| Some((limit, taken.err()?)));
    if let Some((limit, wait)) = refusals.max_by_key(|(_, wait)| *wait) {
        for (limit, key, taken) in &asked {
            match taken {
                Ok(_) => limit.give_back(*key),
                Err(_) => limit.count_refused(),
            }
        }
        return Err(refusal(limit, wait));
    }
    for (limit, ..) in &asked {
        limit.count_allowed();
    }
    let rooms = asked.iter().filter_map(|(limit, _, taken)| Some((limit, taken.ok()?)));
    Ok(rooms.min_by_key(|(_, room)| room.remaining).map(|(limit, room)| limit.fields(room)))
}

/// The usual case, without the list.
fn admit_by_one(limit: &Limiter, request: &Request, now: Instant) -> Result<Option<Fields>, ProxyError> {
    match limit.take(limit.hash(request), now) {
        Ok(room) => {
            limit.count_allowed();
            Ok(Some(limit.fields(room)))
        }
        Err(wait) => {
            limit.count_refused();
            Err(refusal(limit, wait))
        }
    }
}

fn refusal(limit: &Limiter, wait: Duration) -> ProxyError {
    let mut error = ProxyError::from(Reason::RateLimited).retry_after(wait);
    error.headers.extend(limit.fields(Room { remaining: 0, next: wait }));
    error
}

pin_project! {
    /// The future of [`RateLimit`].
    #[derive(Debug)]
    pub struct RateLimited<F> {
        // None: refused, for the reason in `refusal`.
        #[pin]
        inner: Option<F>,
        refusal: Option<ProxyError>,
        // Added to whatever comes back.
        fields: Option<Fields>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for RateLimited<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            return Poll::Ready(Err(this.refusal.take().unwrap_or(Reason::RateLimited.into())));
        };
        let mut outcome = ready!(inner.poll(cx));
        let fields = this.fields.take().into_iter().flatten();
        match &mut outcome {
            Ok(response) => fields.for_each(|(name, value)| {
                response.headers_mut().append(name, value);
            }),
            Err(error) => error.headers.extend(fields),
        }
        Poll::Ready(outcome)
    }
}
