//! What the lock of admission guards: the ledger, and who stands behind its accounts.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::Settings;
use super::dry_run::DryRun;
use super::endpoint::Endpoint;
use super::news::{BreakerMetrics, CheckMetrics, MOST_NEWS, News};
use super::published::{Counts, Published};
use super::settings::{EndpointSettings, Limit};
use crate::control::breaker::{Breakers, Event, Left, Pass, State};
use crate::control::choice::Sample;
use crate::control::credits::{Class, Ledger, Slot};
use crate::control::limit::{Outcome, Start};
use crate::control::report::{Report, Verdict};
use crate::control::retry_budget::RetryBudget;
use crate::control::windows::{Limits, SetBy, Windows};
use crate::entropy;
use crate::error::{ProxyError, Reason};
use crate::metrics::{Counter, Gauge, Registry};

/// Who is refused by a breaker comes back up to so much of the wait later: not all at once.
const SPREAD: f64 = 0.2;

/// See the module's text. `W` wakes a waiter.
#[derive(Debug)]
pub(super) struct Books<W> {
    pub(super) ledger: Ledger<W>,
    pub(super) windows: Windows,
    pub(super) published: Published,
    pub(super) retries: RetryBudget,
    pub(super) max_wait: Duration,
    pub(super) dry_run: DryRun,
    breakers: Breakers,
    news: Vec<News>,
    name: Arc<str>,
    is_checked: bool,
    limit: Limit,
    /// By account.
    members: Vec<Option<Member>>,
    /// The accounts in the order of the configuration.
    order: Vec<usize>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Member {
    endpoint: Arc<Endpoint>,
    is_draining: bool,
    metrics: MemberMetrics,
}

#[derive(Debug)]
struct MemberMetrics {
    draining: Gauge,
    credits: Gauge,
    set_by: [Gauge; SetBy::ALL.len()],
    breaker: BreakerMetrics,
    checks: CheckMetrics,
    attempts: [Counter; Verdict::FINAL.len()],
    reports: Counts,
}

impl MemberMetrics {
    fn new(registry: &Registry, upstream: &str, endpoint: &str) -> Self {
        let labels = [("upstream", upstream), ("endpoint", endpoint)];
        let gauge = |name, help| registry.gauge(name, help, &labels);
        Self {
            draining: gauge("headworks_endpoint_draining", "1 while an operator drains the endpoint."),
            credits: gauge("headworks_endpoint_credits", "Unary credits that the endpoint has."),
            set_by: SetBy::ALL.map(|by| {
                let labels = [("upstream", upstream), ("endpoint", endpoint), ("by", by.label())];
                let help = "1 for what sets the endpoint's unary credits.";
                registry.gauge("headworks_endpoint_credits_set_by", help, &labels)
            }),
            breaker: BreakerMetrics::endpoint(registry, upstream, endpoint),
            checks: CheckMetrics::new(registry, upstream, endpoint),
            attempts: Verdict::FINAL.map(|verdict| {
                let labels = [("upstream", upstream), ("endpoint", endpoint), ("verdict", verdict.label())];
                let help = "Attempts by what they said about the endpoint.";
                registry.counter("headworks_endpoint_attempts_total", help, &labels)
            }),
            reports: Counts::new(registry, upstream, endpoint),
        }
    }
}

#[derive(Debug)]
struct Metrics {
    unary: Gauge,
    streams: Gauge,
    breaker: BreakerMetrics,
    panics: Counter,
}

/// What is known of a request when its credit is given out.
#[derive(Debug)]
pub(super) struct Granted {
    /// For the window; none when nothing is learned for it.
    pub(super) start: Option<Start>,
    /// For the breakers.
    pub(super) pass: Pass,
}

impl Metrics {
    fn new(registry: &Registry, upstream: &str) -> Self {
        let limit = |class| {
            let labels = [("upstream", upstream), ("class", class)];
            registry.gauge("headworks_credits_limit", "Credits of all endpoints together.", &labels)
        };
        Self {
            unary: limit("unary"),
            streams: limit("stream"),
            breaker: BreakerMetrics::upstream(registry, upstream),
            panics: registry.counter(
                "headworks_upstream_breaker_panics_total",
                "How often endpoints came back because no other was beyond suspicion.",
                &[("upstream", upstream)],
            ),
        }
    }
}

impl<W> Books<W> {
    /// Books without endpoints, which the first [`Books::apply`] brings.
    pub(super) fn new(settings: &Settings, registry: &Registry) -> Self {
        Self {
            ledger: Ledger::new(
                0,
                0,
                settings.limit.streams.map(std::num::NonZeroUsize::get),
                settings.queue.rules.max,
            ),
            windows: Windows::default(),
            published: Published::default(),
            retries: RetryBudget::new(settings.retry.budget, Instant::now()),
            max_wait: settings.queue.rules.timeout,
            dry_run: DryRun::new(registry, &settings.name),
            breakers: Breakers::new(settings.breaker, Instant::now()),
            news: Vec::new(),
            name: Arc::clone(&settings.name),
            is_checked: false,
            limit: settings.limit,
            members: Vec::new(),
            order: Vec::new(),
            metrics: Metrics::new(registry, &settings.name),
        }
    }

