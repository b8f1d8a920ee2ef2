//! The ledger of one upstream: credits of its endpoints, and the bounded queue in front of all of them.
//!
//! An endpoint has credits and a request needs one. Whatever protects the endpoint does nothing else than call
//! [`Ledger::set_limit`]; the ledger never asks why. A limit below what is in use takes effect as credits come back.
//!
//! Invariant: while somebody waits who may have a free credit of its class, there is none, as soon as [`Ledger::grant`]
//! has said so. Nobody overtakes the queue, and a credit that comes back goes to who is next there.

use std::time::Duration;

use tokio::time::Instant;

use super::choice::{Choice, Load, Member, View};
use super::queue::{Beside, Charge, Queue, Rules, Supply, Waiter};

pub use super::ask::{Ask, Class};
pub use super::queue::{Dismissal, Ticket};

/// A credit that is out: it must come back by [`Ledger::release`], once.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    endpoint: usize,
    class: Class,
    /// Since when it counts in its class.
    since: Instant,
    charge: Option<Charge>,
}

impl Slot {
    /// The endpoint it is good for.
    #[must_use]
    pub fn endpoint(&self) -> usize {
        self.endpoint
    }

    /// The class it is taken from.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }
}

/// What [`Ledger::acquire`] says.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<W> {
    /// Go ahead.
    Granted(Slot),
    /// All credits are out; the waiter stands in the queue.
    Queued(Ticket),
    /// All credits are out, and there is no place or no sense in waiting; the waiter comes back.
    Refused(W, Dismissal),
}

/// What [`Ledger::grant`] says to one who waited.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<W> {
    /// Go ahead.
    Granted(W, Slot),
    /// It is not among those who wait any more.
    Dismissed(W, Dismissal),
}

/// What would have become of a request that a dry run let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Would {
    /// It would have waited.
    Wait,
    /// It would have been sent away on arrival.
    Refuse(Dismissal),
}

/// The credits of one class that an endpoint has and has given out.
#[derive(Clone, Copy, Debug, Default)]
struct Purse {
    limit: usize,
    used: usize,
    /// The limit without what is withheld for a moment.
    usual: usize,
    /// The limit of a dry run.
    most: usize,
}

/// The credits of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    unary: Purse,
    stream: Purse,
    /// Whether no endpoint has it: another may, once its last credit has come back.
    is_vacant: bool,
}

impl Account {
    fn purse(&mut self, class: Class) -> &mut Purse {
        match class {
            Class::Unary => &mut self.unary,
            Class::Stream => &mut self.stream,
        }
    }

    fn used(self) -> usize {
        self.unary.used + self.stream.used
    }

    /// The same as far as a dry run cares.
    fn load_at_most(self, class: Class, apart: bool) -> Load {
        let purse = if apart && class == Class::Stream { self.stream } else { self.unary };
        Load { limit: purse.most, ..self.load(class, apart) }
    }

    fn load(self, class: Class, apart: bool) -> Load {
        match class {
            // Streams that began with credits of their own count among the others once there is one class only.
            _ if !apart => Load { used: self.used(), limit: self.unary.limit },
            Class::Unary => Load { used: self.unary.used, limit: self.unary.limit },
            Class::Stream => Load { used: self.stream.used, limit: self.stream.limit },
        }
    }
}

/// Those who wait for a credit of one class.
#[derive(Debug)]
struct Line<W> {
    queue: Queue<W>,
}

impl<W> Line<W> {
    fn new(rules: Rules) -> Self {
        Self { queue: Queue::new(rules) }
    }
}

/// See the module's text. `W` is whatever wakes a waiter.
#[derive(Debug)]
pub struct Ledger<W> {
    accounts: Vec<Account>,
    choice: Choice,
    unary: Line<W>,
    streams: Line<W>,
    /// Whether streams have credits of their own; otherwise they take unary ones.
    apart: bool,
    /// Whether nobody is held back for want of credit: see [`Ledger::would`].
    is_dry_run: bool,
    tickets: u64,
}

