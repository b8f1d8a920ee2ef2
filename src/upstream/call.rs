//! Calls an upstream: a credit from admission, the one attempt that it is good for, and perhaps another of both.

mod hedge;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::time::{Instant, sleep, timeout};
use tower_service::Service;

use super::admission::reason_of;
use super::client::Client;
use super::first_byte::AskedAt;
use super::retries::Permit;
use super::retry::policy::{Failure, has_tried_enough, is_repeatable, tried_before};
use super::retry::spare::{self, Spare};
use super::retry::{Cause, Denied, Hedge, Retry};
use super::{Credit, Timeouts, Upstream};
use crate::body::kind::{self, Kind, is_grpc};
use crate::body::{Body, Clocks, Pulse};
use crate::context::{Notes, Request, RequestContext, Response};
use crate::control::credits::{Ask, Class, Would};
use crate::entropy;
use crate::error::ProxyError;

/// What a field takes beside its text, as HTTP/2 counts it (RFC 9113, section 10.5.1).
const FIELD: usize = 32;
/// What is read of an answer that is thrown away, so that its connection can go on.
const MOST_DRAINED: usize = 64 * 1024;
/// How long it is waited for.
const DRAIN: Duration = Duration::from_millis(20);

type Outcome = Result<Response, ProxyError>;
type Answer = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Calls an upstream, with the clocks of a route. A credit is held from admission to the end of the response body; each
/// further attempt takes one of its own, of another endpoint where one has room, and none is held between two.
///
/// Refuses with what admission refuses with: `queue_full`, `queue_timeout`, `breaker_open` and `no_endpoint`. Dropping
/// the future, or the body of the answer, cancels the call and gives the credit back.
#[derive(Clone, Debug)]
pub struct Calls {
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
    retry: Arc<Retry>,
}

impl Calls {
    /// The service of a route that leads to this upstream.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>, timeouts: Timeouts, retry: Retry) -> Self {
        Self { upstream, timeouts, retry: Arc::new(retry) }
    }
}

impl Service<Request> for Calls {
    type Response = Response;
    type Error = ProxyError;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Answer {
        let Self { upstream, timeouts, retry } = self.clone();
        let context = request.extensions().get::<RequestContext>().cloned();
        let call = Call { upstream, timeouts, retry, context };
        Box::pin(async move { call.run(&mut request).await })
    }
}

/// One request on its way.
struct Call {
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
    retry: Arc<Retry>,
    context: Option<RequestContext>,
}

/// What another attempt could be made with.
struct Prepared {
    /// Whether the request has the same effect when it is made twice.
    is_repeatable: bool,
    /// None when a request that was sent cannot be sent again.
    spare: Option<Spare>,
}

/// Another attempt is to be made.
struct Again {
    /// After this time.
    pause: Duration,
    permit: Permit,
    /// None when the request is still in its place.
    request: Option<Request>,
}

impl Call {
    fn notes(&self) -> Option<&Notes> {
        self.context.as_ref().map(RequestContext::notes)
    }

    /// Makes attempts until one has an answer for the client, or there is no sense in another.
    async fn run(&self, request: &mut Request) -> Outcome {
        let ask = self.ask(request);
        let credit = self.admit(ask, request).await?;
        let prepared = self.prepare(request, credit.endpoint().client());
        let mut asked = credit.account();
        let mut outcome = match self.hedge_after(&prepared) {
            Some((spare, delay)) => {
                let hedged = Box::pin(self.hedged(request, credit, spare, delay, ask));
                let (outcome, answered) = hedged.await;
                asked = answered;
                outcome
            }
            None => self.attempt(request, credit).await,
        };
        for made in 1..=self.retry.attempts {
            let Some(again) = self.again(&outcome, request, &prepared, asked, made) else { break };
            let failed = discard(outcome, again.pause).await;
            // A copy is as it came, and what is in its place may have been counted before.
            let count = tried_before(again.request.as_ref().unwrap_or(request).headers());
            let count = count.saturating_add(if again.request.is_some() { made } else { 1 });
            if let Some(copy) = again.request {
                *request = copy;
            }
            spare::count(request, count);
            let credit = match self.admit(Ask { at: Instant::now(), avoid: Some(asked), ..ask }, request).await {
                Ok(credit) => credit.for_retry(),
                // What happened to the request says more than what did not happen to its repetition.
                Err(refusal) => return Err(failed.unwrap_or(refusal)),
            };
            asked = credit.account();
            outcome = self.attempt(request, credit).await;
            drop(again.permit);
        }
        outcome
    }

