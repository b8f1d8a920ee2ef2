//! Admission to an upstream: a credit now, a bounded wait for one, or a refusal that says when to come back.
//!
//! The decisions are those of `control/`: the ledger's and its queue's. Here are the lock, the wake-ups and the clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Settings;
use super::books::Books;
use super::credit::Credit;
use super::dry_run::Said;
use super::endpoint::Endpoint;
use super::news::News;
use super::settings::EndpointSettings;
use crate::control::breaker;
use crate::control::choice::View;
use crate::control::credits::{Ask, Class, Dismissal, Slot, Ticket, Turn, Would};
use crate::control::published::steer::Caps;
use crate::entropy;
use crate::error::{ProxyError, Reason};
use crate::metrics::{Counter, Gauge, Histogram, Registry};

/// How often one who waits looks for credits that came free by time alone.
const LOOK: Duration = Duration::from_millis(100);
/// How often it looks while none can come so, which may change while it waits.
const LOOK_SELDOM: Duration = Duration::from_secs(1);

/// The one place where requests to an upstream wait. It takes other settings while it is in use.
#[derive(Clone, Debug)]
pub struct Admission(pub(super) Arc<Shared>);

/// What one who waits is told in the end.
type Word = Result<Credit, Dismissal>;
type Wake = oneshot::Sender<Word>;
type Guard<'a> = MutexGuard<'a, Books<Wake>>;

#[derive(Debug)]
pub(super) struct Shared {
    books: Mutex<Books<Wake>>,
    pub(super) metrics: Metrics,
    registry: Registry,
}

#[derive(Debug)]
pub(super) struct Metrics {
    depth: Gauge,
    bytes: Gauge,
    standing: Gauge,
    wait: Histogram,
    unary: Gauge,
    streams: Gauge,
    pub(super) agent_failures: Counter,
}

impl Metrics {
    fn new(registry: &Registry, upstream: &str) -> Self {
        let credits = |class| {
            let labels = [("upstream", upstream), ("class", class)];
            registry.gauge("headworks_credits_used", "Credits that are out, each until its body ends.", &labels)
        };
        let labels = [("upstream", upstream)];
        Self {
            depth: registry.gauge("headworks_queue_depth", "Requests waiting for a credit.", &labels),
            bytes: registry.gauge("headworks_queue_bytes", "Bytes of the heads of requests that wait.", &labels),
            standing: registry.gauge(
                "headworks_queue_standing",
                "1 while more comes than is served, and waits are kept short.",
                &labels,
            ),
            wait: registry.histogram(
                "headworks_queue_wait_seconds",
                "Time that requests waited for a credit.",
                &labels,
            ),
            unary: credits("unary"),
            streams: credits("stream"),
            agent_failures: registry.counter(
                "headworks_agent_failures_total",
                "Questions to an agent without an answer that can be read.",
                &labels,
            ),
        }
    }

    pub(super) fn credits(&self, class: Class) -> &Gauge {
        match class {
            Class::Unary => &self.unary,
            Class::Stream => &self.streams,
        }
    }
}

impl Shared {
    pub(super) fn books(&self) -> Guard<'_> {
        // No code that can panic runs under this lock; should it happen, the books still balance.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for credits that came free by time alone; whether there may be some.
    fn relieve(&self, books: &mut Books<Wake>, now: Instant) -> bool {
        let has_changed = books.look(now);
        let Some(moved) = books.relieve(now) else { return has_changed };
        let moved = i64::try_from(moved).unwrap_or(i64::MAX);
        self.metrics.unary.add(-moved);
        self.metrics.streams.add(moved);
        true
    }
}

/// An endpoint as operators see it.
#[derive(Clone, Debug)]
pub struct EndpointState {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Whether an operator drains it.
    pub is_draining: bool,
    /// Its credits that are out.
    pub in_flight: usize,
    /// What the choice among endpoints knows of it.
    pub known: View,
    /// Those of requests.
    pub unary: Credits,
    /// Those of streams, where they have their own.
    pub streams: Option<Credits>,
    /// What reports of its load leave of them.
    pub published: Caps,
    /// How its breaker is.
    pub breaker: breaker::State,
    /// Whether its health checks condemn it; none when there are no checks.
    pub is_down: Option<bool>,
}

/// Credits of one class of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credits {
    /// How many are out.
    pub used: usize,
    /// How many there are.
    pub limit: usize,
}