    /// Brings other settings in force. Endpoints that stay keep their accounts, so that credits which are out count on;
    /// what is draining goes on draining. Ask the ledger to grant afterwards.
    pub(super) fn apply(&mut self, settings: &Settings, endpoints: Vec<Arc<Endpoint>>, registry: &Registry) {
        let now = Instant::now();
        self.limit = settings.limit;
        self.breakers.apply(settings.breaker, now);
        self.is_checked = settings.health.is_some();
        self.max_wait = settings.queue.rules.timeout;
        self.ledger.set_rules(settings.queue.rules);
        self.retries.apply(settings.retry.budget, Instant::now());
        self.ledger.set_apart(settings.limit.streams.is_some());
        self.ledger.set_dry_run(settings.limit.dry_run);
        self.ledger.choice().set(settings.balance.choice);
        // Where all are new, none is spared.
        let cold_since = (!self.members.is_empty()).then_some(now);
        for at in 0..self.members.len() {
            let stays =
                |member: &Member| endpoints.iter().any(|new| new.settings().is_same(member.endpoint.settings()));
            let Some(place) = self.members.get_mut(at) else { continue };
            if let Some(gone) = place.take_if(|member| !stays(member)) {
                gone.endpoint.client().set_closing(true);
                self.ledger.close(at);
                self.windows.remove(at);
                self.published.heard.remove(at);
                self.breakers.remove(at);
            }
        }
        self.order.clear();
        for (wanted, endpoint) in settings.endpoints.iter().zip(endpoints) {
            let known = wanted.member(settings.zone.as_deref());
            if let Some((account, member)) = self.find(endpoint.settings()) {
                if !Arc::ptr_eq(&member.endpoint, &endpoint) {
                    member.endpoint.client().set_closing(true);
                }
                endpoint.client().set_closing(member.is_draining);
                member.endpoint = endpoint;
                self.order.push(account);
                self.ledger.choice().change(account, known);
                continue;
            }
            endpoint.client().set_closing(false);
            let metrics = MemberMetrics::new(registry, &settings.name, endpoint.label());
            let member = Member { endpoint, is_draining: false, metrics };
            let account = self.ledger.open();
            self.breakers.add(account, now);
            self.ledger.choice().join(account, known, cold_since);
            self.order.push(account);
            if self.members.len() <= account {
                self.members.resize_with(account + 1, || None);
            }
            if let Some(place) = self.members.get_mut(account) {
                *place = Some(member);
            }
        }
        self.set_limits();
        self.publish(settings, Instant::now());
    }

    fn find(&mut self, settings: &EndpointSettings) -> Option<(usize, &mut Member)> {
        let members = self.members.iter_mut().enumerate();
        let mut members = members.filter_map(|(account, member)| Some((account, member.as_mut()?)));
        members.find(|(_, member)| member.endpoint.settings().is_same(settings))
    }

    /// An endpoint without credits drains: this is all that draining is. A window whose settings are as they were keeps
    /// what it has learned.
    fn set_limits(&mut self) {
        let (now, unix) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let streams = self.limit.streams.map_or(0, std::num::NonZeroUsize::get);
        for (account, member) in self.members.iter().enumerate() {
            let Some(member) = member else { continue };
            self.windows.set(&mut self.ledger, account, (self.limit.in_flight, streams), now, unix);
            let drain = member.is_draining.then_some(0);
            self.windows.cap(&mut self.ledger, account, SetBy::Drain, drain);
            self.breakers.set_draining(account, member.is_draining);
            if !self.is_checked {
                self.breakers.set_down(account, false, now);
                member.metrics.checks.show(false);
            }
            member.metrics.draining.set(i64::from(member.is_draining));
        }
        self.metrics.breaker.show(self.breakers.state(None, now));
        self.follow(now);
        self.show_limits();
    }

