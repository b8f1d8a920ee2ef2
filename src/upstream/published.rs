//! What endpoints report of their load, on its way from their answers and agents to their credits; and the pressure of
//! this proxy's own on the whole upstream, for whoever stands in front.

use std::time::Duration;

use tokio::time::Instant;

use super::admission::hand_out;
use super::agent::Failed;
use super::books::Books;
use super::settings::{Address, Settings};
use super::{Admission, Upstream};
use crate::control::credits::Class;
use crate::control::published::agent::Advice;
use crate::control::published::fields::Found;
use crate::control::published::heard::Heard;
use crate::control::published::steer::Caps;
use crate::control::published::{Fault, Form, LoadReport, Pressure};
use crate::control::windows::SetBy;
use crate::metrics::{Counter, Registry};

/// The wait that is reported at most.
const LONGEST: Duration = Duration::from_secs(60);

/// What was reported, and what is made of it.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) heard: Heard,
    is_heard: bool,
    is_passed: bool,
}

/// Reports of one endpoint.
#[derive(Debug)]
pub(super) struct Counts {
    read: [Counter; Form::ALL.len()],
    unreadable: [Counter; Form::ALL.len()],
}

impl Counts {
    pub(super) fn new(registry: &Registry, upstream: &str, endpoint: &str) -> Self {
        let counter = |name, help: &'static str, form: Form| {
            registry.counter(name, help, &[("upstream", upstream), ("endpoint", endpoint), ("form", form.label())])
        };
        let read = |form| counter("headworks_load_reports_total", "Reports of load that were read.", form);
        let unreadable = |form| {
            counter("headworks_load_reports_unreadable_total", "Reports of load that nothing can be made of.", form)
        };
        Self { read: Form::ALL.map(read), unreadable: Form::ALL.map(unreadable) }
    }

    fn count(&self, form: Form, fault: Option<Fault>) {
        let counters = if fault.is_none() { &self.read } else { &self.unreadable };
        for (known, counter) in Form::ALL.into_iter().zip(counters) {
            if known == form {
                counter.inc();
            }
        }
    }
}

impl<W> Books<W> {
    /// Other settings: what was reported goes on to count, as far as they want to hear it.
    pub(super) fn publish(&mut self, settings: &Settings, now: Instant) {
        let wanted = &settings.published;
        (self.published.is_heard, self.published.is_passed) = (wanted.is_heard, wanted.is_passed);
        let Self { published, ledger, windows, .. } = self;
        published.heard.keep((ledger, windows), (wanted.is_heard, wanted.agent.is_some()), now);
        self.show_changes();
    }

    /// An answer of an endpoint says what it has to do. Whether the client may see it. Ask the ledger to grant
    /// afterwards.
    pub(super) fn hear(&mut self, (account, class): (usize, Class), found: &Found, latency: Option<Duration>) -> bool {
        if let Some(counts) = self.counts(account) {
            for (form, fault) in [found.orca, found.plain].into_iter().flatten() {
                counts.count(form, fault);
            }
            if self.published.is_heard {
                let Self { published, ledger, windows, .. } = self;
                let books = (ledger, windows);
                published.heard.on_report(books, (account, class), &found.report, latency, Instant::now());
                self.show_changes();
            }
        }
        self.published.is_passed
    }

    fn advise(&mut self, about: &[Address], advice: Advice, now: Instant) {
        let accounts: Vec<usize> = self
            .members()
            .filter(|(_, endpoint, _)| about.contains(&endpoint.settings().address))
            .map(|(account, ..)| account)
            .collect();
        for account in accounts {
            if let Some(counts) = self.counts(account) {
                counts.count(Form::Agent, None);
            }
            let Self { published, ledger, windows, .. } = self;
            published.heard.on_advice((ledger, windows), account, advice, now);
        }
        self.show_changes();
    }

    /// Time has passed. Whether reports have ended to count, so that there may be free credits.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let Self { published, ledger, windows, .. } = self;
        let is_changed = published.heard.expire(ledger, windows, now);
        if is_changed {
            self.show_changes();
        }
        is_changed
    }

    /// What reports leave of the credits of an account.
    pub(super) fn published_caps(&self, account: usize) -> Caps {
        self.windows.cap_by(account, SetBy::Published)
    }

    /// Over all endpoints: what is in use, what waits, and what there is. A moment's rest for measuring is no less.
    fn pressure(&self, class: Class, now: Instant) -> LoadReport {
        let class = if self.members().any(|(account, ..)| self.ledger.credits_of(account, class).is_some()) {
            class
        } else {
            Class::Unary
        };
        let (mut used, mut limit) = (0_usize, 0_usize);
        for (account, ..) in self.members() {
            let Some((out, there)) = self.ledger.credits_of(account, class) else { continue };
            let is_measuring =
                class == Class::Unary && self.windows.in_force(account).is_some_and(|(_, by)| by == SetBy::Measuring);
            let found = self.windows.uncapped(account).filter(|_| is_measuring).map(|(found, _)| found);
            used += out;
            limit = limit.saturating_add(found.unwrap_or(there));
        }
        let waiting = self.ledger.waiting();
        let delay = self.ledger.delay(class).min(LONGEST);
        LoadReport {
            // A little more than there is, so that nothing idles while an answer is on its way.
            credit: Some(if limit == 0 { 0 } else { limit + (limit / 10).max(1) }),
            queue_delay: Some(delay),
            utilization: Some(float(used + waiting) / float(limit.max(1))),
            rps: Some(self.ledger.served(now)),
        }
    }
}

