//! Those who wait for a credit of one class: how many, who is next, and who is sent away.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Queue`]: places, and who is next |
//! | `rules.rs` | [`Rules`]: bounds, orders and policies |
//! | `shed.rs` | who goes: bounds in count, bytes and time, and the controlled delay |
//! | `level.rs` | tenants that share by what they have used |
//! | `hand.rs` | shuffle sharding of keys to a fixed number of tenants |
//! | `flow.rs` | how much comes, and how fast credits turn over |
//! | `booking.rs` | when those who are refused should come back |
//!
//! Leaving takes logarithmic time and frees the place at once. A protected request goes first, and is sent away only by
//! time, or when there is none but protected ones.

mod booking;
mod flow;
mod hand;
mod level;
mod rules;
mod shed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

pub use hand::Hands;
pub use rules::{Dismissal, DropPolicy, Order, Rules, Tenancy};
pub use shed::Beside;

use super::ask::Ask;
use crate::context::Priority;
use booking::Booking;
use flow::Flow;
use level::{Level, Seat};

/// Turns of each priority in 13 go by what one of them costs.
const PASS: [u64; 4] = [8, 2, 1, 0];
/// What a request is charged with before anything is known.
const UNKNOWN: Duration = Duration::from_millis(10);
const DEFAULT: usize = Priority::Default as usize;
const PROTECTED: usize = Priority::Protected as usize;

/// Names a place in a queue. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// One who waits. `W` is whatever wakes it.
#[derive(Debug)]
pub struct Waiter<W> {
    /// Its place.
    pub ticket: Ticket,
    /// What it waits for.
    pub ask: Ask,
    /// What wakes it.
    pub wake: W,
}

/// The credits of the class that is waited for, over all endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    /// How many there are, not counting what is withheld for a moment.
    pub usual: usize,
    /// How many may be given out.
    pub free: usize,
}

/// What a tenant has been charged for a credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    era: u64,
    level: usize,
    tenant: u64,
    weight: NonZeroU32,
    cost: u64,
}