    /// A credit is given out.
    pub(super) fn start(&mut self, slot: &Slot, now: Instant) -> Granted {
        self.expire(now);
        let start = self.windows.on_start(&mut self.ledger, slot, now);
        let pass = self.breakers.on_start(slot.endpoint(), slot.class(), now);
        self.follow(now);
        self.show_changes();
        Granted { start, pass }
    }

    /// Time has passed. Whether there may be more free credits: then ask the ledger to grant.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        self.breakers.look(now);
        self.follow(now)
    }

    /// A request turns out to last: see [`Ledger::exchange`].
    pub(super) fn exchange(&mut self, slot: &mut Slot, now: Instant) {
        self.ledger.exchange(slot, now);
        self.follow(now);
    }

    /// Brings in force what the breakers say; whether that may be something else than before.
    fn follow(&mut self, now: Instant) -> bool {
        // While there are trials, what may be given out hangs on what is out.
        if !(self.breakers.take_changed() || self.breakers.is_trying()) {
            return false;
        }
        for event in self.breakers.take_events() {
            self.on_event(event, now);
        }
        for (account, member) in self.members.iter().enumerate() {
            let Some(member) = member else { continue };
            let used = |class| self.ledger.credits_of(account, class).map_or(0, |(used, _)| used);
            let used = Limits { unary: used(Class::Unary), streams: used(Class::Stream) };
            let Left { breaker, check, rest } = self.breakers.left(account, used, now);
            for (by, caps) in [(SetBy::Breaker, breaker), (SetBy::Check, check), (SetBy::Rest, rest)] {
                self.windows.cap_each(&mut self.ledger, account, by, caps);
            }
            member.metrics.breaker.show(self.breakers.state(Some(account), now));
        }
        self.ledger.choice().try_out(self.breakers.to_try());
        self.show_changes();
        true
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        let (Event::Opened { account, .. } | Event::HalfOpen { account } | Event::Closed { account }) = event else {
            self.metrics.panics.inc();
            return self.tell(None, event);
        };
        let member = account.and_then(|account| self.members.get(account)?.as_ref());
        let metrics = member.map_or(&self.metrics.breaker, |member| &member.metrics.breaker);
        if let Event::Opened { cause, .. } = event {
            metrics.opened(cause);
        }
        let endpoint = member.map(|member| Arc::clone(member.endpoint.label()));
        match (account, event) {
            (Some(account), Event::Closed { .. }) => self.ledger.choice().come_back(account, now),
            (None, _) => self.metrics.breaker.show(self.breakers.state(None, now)),
            _ => {}
        }
        self.tell(endpoint, event);
    }

    fn tell(&mut self, endpoint: Option<Arc<str>>, event: Event) {
        if self.news.len() < MOST_NEWS {
            self.news.push(News { upstream: Arc::clone(&self.name), endpoint, event });
        }
    }

    /// What there is for the log.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Why nobody gets a credit for now, other than that all are out.
    pub(super) fn closed(&self, now: Instant) -> Option<ProxyError> {
        if self.is_dry() {
            return Some(Reason::NoEndpoint.into());
        }
        let wait = self.breakers.shut(now)?;
        Some(ProxyError::from(Reason::BreakerOpen).retry_after(wait.mul_f64(1.0 + SPREAD * entropy::unit())))
    }

    /// What a health check of an endpoint has found. Whether there may be more free credits, or fewer.
    pub(super) fn checked(&mut self, about: &EndpointSettings, has_passed: bool, is_down: bool, now: Instant) -> bool {
        // The last word of a check that is no longer wanted.
        if !self.is_checked {
            return false;
        }
        let Some((account, member)) = self.find(about) else { return false };
        member.metrics.checks.count(has_passed);
        member.metrics.checks.show(is_down);
        if !is_down && self.breakers.is_down(account) {
            self.ledger.choice().come_back(account, now);
        }
        self.breakers.set_down(account, is_down, now);
        self.follow(now)
    }

