//! Admission to an upstream: a credit now, a bounded wait for one, or a refusal that says when to come back.
//!
//! The decisions are [`Ledger`]'s and [`DrainRate`]'s; here are the lock, the wake-ups and the clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::Settings;
use crate::body::{Body, Watch};
use crate::control::credits::{Answer, Class, Ledger, Slot, Ticket};
use crate::control::drain_rate::DrainRate;
use crate::entropy;
use crate::error::{ProxyError, Reason};
use crate::metrics::{Gauge, Histogram, Registry};

/// The one place where requests to an upstream wait.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    books: Mutex<Books>,
    max_wait: std::time::Duration,
    metrics: Metrics,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger<oneshot::Sender<Credit>>,
    drain: DrainRate,
}

#[derive(Debug)]
struct Metrics {
    depth: Gauge,
    wait: Histogram,
    unary: Gauge,
    streams: Gauge,
}

impl Metrics {
    fn new(registry: &Registry, settings: &Settings) -> Self {
        let upstream = settings.name.as_ref();
        let credits = |class, limit: usize| {
            let labels = [("upstream", upstream), ("class", class)];
            let total = i64::try_from(limit.saturating_mul(settings.endpoints.len())).unwrap_or(i64::MAX);
            registry.gauge("headworks_credits_limit", "Credits of all endpoints together.", &labels).set(total);
            registry.gauge("headworks_credits_used", "Credits that are out, each until its body ends.", &labels)
        };
        let labels = [("upstream", upstream)];
        Self {
            depth: registry.gauge("headworks_queue_depth", "Requests waiting for a credit.", &labels),
            wait: registry.histogram(
                "headworks_queue_wait_seconds",
                "Time that requests waited for a credit.",
                &labels,
            ),
            unary: credits("unary", settings.limit.in_flight.get()),
            streams: credits("stream", settings.limit.streams.map_or(0, std::num::NonZeroUsize::get)),
        }
    }

    fn credits(&self, class: Class) -> &Gauge {
        match class {
            Class::Unary => &self.unary,
            Class::Stream => &self.streams,
        }
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        // No code that can panic runs under this lock; should it happen, the books still balance.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// Admission with all credits at home.
    #[must_use]
    pub fn new(settings: &Settings, registry: &Registry) -> Self {
        let (limit, endpoints) = (settings.limit, settings.endpoints.len());
        let streams = limit.streams.map(std::num::NonZeroUsize::get);
        let ledger = Ledger::new(endpoints, limit.in_flight.get(), streams, settings.queue.max);
        let drain = DrainRate::new(Instant::now(), limit.in_flight.get().saturating_mul(endpoints));
        Self(Arc::new(Shared {
            books: Mutex::new(Books { ledger, drain }),
            max_wait: settings.queue.timeout,
            metrics: Metrics::new(registry, settings),
        }))
    }

    /// Waits for a credit of any endpoint.
    ///
    /// Refuses with `queue_full` at once, or with `queue_timeout` after the queue's time, both with the time after
    /// which the client should come back. Dropping the future frees the place in the queue at once.
    pub async fn admit(&self, class: Class) -> Result<Credit, ProxyError> {
        let mut granted = None;
        let answer = self.0.books().ledger.acquire(class, || {
            let (waiter, receiver) = oneshot::channel();
            granted = Some(receiver);
            waiter
        });
        match (answer, granted) {
            (Answer::Granted(slot), _) => Ok(Credit::new(&self.0, slot)),
            (Answer::Queued(ticket), Some(granted)) => self.wait(ticket, granted).await,
            (Answer::Queued(_) | Answer::Full(_), _) => Err(refusal(Reason::QueueFull, &self.0.books())),
        }
    }

    async fn wait(&self, ticket: Ticket, granted: oneshot::Receiver<Credit>) -> Result<Credit, ProxyError> {
        let place = Place::new(&self.0, ticket);
        let asked_at = Instant::now();
        let outcome = timeout(self.0.max_wait, granted).await;
        self.0.metrics.wait.observe(asked_at.elapsed());
        drop(place);
        match outcome {
            Ok(Ok(credit)) => Ok(credit),
            Ok(Err(_)) => Err(Reason::Internal.into()),
            Err(_) => Err(refusal(Reason::QueueTimeout, &self.0.books())),
        }
    }
}

fn refusal(reason: Reason, books: &Books) -> ProxyError {
    let place = books.ledger.waiting() + 1;
    ProxyError::from(reason).retry_after(books.drain.retry_after(Instant::now(), place, entropy::unit()))
}

/// A place in the queue, freed when dropped.
struct Place<'a> {
    shared: &'a Shared,
    ticket: Ticket,
}

