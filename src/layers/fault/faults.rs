//! What is in force for one route.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Settings, WHOLE};
use crate::context::Fault;
use crate::entropy;
use crate::metrics::{Counter, Registry};

/// The live state of a route's faults. An order outlives a reload, and stands in front of the configuration.
pub struct Faults {
    /// Of a million requests, so many may be hit: the larger share of what is configured and what is ordered. 0 while
    /// there is neither, and then it is all that a request looks at.
    share: AtomicU32,
    plan: Mutex<Plan>,
    route: Arc<str>,
    registry: Registry,
    /// By kind. Routes on which nothing was ever done wrong have none.
    counters: OnceLock<Vec<Counter>>,
}

#[derive(Debug, Default)]
struct Plan {
    configured: Option<Settings>,
    ordered: Option<Order>,
}

/// A fault that an operator has ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is done.
    pub settings: Settings,
    /// It ends by itself then.
    pub until: Instant,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// What is done.
    pub settings: Settings,
    /// When it ends; none: with the configuration that says it.
    pub ends_in: Option<Duration>,
}

impl Plan {
    fn in_force(&mut self, now: Instant) -> Option<InForce> {
        self.ordered.take_if(|order| order.until <= now);
        match &self.ordered {
            Some(Order { settings, until }) => {
                Some(InForce { settings: settings.clone(), ends_in: Some(until.saturating_duration_since(now)) })
            }
            None => self.configured.clone().map(|settings| InForce { settings, ends_in: None }),
        }
    }

    fn share(&self) -> u32 {
        let shares = [self.configured.as_ref(), self.ordered.as_ref().map(|order| &order.settings)];
        shares.into_iter().flatten().map(|settings| settings.share.get()).max().unwrap_or(0)
    }
}

impl Faults {
    /// Nothing is in force on `route`.
    #[must_use]
    pub fn new(route: Arc<str>, registry: &Registry) -> Self {
        Self {
            share: AtomicU32::new(0),
            plan: Mutex::default(),
            route,
            registry: registry.clone(),
            counters: OnceLock::new(),
        }
    }

    /// What the configuration says.
    pub fn configure(&self, settings: Option<Settings>) {
        self.change(|plan| plan.configured = settings);
    }

    /// An operator's order stands in place of the one before and in front of the configuration; none takes it back.
    pub fn order(&self, order: Option<Order>) {
        self.change(|plan| plan.ordered = order);
    }

    /// What is in force now.
    #[must_use]
    pub fn in_force(&self) -> Option<InForce> {
        self.plan().in_force(Instant::now())
    }

    /// What is done to this request; none: nothing.
    pub(super) fn draw(&self) -> Option<Settings> {
        let share = self.share.load(Relaxed);
        if share == 0 {
            return None;
        }
        let drawn = drawn();
        if drawn >= share {
            return None;
        }
        let mut plan = self.plan();
        let in_force = plan.in_force(Instant::now());
        self.share.store(plan.share(), Relaxed);
        in_force.map(|fault| fault.settings).filter(|settings| drawn < settings.share.get())
    }

    pub(super) fn count(&self, fault: Fault) {
        if let Some(counter) = self.counters().get(fault as usize) {
            counter.inc();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Plan)) {
        let mut plan = self.plan();
        change(&mut plan);
        let share = plan.share();
        if share > 0 {
            self.counters();
        }
        self.share.store(share, Relaxed);
    }

    fn counters(&self) -> &[Counter] {
        self.counters.get_or_init(|| {
            let counter = |fault: Fault| {
                let labels = [("route", &*self.route), ("kind", fault.label())];
                self.registry.counter("headworks_faults_total", "Faults that were done on purpose.", &labels)
            };
            Fault::ALL.into_iter().map(counter).collect()
        })
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number below a million, each as likely as any other to within one in 2³².
fn drawn() -> u32 {
    let wide = u64::from(WHOLE.get()) * (entropy::random_u64() >> 32);
    u32::try_from(wide >> 32).unwrap_or(0)
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("route", &self.route).field("plan", &*self.plan()).finish_non_exhaustive()
    }
}

/// As the configuration writes it: `5%`, `0.25%`.
#[must_use]
pub fn show_share(share: NonZeroU32) -> String {
    let (whole, rest) = (share.get() / 10_000, share.get() % 10_000);
    let decimals = format!("{rest:04}");
    match decimals.trim_end_matches('0') {
        "" => format!("{whole}%"),
        decimals => format!("{whole}.{decimals}%"),
    }
}