impl Admission {
    /// An agent has spoken of some endpoints, or has failed to.
    pub(super) fn advise(&self, about: &[Address], advice: Result<Advice, Failed>) {
        match advice {
            Ok(advice) => {
                self.0.books().advise(about, advice, Instant::now());
                hand_out(&self.0);
            }
            Err(error) => {
                self.0.metrics.agent_failures.inc();
                tracing::debug!(%error, "an agent gave no advice");
            }
        }
    }
}

impl Pressure for Upstream {
    fn pressure(&self, is_stream: bool) -> LoadReport {
        let class = if is_stream { Class::Stream } else { Class::Unary };
        self.admission.0.books().pressure(class, Instant::now())
    }
}

#[expect(clippy::cast_precision_loss, reason = "requests are far below 2^52")]
fn float(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::credits::Ask;
    use crate::control::published::agent::read;
    use crate::control::published::steer::FRESH;
    use crate::control::queue::Rules;
    use crate::upstream::{Agent, Endpoint, Limit, Published, Queue};
    use std::sync::Arc;

    fn settings() -> Settings {
        let agent = Agent { interval: Duration::from_secs(1), polls: Vec::new() };
        Settings {
            limit: Limit::fixed(2),
            queue: Queue { rules: Rules { timeout: FRESH * 2, ..Rules::default() }, ..Queue::default() },
            published: Published { agent: Some(agent), ..Published::default() },
            ..Settings::for_tests()
        }
    }

    fn admission(settings: &Settings) -> Admission {
        let endpoint = Endpoint::new(settings, &settings.endpoints[0]).expect("usable settings");
        Admission::new(settings, vec![endpoint], &Registry::new())
    }

    fn advise(admission: &Admission, text: &str) {
        let about = [admission.endpoints()[0].endpoint.settings().address.clone()];
        admission.advise(&about, read(text).map_err(|fault| Failed(fault.to_string())));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_when_the_last_word_counts_no_more() {
        let admission = admission(&settings());
        advise(&admission, "drain");
        let began = Instant::now();
        let credit = admission.admit(Ask::new(Class::Unary, began)).await.expect("a credit in the end");
        assert!((FRESH..FRESH + Duration::from_secs(1)).contains(&began.elapsed()), "{:?}", began.elapsed());
        drop(credit);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_before_the_last_word_came_is_served_when_it_counts_no_more() {
        let admission = admission(&settings());
        let ask = || Ask::new(Class::Unary, Instant::now());
        let held = [admission.admit(ask()).await.expect("free"), admission.admit(ask()).await.expect("free")];
        let began = Instant::now();
        let (credit, ()) = tokio::join!(admission.admit(ask()), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            advise(&admission, "drain");
            drop(held);
        });
        drop(credit.expect("a credit in the end"));
        let second = Duration::from_secs(1);
        assert!((FRESH + second..FRESH + 3 * second).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_as_soon_as_an_agent_allows_it() {
        let admission = admission(&settings());
        advise(&admission, "0");
        let began = Instant::now();
        let (credit, ()) = tokio::join!(admission.admit(Ask::new(Class::Unary, began)), async {
            advise(&admission, "what?");
            tokio::time::sleep(Duration::from_secs(1)).await;
            advise(&admission, "1");
        });
        drop(credit.expect("the credit that came"));
        assert_eq!((began.elapsed(), admission.endpoints()[0].unary.limit), (Duration::from_secs(1), 1));
        assert_eq!(admission.endpoints()[0].published.unary, Some(1));
        // Without the agent its word is gone too; what endpoints say themselves would stay.
        let plain = Settings { published: Published::default(), ..settings() };
        admission.apply(&plain, vec![Arc::clone(&admission.endpoints()[0].endpoint)]);
        assert_eq!(admission.endpoints()[0].unary.limit, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_counts_what_is_in_use_and_what_waits() {
        let admission = admission(&settings());
        let pressure = || admission.0.books().pressure(Class::Stream, Instant::now());
        let ask = || Ask::new(Class::Unary, Instant::now());
        assert_eq!((pressure().credit, pressure().utilization), (Some(3), Some(0.0)));
        let _held = [admission.admit(ask()).await, admission.admit(ask()).await];
        let waits = tokio::time::timeout(Duration::from_secs(1), admission.admit(ask()));
        let (_, report) = tokio::join!(waits, async { pressure() });
        assert_eq!((report.credit, report.utilization), (Some(3), Some(1.5)), "streams take the same credits here");
        assert!(report.queue_delay > Some(Duration::ZERO));
    }
}