impl<'a> Place<'a> {
    fn new(shared: &'a Shared, ticket: Ticket) -> Self {
        shared.metrics.depth.inc();
        Self { shared, ticket }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.metrics.depth.dec();
        self.shared.books().ledger.leave(self.ticket);
    }
}

/// Leave to use one endpoint once. Given back when dropped.
#[derive(Debug)]
pub struct Credit {
    shared: Arc<Shared>,
    slot: Slot,
}

impl Credit {
    fn new(shared: &Arc<Shared>, slot: Slot) -> Self {
        shared.metrics.credits(slot.class()).inc();
        Self { shared: Arc::clone(shared), slot }
    }

    /// The endpoint it is good for.
    #[must_use]
    pub fn endpoint(&self) -> usize {
        self.slot.endpoint()
    }

    /// Moves to the stream credits if one is free: the answer has turned out to last.
    #[must_use]
    pub fn into_stream(mut self) -> Self {
        let before = self.slot.class();
        self.shared.books().ledger.exchange(&mut self.slot);
        if self.slot.class() != before {
            self.shared.metrics.credits(before).dec();
            self.shared.metrics.credits(self.slot.class()).inc();
            hand_out(&self.shared);
        }
        self
    }

    /// Ties the credit to a body: it comes back when the body ends, fails or is dropped.
    #[must_use]
    pub fn hold(self, body: Body) -> Body {
        body.watch(Box::new(Held(self)))
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.shared.metrics.credits(self.slot.class()).dec();
        {
            let mut books = self.shared.books();
            books.ledger.release(&self.slot);
            books.drain.on_return(Instant::now());
        }
        hand_out(&self.shared);
    }
}

/// Gives free credits to those who wait. The lock is not held while a waiter is woken: one that has just left hands
/// its credit back through `Drop`, which takes the lock.
fn hand_out(shared: &Arc<Shared>) {
    loop {
        let Some((waiter, slot)) = shared.books().ledger.grant() else { return };
        drop(waiter.send(Credit::new(shared, slot)));
    }
}

struct Held(#[expect(dead_code, reason = "it is there to be dropped")] Credit);

impl Watch for Held {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Limit, Queue, Settings};
    use std::num::NonZeroUsize;
    use std::time::Duration;

    fn admission(in_flight: usize, max: usize) -> Admission {
        let settings = Settings {
            limit: Limit { in_flight: NonZeroUsize::new(in_flight).expect("not zero"), streams: None },
            queue: Queue { max, timeout: Duration::from_millis(500) },
            ..Settings::for_tests()
        };
        Admission::new(&settings, &Registry::new())
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
        let credit = admission.admit(Class::Unary).await.expect("a free credit");
        let began = Instant::now();
        let (waited, refused) = tokio::join!(admission.admit(Class::Unary), admission.admit(Class::Unary));
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
        let credit = admission.admit(Class::Unary).await.expect("a free credit");
        let (next, ()) = tokio::join!(admission.admit(Class::Unary), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(credit);
        });
        drop(next.expect("the returned credit"));
        assert_eq!(used(&admission), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_frees_the_place_at_once() {
        let admission = admission(1, 1);
        let credit = admission.admit(Class::Unary).await.expect("a free credit");
        let left = timeout(Duration::from_millis(10), admission.admit(Class::Unary)).await;
        assert!(left.is_err());
        assert_eq!(waiting(&admission), 0);
        drop(credit);
        assert_eq!(used(&admission), 0);
    }

    #[tokio::test]
    async fn a_credit_given_to_one_who_has_just_left_is_not_lost() {
        let admission = admission(1, 2);
        let credit = admission.admit(Class::Unary).await.expect("a free credit");
        let mut leaver = Box::pin(admission.admit(Class::Unary));
        let mut stayer = Box::pin(admission.admit(Class::Unary));
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