    /// What the request wants of admission.
    fn ask(&self, request: &Request) -> Ask {
        let kind = kind::of_request(request.headers());
        if let Some(notes) = self.notes() {
            let _ = notes.upstream.set(Arc::clone(self.upstream.name()));
            notes.set_kind(kind);
        }
        let class = match kind {
            Kind::Unary => Class::Unary,
            Kind::Stream | Kind::Upgrade => Class::Stream,
        };
        let mut ask = Ask { affinity: self.upstream.affinity(request), ..Ask::new(class, Instant::now()) };
        self.upstream.tell_apart(request, &mut ask);
        if let Some(context) = &self.context {
            (ask.priority, ask.deadline) = (context.priority(), context.deadline());
        }
        ask
    }

    /// Waits for a credit.
    fn admit<'a>(&'a self, ask: Ask, request: &Request) -> impl Future<Output = Result<Credit, ProxyError>> + use<'a> {
        let entry = self.upstream.admission.enter(ask, || head_size(request));
        async move {
            let admitted = entry.wait().await;
            if let Some(notes) = self.notes() {
                notes.queued.add(ask.at.elapsed());
                match admitted.as_ref().ok().and_then(|credit| credit.would) {
                    Some(Would::Wait) => drop(notes.would_wait.set(())),
                    Some(Would::Refuse(why)) => drop(notes.would_refuse.set(reason_of(why))),
                    None => {}
                }
            }
            admitted
        }
    }

    /// Copies what another attempt would need, if there can be one. What has not been sent needs no copy, and what is
    /// refused by its peer happens on HTTP/2 only.
    fn prepare(&self, request: &mut Request, client: &Client) -> Prepared {
        let Retry { attempts, on, hedge, max_body, .. } = &*self.retry;
        let is_repeatable = is_repeatable(request);
        let is_off = *attempts == 0 && *hedge == Hedge::Off;
        let is_upgrade = || kind::of_request(request.headers()) == Kind::Upgrade;
        let may_be_sent_again =
            || is_repeatable || on.connect && client.may_speak_http2() || on.unavailable && is_grpc(request.headers());
        if is_off || !may_be_sent_again() || is_upgrade() {
            return Prepared { is_repeatable, spare: None };
        }
        Prepared { is_repeatable, spare: Spare::of(request, *max_body, self.context.as_ref()) }
    }

    /// Asks the endpoint that a credit is good for, and waits for the head of its answer, whose body holds the credit
    /// from then on. A request of which nothing was sent is back in its place when this fails.
    async fn attempt(&self, request: &mut Request, credit: Credit) -> Outcome {
        if let Some(notes) = self.notes() {
            notes.endpoint.add(Arc::clone(credit.endpoint().label()));
        }
        let began = (self.retry.hedge == Hedge::Slowest).then(Instant::now);
        let sent = credit.endpoint().client().send(request, self.timeouts.first_byte).await;
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => {
                credit.failed(error.reason);
                return Err(error);
            }
        };
        let kind = kind::of_response(response.status(), response.headers());
        if let Some(context) = &self.context {
            context.notes().first_byte.set(context.received_at().elapsed());
            context.notes().set_kind(kind);
        }
        if let Some(began) = began.filter(|_| !response.status().is_server_error()) {
            self.upstream.latencies().observe(began.elapsed(), Instant::now());
        }
        let asked = response.extensions_mut().remove::<AskedAt>().map(|AskedAt(at)| at);
        let clocks = Clocks { idle: self.timeouts.idle, deadline: None };
        let pulse = response.extensions_mut().remove::<Pulse>();
        let response = response.map(|body| match pulse {
            _ if http_body::Body::is_end_stream(&body) => body,
            // Both directions are one call: neither is silent while the other speaks.
            Some(pulse) => body.time(clocks).beside(pulse),
            None => body.time(clocks),
        });
        Ok(credit.answered(response, kind, asked))
    }

    /// Whether this outcome is followed by another attempt, which is the retry of this number. `asked` is the account of
    /// the endpoint that it came from.
    fn again(
        &self,
        outcome: &Outcome,
        request: &Request,
        prepared: &Prepared,
        asked: usize,
        made: u32,
    ) -> Option<Again> {
        let failure = self.failure(outcome)?;
        let is_in_place = matches!(outcome, Err(error) if error.reason.retry_is_safe());
        let is_allowed = matches!(failure.cause, Cause::Connect | Cause::Unavailable) || prepared.is_repeatable;
        if !is_allowed {
            return None;
        }
        match self.grant(failure, request, prepared.spare.as_ref(), is_in_place, asked, made) {
            Ok(again) => {
                self.upstream.retries.retry(failure.cause);
                Some(again)
            }
            Err(denied) => {
                self.upstream.retries.deny(denied);
                None
            }
        }
    }

    fn failure(&self, outcome: &Outcome) -> Option<Failure> {
        match outcome {
            Ok(response) => Failure::of_answer(response, &self.retry.on),
            Err(error) => Failure::of_error(error, &self.retry.on),
        }
    }

    fn grant(
        &self,
        failure: Failure,
        request: &Request,
        spare: Option<&Spare>,
        is_in_place: bool,
        asked: usize,
        made: u32,
    ) -> Result<Again, Denied> {
        if !is_in_place && !spare.is_some_and(Spare::is_whole) {
            return Err(Denied::Body);
        }
        let headers = spare.filter(|_| !is_in_place).map_or_else(|| request.headers(), Spare::headers);
        // A retry of ours says so in the request, and is no reason to make no other.
        if made == 1 && has_tried_enough(headers) {
            return Err(Denied::Client);
        }
        let mut pause = failure.pause(&self.retry, made - 1, entropy::unit())?;
        let now = Instant::now();
        let deadline = self.context.as_ref().and_then(RequestContext::deadline);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now).saturating_sub(pause));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Denied::Deadline);
        }
        let retrying = self.upstream.admission.retry(asked, left, now);
        if let Ok(retrying) = &retrying {
            self.upstream.retries.left.set(i64::try_from(retrying.left).unwrap_or(i64::MAX));
        }
        let retrying = retrying?;
        if failure.cause == Cause::Connect && retrying.has_others {
            // Another endpoint need not wait until this one can be reached again.
            pause = Duration::ZERO;
        }
        let request = if is_in_place { None } else { Some(spare.and_then(Spare::request).ok_or(Denied::Body)?) };
        Ok(Again { pause, permit: retrying.permit, request })
    }
}

/// Lets go of an outcome, and waits. What there is of an answer is read, as far as it comes at once: then its connection
/// goes on, and otherwise it is closed. The credit comes back with it. Returns the error, if it was one.
async fn discard(outcome: Outcome, pause: Duration) -> Option<ProxyError> {
    match outcome {
        Ok(response) => {
            let _ = tokio::join!(sleep(pause), timeout(DRAIN, drain(response.into_body())));
            None
        }
        Err(error) => {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            Some(error)
        }
    }
}

async fn drain(mut body: Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > MOST_DRAINED {
            return;
        }
    }
}

/// Bytes of a request's head, about: what is held while it waits. Its body is not read before.
fn head_size(request: &Request) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    let uri = request.uri();
    uri.path().len() + uri.query().map_or(0, str::len) + fields.sum::<usize>()
}