impl Admission {
    /// Admission with all credits at home.
    #[must_use]
    pub(super) fn new(settings: &Settings, endpoints: Vec<Arc<Endpoint>>, registry: &Registry) -> Self {
        let mut books = Books::new(settings, registry);
        books.apply(settings, endpoints, registry);
        let metrics = Metrics::new(registry, &settings.name);
        Self(Arc::new(Shared { books: Mutex::new(books), metrics, registry: registry.clone() }))
    }

    /// Brings other settings in force: credits that are out count on, and who waits keeps its place.
    pub(super) fn apply(&self, settings: &Settings, endpoints: Vec<Arc<Endpoint>>) {
        self.0.books().apply(settings, endpoints, &self.0.registry);
        self.settle();
    }

    /// Begins or ends the drain of an endpoint: it gets no more requests, those it has go on. False when it is not among
    /// the endpoints.
    pub(super) fn set_draining(&self, endpoint: &Arc<Endpoint>, is_draining: bool) -> bool {
        let found = self.0.books().set_draining(endpoint, is_draining);
        self.settle();
        found
    }

    /// All endpoints, in the order of the configuration.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointState> {
        let (mut books, now) = (self.0.books(), Instant::now());
        if books.look(now) {
            drop(books);
            hand_out(&self.0);
            books = self.0.books();
        }
        let credits = |account, class| {
            let found = books.ledger.credits_of(account, class);
            found.map(|(used, limit)| Credits { used, limit })
        };
        let state = |(account, endpoint, is_draining): (usize, &Arc<Endpoint>, bool)| EndpointState {
            endpoint: Arc::clone(endpoint),
            is_draining,
            in_flight: books.ledger.used_by(account),
            known: books.ledger.known_of(account),
            unary: credits(account, Class::Unary).unwrap_or_default(),
            streams: credits(account, Class::Stream),
            published: books.published_caps(account),
            breaker: books.breaker(account, now),
            is_down: books.check(account),
        };
        books.members().map(state).collect()
    }

    /// What a health check of an endpoint has found, and what all of them together say.
    pub(super) fn checked(&self, about: &EndpointSettings, has_passed: bool, is_down: bool) {
        let is_changed = self.0.books().checked(about, has_passed, is_down, Instant::now());
        if is_changed {
            hand_out(&self.0);
        }
    }

    /// Whether its health checks condemn an endpoint.
    pub(super) fn is_down(&self, about: &EndpointSettings) -> bool {
        self.0.books().is_down(about)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.books().ledger.waiting()
    }

    /// Whether more comes than is served, so that one more request would only be one more to refuse.
    #[must_use]
    pub fn is_standing(&self, class: Class, now: Instant) -> bool {
        self.0.books().ledger.is_standing(class, now)
    }

    /// Limits have changed: hands out what is free, or sends everybody home when nothing will be.
    fn settle(&self) {
        let dismissed = {
            let mut books = self.0.books();
            if books.is_dry() { books.ledger.dismiss() } else { Vec::new() }
        };
        drop(dismissed);
        hand_out(&self.0);
    }

    /// Takes a credit of any endpoint, or a place in the queue; [`Entry::wait`] does the rest. `bytes` is what the request
    /// holds while it waits, and is asked for only then.
    pub(super) fn enter(&self, ask: Ask, bytes: impl FnOnce() -> usize) -> Entry<'_> {
        let shared = &self.0;
        let mut books = shared.books();
        if books.look(ask.at) {
            // Who waits comes first.
            drop(books);
            hand_out(shared);
            books = shared.books();
        }
        let mut would = books.ledger.would(&ask);
        if would.is_some() && shared.relieve(&mut books, ask.at) {
            drop(books);
            hand_out(shared);
            books = shared.books();
            would = books.ledger.would(&ask);
        }
        if let Some(slot) = books.ledger.try_acquire(&ask) {
            return granted(shared, books, slot, would, ask.at);
        }
        if let Some(closed) = books.closed(ask.at) {
            return Entry::Over(Err(closed));
        }
        if shared.relieve(&mut books, ask.at) {
            drop(books);
            // Others have waited for it.
            hand_out(shared);
            books = shared.books();
            if let Some(slot) = books.ledger.try_again(&ask) {
                return granted(shared, books, slot, None, ask.at);
            }
        }
        let ask = Ask { bytes: bytes(), ..ask };
        let (wake, woken) = oneshot::channel();
        match books.ledger.wait(&ask, wake) {
            Ok(ticket) => {
                let max_wait = books.max_wait;
                drop(books);
                let place = Place::new(shared, ticket, &ask);
                hand_out(shared);
                Entry::Waits { place, woken, max_wait }
            }
            Err((_, why)) => {
                let refusal = refusal(reason_of(why), ask.class, &mut books);
                drop(books);
                hand_out(shared);
                Entry::Over(Err(refusal))
            }
        }
    }

    /// Waits for a credit of any endpoint, or is refused. Dropping the future frees the place in the queue at once.
    pub async fn admit(&self, ask: Ask) -> Result<Credit, ProxyError> {
        self.enter(ask, || ask.bytes).wait().await
    }
}