/// Where one waits.
#[derive(Clone, Copy, Debug)]
struct Place {
    level: usize,
    tenant: u64,
    rank: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Queue<W> {
    rules: Rules,
    flow: Flow,
    booking: Booking,
    /// By priority, or all but the protected ones in that of the default.
    levels: [Level<W>; 4],
    /// Turns that each level has had; those that were without anybody are lifted to the last that was served.
    passes: [u64; 4],
    pass: u64,
    /// Who counts as one has changed so many times. A charge of another era is one of somebody else.
    era: u64,
    /// Everybody, by priority and age.
    ages: [BTreeMap<Ticket, Place>; 4],
    /// Everybody by key, where that matters.
    keys: BTreeSet<(u64, Ticket)>,
    bytes: usize,
    /// Since when somebody waits.
    since: Option<Instant>,
    /// Deadlines are counted from here.
    epoch: Option<Instant>,
    /// Sent away, and not yet told.
    dismissed: Vec<(W, Dismissal)>,
}

impl<W> Queue<W> {
    /// A queue in which nobody waits.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            flow: Flow::new(),
            booking: Booking::default(),
            levels: std::array::from_fn(|_| Level::new()),
            passes: [0; 4],
            pass: 0,
            era: 0,
            ages: std::array::from_fn(|_| BTreeMap::new()),
            keys: BTreeSet::new(),
            bytes: 0,
            since: None,
            epoch: None,
            dismissed: Vec::new(),
        }
    }

    /// Brings other rules in force. Those who wait already stay.
    pub fn set_rules(&mut self, rules: Rules) {
        if self.rules == rules {
            return;
        }
        let is_same = |old: Rules| (old.tenancy, old.order.has_levels()) == (rules.tenancy, rules.order.has_levels());
        let (keeps_charges, since) = (is_same(self.rules), self.since);
        let all = self.take_all();
        if !keeps_charges {
            self.era += 1;
            self.levels = std::array::from_fn(|_| Level::new());
        }
        self.rules = rules;
        for waiter in all {
            self.insert(waiter);
        }
        self.since = since.filter(|_| !self.is_empty());
    }

    /// A request came, whether or not it will have to wait.
    pub fn on_arrival(&mut self, now: Instant) {
        self.flow.on_arrival(now);
    }

    /// A credit came back that was out for `held`, with what was charged for it.
    pub fn on_return(&mut self, charge: Option<Charge>, held: Duration, now: Instant) {
        self.flow.on_return(held, now);
        if let Some(Charge { era, level, tenant, weight, cost }) = charge
            && era == self.era
            && let Some(level) = self.levels.get_mut(level)
        {
            level.settle(tenant, cost, weighed(held, weight));
        }
    }

    /// Whether a request may have a credit without waiting: nobody else may have it, and its tenant may.
    #[must_use]
    pub fn may_pass(&self, ask: &Ask, supply: impl FnOnce() -> Supply) -> bool {
        if !self.is_partitioned() {
            return self.is_empty();
        }
        let supply = supply();
        self.may(self.out_of(ask), supply) && self.next(supply, ask.at).is_none()
    }

    /// Whether somebody may have to wait although there is a free credit.
    fn is_partitioned(&self) -> bool {
        matches!(self.rules.tenancy, Tenancy::Partitions(_))
    }

    /// Charges a request that gets a credit. None where nobody counts.
    pub fn charge(&mut self, ask: &Ask) -> Option<Charge> {
        if self.rules.tenancy == Tenancy::One {
            return None;
        }
        let level = self.level_of(ask.priority);
        Some(self.charge_to(level, self.tenant_of(ask, level), ask.weight))
    }

    fn charge_to(&mut self, level: usize, tenant: u64, weight: NonZeroU32) -> Charge {
        let cost = weighed(self.flow.mean().unwrap_or(UNKNOWN), weight);
        if let Some(level) = self.levels.get_mut(level) {
            level.charge(tenant, cost);
        }
        Charge { era: self.era, level, tenant, weight, cost }
    }

    /// Who is next, if any of those who wait may have a free credit.
    #[must_use]
    pub fn next(&self, supply: Supply, now: Instant) -> Option<Next> {
        if self.is_empty() {
            return None;
        }
        let is_newest_first = match self.rules.order {
            Order::Lifo => true,
            Order::Deadline => false,
            Order::Fifo | Order::Priority | Order::Fair => self.is_standing(supply, now),
        };
        // The protected first, then who has had the fewest turns; of equals the one of greater weight.
        let mut turns = [PROTECTED, 2, 1, 0].map(|level| (level, self.passes.get(level).copied().unwrap_or(0)));
        let [_, others @ ..] = &mut turns;
        others.sort_by_key(|(_, pass)| *pass);
        turns.into_iter().find_map(|(at, _)| {
            let level = self.levels.get(at).filter(|level| level.len() > 0)?;
            let (tenant, seat) = level.next(is_newest_first, |out| self.may(out, supply))?;
            Some(Next { level: at, tenant, seat })
        })
    }

    /// What the one who is next asks for.
    #[must_use]
    pub fn ask_of(&self, next: &Next) -> Option<&Ask> {
        Some(&self.levels.get(next.level)?.get(next.tenant, next.seat)?.ask)
    }

    /// Takes out who is next, and gets a credit.
    pub fn pop(&mut self, next: Next) -> Option<(Waiter<W>, Option<Charge>)> {
        let Next { level, tenant, seat: (_, ticket) } = next;
        let waiter = self.remove(ticket)?;
        if let (Some(pass), Some(cost)) = (self.passes.get_mut(level), PASS.get(level)) {
            self.pass = self.pass.max(*pass);
            *pass += cost;
        }
        let is_charged = self.rules.tenancy != Tenancy::One;
        let charge = is_charged.then(|| self.charge_to(level, tenant, waiter.ask.weight));
        Some((waiter, charge))
    }

    /// One leaves. None when the ticket has been served or has left before.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let place = self.ages.iter_mut().find_map(|ages| ages.remove(&ticket))?;
        let waiter = self.levels.get_mut(place.level)?.remove(place.tenant, (place.rank, ticket))?;
        self.bytes = self.bytes.saturating_sub(waiter.ask.bytes);
        if self.rules.drop == DropPolicy::ReplaceSameKey {
            self.keys.remove(&(waiter.ask.tenant, ticket));
        }
        if self.is_empty() {
            self.since = None;
        }
        Some(waiter)
    }

    /// Takes out all, in the order of their tickets.
    pub fn take_all(&mut self) -> Vec<Waiter<W>> {
        let mut all: Vec<_> = self.levels.iter_mut().flat_map(Level::take_all).collect();
        all.sort_unstable_by_key(|waiter| waiter.ticket);
        self.ages = std::array::from_fn(|_| BTreeMap::new());
        self.keys.clear();
        (self.bytes, self.since) = (0, None);
        all
    }

    /// One more waits, whatever the bounds say.
    pub fn insert(&mut self, waiter: Waiter<W>) {
        let Waiter { ticket, ask, .. } = waiter;
        let place = self.place(&ask);
        if self.is_empty() {
            self.since = Some(ask.at);
        }
        if let Some(pass) = self.passes.get_mut(place.level)
            && self.levels.get(place.level).is_some_and(|level| level.len() == 0)
        {
            *pass = (*pass).max(self.pass);
        }
        if let (Some(level), Some(ages)) = (self.levels.get_mut(place.level), self.ages.get_mut(ask.priority as usize))
        {
            ages.insert(ticket, place);
            level.push(place.tenant, (place.rank, ticket), waiter);
            self.bytes = self.bytes.saturating_add(ask.bytes);
            if self.rules.drop == DropPolicy::ReplaceSameKey {
                self.keys.insert((ask.tenant, ticket));
            }
        }
    }

    /// When one who is refused should come back. `luck` is from 0 to 1.
    pub fn book(&mut self, supply: Supply, now: Instant, luck: f64) -> Duration {
        let drain = self.drain(supply);
        self.booking.book(now, drain, luck)
    }

    /// How long the last in line will wait.
    #[must_use]
    pub fn delay(&self, supply: Supply) -> Duration {
        let wait = flow::float(self.len()) / self.drain(supply).max(1e-6);
        Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX)
    }

    /// Credits that come free in a second. Before anything is known, each is taken to last one.
    fn drain(&self, supply: Supply) -> f64 {
        self.flow.drain(supply.usual).unwrap_or(flow::float(supply.usual))
    }

    /// Credits that came back in a second.
    #[must_use]
    pub fn served(&self, now: Instant) -> f64 {
        self.flow.served(now)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ages.iter().map(BTreeMap::len).sum()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ages.iter().all(BTreeMap::is_empty)
    }

    /// Bytes that those who wait hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn level_of(&self, priority: Priority) -> usize {
        match priority {
            Priority::Protected => PROTECTED,
            priority if self.rules.order.has_levels() => priority as usize,
            _ => DEFAULT,
        }
    }

    /// Of a hand it is the one with the shortest line, then the one with the fewest credits.
    fn tenant_of(&self, ask: &Ask, level: usize) -> u64 {
        let Some(level) = self.levels.get(level) else { return 0 };
        match (self.rules.tenancy, self.rules.tenancy.hands()) {
            (Tenancy::Keys, _) => ask.tenant,
            (_, Some(hands)) => {
                let line = |tenant: &u64| (level.len_of(*tenant), level.out_of(*tenant), level.used_by(*tenant));
                hands.deal(ask.tenant).min_by_key(line).unwrap_or(0)
            }
            (_, None) => 0,
        }
    }

    fn out_of(&self, ask: &Ask) -> usize {
        let level = self.level_of(ask.priority);
        self.levels.get(level).map_or(0, |all| all.out_of(self.tenant_of(ask, level)))
    }

    /// Whether a tenant that has `out` credits may have one more. A partition may have as many as it leaves free: so
    /// one that holds all it can get leaves some for the next to come (dynamic thresholds, Choudhury and Hahne 1998).
    fn may(&self, out: usize, supply: Supply) -> bool {
        !self.is_partitioned() || out < supply.free
    }

    fn place(&mut self, ask: &Ask) -> Place {
        let level = self.level_of(ask.priority);
        let tenant = self.tenant_of(ask, level);
        let epoch = *self.epoch.get_or_insert(ask.at);
        let rank = match self.rules.order {
            Order::Deadline => {
                let wait = ask.at + self.rules.timeout;
                nanos(ask.deadline.map_or(wait, |deadline| deadline.min(wait)).saturating_duration_since(epoch))
            }
            _ => 0,
        };
        Place { level, tenant, rank }
    }
}

/// Who is next. Good until the queue changes.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    level: usize,
    tenant: u64,
    seat: Seat,
}

/// Of a tenant with twice the weight the same counts half.
fn weighed(time: Duration, weight: NonZeroU32) -> u64 {
    nanos(time / weight.get())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