    /// Whether its health checks condemn an endpoint.
    pub(super) fn is_down(&mut self, about: &EndpointSettings) -> bool {
        let account = self.find(about).map(|(account, _)| account);
        account.is_some_and(|account| self.breakers.is_down(account))
    }

    /// The same by account; none when there are no checks.
    pub(super) fn check(&self, account: usize) -> Option<bool> {
        self.is_checked.then(|| self.breakers.is_down(account))
    }

    /// Whether [`Books::closed`] would say something about breakers. Cheap.
    pub(super) fn is_shut(&self) -> bool {
        self.breakers.is_shut()
    }

    /// How the breaker of an endpoint is.
    pub(super) fn breaker(&self, account: usize, now: Instant) -> State {
        self.breakers.state(Some(account), now)
    }

    /// See [`Windows::relieve`].
    pub(super) fn relieve(&mut self, now: Instant) -> Option<usize> {
        let is_expired = self.expire(now);
        let moved = self.windows.relieve(&mut self.ledger, now);
        self.follow(now);
        self.show_changes();
        moved.or(is_expired.then_some(0))
    }

    /// Whether credits may come free by time alone.
    pub(super) fn is_timed(&self) -> bool {
        self.windows.is_adaptive() || self.published.heard.is_timed() || self.breakers.awaits_time()
    }

    /// The counts of what an endpoint reports.
    pub(super) fn counts(&self, account: usize) -> Option<&Counts> {
        self.members.get(account)?.as_ref().map(|member| &member.metrics.reports)
    }

    /// What an attempt tells about the endpoint behind an account. Whether there may be more free credits, or fewer.
    pub(super) fn report(&mut self, account: usize, pass: &mut Pass, report: &Report, now: Instant) -> bool {
        self.ledger.choice().learn(account, sample(report), now);
        // One that has gone is judged no more.
        if let Some(member) = self.members.get(account).and_then(Option::as_ref) {
            for (verdict, counted) in Verdict::FINAL.into_iter().zip(&member.metrics.attempts) {
                if verdict == report.verdict {
                    counted.inc();
                }
            }
        }
        let credits = self.ledger.credits_of(account, pass.class());
        let credits = credits.or_else(|| self.ledger.credits_of(account, Class::Unary));
        let in_flight = credits.map_or(0, |(used, _)| used);
        self.breakers.on_report(account, pass, report, in_flight, now, entropy::unit);
        self.follow(now)
    }

    /// A credit is back, and with it what was learned.
    pub(super) fn finish(
        &mut self,
        slot: &Slot,
        told: Option<(&mut Pass, Report)>,
        learned: Option<(Start, Outcome)>,
        now: Instant,
    ) {
        if let Some((pass, report)) = told {
            self.report(slot.endpoint(), pass, &report, now);
        }
        self.ledger.release(slot, now);
        if let Some((start, outcome)) = learned {
            self.learn(slot, start, outcome, now);
        }
        self.follow(now);
    }

    /// What there is to learn from a request is known.
    pub(super) fn learn(&mut self, slot: &Slot, start: Start, outcome: Outcome, now: Instant) {
        self.windows.on_end(&mut self.ledger, slot.endpoint(), start, outcome, now);
        self.show_changes();
    }

    /// Brings the metrics up to date when a window has changed.
    pub(super) fn show_changes(&mut self) {
        if self.windows.take_changed() {
            self.show_limits();
        }
    }

    fn show_limits(&self) {
        let (mut sum, mut streams) = (0_usize, 0_usize);
        for (account, member) in self.members.iter().enumerate() {
            let (Some(member), Some((credits, set_by))) = (member, self.windows.in_force(account)) else { continue };
            member.metrics.credits.set(gauge(credits));
            for (by, shown) in SetBy::ALL.into_iter().zip(&member.metrics.set_by) {
                shown.set(i64::from(by == set_by));
            }
            sum = sum.saturating_add(credits);
            streams =
                streams.saturating_add(self.ledger.credits_of(account, Class::Stream).map_or(0, |(_, limit)| limit));
        }
        self.metrics.unary.set(gauge(sum));
        self.metrics.streams.set(gauge(streams));
    }

    /// Begins or ends the drain of an endpoint; false when there is no such endpoint. Ask the ledger to grant
    /// afterwards.
    pub(super) fn set_draining(&mut self, endpoint: &Endpoint, is_draining: bool) -> bool {
        let Some((account, member)) = self.find(endpoint.settings()) else { return false };
        let is_back = member.is_draining && !is_draining;
        member.is_draining = is_draining;
        member.endpoint.client().set_closing(is_draining);
        if is_back {
            self.ledger.choice().come_back(account, Instant::now());
        }
        self.set_limits();
        true
    }

