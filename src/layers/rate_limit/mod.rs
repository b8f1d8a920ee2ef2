//! Holds a rate per key.
//!
//! ```toml
//! rate_limit = [
//!   { name = "per-key", by = "header:authorization", rate = "60/min", burst = 10 },
//!   { name = "all", by = "all", rate = "1000/s", top_talkers = { share = "10%" } },
//!   { name = "down", rate = "10MiB/s", cost = "response_bytes", dry_run = true },
//! ]
//! ```
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | the layer, which asks several limits and charges them for bytes |
//! | `settings.rs` | [`Settings`]: what the configuration says of a limit |
//! | `limiter.rs` | [`Limiter`]: the live state of one limit |
//! | `clock.rs` | the time of a limit, which passes faster while it is raised |
//! | `shared.rs` | [`AskLayer`]: what instances share is asked for first |
//! | `told.rs` | `RateLimit` and `RateLimit-Policy` |
//!
//! **Does.** Every limit of the route must have room. A request that one of them refuses takes nothing from the
//! others, and is told the longest of the waits, after which all have room unless others came in between. Refuses with
//! `rate_limited` (429). Stands above admission, so that a refusal costs no credit.
//!
//! **Means.** A limit is a bucket of `burst` requests that is refilled evenly, one request each `period / amount`
//! (GCRA). So over any time `x` a key gets at most `burst + x · amount / period` requests; there is no window that
//! begins anew and lets two bursts through at its edge.
//!
//! **In bytes.** How large a body is stands fast when it has passed. So a key has to be in credit when its request
//! comes, and is charged for each piece of the body that is handed on, be it whole in the end or not. What is overdrawn is
//! debt, and who is in debt is refused until it is paid by time. Nothing that runs is slowed down.
//!
//! **Raised.** By a schedule (`surge`) or by an operator a rate is so many times higher for a while: the limit's own
//! time passes faster (`control/surge.rs`), so that all of the above holds through every change.
//!
//! **Top talkers.** With `top_talkers`, those who ask most leave half of the bucket to the others, and only a share of
//! the rate, for all of them together, is theirs for certain. So they have all that nobody else wants, and a crowd
//! that shares a limit with a few who are loud is not refused for them. Who they are is an estimate
//! (`control/talkers.rs`); nobody is refused by it while the bucket is half full.
//!
//! **Dry run.** A limit with `dry_run` only counts and logs what it would have refused, and clients are told nothing.
//!
//! **Tells.** Answers and refusals carry the fields of the tightest limit in the form of the IETF draft:
//! `RateLimit-Policy: "per-key";q=60;w=60` and `RateLimit: "per-key";r=7;t=1`. For such a bucket `q` and `w` are the
//! sustained rate, the amount and the period in seconds, and not what may come at once; `r` is what may come at once
//! just now, from 0 to `burst`, be that less or more than `q`; `t` is the time until `r` grows by one, rounded up. Of a
//! limit in bytes `t` is the time until the bucket is full, and it is told only where there is no other. `Retry-After`
//! is that of a refusal and up to a tenth more, so that those who were refused together do not come back together.
//! Fields of the upstream stay beside ours.

mod clock;
mod limiter;
mod settings;
mod shared;
#[cfg(test)]
mod tests;
mod told;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

pub use limiter::Limiter;
pub use settings::{Cost, Settings, TopTalkers};
pub use shared::AskLayer;

use crate::body::Watch;
use crate::context::{Fault, Request, RequestContext, Response};
use crate::control::gcra::Room;
use crate::control::surge::Permille;
use crate::entropy;
use crate::error::{ProxyError, Reason};
use limiter::{Account, Asked, Grant};
use told::Fields;

/// What an operator sees of a limit.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// How many times higher its rate is.
    pub factor: Permille,
    /// How long a raise by hand stays, and until it has come down.
    pub raised_for: Option<(Duration, Duration)>,
    /// Keys that it remembers.
    pub keys: usize,
    /// Requests that it let through.
    pub allowed: u64,
    /// Requests that it refused, or would have.
    pub refused: u64,
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

    fn call(&mut self, mut request: Request) -> RateLimited<S::Future> {
        match admit(&self.limits, &request) {
            Ok(Admitted { fields, charges }) => {
                let (up, down): (Vec<_>, Vec<_>) =
                    charges.into_iter().partition(|charge| charge.limit.settings().cost == Cost::RequestBytes);
                for charge in up {
                    request.body_mut().watch_in_place(Box::new(charge));
                }
                RateLimited { inner: Some(self.inner.call(request)), refusal: None, fields, charges: down }
            }
            Err(refusal) => RateLimited { inner: None, refusal: Some(refusal), fields: None, charges: Vec::new() },
        }
    }
}

