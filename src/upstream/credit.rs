//! Leave to use one endpoint once, and what its use tells about the endpoint.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http_body::Body as _;
use tokio::time::Instant;

use super::admission::{Shared, hand_out};
use super::books::Granted;
use super::endpoint::Endpoint;
use crate::body::kind::{self, Kind};
use crate::body::{End, Watch};
use crate::context::Response;
use crate::control::breaker::Pass;
use crate::control::credits::{Class, Slot, Would};
use crate::control::limit::{Outcome, Start};
use crate::control::published::fields::{self, Found};
use crate::control::report::{Report, Verdict};
use crate::control::windows::Begun;
use crate::error::Reason;

/// See the module's text. Given back when dropped.
#[derive(Debug)]
pub struct Credit {
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    /// None once the answer has begun: then it is with the windows, which may move it.
    slot: Option<Slot>,
    /// What the slot says, for when it is away.
    account: usize,
    class: Class,
    begun: Option<Begun>,
    /// What would have become of the request if a dry run had not let it through.
    pub(super) would: Option<Would>,
    /// What the breakers know of it.
    pass: Pass,
    /// None when there is nothing to learn for the window, or nothing more.
    start: Option<Start>,
    /// How long the service took to begin its answer, while the window waits for the end of it.
    head: Option<Duration>,
    outcome: Option<Outcome>,
    /// How long the service took to begin its answer.
    answered_after: Option<Duration>,
    /// What is told of the endpoint when the credit comes back; none when all has been told.
    report: Option<Report>,
    /// Its answer has begun and was good: should it break off, that is told beside it.
    may_break_off: bool,
    /// Not for a retry or a hedge.
    is_first: bool,
}

impl Credit {
    pub(super) fn new(
        shared: &Arc<Shared>,
        slot: Slot,
        endpoint: Arc<Endpoint>,
        Granted { start, pass }: Granted,
    ) -> Self {
        shared.metrics.credits(slot.class()).inc();
        Self {
            shared: Arc::clone(shared),
            endpoint,
            account: slot.endpoint(),
            class: slot.class(),
            slot: Some(slot),
            begun: None,
            would: None,
            pass,
            start,
            head: None,
            outcome: None,
            answered_after: None,
            // Whoever drops a credit without a word has lost interest.
            report: Some(Report::unknown(Duration::ZERO)),
            may_break_off: false,
            is_first: true,
        }
    }

    /// The endpoint it is good for.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The endpoint's account in the ledger.
    pub(super) fn account(&self) -> usize {
        self.account
    }

    /// It is for an attempt that is not the first of its request.
    #[must_use]
    pub(super) fn for_retry(mut self) -> Self {
        self.is_first = false;
        self
    }

    /// There will be no answer.
    pub fn failed(mut self, reason: Reason) {
        self.report = Some(Report::failed(reason, self.pass.at().elapsed()));
        self.outcome = Some(match reason {
            Reason::FirstByteTimeout => Outcome::Overloaded { is_abandoned: true },
            _ => Outcome::Unknown,
        });
    }