impl<W> Ledger<W> {
    /// A ledger in which each of `endpoints` has `in_flight` unary credits and `streams` stream credits, and at most
    /// `max_waiting` wait, both classes together.
    #[must_use]
    pub fn new(endpoints: usize, in_flight: usize, streams: Option<usize>, max_waiting: usize) -> Self {
        let apart = streams.is_some();
        let rules = Rules { max: max_waiting, ..Rules::default() };
        let mut ledger = Self {
            accounts: Vec::new(),
            choice: Choice::default(),
            unary: Line::new(rules),
            streams: Line::new(rules),
            apart,
            is_dry_run: false,
            tickets: 0,
        };
        for _ in 0..endpoints {
            let endpoint = ledger.open();
            ledger.set_limit(endpoint, Class::Unary, in_flight);
            ledger.set_limit(endpoint, Class::Stream, streams.unwrap_or(0));
        }
        ledger
    }

    /// Adds an endpoint, still without credits. Its number may be that of an endpoint whose last credit is back.
    pub fn open(&mut self) -> usize {
        let is_vacant = |account: &Account| account.is_vacant && account.used() == 0;
        let at = self.accounts.iter().position(is_vacant).unwrap_or(self.accounts.len());
        match self.accounts.get_mut(at) {
            Some(account) => *account = Account::default(),
            None => self.accounts.push(Account::default()),
        }
        self.choice.join(at, Member::default(), None);
        at
    }

    /// Takes an endpoint away. Credits of it that are out stay good; none is given any more.
    pub fn close(&mut self, endpoint: usize) {
        if let Some(account) = self.accounts.get_mut(endpoint) {
            let none = |purse: Purse| Purse { limit: 0, usual: 0, most: 0, ..purse };
            (account.unary, account.stream, account.is_vacant) = (none(account.unary), none(account.stream), true);
        }
        self.choice.leave(endpoint);
    }

    /// How its endpoints are chosen.
    pub fn choice(&mut self) -> &mut Choice {
        &mut self.choice
    }

    /// What the choice knows of an endpoint.
    #[must_use]
    pub fn known_of(&self, endpoint: usize) -> View {
        self.choice.view(endpoint).unwrap_or_default()
    }

    /// Sets whether streams have credits of their own. What is out keeps its class; who waits keeps its place. Ask
    /// [`Ledger::grant`] afterwards.
    pub fn set_apart(&mut self, apart: bool) {
        if self.apart && !apart {
            let mut all = self.take_all();
            all.sort_unstable_by_key(|waiter| waiter.ticket);
            for waiter in all {
                self.unary.queue.insert(waiter);
            }
        }
        self.apart = apart;
    }

    /// Sets whether limits hold nobody back, see [`Ledger::set_most`]. What is out beyond them counts like any other
    /// credit, and when this ends, limits hold as credits come back. Ask [`Ledger::grant`] afterwards.
    pub fn set_dry_run(&mut self, is_dry_run: bool) {
        self.is_dry_run = is_dry_run;
    }

    /// What would become of a request but for a dry run: none when it gets a credit within the limits. An estimate: those
    /// who are out beyond the limits stand for a queue, and all of them for one tenant that nobody overtakes.
    #[must_use]
    pub fn would(&self, ask: &Ask) -> Option<Would> {
        if !self.is_dry_run {
            return None;
        }
        let ask = Ask { class: self.effective(ask.class), ..*ask };
        let mut ahead = 0_usize;
        for account in &self.accounts {
            let load = account.load(ask.class, self.apart);
            if load.has_room() {
                return None;
            }
            // Where nobody may go, nobody would have waited for.
            if account.load_at_most(ask.class, self.apart).limit > 0 {
                ahead = ahead.saturating_add(load.used.saturating_sub(load.limit));
            }
        }
        let refused = self.line(ask.class).queue.would_refuse(&ask, ahead, self.supply(ask.class));
        Some(refused.map_or(Would::Wait, Would::Refuse))
    }

    /// Sets who may wait, and in which order. Those who wait already stay.
    pub fn set_rules(&mut self, rules: Rules) {
        self.unary.queue.set_rules(rules);
        self.streams.queue.set_rules(rules);
    }

    /// Asks for a credit of any endpoint. `waiter` is made only when there is none.
    pub fn acquire(&mut self, ask: &Ask, waiter: impl FnOnce() -> W) -> Answer<W> {
        if let Some(slot) = self.try_acquire(ask) {
            return Answer::Granted(slot);
        }
        match self.wait(ask, waiter()) {
            Ok(ticket) => Answer::Queued(ticket),
            Err((waiter, why)) => Answer::Refused(waiter, why),
        }
    }

