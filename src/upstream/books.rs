//! What the lock of admission guards: the ledger, and who stands behind its accounts.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::Settings;
use super::endpoint::Endpoint;
use super::published::{Counts, Published};
use super::settings::{EndpointSettings, Limit};
use crate::control::credits::{Class, Ledger, Slot};
use crate::control::drain_rate::DrainRate;
use crate::control::limit::{Outcome, Start};
use crate::control::report::{Report, Verdict};
use crate::control::windows::{SetBy, Windows};
use crate::metrics::{Counter, Gauge, Registry};

/// See the module's text. `W` wakes a waiter.
#[derive(Debug)]
pub(super) struct Books<W> {
    pub(super) ledger: Ledger<W>,
    pub(super) windows: Windows,
    pub(super) drain: DrainRate,
    pub(super) published: Published,
    pub(super) max_wait: Duration,
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
}

impl Metrics {
    fn new(registry: &Registry, upstream: &str) -> Self {
        let limit = |class| {
            let labels = [("upstream", upstream), ("class", class)];
            registry.gauge("headworks_credits_limit", "Credits of all endpoints together.", &labels)
        };
        Self { unary: limit("unary"), streams: limit("stream") }
    }
}

impl<W> Books<W> {
    /// Books without endpoints, which the first [`Books::apply`] brings.
    pub(super) fn new(settings: &Settings, registry: &Registry) -> Self {
        let credits = settings.limit.in_flight.initial().saturating_mul(settings.endpoints.len());
        Self {
            ledger: Ledger::new(0, 0, settings.limit.streams.map(std::num::NonZeroUsize::get), settings.queue.max),
            windows: Windows::default(),
            drain: DrainRate::new(Instant::now(), credits),
            published: Published::default(),
            max_wait: settings.queue.timeout,
            limit: settings.limit,
            members: Vec::new(),
            order: Vec::new(),
            metrics: Metrics::new(registry, &settings.name),
        }
    }

    /// Brings other settings in force. Endpoints that stay keep their accounts, so that credits which are out count on;
    /// what is draining goes on draining. Ask the ledger to grant afterwards.
    pub(super) fn apply(&mut self, settings: &Settings, endpoints: Vec<Arc<Endpoint>>, registry: &Registry) {
        self.limit = settings.limit;
        self.max_wait = settings.queue.timeout;
        self.ledger.set_max_waiting(settings.queue.max);
        self.ledger.set_apart(settings.limit.streams.is_some());
        for at in 0..self.members.len() {
            let stays = |member: &Member| endpoints.iter().any(|new| new.settings() == member.endpoint.settings());
            let Some(place) = self.members.get_mut(at) else { continue };
            if let Some(gone) = place.take_if(|member| !stays(member)) {
                gone.endpoint.client().set_closing(true);
                self.ledger.close(at);
                self.windows.remove(at);
                self.published.heard.remove(at);
            }
        }
        self.order.clear();
        for endpoint in endpoints {
            if let Some((account, member)) = self.find(endpoint.settings()) {
                if !Arc::ptr_eq(&member.endpoint, &endpoint) {
                    member.endpoint.client().set_closing(true);
                }
                endpoint.client().set_closing(member.is_draining);
                member.endpoint = endpoint;
                self.order.push(account);
                continue;
            }
            endpoint.client().set_closing(false);
            let metrics = MemberMetrics::new(registry, &settings.name, endpoint.label());
            let member = Member { endpoint, is_draining: false, metrics };
            let account = self.ledger.open();
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
        members.find(|(_, member)| member.endpoint.settings() == settings)
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
            member.metrics.draining.set(i64::from(member.is_draining));
        }
        self.show_limits();
    }

    /// A credit is given out: none when nothing is learned from it.
    pub(super) fn start(&mut self, slot: &Slot, now: Instant) -> Option<Start> {
        self.expire(now);
        let start = self.windows.on_start(&mut self.ledger, slot, now);
        self.show_changes();
        start
    }

    /// See [`Windows::relieve`].
    pub(super) fn relieve(&mut self, now: Instant) -> Option<usize> {
        let is_expired = self.expire(now);
        let moved = self.windows.relieve(&mut self.ledger, now);
        self.show_changes();
        moved.or(is_expired.then_some(0))
    }

    /// Whether credits may come free by time alone.
    pub(super) fn is_timed(&self) -> bool {
        self.windows.is_adaptive() || self.published.heard.is_timed()
    }

    /// The counts of what an endpoint reports.
    pub(super) fn counts(&self, account: usize) -> Option<&Counts> {
        self.members.get(account)?.as_ref().map(|member| &member.metrics.reports)
    }

    /// What an attempt tells about the endpoint behind an account.
    pub(super) fn report(&mut self, account: usize, report: &Report) {
        // One that has gone is judged no more.
        let Some(member) = self.members.get(account).and_then(Option::as_ref) else { return };
        for (verdict, counted) in Verdict::FINAL.into_iter().zip(&member.metrics.attempts) {
            if verdict == report.verdict {
                counted.inc();
            }
        }
    }

    /// A credit is back, and with it what was learned.
    pub(super) fn finish(
        &mut self,
        slot: &Slot,
        report: Option<&Report>,
        learned: Option<(Start, Outcome)>,
        now: Instant,
    ) {
        self.ledger.release(slot);
        self.drain.on_return(now);
        if let Some(report) = report {
            self.report(slot.endpoint(), report);
        }
        if let Some((start, outcome)) = learned {
            self.learn(slot, start, outcome, now);
        }
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
        let Some((_, member)) = self.find(endpoint.settings()) else { return false };
        member.is_draining = is_draining;
        member.endpoint.client().set_closing(is_draining);
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

fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