    /// The answer has begun. The credit comes back when its body ends, fails or is dropped. One that lasts moves to the
    /// stream credits, if one of them is free. The service's time runs from `asked`, the last byte of the request, if
    /// that was late.
    #[must_use]
    pub fn answered(mut self, mut response: Response, kind: Kind, asked: Option<Instant>) -> Response {
        let now = Instant::now();
        let since = self.pass.at();
        let latency = now.saturating_duration_since(asked.map_or(since, |asked| asked.max(since)));
        let is_grpc = kind::is_grpc(response.headers());
        let report = Report::of_head(response.status(), response.headers(), latency, is_grpc, SystemTime::now);
        // A call that has begun and is dropped says no more.
        self.report = (report.verdict == Verdict::Begun).then(|| Report::unknown(latency));
        self.may_break_off = report.verdict == Verdict::Good;
        let outcome = match report.verdict {
            Verdict::Overloaded => Some(Outcome::Overloaded { is_abandoned: false }),
            Verdict::ServerError | Verdict::Broken => Some(Outcome::Failed(latency)),
            _ => (kind != Kind::Unary).then_some(Outcome::Answered(latency)),
        };
        let mut has_changed = false;
        {
            let mut books = self.shared.books();
            if let Some(slot) = &self.slot {
                has_changed = books.report(slot.endpoint(), &mut self.pass, &report, now);
            }
            match (outcome, self.start.take(), &self.slot) {
                (Some(outcome), Some(start), Some(slot)) => books.learn(slot, start, outcome, now),
                (_, start, _) => self.start = start,
            }
            if outcome.is_none() && self.start.is_some() {
                self.head = Some(latency);
                if !response.body().is_end_stream()
                    && let (Some(start), Some(slot)) = (&mut self.start, self.slot.take())
                {
                    self.begun = Some(books.windows.on_head(slot, start, latency, start.at() + latency));
                }
            }
        }
        if kind != Kind::Unary {
            self.exchange(now);
        }
        if has_changed {
            hand_out(&self.shared);
        }
        self.class = self.slot.as_ref().map_or(self.class, Slot::class);
        if let Some(found) = fields::read(response.headers()) {
            // A refusal takes no time that tells anything.
            let latency = (report.verdict != Verdict::Overloaded).then_some(latency);
            self.hear(&found, latency, response.headers_mut());
        }
        self.answered_after = Some(latency);
        let held = Held { credit: self, waiting_since: None };
        response.map(|body| body.watch(Box::new(held)))
    }

    /// The endpoint says what it has to do. That is for this hop, and taken out of `fields`.
    fn hear(&self, found: &Found, latency: Option<Duration>, fields: &mut HeaderMap) {
        let is_passed = self.shared.books().hear((self.account, self.class), found, latency);
        if !is_passed {
            fields::remove(fields);
        }
        hand_out(&self.shared);
    }