    /// Asks for a credit of any endpoint, and does not wait. None when there is none, or others have waited for it.
    pub fn try_acquire(&mut self, ask: &Ask) -> Option<Slot> {
        let ask = Ask { class: self.effective(ask.class), ..*ask };
        self.line_mut(ask.class).queue.on_arrival(ask.at);
        self.pass(&ask)
    }

    /// As [`Ledger::try_acquire`], for one who has asked before.
    pub fn try_again(&mut self, ask: &Ask) -> Option<Slot> {
        let ask = Ask { class: self.effective(ask.class), ..*ask };
        self.pass(&ask)
    }

    fn pass(&mut self, ask: &Ask) -> Option<Slot> {
        if !self.line(ask.class).queue.may_pass(ask, || self.supply(ask.class)) {
            return None;
        }
        let endpoint = self.take(ask)?;
        let charge = self.line_mut(ask.class).queue.charge(ask);
        Some(Slot { endpoint, class: ask.class, since: ask.at, charge })
    }

    /// Takes a place in the queue, or is sent away at once. Others may have been sent away for it, and credits may have
    /// come free: ask [`Ledger::grant`] afterwards.
    pub fn wait(&mut self, ask: &Ask, wake: W) -> Result<Ticket, (W, Dismissal)> {
        let ask = Ask { class: self.effective(ask.class), ..*ask };
        let supply = self.supply(ask.class);
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let (own, other) = match ask.class {
            Class::Unary => (&mut self.unary.queue, &mut self.streams.queue),
            Class::Stream => (&mut self.streams.queue, &mut self.unary.queue),
        };
        let beside = Beside { len: other.len(), bytes: other.bytes() };
        let placed = own.offer(Waiter { ticket, ask, wake }, supply, beside);
        if placed.is_ok() {
            while own.exceeds(Beside { len: other.len(), bytes: other.bytes() }) && other.give_way() {}
        }
        placed
    }

    /// The credits of a class over all endpoints.
    fn supply(&self, class: Class) -> Supply {
        let mut supply = Supply::default();
        for account in &self.accounts {
            let purse = match class {
                Class::Unary => account.unary,
                Class::Stream => account.stream,
            };
            let used = if self.apart { purse.used } else { account.used() };
            supply.usual = supply.usual.saturating_add(purse.usual);
            let limit = if self.is_dry_run { purse.most } else { purse.limit };
            supply.free = supply.free.saturating_add(limit.saturating_sub(used));
        }
        supply
    }

    /// Takes a credit of an endpoint that has one; when none has, and limits hold nobody back, of one that takes requests.
    fn take(&mut self, ask: &Ask) -> Option<usize> {
        if let Some(endpoint) = self.take_within(ask) {
            return Some(endpoint);
        }
        let Self { accounts, choice, apart, is_dry_run: true, .. } = self else { return None };
        let load = |account: &Account| account.load_at_most(ask.class, *apart);
        let endpoint = choice.choose(ask, |at| accounts.get(at).map_or(Load::default(), load))?;
        accounts.get_mut(endpoint)?.purse(ask.class).used += 1;
        Some(endpoint)
    }

    fn take_within(&mut self, ask: &Ask) -> Option<usize> {
        let Self { accounts, choice, apart, .. } = self;
        let load = |at: usize| accounts.get(at).map_or(Load::default(), |account| account.load(ask.class, *apart));
        let endpoint = choice.choose(ask, load)?;
        accounts.get_mut(endpoint)?.purse(ask.class).used += 1;
        Some(endpoint)
    }

    /// A credit of another endpoint than the one to avoid, at once: none when that would be to wait, or to overtake, be it
    /// in a dry run.
    pub fn take_other(&mut self, ask: &Ask) -> Option<Slot> {
        let ask = Ask { class: self.effective(ask.class), ..*ask };
        if self.waiting() > 0 || !self.line(ask.class).queue.may_pass(&ask, || self.supply(ask.class)) {
            return None;
        }
        let endpoint = self.take_within(&ask)?;
        if ask.avoid == Some(endpoint) {
            // As if it had never been out: there is nothing to learn from it.
            let purse = self.accounts.get_mut(endpoint)?.purse(ask.class);
            purse.used = purse.used.saturating_sub(1);
            return None;
        }
        let charge = self.line_mut(ask.class).queue.charge(&ask);
        Some(Slot { endpoint, class: ask.class, since: ask.at, charge })
    }