/// A request that all limits have let through.
#[derive(Debug, Default)]
struct Admitted {
    /// Of the tightest limit.
    fields: Option<Fields>,
    /// Of limits in bytes.
    charges: Vec<Charge>,
}

impl Admitted {
    fn charge(&mut self, limit: &Arc<Limiter>, request: &Request, asked: &Asked, grant: Option<&Grant>) {
        if limit.settings().cost != Cost::Requests {
            self.charges.push(Charge { limit: Arc::clone(limit), account: limit.account(request, asked, grant) });
        }
    }
}

/// Charges a limit for the bytes of a body.
#[derive(Debug)]
struct Charge {
    limit: Arc<Limiter>,
    account: Account,
}

impl Watch for Charge {
    fn data(&mut self, bytes: &[u8]) {
        self.limit.charge(&self.account, bytes.len() as u64, Instant::now());
    }
}

/// Takes one request from every limit, or from none. The request counts for the time of its receipt, which is known
/// already; one that was delayed on purpose for the time at which it comes here, or those that were not would leave it
/// nothing.
fn admit(limits: &[Arc<Limiter>], request: &Request) -> Result<Admitted, ProxyError> {
    let context = request.extensions().get::<RequestContext>();
    let in_time = context.filter(|context| !context.notes().faults.has(Fault::Delay));
    let now = in_time.map_or_else(Instant::now, RequestContext::received_at);
    if let [limit] = limits {
        return admit_by_one(limit, request, now);
    }
    let asked: Vec<(&Arc<Limiter>, Asked, Result<Grant, Duration>)> = limits
        .iter()
        .map(|limit| {
            let asked = limit.ask(request, now);
            let taken = limit.take(&asked);
            (limit, asked, taken)
        })
        .collect();
    for (limit, asked, taken) in &asked {
        if taken.is_err() {
            refused(limit, request, asked);
        }
    }
    let binding = || asked.iter().filter(|(limit, ..)| !limit.settings().dry_run);
    let refusals = binding().filter_map(|(limit, _, taken)| Some((limit, taken.as_ref().err()?)));
    if let Some((limit, wait)) = refusals.max_by_key(|(_, wait)| **wait) {
        for (limit, asked, taken) in &asked {
            if let Ok(grant) = taken {
                limit.give_back(asked, grant);
            }
        }
        return Err(refusal(limit, *wait));
    }
    let mut admitted = Admitted::default();
    for (limit, asked, taken) in &asked {
        admitted.charge(limit, request, asked, taken.as_ref().ok());
        if taken.is_ok() {
            limit.count_allowed();
        }
    }
    let rooms = binding().filter_map(|(limit, _, taken)| Some((limit, taken.as_ref().ok()?.room)));
    let tightest = rooms.min_by_key(|(limit, room)| (limit.settings().cost != Cost::Requests, room.remaining));
    admitted.fields = tightest.map(|(limit, room)| limit.fields(room));
    Ok(admitted)
}

/// The usual case, without the list.
fn admit_by_one(limit: &Arc<Limiter>, request: &Request, now: Instant) -> Result<Admitted, ProxyError> {
    let asked = limit.ask(request, now);
    let mut admitted = Admitted::default();
    let taken = limit.take(&asked);
    match &taken {
        Ok(grant) => {
            limit.count_allowed();
            admitted.fields = (!limit.settings().dry_run).then(|| limit.fields(grant.room));
        }
        Err(wait) => {
            refused(limit, request, &asked);
            if !limit.settings().dry_run {
                return Err(refusal(limit, *wait));
            }
        }
    }
    admitted.charge(limit, request, &asked, taken.as_ref().ok());
    Ok(admitted)
}

/// Counts what a limit has refused, or would have.
fn refused(limit: &Limiter, request: &Request, asked: &Asked) {
    limit.count_refused(asked);
    if let (true, Some(context)) = (limit.settings().dry_run, request.extensions().get::<RequestContext>()) {
        let _ = context.notes().would_refuse.set(Reason::RateLimited);
    }
}

fn refusal(limit: &Limiter, wait: Duration) -> ProxyError {
    let later = wait.mul_f64(1.0 + LATER * entropy::unit());
    let mut error = ProxyError::from(Reason::RateLimited).retry_after(later);
    error.headers.extend(limit.fields(Room { remaining: 0, next: wait }));
    error
}

/// How much later than they could those may be told to come back who were refused together.
const LATER: f64 = 0.1;

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
        // For the bytes of the answer.
        charges: Vec<Charge>,
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
            Ok(response) => {
                fields.for_each(|(name, value)| {
                    response.headers_mut().append(name, value);
                });
                for charge in std::mem::take(this.charges) {
                    response.body_mut().watch_in_place(Box::new(charge));
                }
            }
            Err(error) => error.headers.extend(fields),
        }
        Poll::Ready(outcome)
    }
}