fn granted<'a>(
    shared: &'a Arc<Shared>,
    mut books: Guard<'_>,
    slot: Slot,
    would: Option<Would>,
    now: Instant,
) -> Entry<'a> {
    // Only an endpoint that is there has credits.
    let Some(endpoint) = books.endpoint(slot.endpoint()).cloned() else {
        books.ledger.release(&slot, now);
        return Entry::Over(Err(Reason::NoEndpoint.into()));
    };
    let start = books.start(&slot, now);
    let said = would.and_then(|would| books.dry_run.count(would, now));
    drop(books);
    said.iter().for_each(Said::log);
    let mut credit = Credit::new(shared, slot, endpoint, start);
    credit.would = would;
    Entry::Over(Ok(credit))
}

/// What became of a request at the door.
#[derive(Debug)]
#[must_use = "it does not wait by itself"]
#[expect(clippy::large_enum_variant, reason = "it is moved once, and a box would be an allocation for each request")]
pub(super) enum Entry<'a> {
    /// It has a credit, or is refused.
    Over(Result<Credit, ProxyError>),
    /// It has a place in the queue.
    Waits { place: Place<'a>, woken: oneshot::Receiver<Word>, max_wait: Duration },
}

impl Entry<'_> {
    /// Waits for a credit.
    ///
    /// Refuses at once with `queue_full`, or `deadline_unmeetable`; after the queue's time with `queue_timeout`; any time
    /// with `queue_shed`, `queue_dropped` or `queue_replaced`; all with the time after which the client should come
    /// back. With `breaker_open` when all endpoints are left out, and the time of the next trial; and with `no_endpoint`
    /// when all are draining. Dropping the future, or the entry, frees the place in the queue at once.
    pub(super) async fn wait(self) -> Result<Credit, ProxyError> {
        match self {
            Entry::Over(result) => result,
            Entry::Waits { place, woken, max_wait } => place.wait(woken, max_wait).await,
        }
    }
}

pub(super) fn reason_of(why: Dismissal) -> Reason {
    match why {
        Dismissal::Full => Reason::QueueFull,
        Dismissal::Shed => Reason::QueueShed,
        Dismissal::Dropped => Reason::QueueDropped,
        Dismissal::Replaced => Reason::QueueReplaced,
        Dismissal::TooLate => Reason::DeadlineUnmeetable,
    }
}

fn refusal(reason: Reason, class: Class, books: &mut Books<Wake>) -> ProxyError {
    if reason == Reason::QueueReplaced {
        // What it wanted is asked for by another.
        return reason.into();
    }
    ProxyError::from(reason).retry_after(books.ledger.book(class, Instant::now(), entropy::unit()))
}

/// A place in the queue, freed when dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    shared: &'a Arc<Shared>,
    ticket: Ticket,
    class: Class,
    asked_at: Instant,
    bytes: i64,
}

impl<'a> Place<'a> {
    fn new(shared: &'a Arc<Shared>, ticket: Ticket, ask: &Ask) -> Self {
        let bytes = i64::try_from(ask.bytes).unwrap_or(i64::MAX);
        shared.metrics.depth.inc();
        shared.metrics.bytes.add(bytes);
        Self { shared, ticket, class: ask.class, asked_at: ask.at, bytes }
    }

    async fn wait(self, mut woken: oneshot::Receiver<Word>, max_wait: Duration) -> Result<Credit, ProxyError> {
        let until = self.asked_at + max_wait;
        let outcome = loop {
            // What time alone sets free wakes nobody.
            let is_timed = self.shared.books().is_timed();
            let look = until.min(Instant::now() + if is_timed { LOOK } else { LOOK_SELDOM });
            match timeout_at(look, &mut woken).await {
                Err(_) if look < until => {
                    self.shared.relieve(&mut self.shared.books(), look);
                    hand_out(self.shared);
                }
                outcome => break outcome,
            }
        };
        let Self { shared, class, .. } = self;
        shared.metrics.wait.observe(self.asked_at.elapsed());
        drop(self);
        let reason = match outcome {
            Ok(Ok(Ok(credit))) => return Ok(credit),
            Ok(Ok(Err(why))) => reason_of(why),
            // Sent home: the last endpoint drains, or is left out.
            Ok(Err(_)) => {
                return Err(shared.books().closed(Instant::now()).unwrap_or_else(|| Reason::NoEndpoint.into()));
            }
            Err(_) => Reason::QueueTimeout,
        };
        Err(refusal(reason, class, &mut shared.books()))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.metrics.depth.dec();
        self.shared.metrics.bytes.add(-self.bytes);
        self.shared.books().ledger.leave(self.ticket);
    }
}

