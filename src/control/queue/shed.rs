//! Who is sent away: bounds in count, bytes and time, and the controlled delay.
//!
//! A queue that a burst has filled empties by itself, and everybody in it is served. A queue that *stands* does not:
//! more comes than is served, and then a long wait helps nobody, for as many are refused with it as without. So there
//! are two bounds on the wait. The usual one is `timeout`; while the queue stands, it is twice the time that a credit
//! is out. The queue stands when it has not been empty for a quarter of a second *and* more comes than turns over: a
//! crowd that is being served is no overload.
//!
//! The bound on the wait is one on the length, by Little's law. While the queue stands the newest are served first and
//! the oldest sent away, who have the least patience left.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::flow::float;
use super::level::Level;
use super::{
    DEFAULT, Dismissal, DropPolicy, Next, Order, PASS, PROTECTED, Place, Queue, Supply, Tenancy, Ticket, Waiter,
};
use crate::control::ask::Ask;

/// How long a queue is not empty before it can be said to stand.
const INTERVAL: Duration = Duration::from_millis(250);
/// The wait in a standing queue, in times that a credit is out, and at the least.
const WAIT: u32 = 2;
const LEAST: Duration = Duration::from_millis(2);

/// What else the bounds count: those who wait for the other class. Each class is sure of half of the places and of the
/// bytes, for a client may choose the one whose credits are out for longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// How many.
    pub len: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl<W> Queue<W> {
    /// One wants to wait. It gets a place, or is sent away at once; others may be sent away for it, see
    /// [`Queue::take_dismissed`].
    pub fn offer(&mut self, waiter: Waiter<W>, supply: Supply, beside: Beside) -> Result<Ticket, (W, Dismissal)> {
        let Waiter { ticket, ask, .. } = waiter;
        if ask.bytes > self.rules.max_bytes {
            return Err((waiter.wake, Dismissal::Full));
        }
        if self.would_be_late(&ask, supply) {
            return Err((waiter.wake, Dismissal::TooLate));
        }
        self.insert(waiter);
        while let Some((victim, why)) = self.excess(ticket, &ask, supply, beside) {
            let Some(gone) = self.remove(victim) else { break };
            if victim == ticket {
                return Err((gone.wake, why));
            }
            self.dismissed.push((gone.wake, why));
        }
        Ok(ticket)
    }

    /// One goes for another who waits for the other class, and is surer of the place. False when nobody waits.
    pub fn give_way(&mut self) -> bool {
        let victim = self.victim(None, self.rules.drop == DropPolicy::RejectOldest);
        let protected = || self.ages.get(PROTECTED)?.last_key_value().map(|(ticket, _)| *ticket);
        let Some(gone) = victim.or_else(protected).and_then(|ticket| self.remove(ticket)) else { return false };
        self.dismissed.push((gone.wake, Dismissal::Dropped));
        true
    }

    /// Whether more wait, of both classes together, than may.
    #[must_use]
    pub fn exceeds(&self, beside: Beside) -> bool {
        self.len().saturating_add(beside.len) > self.rules.max
            || self.bytes.saturating_add(beside.bytes) > self.rules.max_bytes
    }

    /// Who has been sent away and must be told. Ask until it says none.
    pub fn take_dismissed(&mut self) -> Option<(W, Dismissal)> {
        self.dismissed.pop()
    }

    /// Whether there are such.
    #[must_use]
    pub fn has_dismissed(&self) -> bool {
        !self.dismissed.is_empty()
    }

    /// Sends those away who have waited too long in a queue that stands: served newest first, it will not be their turn
    /// any more.
    pub fn expire(&mut self, supply: Supply, now: Instant) {
        if !self.is_standing(supply, now) {
            return;
        }
        let bound = (2 * self.standing_wait()).min(self.rules.timeout);
        for priority in 0..PROTECTED {
            while let Some((ticket, at)) = self.oldest_of(priority)
                && now.saturating_duration_since(at) > bound
                && let Some(gone) = self.remove(ticket)
            {
                self.dismissed.push((gone.wake, Dismissal::Shed));
            }
        }
    }

    /// Sends the one away who has become too late while it waited.
    pub fn dismiss_late(&mut self, next: &Next) {
        let (_, ticket) = next.seat;
        if let Some(gone) = self.remove(ticket) {
            self.dismissed.push((gone.wake, Dismissal::TooLate));
        }
    }

    /// Whether even a quick answer would come too late for a request that got a credit now.
    #[must_use]
    pub fn is_late(&self, ask: &Ask, now: Instant) -> bool {
        ask.deadline.is_some_and(|deadline| now + self.flow.quick() > deadline)
    }

    /// Whether more comes than is served.
    #[must_use]
    pub fn is_standing(&self, supply: Supply, now: Instant) -> bool {
        let interval = INTERVAL.min(self.rules.timeout);
        self.rules.sheds
            && self.since.is_some_and(|since| now.saturating_duration_since(since) > interval)
            && self.flow.is_excessive(supply.usual, now)
    }

    fn standing_wait(&self) -> Duration {
        let wait = self.flow.mean().map_or(self.rules.timeout, |mean| WAIT * mean);
        wait.max(LEAST).min(self.rules.timeout)
    }

    /// Why a request would be sent away on arrival if `ahead` others waited: by the bounds in count and time, and its own
    /// deadline. Whether the queue would stand cannot be said of one in which nobody waits.
    #[must_use]
    pub fn would_refuse(&self, ask: &Ask, ahead: usize, supply: Supply) -> Option<Dismissal> {
        let in_time = || self.flow.drain(supply.usual).map(|drain| self.served_in_time(drain));
        if self.has_no_time(ask, ahead, supply) {
            Some(Dismissal::TooLate)
        } else if ahead >= self.rules.max
            || self.rules.sheds && in_time().is_some_and(|room| float(ahead.saturating_add(1)) > room)
        {
            Some(Dismissal::Full)
        } else {
            None
        }
    }

    fn would_be_late(&self, ask: &Ask, supply: Supply) -> bool {
        let level = self.level_of(ask.priority);
        let ahead = match self.rules.order {
            Order::Lifo | Order::Deadline => 0,
            _ if ask.deadline.is_none() || self.is_standing(supply, ask.at) => 0,
            _ => self.levels.get(level).map_or(0, |all| all.len_of(self.tenant_of(ask, level))),
        };
        self.has_no_time(ask, ahead, supply)
    }

    /// The least that it would have to wait, and the least that an answer takes, are more than there is time.
    fn has_no_time(&self, ask: &Ask, ahead: usize, supply: Supply) -> bool {
        let Some(deadline) = ask.deadline else { return false };
        let wait = match self.flow.drain(supply.usual) {
            Some(drain) if drain > 0.0 => {
                Duration::try_from_secs_f64((float(ahead) + 1.0) / drain).unwrap_or(Duration::MAX)
            }
            _ => Duration::ZERO,
        };
        let time = deadline.saturating_duration_since(ask.at);
        time.is_zero() || time < wait.saturating_add(self.flow.quick())
    }

    /// Who must go, and why, while there are more than there may be. `newcomer` is among them.
    fn excess(&self, newcomer: Ticket, ask: &Ask, supply: Supply, beside: Beside) -> Option<(Ticket, Dismissal)> {
        let len = self.len();
        let takes_more = |own: usize, beside: usize, max: usize| own.saturating_add(beside) > max && own > max / 2;
        if takes_more(len, beside.len, self.rules.max) || takes_more(self.bytes, beside.bytes, self.rules.max_bytes) {
            return Some(self.dropped(newcomer, ask, None));
        }
        if let Some(crowded) = self.overgrown(newcomer, beside) {
            return Some(self.dropped(newcomer, ask, Some(crowded)));
        }
        let sheddable = len - self.levels.get(PROTECTED).map_or(0, Level::len);
        if !self.rules.sheds || sheddable == 0 {
            return None;
        }
        let drain = self.flow.drain(supply.usual)?;
        if self.is_standing(supply, ask.at) {
            let room = (drain * self.standing_wait().as_secs_f64()).max(1.0);
            return (float(sheddable) > room).then(|| (self.shed(newcomer), Dismissal::Shed));
        }
        (float(sheddable) > self.served_in_time(drain)).then(|| self.dropped(newcomer, ask, None))
    }

    /// How many can wait in hope: those behind them would most likely wait in vain. How many come free in a time is chance,
    /// so two deviations more.
    fn served_in_time(&self, drain: f64) -> f64 {
        let room = drain * self.rules.timeout.as_secs_f64();
        room + 2.0 * room.sqrt() + 1.0
    }

    /// Where the newcomer stands, when its partition has taken more places than it leaves to the others.
    fn overgrown(&self, newcomer: Ticket, beside: Beside) -> Option<Place> {
        let Tenancy::Partitions(_) = self.rules.tenancy else { return None };
        let place = self.place_of(newcomer).filter(|place| place.level != PROTECTED)?;
        let free = self.rules.max.saturating_sub(self.len().saturating_add(beside.len));
        (self.levels.get(place.level)?.len_of(place.tenant) > free.max(1)).then_some(place)
    }

    /// Who goes by the policy: of all, or of one tenant.
    fn dropped(&self, newcomer: Ticket, ask: &Ask, crowded: Option<Place>) -> (Ticket, Dismissal) {
        if self.rules.drop == DropPolicy::ReplaceSameKey
            && let Some((_, older)) = self.keys.range((ask.tenant, Ticket(0))..(ask.tenant, newcomer)).next()
            && self.ages.get(PROTECTED).is_some_and(|ages| !ages.contains_key(older))
        {
            return (*older, Dismissal::Replaced);
        }
        let is_oldest = self.rules.drop == DropPolicy::RejectOldest;
        let victim = match crowded {
            Some(place) => self.end_of(place.level, place.tenant, is_oldest),
            None => self.victim(Some(newcomer), is_oldest),
        };
        let victim = victim.unwrap_or(newcomer);
        (victim, if victim == newcomer { Dismissal::Full } else { Dismissal::Dropped })
    }

    /// Who goes from a queue that stands: the oldest, or the least urgent where deadlines are known.
    fn shed(&self, newcomer: Ticket) -> Ticket {
        let victim = match (self.rules.order, self.rules.tenancy) {
            (Order::Deadline, Tenancy::One) => self.end_of(DEFAULT, 0, false),
            (Order::Deadline, _) => self.victim(Some(newcomer), false),
            _ => self.victim(Some(newcomer), true),
        };
        victim.unwrap_or(newcomer)
    }

    /// The oldest or the newest: of the priority of which too many wait, where that counts, and of the tenant of whom most
    /// wait.
    fn victim(&self, newcomer: Option<Ticket>, is_oldest: bool) -> Option<Ticket> {
        let has_levels = self.rules.order.has_levels();
        let end = |ages: &BTreeMap<Ticket, Place>| {
            if is_oldest { ages.first_key_value() } else { ages.last_key_value() }.map(|(ticket, _)| *ticket)
        };
        let crowded = self.crowded(has_levels)?;
        if self.rules.drop == DropPolicy::RejectLowest && !has_levels {
            return end(self.ages.get(crowded)?);
        }
        if self.rules.tenancy == Tenancy::One {
            let ages = self.ages.iter().take(PROTECTED).enumerate();
            let tickets = ages.filter(|(at, _)| !has_levels || *at == crowded).filter_map(|(_, ages)| end(ages));
            return if is_oldest { tickets.min() } else { tickets.max() };
        }
        let at = if has_levels { crowded } else { DEFAULT };
        let here = newcomer.and_then(|ticket| self.place_of(ticket)).filter(|place| place.level == at);
        let longest = self.levels.get(at)?.longest(here.map(|place| place.tenant))?;
        self.end_of(at, longest, is_oldest)
    }

    /// The priority of which most wait for the turns that it gets; the lowest by that policy, or where all have the same
    /// turns.
    fn crowded(&self, has_levels: bool) -> Option<usize> {
        let lens = self.ages.iter().map(BTreeMap::len).zip(PASS).take(PROTECTED).enumerate();
        let mut lens = lens.filter(|(_, (len, _))| *len > 0);
        if self.rules.drop == DropPolicy::RejectLowest || !has_levels {
            return lens.next().map(|(at, _)| at);
        }
        let wait =
            |(_, (len, pass)): &(usize, (usize, u64))| u64::try_from(*len).unwrap_or(u64::MAX).saturating_mul(*pass);
        lens.max_by_key(wait).map(|(at, _)| at)
    }

    /// The first or the last in line of a tenant.
    fn end_of(&self, level: usize, tenant: u64, is_first: bool) -> Option<Ticket> {
        let level = self.levels.get(level)?;
        let seat = if is_first { level.first_of(tenant) } else { level.last_of(tenant) };
        seat.map(|(_, ticket)| ticket)
    }

    fn place_of(&self, ticket: Ticket) -> Option<Place> {
        self.ages.iter().find_map(|ages| ages.get(&ticket)).copied()
    }

    /// The oldest of a priority, and when it came.
    fn oldest_of(&self, priority: usize) -> Option<(Ticket, Instant)> {
        let (ticket, place) = self.ages.get(priority)?.first_key_value()?;
        let waiter = self.levels.get(place.level)?.get(place.tenant, (place.rank, *ticket))?;
        Some((*ticket, waiter.ask.at))
    }
}
