//! Leave to use one endpoint once, and what its use tells about the endpoint.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body::Body as _;
use tokio::time::Instant;

use super::admission::{Shared, hand_out};
use super::endpoint::Endpoint;
use crate::body::kind::Kind;
use crate::body::{Body, End, Watch};
use crate::control::credits::Slot;
use crate::control::limit::{Outcome, Start};
use crate::control::windows::Begun;
use crate::error::Reason;

/// See the module's text. Given back when dropped.
#[derive(Debug)]
pub struct Credit {
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    /// None once the answer has begun: then it is with the windows, which may move it.
    slot: Option<Slot>,
    begun: Option<Begun>,
    /// None when there is nothing to learn, or nothing more.
    start: Option<Start>,
    /// How long the service took to begin its answer.
    head: Option<Duration>,
    outcome: Option<Outcome>,
}

impl Credit {
    pub(super) fn new(shared: &Arc<Shared>, slot: Slot, endpoint: Arc<Endpoint>, start: Option<Start>) -> Self {
        shared.metrics.credits(slot.class()).inc();
        let shared = Arc::clone(shared);
        Self { shared, endpoint, slot: Some(slot), begun: None, start, head: None, outcome: None }
    }

    /// The endpoint it is good for.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// There will be no answer.
    pub fn failed(mut self, reason: Reason) {
        self.outcome = Some(match reason {
            Reason::FirstByteTimeout => Outcome::Overloaded { is_abandoned: true },
            _ => Outcome::Unknown,
        });
    }

    /// The answer has begun. One that lasts moves to the stream credits, if one of them is free. The service's time runs
    /// from `asked`, the last byte of the request, if that was late.
    #[must_use]
    pub fn answered(mut self, status: StatusCode, kind: Kind, asked: Option<Instant>) -> Self {
        if let Some(start) = self.start {
            let now = Instant::now();
            let latency = now.saturating_duration_since(asked.map_or(start.at(), |asked| asked.max(start.at())));
            match status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    self.learn(Outcome::Overloaded { is_abandoned: false }, now);
                }
                status if status.is_server_error() => self.learn(Outcome::Failed(latency), now),
                _ if kind != Kind::Unary => self.learn(Outcome::Answered(latency), now),
                _ => self.head = Some(latency),
            }
        }
        if kind != Kind::Unary {
            self.exchange();
        }
        self
    }

    /// Ties the credit to a body: it comes back when the body ends, fails or is dropped.
    #[must_use]
    pub fn hold(mut self, body: Body) -> Body {
        if let (Some(latency), false) = (self.head, body.is_end_stream())
            && let (Some(start), Some(slot)) = (&mut self.start, self.slot.take())
        {
            self.begun = Some(self.shared.books().windows.on_head(slot, start, latency, start.at() + latency));
        }
        body.watch(Box::new(Held { credit: self, waiting_since: None }))
    }

    fn learn(&mut self, outcome: Outcome, now: Instant) {
        if let (Some(start), Some(slot)) = (self.start.take(), &self.slot) {
            self.shared.books().learn(slot, start, outcome, now);
        }
    }

    fn exchange(&mut self) {
        let Some(slot) = &mut self.slot else { return };
        let before = slot.class();
        self.shared.books().ledger.exchange(slot);
        if slot.class() != before {
            self.shared.metrics.credits(before).dec();
            self.shared.metrics.credits(slot.class()).inc();
            hand_out(&self.shared);
        }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let now = Instant::now();
        {
            let mut books = self.shared.books();
            let begun = self.begun.take();
            let slot = self.slot.take().or_else(|| books.windows.take_back(begun?));
            let Some(slot) = slot else { return };
            self.shared.metrics.credits(slot.class()).dec();
            // Whoever drops a credit without a word has lost interest.
            let learned = self.start.take().map(|start| {
                let left = || Outcome::Left(now.saturating_duration_since(start.at()));
                (start, self.outcome.unwrap_or_else(left))
            });
            books.finish(&slot, learned, now);
        }
        hand_out(&self.shared);
    }
}

/// A credit that lives as long as a body. The service's time goes on only while its bytes are waited for.
struct Held {
    credit: Credit,
    waiting_since: Option<Instant>,
}

impl Held {
    fn has_waited(&mut self) {
        if let (Some(since), Some(latency)) = (self.waiting_since.take(), &mut self.credit.head) {
            *latency += since.elapsed();
        }
    }
}

impl Watch for Held {
    fn data(&mut self, _bytes: &[u8]) {
        self.has_waited();
    }

    fn waits(&mut self) {
        if self.credit.head.is_some() && self.waiting_since.is_none() {
            self.waiting_since = Some(Instant::now());
        }
    }

    fn end(&mut self, end: End) {
        self.has_waited();
        let Some(latency) = self.credit.head else { return };
        self.credit.outcome = Some(match end {
            End::Complete => Outcome::Answered(latency),
            End::Failed(Reason::UpstreamStalled) => Outcome::Overloaded { is_abandoned: false },
            End::Failed(Reason::Deadline) | End::Dropped => Outcome::Left(latency),
            End::Failed(_) => Outcome::Unknown,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::credits::{Ask, Class};
    use crate::control::windows::SetBy;
    use crate::metrics::Registry;
    use crate::upstream::{Admission, Settings};

    fn admission() -> Admission {
        let settings = Settings::for_tests();
        let endpoint = Endpoint::new(&settings, &settings.endpoints[0]).expect("usable settings");
        Admission::new(&settings, vec![endpoint], &Registry::new())
    }

    async fn credit(admission: &Admission) -> Credit {
        admission.admit(Ask::new(Class::Unary, Instant::now())).await.expect("a free credit")
    }

    fn answered(credit: Credit) -> Credit {
        credit.answered(StatusCode::OK, Kind::Unary, None)
    }

    fn in_force(credit: &Credit) -> Option<(usize, SetBy)> {
        credit.shared.books().windows.in_force(0)
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_the_client_is_not_the_time_of_the_service() {
        let admission = admission();
        for _ in 0..16 {
            let credit = credit(&admission).await;
            tokio::time::sleep(Duration::from_secs(4)).await;
            let late = credit.start.map(|start| start.at() + Duration::from_secs(3));
            let body = credit.answered(StatusCode::OK, Kind::Unary, late).hold(Body::full("ok"));
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(http_body_util::BodyExt::collect(body).await.expect("a whole body"));
        }
        let last = credit(&admission).await;
        let learned = last.shared.books().windows.view(0).and_then(|view| view.baseline);
        assert_eq!(learned, Some(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_before_the_head_leaves_a_ghost_and_one_who_leaves_later_none() {
        let admission = admission();
        let stays = credit(&admission).await;
        let body = answered(credit(&admission).await).hold(Body::full("ok"));
        drop(body);
        assert_eq!(in_force(&stays), Some((8, SetBy::Window)));
        drop(credit(&admission).await);
        assert_eq!(in_force(&stays), Some((7, SetBy::Abandoned)));
        credit(&admission).await.failed(Reason::ConnectFailed);
        assert_eq!(in_force(&stays), Some((7, SetBy::Abandoned)), "nothing was sent");
        credit(&admission).await.failed(Reason::FirstByteTimeout);
        assert_eq!(in_force(&stays), Some((6, SetBy::Abandoned)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_leaves_the_window_at_its_head() {
        let admission = admission();
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(credit(&admission).await.answered(StatusCode::OK, Kind::Stream, None));
        }
        let used = |class| streams[0].shared.books().ledger.used(class);
        assert_eq!((used(Class::Unary), used(Class::Stream)), (0, 20));
    }
}