    /// Whether no endpoint takes a request, or will while nobody changes that.
    pub(super) fn is_dry(&self) -> bool {
        self.members.iter().flatten().all(|member| member.is_draining)
    }

    /// Who stands behind an account.
    pub(super) fn endpoint(&self, account: usize) -> Option<&Arc<Endpoint>> {
        self.members.get(account)?.as_ref().map(|member| &member.endpoint)
    }

    /// Every endpoint in the order of the configuration: its account, and whether it is draining.
    pub(super) fn members(&self) -> impl Iterator<Item = (usize, &Arc<Endpoint>, bool)> {
        self.order.iter().filter_map(|account| {
            let member = self.members.get(*account)?.as_ref()?;
            Some((*account, &member.endpoint, member.is_draining))
        })
    }
}

/// What an attempt tells the choice among endpoints.
fn sample(report: &Report) -> Sample {
    let Report { latency, rest, .. } = *report;
    match report.verdict {
        Verdict::Begun | Verdict::Good => Sample::Answered(latency),
        Verdict::Unknown => Sample::Left(latency),
        Verdict::ServerError | Verdict::Overloaded | Verdict::Unreachable | Verdict::Broken => {
            Sample::Failed { after: latency, retry_after: rest }
        }
    }
}

fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::breaker;
    use crate::control::credits::{Answer, Ask, Turn};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Ask(bool),
        Head(usize, usize),
        End(usize, usize),
        Later(u64),
        Drain(usize, bool),
        Reload(u8, bool, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<bool>().prop_map(Step::Ask),
            2 => (any::<usize>(), 0..6_usize).prop_map(|(at, verdict)| Step::Head(at, verdict)),
            6 => (any::<usize>(), 0..6_usize).prop_map(|(at, verdict)| Step::End(at, verdict)),
            2 => (0_u64..2000).prop_map(Step::Later),
            1 => (0..3_usize, any::<bool>()).prop_map(|(at, is_draining)| Step::Drain(at, is_draining)),
            1 => (1_u8..8, any::<bool>(), any::<bool>())
                .prop_map(|(which, is_on, dry_run)| Step::Reload(which, is_on, dry_run)),
        ];
        proptest::collection::vec(step, 0..400)
    }

    /// Settings with those of three endpoints that `which` has a bit for.
    fn settings(which: u8, is_on: bool, dry_run: bool) -> Settings {
        let all = (0..3_u8).filter(|n| which & 1 << n != 0);
        let endpoints = all.map(|n| EndpointSettings {
            label: format!("http://127.0.0.1:{n}").into(),
            ..Settings::for_tests().endpoints.remove(0)
        });
        let breaker = breaker::Settings { failures: 2, ..breaker::Settings::default() };
        Settings {
            endpoints: endpoints.collect(),
            limit: Limit { streams: std::num::NonZeroUsize::new(2), dry_run, ..Limit::fixed(3) },
            breaker: is_on.then_some(breaker),
            ..Settings::for_tests()
        }
    }

    struct Out {
        slot: Slot,
        pass: Pass,
        is_told: bool,
        is_trial: bool,
    }

    /// Takes what was granted, which must be good.
    fn taken(books: &mut Books<()>, slot: Slot, out: &mut Vec<Out>, now: Instant) {
        let (account, class) = (slot.endpoint(), slot.class());
        let state = books.breaker(account, now);
        assert!(!matches!(state, State::Open(_)), "{account} is left out");
        assert!(books.members[account].as_ref().is_some_and(|member| !member.is_draining), "{account} is away");
        let Granted { pass, .. } = books.start(&slot, now);
        out.push(Out { slot, pass, is_told: false, is_trial: state == State::HalfOpen });
        let trials = out.iter().filter(|out| out.is_trial && !out.is_told && out.slot.endpoint() == account);
        assert!(trials.count() <= 32, "{account} is tried by too many");
        let used = out.iter().filter(|out| out.slot.endpoint() == account && out.slot.class() == class).count();
        let most = if class == Class::Unary { 3 } else { 2 };
        assert!(used <= most || books.limit.dry_run, "{account} has {used} of {class:?}");
    }

    /// Whether an endpoint takes requests as far as no limit is asked.
    fn is_open(books: &Books<()>, now: Instant) -> bool {
        let is_closed = |account| books.breakers.state(account, now) == State::Closed;
        is_closed(None) && books.members().any(|(account, _, is_draining)| !is_draining && is_closed(Some(account)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn credits_are_never_exceeded_but_in_a_dry_run_and_never_leak(steps in steps()) {
            let registry = Registry::new();
            let endpoints = |settings: &Settings| {
                let endpoint = |endpoint| Endpoint::new(settings, endpoint).expect("usable settings");
                settings.endpoints.iter().map(endpoint).collect::<Vec<_>>()
            };
            let mut now = Instant::now();
            let mut known = settings(7, true, false);
            let mut books = Books::<()>::new(&known, &registry);
            books.apply(&known, endpoints(&known), &registry);
            let mut out: Vec<Out> = Vec::new();
            let report = |verdict: usize| Report {
                verdict: Verdict::FINAL[verdict],
                latency: Duration::from_millis(5),
                rest: (verdict == 2).then_some(Duration::from_millis(700)),
            };
            for step in steps {
                match step {
                    Step::Ask(is_stream) => {
                        books.look(now);
                        let ask = Ask::new(if is_stream { Class::Stream } else { Class::Unary }, now);
                        if let Answer::Granted(slot) = books.ledger.acquire(&ask, || ()) {
                            taken(&mut books, slot, &mut out, now);
                        }
                    }
                    Step::Head(at, verdict) if !out.is_empty() => {
                        let at = at % out.len();
                        let Out { slot, pass, is_told, .. } = &mut out[at];
                        if !std::mem::replace(is_told, true) {
                            books.report(slot.endpoint(), pass, &report(verdict), now);
                            books.exchange(slot, now);
                        }
                    }
                    Step::End(at, verdict) if !out.is_empty() => {
                        let mut gone = out.swap_remove(at % out.len());
                        let told = (!gone.is_told).then(|| (&mut gone.pass, report(verdict)));
                        books.finish(&gone.slot, told, None, now);
                    }
                    Step::Later(millis) => {
                        now += Duration::from_millis(millis);
                        books.look(now);
                    }
                    Step::Drain(at, is_draining) => {
                        let endpoint = books.members().nth(at % known.endpoints.len()).map(|(_, found, _)| Arc::clone(found));
                        books.set_draining(&endpoint.expect("it is there"), is_draining);
                    }
                    Step::Reload(which, is_on, dry_run) => {
                        known = settings(which, is_on, dry_run);
                        books.apply(&known, endpoints(&known), &registry);
                    }
                    _ => {}
                }
                if books.is_shut() {
                    prop_assert!(books.closed(now).is_some());
                    books.ledger.dismiss();
                }
                while let Some(turn) = books.ledger.grant(now) {
                    if let Turn::Granted((), slot) = turn {
                        taken(&mut books, slot, &mut out, now);
                    }
                }
                let used = books.ledger.used(Class::Unary) + books.ledger.used(Class::Stream);
                prop_assert_eq!(used, out.len());
                prop_assert!(books.news.len() <= MOST_NEWS);
                prop_assert!(!known.limit.dry_run || books.ledger.waiting() == 0 || !is_open(&books, now));
            }
            for mut left in out.drain(..) {
                let told = (!left.is_told).then(|| (&mut left.pass, report(0)));
                books.finish(&left.slot, told, None, now);
            }
            prop_assert_eq!(books.ledger.used(Class::Unary) + books.ledger.used(Class::Stream), 0);
            // Whatever was before, an endpoint that is well is back in service in time.
            for _ in 0..100 {
                now += Duration::from_secs(1);
                books.look(now);
                // Nobody comes before one who waits, and here nobody hands out.
                books.ledger.dismiss();
                if let Answer::Granted(slot) = books.ledger.acquire(&Ask::new(Class::Unary, now), || ()) {
                    let mut pass = books.start(&slot, now).pass;
                    books.finish(&slot, Some((&mut pass, report(0))), None, now);
                }
            }
            let is_left_out = |account| books.breaker(account, now) != State::Closed;
            prop_assert!(!books.members().any(|(account, _, is_draining)| !is_draining && is_left_out(account)));
        }
    }
}