/// Gives free credits to those who wait, and tells those who are sent away, also when breakers leave nothing to wait for. The lock is not held while a waiter is
/// woken: one that has just left hands its credit back through `Drop`, which takes the lock.
pub(super) fn hand_out(shared: &Arc<Shared>) {
    let mut now = None;
    loop {
        let mut books = shared.books();
        let news = books.take_news();
        let closed = if books.is_shut() { books.ledger.dismiss() } else { Vec::new() };
        if !(news.is_empty() && closed.is_empty()) {
            drop(books);
            news.iter().for_each(News::log);
            continue;
        }
        if books.ledger.waiting() == 0 && !books.ledger.has_dismissed() {
            shared.metrics.standing.set(0);
            return;
        }
        let now = *now.get_or_insert_with(Instant::now);
        match books.ledger.grant(now) {
            Some(Turn::Granted(wake, slot)) => {
                // Only an endpoint that is there has credits.
                let Some(endpoint) = books.endpoint(slot.endpoint()).cloned() else { continue };
                let granted = books.start(&slot, now);
                drop(books);
                drop(wake.send(Ok(Credit::new(shared, slot, endpoint, granted))));
            }
            Some(Turn::Dismissed(wake, why)) => {
                drop(books);
                drop(wake.send(Err(why)));
            }
            None => {
                let is_standing = books.ledger.is_standing(Class::Unary, now);
                shared.metrics.standing.set(i64::from(is_standing));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::queue::Rules;
    use crate::upstream::{Limit, Queue, Settings};
    use std::time::Duration;
    use tokio::time::timeout;

    fn admission(in_flight: usize, max: usize) -> Admission {
        let settings = Settings { limit: Limit::fixed(in_flight), queue: queue(max), ..Settings::for_tests() };
        Admission::new(&settings, endpoints(&settings), &Registry::new())
    }

    fn queue(max: usize) -> Queue {
        let rules = Rules { max, timeout: Duration::from_millis(500), ..Rules::default() };
        Queue { rules, ..Queue::default() }
    }

    fn endpoints(settings: &Settings) -> Vec<Arc<Endpoint>> {
        let endpoints = settings.endpoints.iter();
        endpoints.map(|endpoint| Endpoint::new(settings, endpoint).expect("usable settings")).collect()
    }

    fn ask() -> Ask {
        Ask::new(Class::Unary, Instant::now())
    }

    fn used(admission: &Admission) -> usize {
        admission.0.books().ledger.used(Class::Unary)
    }

    fn waiting(admission: &Admission) -> usize {
        admission.0.books().ledger.waiting()
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_bounds_count_and_time() {
        let admission = admission(1, 1);
        let credit = admission.admit(ask()).await.expect("a free credit");
        let began = Instant::now();
        let (waited, refused) = tokio::join!(admission.admit(ask()), admission.admit(ask()));
        assert_eq!(refused.expect_err("the queue is full").reason, Reason::QueueFull);
        let waited = waited.expect_err("nobody gave a credit back");
        assert_eq!((waited.reason, began.elapsed()), (Reason::QueueTimeout, Duration::from_millis(500)));
        assert!(waited.retry_after.expect("a time to come back") >= Duration::from_secs(1));
        drop(credit);
        assert_eq!((used(&admission), waiting(&admission)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_returned_credit_wakes_the_waiter() {
        let admission = admission(1, 1);
        let credit = admission.admit(ask()).await.expect("a free credit");
        let (next, ()) = tokio::join!(admission.admit(ask()), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(credit);
        });
        drop(next.expect("the returned credit"));
        assert_eq!(used(&admission), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_frees_the_place_at_once() {
        let admission = admission(1, 1);
        let credit = admission.admit(ask()).await.expect("a free credit");
        let left = timeout(Duration::from_millis(10), admission.admit(ask())).await;
        assert!(left.is_err());
        assert_eq!(waiting(&admission), 0);
        drop(credit);
        assert_eq!(used(&admission), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn other_settings_find_the_same_queue() {
        let admission = admission(1, 2);
        let mut settings = Settings { queue: queue(2), ..Settings::for_tests() };
        settings.limit = Limit::fixed(2);
        let same = admission.endpoints().into_iter().map(|state| state.endpoint).collect();
        let first = admission.admit(ask()).await.expect("a free credit");
        let mut second = Box::pin(admission.admit(ask()));
        let mut third = Box::pin(admission.admit(ask()));
        std::future::poll_fn(|cx| {
            assert!(second.as_mut().poll(cx).is_pending() && third.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        admission.apply(&settings, same);
        let second = second.await.expect("one more credit");
        assert_eq!((used(&admission), waiting(&admission)), (2, 1));
        settings.endpoints.clear();
        let address = Settings::for_tests().endpoints.remove(0).address;
        settings.endpoints.push(EndpointSettings::new("http://127.0.0.1:2", address));
        settings.limit = Limit::fixed(1);
        admission.apply(&settings, endpoints(&settings));
        let third = third.await.expect("a credit of the endpoint that came");
        assert_eq!(&**third.endpoint().label(), "http://127.0.0.1:2");
        drop((first, second));
        assert_eq!(admission.endpoints()[0].in_flight, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_endpoint_nobody_waits() {
        let admission = admission(1, 2);
        let endpoint = admission.endpoints().remove(0).endpoint;
        let credit = admission.admit(ask()).await.expect("a free credit");
        let (waited, drained) = tokio::join!(admission.admit(ask()), async { admission.set_draining(&endpoint, true) });
        assert!(drained);
        assert_eq!(waited.expect_err("sent home").reason, Reason::NoEndpoint);
        assert_eq!(admission.admit(ask()).await.expect_err("refused").reason, Reason::NoEndpoint);
        assert_eq!(admission.endpoints()[0].in_flight, 1, "what is under way goes on");
        drop(credit);
        assert!(admission.set_draining(&endpoint, false));
        drop(admission.admit(ask()).await.expect("it is back"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dry_run_holds_nobody_back_but_for_a_drain_and_ends_with_all_credits_at_home() {
        let admission = admission(1, 1);
        let endpoints = || admission.endpoints().into_iter().map(|state| state.endpoint).collect::<Vec<_>>();
        let mut settings = Settings { limit: Limit::fixed(1), queue: queue(1), ..Settings::for_tests() };
        let first = admission.admit(ask()).await.expect("a free credit");
        let (waits, ()) = tokio::join!(admission.admit(ask()), async {
            settings.limit.dry_run = true;
            admission.apply(&settings, endpoints());
        });
        let mut credits = vec![first, waits.expect("who waits goes ahead")];
        for expected in [Would::Refuse(Dismissal::Full), Would::Refuse(Dismissal::Full)] {
            let credit = admission.admit(ask()).await.expect("it goes ahead");
            assert_eq!(credit.would, Some(expected));
            credits.push(credit);
        }
        credits.truncate(1);
        let credit = admission.admit(ask()).await.expect("it goes ahead");
        assert_eq!((credit.would, used(&admission)), (Some(Would::Wait), 2));
        // Nothing is taken by one that is dropped before it looks.
        drop(admission.enter(ask(), || 0));
        assert_eq!(used(&admission), 2);
        assert!(admission.set_draining(&endpoints()[0], true));
        assert_eq!(admission.admit(ask()).await.expect_err("refused").reason, Reason::NoEndpoint);
        assert!(admission.set_draining(&endpoints()[0], false));
        settings.limit.dry_run = false;
        admission.apply(&settings, endpoints());
        drop(credit);
        assert_eq!(admission.admit(ask()).await.expect_err("held back again").reason, Reason::QueueTimeout);
        drop(credits);
        assert_eq!((used(&admission), waiting(&admission)), (0, 0));
    }

    #[tokio::test]
    async fn a_credit_given_to_one_who_has_just_left_is_not_lost() {
        let admission = admission(1, 2);
        let credit = admission.admit(ask()).await.expect("a free credit");
        let mut leaver = Box::pin(admission.admit(ask()));
        let mut stayer = Box::pin(admission.admit(ask()));
        std::future::poll_fn(|cx| {
            assert!(leaver.as_mut().poll(cx).is_pending() && stayer.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(credit); // granted to the leaver, who never looks
        drop(leaver);
        drop(stayer.await.expect("the credit moved on"));
        assert_eq!((used(&admission), waiting(&admission)), (0, 0));
    }
}