    fn exchange(&mut self, now: Instant) {
        let Some(slot) = &mut self.slot else { return };
        let before = slot.class();
        self.shared.books().exchange(slot, now);
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
            let learned = self.start.take().map(|start| {
                let left = || Outcome::Left(now.saturating_duration_since(start.at()));
                (start, self.outcome.unwrap_or_else(left))
            });
            let mut report = self.report.take();
            if let Some(left) = report.as_mut().filter(|report| report.latency.is_zero()) {
                left.latency = now.saturating_duration_since(self.pass.at());
            }
            let told = report.map(|report| (&mut self.pass, report));
            books.finish(&slot, told, learned, now);
            if self.is_first {
                books.retries.on_first(now);
            }
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

    fn trailers(&mut self, trailers: &mut HeaderMap) {
        if let Some(found) = fields::read(trailers) {
            self.credit.hear(&found, self.credit.answered_after, trailers);
        }
        if let Some(pending) = &mut self.credit.report {
            *pending = Report::of_grpc(trailers, pending.latency).unwrap_or(*pending);
        }
    }

    fn end(&mut self, end: End) {
        self.has_waited();
        if let Some(pending) = self.credit.report.as_mut().filter(|pending| pending.verdict == Verdict::Unknown) {
            pending.verdict = match end {
                End::Complete => Verdict::Good,
                End::Failed(Reason::UpstreamReset | Reason::UpstreamStalled) => Verdict::ServerError,
                End::Failed(_) | End::Dropped => Verdict::Unknown,
            };
        } else if self.credit.may_break_off && end == End::Failed(Reason::UpstreamReset) {
            let latency = self.credit.answered_after.unwrap_or_default();
            self.credit.report = Some(Report { verdict: Verdict::Broken, latency, rest: None });
        }
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
    use crate::body::{Body, BodyError};
    use crate::control::credits::{Ask, Class};
    use crate::control::windows::SetBy;
    use crate::metrics::Registry;
    use crate::upstream::{Admission, Settings};
    use http_body_util::BodyExt as _;

    fn admission() -> Admission {
        let settings = Settings::for_tests();
        let endpoint = Endpoint::new(&settings, &settings.endpoints[0]).expect("usable settings");
        Admission::new(&settings, vec![endpoint], &Registry::new())
    }

    async fn credit(admission: &Admission) -> Credit {
        admission.admit(Ask::new(Class::Unary, Instant::now())).await.expect("a free credit")
    }

    fn answered(credit: Credit, kind: Kind, asked: Option<Instant>) -> Body {
        credit.answered(Response::new(Body::full("ok")), kind, asked).into_body()
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
            let body = answered(credit, Kind::Unary, late);
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(body.collect().await.expect("a whole body"));
        }
        let last = credit(&admission).await;
        let learned = last.shared.books().windows.view(0).and_then(|view| view.baseline);
        assert_eq!(learned, Some(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_before_the_head_leaves_a_ghost_and_one_who_leaves_later_none() {
        let admission = admission();
        let stays = credit(&admission).await;
        drop(answered(credit(&admission).await, Kind::Unary, None));
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
            streams.push(answered(credit(&admission).await, Kind::Stream, None));
        }
        let last = credit(&admission).await;
        let used = |class| last.shared.books().ledger.used(class);
        assert_eq!((used(Class::Unary), used(Class::Stream)), (1, 20));
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_is_reported_once_and_a_call_by_its_status() {
        let settings = Settings::for_tests();
        let registry = Registry::new();
        let endpoint = Endpoint::new(&settings, &settings.endpoints[0]).expect("usable settings");
        let admission = Admission::new(&settings, vec![endpoint], &registry);
        let count = |verdict: Verdict| {
            let line = format!("verdict=\"{}\"}} ", verdict.label());
            let page = registry.encode();
            let found = page.lines().find_map(|found| Some(found.split_once(&*line)?.1.to_owned()));
            found.expect("a line").parse::<u64>().expect("a number")
        };
        drop(credit(&admission).await);
        drop(answered(credit(&admission).await, Kind::Unary, None));
        credit(&admission).await.failed(Reason::ConnectFailed);
        assert_eq!([Verdict::Unknown, Verdict::Good, Verdict::Unreachable].map(count), [1, 1, 1]);
        for (status, ends, verdict) in [
            (Some("0"), true, Verdict::Good),
            (Some("13"), true, Verdict::ServerError),
            (Some("8"), true, Verdict::Overloaded),
            (None, true, Verdict::Good),
            (None, false, Verdict::Unknown),
        ] {
            let trailers = status.map(|status| {
                HeaderMap::from_iter([("grpc-status", status)].map(|(name, status)| {
                    (http::HeaderName::from_static(name), http::HeaderValue::from_static(status))
                }))
            });
            let body = Body::boxed(http_body_util::Full::new("call".into()).with_trailers(async { trailers.map(Ok) }));
            let mut response = Response::new(body);
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
            let before = count(verdict);
            let body = credit(&admission).await.answered(response, Kind::Stream, None).into_body();
            assert_eq!(count(verdict), before, "it has only begun");
            if ends {
                drop(body.collect().await.expect("a whole body"));
            } else {
                drop(body);
            }
            assert_eq!(count(verdict), before + 1, "{status:?}");
        }
        assert_eq!(Verdict::FINAL.map(count).iter().sum::<u64>(), 8);
        for (status, ends, more) in
            [(200, Reason::UpstreamReset, 1), (500, Reason::UpstreamReset, 0), (200, Reason::Deadline, 0)]
        {
            let end = BodyError::from(ends);
            let body = Body::boxed(
                http_body_util::Full::new("half".into())
                    .map_err(|never| match never {})
                    .with_trailers(async { Some(Err(end)) }),
            );
            let mut response = Response::new(body);
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            let before = count(Verdict::Broken);
            let body = credit(&admission).await.answered(response, Kind::Unary, None).into_body();
            assert_eq!(count(Verdict::Broken), before, "nothing is known of its end");
            body.collect().await.expect_err("half a body");
            assert_eq!(count(Verdict::Broken), before + more, "{status} {ends}");
        }
    }
}