    /// Takes a credit back. Ask [`Ledger::grant`] afterwards.
    pub fn release(&mut self, slot: &Slot, now: Instant) {
        self.line_mut(slot.class).queue.on_return(slot.charge, now.saturating_duration_since(slot.since), now);
        if let Some(account) = self.accounts.get_mut(slot.endpoint) {
            let purse = account.purse(slot.class);
            purse.used = purse.used.saturating_sub(1);
        }
    }

    /// Gives a free credit to who is next, if there are both, and tells those who are sent away. Ask until it says none.
    pub fn grant(&mut self, now: Instant) -> Option<Turn<W>> {
        [Class::Unary, Class::Stream].into_iter().find_map(|class| self.turn(class, now))
    }

    fn turn(&mut self, class: Class, now: Instant) -> Option<Turn<W>> {
        if !self.line(class).queue.is_empty() {
            let supply = self.supply(class);
            self.line_mut(class).queue.expire(supply, now);
        }
        loop {
            let supply = self.supply(class);
            let queue = &mut self.line_mut(class).queue;
            if let Some((waiter, why)) = queue.take_dismissed() {
                return Some(Turn::Dismissed(waiter, why));
            }
            if supply.free == 0 {
                return None;
            }
            let next = queue.next(supply, now)?;
            // Who began to wait before the classes were put together may have asked for another.
            let ask = Ask { class, ..*queue.ask_of(&next)? };
            if queue.is_late(&ask, now) {
                queue.dismiss_late(&next);
                continue;
            }
            let endpoint = self.take(&ask)?;
            let (Waiter { wake, .. }, charge) = self.line_mut(class).queue.pop(next)?;
            return Some(Turn::Granted(wake, Slot { endpoint, class, since: now, charge }));
        }
    }

    /// When one who is refused should come back. `luck` is from 0 to 1.
    pub fn book(&mut self, class: Class, now: Instant, luck: f64) -> Duration {
        let class = self.effective(class);
        let supply = self.supply(class);
        self.line_mut(class).queue.book(supply, now, luck)
    }

    /// Whether more comes than is served, of a class.
    #[must_use]
    pub fn is_standing(&self, class: Class, now: Instant) -> bool {
        let class = self.effective(class);
        self.line(class).queue.is_standing(self.supply(class), now)
    }

    /// How long the last in line of a class will wait.
    #[must_use]
    pub fn delay(&self, class: Class) -> Duration {
        let class = self.effective(class);
        self.line(class).queue.delay(self.supply(class))
    }

    /// Credits that came back in a second, of both classes.
    #[must_use]
    pub fn served(&self, now: Instant) -> f64 {
        self.unary.queue.served(now) + self.streams.queue.served(now)
    }

    /// Whether somebody has been sent away who was not told.
    #[must_use]
    pub fn has_dismissed(&self) -> bool {
        self.unary.queue.has_dismissed() || self.streams.queue.has_dismissed()
    }

    /// Leaves the queue. False when the ticket has been served or has left before.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        [&mut self.unary, &mut self.streams].into_iter().any(|line| line.queue.remove(ticket).is_some())
    }

    /// Empties the queue: there is nothing left to wait for.
    pub fn dismiss(&mut self) -> Vec<W> {
        self.take_all().into_iter().map(|waiter| waiter.wake).collect()
    }

    fn take_all(&mut self) -> Vec<Waiter<W>> {
        let mut all = self.unary.queue.take_all();
        all.append(&mut self.streams.queue.take_all());
        all
    }

    /// Exchanges a unary credit for a stream credit of the same endpoint: the request has turned out to last. When
    /// no stream credit is free the unary one stays out, so that never more runs than both limits together allow.
    pub fn exchange(&mut self, slot: &mut Slot, now: Instant) {
        let apart = self.apart;
        let Some(account) = self.accounts.get_mut(slot.endpoint) else { return };
        if apart && slot.class == Class::Unary && account.load(Class::Stream, apart).has_room() {
            account.stream.used += 1;
            account.unary.used = account.unary.used.saturating_sub(1);
            let held = now.saturating_duration_since(slot.since);
            self.unary.queue.on_return(slot.charge.take(), held, now);
            (slot.class, slot.since) = (Class::Stream, now);
        }
    }

    /// Sets how many credits an endpoint has. Ask [`Ledger::grant`] afterwards.
    pub fn set_limit(&mut self, endpoint: usize, class: Class, limit: usize) {
        if let Some(account) = self.accounts.get_mut(endpoint) {
            let purse = account.purse(class);
            (purse.limit, purse.usual, purse.most) = (limit, limit, limit);
        }
    }

    /// Sets how many credits of an endpoint a dry run may give out; otherwise those of the limit.
    pub fn set_most(&mut self, endpoint: usize, class: Class, most: usize) {
        if let Some(account) = self.accounts.get_mut(endpoint) {
            account.purse(class).most = most;
        }
    }

    /// Says that some of the unary credits of an endpoint are withheld for a moment only, and how many there usually are.
    pub fn set_usual(&mut self, endpoint: usize, usual: usize) {
        if let Some(account) = self.accounts.get_mut(endpoint) {
            account.unary.usual = usual;
        }
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.unary.queue.len() + self.streams.queue.len()
    }

    /// How many credits of a class are out, over all endpoints.
    #[must_use]
    pub fn used(&self, class: Class) -> usize {
        self.accounts
            .iter()
            .map(|account| match class {
                Class::Unary => account.unary.used,
                Class::Stream => account.stream.used,
            })
            .sum()
    }

    /// How many credits of an endpoint are out, of both classes.
    #[must_use]
    pub fn used_by(&self, endpoint: usize) -> usize {
        self.accounts.get(endpoint).map_or(0, |account| account.used())
    }

    /// The credits of an endpoint: how many of a class are out, and how many there are. None when streams have none of
    /// their own.
    #[must_use]
    pub fn credits_of(&self, endpoint: usize, class: Class) -> Option<(usize, usize)> {
        let account = self.accounts.get(endpoint)?;
        match class {
            // As long as there is one class, what began in the other counts here.
            Class::Unary if !self.apart => Some((account.used(), account.unary.limit)),
            Class::Unary => Some((account.unary.used, account.unary.limit)),
            Class::Stream => self.apart.then_some((account.stream.used, account.stream.limit)),
        }
    }

    /// The class whose credits are taken for `class`.
    fn effective(&self, class: Class) -> Class {
        if self.apart { class } else { Class::Unary }
    }

    fn line(&self, class: Class) -> &Line<W> {
        match class {
            Class::Unary => &self.unary,
            Class::Stream => &self.streams,
        }
    }

    fn line_mut(&mut self, class: Class) -> &mut Line<W> {
        match class {
            Class::Unary => &mut self.unary,
            Class::Stream => &mut self.streams,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(class: Class) -> Ask {
        Ask::new(class, Instant::now())
    }

    fn granted(answer: Answer<u32>) -> Slot {
        match answer {
            Answer::Granted(slot) => slot,
            other => panic!("expected a credit, got {other:?}"),
        }
    }

    fn queued(answer: Answer<u32>) -> Ticket {
        match answer {
            Answer::Queued(ticket) => ticket,
            other => panic!("expected a place in the queue, got {other:?}"),
        }
    }

    fn grant(ledger: &mut Ledger<u32>) -> Option<(u32, Slot)> {
        match ledger.grant(Instant::now())? {
            Turn::Granted(waiter, slot) => Some((waiter, slot)),
            Turn::Dismissed(..) => panic!("expected a credit"),
        }
    }

    #[test]
    fn endpoints_take_turns_and_full_ones_are_passed_over() {
        let mut ledger = Ledger::new(3, 2, None, 0);
        let order: Vec<_> = (0..4).map(|n| granted(ledger.acquire(&ask(Class::Unary), || n)).endpoint()).collect();
        assert_eq!(order, [0, 1, 2, 0]);
        ledger.set_limit(1, Class::Unary, 1);
        assert_eq!(granted(ledger.acquire(&ask(Class::Unary), || 9)).endpoint(), 2);
        assert_eq!(ledger.acquire(&ask(Class::Unary), || 10), Answer::Refused(10, Dismissal::Full));
    }

    #[test]
    fn another_attempt_goes_to_another_endpoint_where_one_has_room() {
        let mut ledger = Ledger::new(2, 2, None, 1);
        let again = Ask { avoid: Some(0), ..ask(Class::Unary) };
        let slots = [(), ()].map(|()| granted(ledger.acquire(&again, || 0)));
        assert!(slots.iter().all(|slot| slot.endpoint() == 1));
        assert_eq!(ledger.take_other(&again), None, "the other is full");
        assert_eq!(ledger.used_by(0), 0);
        let same = granted(ledger.acquire(&again, || 0));
        assert_eq!(same.endpoint(), 0, "better than to wait");
        let other = ledger.take_other(&Ask { avoid: Some(1), ..again }).expect("one is free");
        queued(ledger.acquire(&again, || 0));
        ledger.release(&slots[0], Instant::now());
        assert_eq!(ledger.take_other(&again), None, "somebody waits");
        assert_eq!(other.endpoint(), 0);
    }

    #[test]
    fn a_returned_credit_goes_to_the_longest_wait() {
        let mut ledger = Ledger::new(1, 1, None, 2);
        let slot = granted(ledger.acquire(&ask(Class::Unary), || 0));
        queued(ledger.acquire(&ask(Class::Unary), || 1));
        queued(ledger.acquire(&ask(Class::Unary), || 2));
        assert_eq!(ledger.acquire(&ask(Class::Unary), || 3), Answer::Refused(3, Dismissal::Full));
        assert!(grant(&mut ledger).is_none());
        ledger.release(&slot, Instant::now());
        let (waiter, slot) = grant(&mut ledger).expect("a credit is free");
        assert_eq!(waiter, 1);
        assert!(grant(&mut ledger).is_none());
        ledger.release(&slot, Instant::now());
        assert_eq!(grant(&mut ledger).expect("a credit is free").0, 2);
    }

    #[test]
    fn one_who_left_is_not_served() {
        let mut ledger = Ledger::new(1, 1, None, 9);
        let slot = granted(ledger.acquire(&ask(Class::Unary), || 0));
        let first = queued(ledger.acquire(&ask(Class::Unary), || 1));
        queued(ledger.acquire(&ask(Class::Unary), || 2));
        assert!(ledger.leave(first));
        assert!(!ledger.leave(first));
        ledger.release(&slot, Instant::now());
        assert_eq!(grant(&mut ledger).expect("a credit is free").0, 2);
    }

    #[test]
    fn a_stream_waits_for_streams_and_does_not_block_others() {
        let mut ledger = Ledger::new(1, 1, Some(1), 9);
        let stream = granted(ledger.acquire(&ask(Class::Stream), || 0));
        queued(ledger.acquire(&ask(Class::Stream), || 1));
        let unary = granted(ledger.acquire(&ask(Class::Unary), || 2));
        ledger.release(&unary, Instant::now());
        assert!(grant(&mut ledger).is_none());
        ledger.release(&stream, Instant::now());
        assert_eq!(grant(&mut ledger).expect("a credit is free").0, 1);
    }

    #[test]
    fn neither_class_can_take_all_places() {
        for (mine, other) in [(Class::Unary, Class::Stream), (Class::Stream, Class::Unary)] {
            let mut ledger = Ledger::new(1, 1, Some(1), 4);
            let slots = [other, mine].map(|class| granted(ledger.acquire(&ask(class), || 0)));
            for n in 1..=4 {
                queued(ledger.acquire(&ask(other), || n));
            }
            assert_eq!(ledger.acquire(&ask(other), || 5), Answer::Refused(5, Dismissal::Full));
            queued(ledger.acquire(&ask(mine), || 6));
            queued(ledger.acquire(&ask(mine), || 7));
            assert_eq!(ledger.acquire(&ask(mine), || 8), Answer::Refused(8, Dismissal::Full));
            let gone: Vec<_> = std::iter::from_fn(|| ledger.grant(Instant::now())).collect();
            let gone_is = |turn: &Turn<u32>| matches!(turn, Turn::Dismissed(3 | 4, Dismissal::Dropped));
            assert!(gone.len() == 2 && gone.iter().all(gone_is), "{gone:?}");
            for slot in &slots {
                ledger.release(slot, Instant::now());
            }
            assert_eq!((ledger.waiting(), std::iter::from_fn(|| grant(&mut ledger)).count()), (4, 2));
        }
    }

    #[test]
    fn a_request_that_turns_out_to_last_frees_its_unary_credit() {
        let mut ledger = Ledger::new(1, 1, Some(1), 9);
        let mut first = granted(ledger.acquire(&ask(Class::Unary), || 0));
        ledger.exchange(&mut first, Instant::now());
        assert_eq!(first.class(), Class::Stream);
        let mut second = granted(ledger.acquire(&ask(Class::Unary), || 1));
        ledger.exchange(&mut second, Instant::now());
        assert_eq!(second.class(), Class::Unary, "no stream credit was free, so the unary one stays out");
        queued(ledger.acquire(&ask(Class::Unary), || 2));
    }

    #[test]
    fn a_lowered_limit_holds_as_credits_come_back() {
        let mut ledger = Ledger::new(1, 2, None, 9);
        let slots =
            [granted(ledger.acquire(&ask(Class::Unary), || 0)), granted(ledger.acquire(&ask(Class::Unary), || 1))];
        queued(ledger.acquire(&ask(Class::Unary), || 2));
        ledger.set_limit(0, Class::Unary, 1);
        ledger.release(&slots[0], Instant::now());
        assert!(grant(&mut ledger).is_none());
        ledger.release(&slots[1], Instant::now());
        assert!(grant(&mut ledger).is_some());
    }

    #[test]
    fn streams_that_lose_their_own_credits_count_among_the_others() {
        let mut ledger = Ledger::new(1, 2, Some(1), 9);
        let stream = granted(ledger.acquire(&ask(Class::Stream), || 0));
        let _unary = granted(ledger.acquire(&ask(Class::Unary), || 1));
        queued(ledger.acquire(&ask(Class::Stream), || 2));
        ledger.set_apart(false);
        assert!(grant(&mut ledger).is_none(), "two are out, and two is the limit");
        queued(ledger.acquire(&ask(Class::Unary), || 3));
        ledger.release(&stream, Instant::now());
        assert_eq!(grant(&mut ledger).expect("a credit is free").0, 2, "who waited for a stream keeps the place");
        ledger.set_apart(true);
        assert!(grant(&mut ledger).is_none());
        assert_eq!(granted(ledger.acquire(&ask(Class::Stream), || 4)).class(), Class::Stream);
    }

    #[test]
    fn an_endpoint_that_goes_is_owed_its_credits_and_then_forgotten() {
        let mut ledger = Ledger::new(2, 1, None, 9);
        let slots =
            [granted(ledger.acquire(&ask(Class::Unary), || 0)), granted(ledger.acquire(&ask(Class::Unary), || 1))];
        queued(ledger.acquire(&ask(Class::Unary), || 2));
        ledger.close(0);
        ledger.release(&slots[0], Instant::now());
        assert!(grant(&mut ledger).is_none(), "the endpoint has gone");
        assert_eq!(ledger.open(), 0, "its account is free again");
        assert!(grant(&mut ledger).is_none(), "the new one has no credits yet");
        ledger.close(1);
        assert_eq!(ledger.open(), 2, "the account is still owed a credit");
        ledger.set_limit(2, Class::Unary, 1);
        assert_eq!(grant(&mut ledger).expect("a credit is free").1.endpoint(), 2);
        assert_eq!((ledger.used_by(0), ledger.used_by(1), ledger.used_by(2)), (0, 1, 1));
        queued(ledger.acquire(&ask(Class::Unary), || 3));
        assert_eq!((ledger.dismiss(), ledger.waiting()), (vec![3], 0));
    }

    #[test]
    fn a_dry_run_lets_all_ahead_and_says_what_would_have_been() {
        let mut ledger = Ledger::new(2, 1, None, 2);
        ledger.set_dry_run(true);
        for endpoint in [0, 1] {
            ledger.set_most(endpoint, Class::Unary, usize::MAX);
        }
        let (waits, full) = (Some(Would::Wait), Some(Would::Refuse(Dismissal::Full)));
        let mut slots = Vec::new();
        for expected in [None, None, waits, waits, full, full] {
            assert_eq!(ledger.would(&ask(Class::Unary)), expected);
            slots.push(granted(ledger.acquire(&ask(Class::Unary), || 0)));
        }
        assert_eq!((ledger.used_by(0), ledger.used_by(1)), (3, 3));
        ledger.set_most(0, Class::Unary, 0);
        assert_eq!(granted(ledger.acquire(&ask(Class::Unary), || 0)).endpoint(), 1, "that one is closed");
        ledger.set_dry_run(false);
        queued(ledger.acquire(&ask(Class::Unary), || 1));
        for slot in slots.drain(..5) {
            assert!(grant(&mut ledger).is_none());
            ledger.release(&slot, Instant::now());
        }
        assert_eq!((ledger.used_by(0), ledger.used_by(1)), (0, 2));
        assert_eq!(grant(&mut ledger).expect("a credit is free").1.endpoint(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Acquire(bool),
        Release(usize),
        Exchange(usize),
        Leave(usize),
        Limit(usize, bool, usize),
        Apart(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(Step::Acquire),
            3 => any::<usize>().prop_map(Step::Release),
            1 => any::<usize>().prop_map(Step::Exchange),
            1 => any::<usize>().prop_map(Step::Leave),
            1 => (any::<usize>(), any::<bool>(), 0_usize..6).prop_map(|(at, stream, n)| Step::Limit(at, stream, n)),
            1 => any::<bool>().prop_map(Step::Apart),
        ]
    }

    proptest! {
        /// Whatever happens: what is out never exceeds the highest limits, the queue keeps its bound, nobody waits
        /// beside a free credit, and when all is given back nothing is out.
        #[test]
        fn the_books_balance(steps in proptest::collection::vec(step(), 1..200)) {
            let mut ledger = Ledger::new(2, 3, Some(2), 4);
            let (mut slots, mut tickets) = (Vec::new(), Vec::new());
            // By class and endpoint.
            let mut highest = [[3_usize; 2], [2; 2]];
            for step in steps {
                match step {
                    Step::Acquire(stream) => {
                        match ledger.acquire(&ask(if stream { Class::Stream } else { Class::Unary }), || ()) {
                            Answer::Granted(slot) => slots.push(slot),
                            Answer::Queued(ticket) => tickets.push(ticket),
                            Answer::Refused((), _) => {}
                        }
                    }
                    Step::Release(n) if !slots.is_empty() => {
                        let slot = slots.swap_remove(n % slots.len());
                        ledger.release(&slot, Instant::now());
                    }
                    Step::Exchange(n) if !slots.is_empty() => {
                        let at = n % slots.len();
                        ledger.exchange(&mut slots[at], Instant::now());
                    }
                    Step::Leave(n) if !tickets.is_empty() => {
                        ledger.leave(tickets.swap_remove(n % tickets.len()));
                    }
                    Step::Limit(n, stream, limit) => {
                        let known = &mut highest[usize::from(stream)][n % 2];
                        *known = limit.max(*known);
                        ledger.set_limit(n % 2, if stream { Class::Stream } else { Class::Unary }, limit);
                    }
                    Step::Apart(apart) => ledger.set_apart(apart),
                    _ => {}
                }
                while let Some(turn) = ledger.grant(Instant::now()) {
                    if let Turn::Granted((), slot) = turn {
                        slots.push(slot);
                    }
                }
                for (at, class) in [Class::Unary, Class::Stream].into_iter().enumerate() {
                    prop_assert!(ledger.used(class) <= highest[at].iter().sum());
                    prop_assert_eq!(ledger.used(class), slots.iter().filter(|slot| slot.class() == class).count());
                }
                prop_assert!(ledger.waiting() <= 4);
                for class in [Class::Unary, Class::Stream] {
                    prop_assert!(ledger.line(class).queue.is_empty() || ledger.supply(class).free == 0);
                }
            }
            for slot in slots.drain(..) {
                ledger.release(&slot, Instant::now());
            }
            prop_assert_eq!(ledger.used(Class::Unary) + ledger.used(Class::Stream), 0);
        }
    }
}
