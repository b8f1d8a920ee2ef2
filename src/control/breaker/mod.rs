//! Which endpoints are left out for a while, and when a whole upstream is.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Breakers`]: the rules, over all endpoints of an upstream |
//! | `says.rs` | what is set, and what is said |
//! | `member.rs` | what is known of one endpoint, and whether it is under suspicion |
//! | `gate.rs` | one breaker: closed, open for a time that grows, half open for trials |
//! | `shares.rs` | how many requests of the last ten seconds went well |
//! | `rest.rs` | the rest that an overloaded endpoint asks for |
//!
//! **An endpoint** is left out when so many requests in a row found no connection or got no answer, or when of 20
//! requests within ten seconds less than half succeeded, and clearly less than elsewhere in the pool. After its time
//! it gets one trial, which closes its breaker or opens it for twice as long. Ten seconds in service forget one
//! doubling.
//!
//! **Never too many.** Endpoints that answer, or at least take connections, are left out only while another one is in
//! service that is beyond suspicion, and at most a share of them at once. When none is beyond suspicion, those that
//! were left out come back: an error that all make is not cured by sending everything to a few of them. One to which
//! no connection can be made is left out in any case, since nothing is lost by it. What a health check says is not
//! counted against the share either, but it is ignored once it leaves nobody.
//!
//! **The upstream** as a whole is closed to requests when all of its endpoints are left out, or when of 50 requests
//! within ten seconds less than a tenth succeeded. It opens again by trials whose number doubles.
//!
//! Overload is no illness: 429 and 503 open nothing. See `rest.rs` for what they do.

mod gate;
mod member;
mod rest;
mod says;
mod shares;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use super::ask::Class;
use super::published::steer::Caps;
use super::report::{Report, Verdict};
use super::windows::Limits;
use gate::{Gate, Then};
use member::{Member, is_good, shown};
use rest::Rest;
pub use says::{Cause, Event, Left, Pass, Settings, State};
use shares::Shares;

/// The least requests, and the share, for the whole upstream.
const LEAST_OF_POOL: u32 = 50;
const GOOD_SHARE_OF_POOL: f64 = 0.1;
/// Trials in the last round, when there is no other endpoint in service.
const LAST_ROUND: u32 = 16;
/// Events that are kept until somebody tells them.
const MOST_EVENTS: usize = 64;

/// See the module's text. Endpoints are named by their accounts in the ledger.
#[derive(Debug)]
pub struct Breakers {
    /// None: nothing is judged.
    settings: Option<Settings>,
    members: Vec<Option<Member>>,
    /// Of the upstream as a whole.
    pool: Gate,
    shares: Shares,
    /// When time alone changes something.
    next: Option<Instant>,
    standing: Standing,
    is_changed: bool,
    events: Vec<Event>,
}

/// What follows from all endpoints together.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// No endpoint takes a request.
    is_shut: bool,
    /// Some breaker is half open.
    is_trying: bool,
    /// Health checks leave nobody.
    ignores_checks: bool,
}

impl Breakers {
    /// No endpoint yet. Without settings nothing is judged, and only health checks count.
    #[must_use]
    pub fn new(settings: Option<Settings>, now: Instant) -> Self {
        Self {
            settings,
            members: Vec::new(),
            pool: Gate::new(now),
            shares: Shares::new(now),
            next: None,
            standing: Standing::default(),
            is_changed: false,
            events: Vec::new(),
        }
    }

    /// Takes other settings. All begins anew when they are others.
    pub fn apply(&mut self, settings: Option<Settings>, now: Instant) {
        if self.settings == settings {
            return;
        }
        self.settings = settings;
        self.pool.reset(now);
        self.shares.forget();
        for member in self.members.iter_mut().flatten() {
            member.gate.reset(now);
            member.forget();
            member.rests = [Rest::default(); 2];
        }
        self.refresh();
    }

    /// An endpoint comes.
    pub fn add(&mut self, account: usize, now: Instant) {
        if self.members.len() <= account {
            self.members.resize_with(account + 1, || None);
        }
        if let Some(place) = self.members.get_mut(account) {
            *place = Some(Member::new(now));
        }
        self.refresh();
    }

    /// An endpoint goes.
    pub fn remove(&mut self, account: usize) {
        if let Some(place) = self.members.get_mut(account) {
            *place = None;
        }
        self.refresh();
    }

    /// An operator drains an endpoint, or no longer does.
    pub fn set_draining(&mut self, account: usize, is_draining: bool) {
        if let Some(member) = self.get(account).filter(|member| member.is_draining != is_draining) {
            member.is_draining = is_draining;
            self.refresh();
        }
    }

    /// What the health check of an endpoint says. One that comes up is tried at once.
    pub fn set_down(&mut self, account: usize, is_down: bool, now: Instant) {
        let Some(member) = self.get(account).filter(|member| member.is_down != is_down) else { return };
        member.is_down = is_down;
        if !is_down && member.gate.opens_until().is_some() {
            self.try_out(account, now);
        }
        self.refresh();
    }

    /// What it said last.
    #[must_use]
    pub fn is_down(&self, account: usize) -> bool {
        self.members.get(account).and_then(Option::as_ref).is_some_and(|member| member.is_down)
    }

    /// Time has passed. Cheap while nothing is due.
    pub fn look(&mut self, now: Instant) {
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        if self.pool.opens_until().is_some_and(|until| until <= now) {
            self.pool.half_open(LAST_ROUND, now);
            self.tell(Event::HalfOpen { account: None });
        }
        for account in 0..self.members.len() {
            let Some(member) = self.get(account) else { continue };
            member.rests.iter_mut().for_each(|rest| {
                rest.has_ended(now);
            });
            if member.gate.opens_until().is_some_and(|until| until <= now) {
                self.try_out(account, now);
            }
        }
        self.refresh();
    }

    fn try_out(&mut self, account: usize, now: Instant) {
        let others = |(at, member): (usize, &Option<Member>)| {
            at != account
                && member.as_ref().is_some_and(|other| other.gate.is_closed() && !other.is_draining && !other.is_down)
        };
        let last = if self.members.iter().enumerate().any(others) { 1 } else { LAST_ROUND };
        if let Some(member) = self.get(account) {
            member.gate.half_open(last, now);
            self.tell(Event::HalfOpen { account: Some(account) });
        }
    }

    /// A credit is given out.
    pub fn on_start(&mut self, account: usize, class: Class, now: Instant) -> Pass {
        let pool = self.pool.on_start();
        let endpoint = self.get(account).and_then(|member| member.gate.on_start());
        self.is_changed |= pool.is_some() || endpoint.is_some();
        Pass { class, at: now, endpoint, pool }
    }

    /// What an attempt tells; so many of its class were in flight to its endpoint, with it. `luck` is from 0 to 1, and
    /// asked for when a breaker opens.
    pub fn on_report(
        &mut self,
        account: usize,
        pass: &mut Pass,
        report: &Report,
        in_flight: usize,
        now: Instant,
        luck: impl Fn() -> f64,
    ) {
        let Some(settings) = self.settings else { return };
        self.judge_pool(&settings, pass, report.verdict, now, &luck);
        let Some(member) = self.get(account) else { return };
        let rest = member.rest(pass.class);
        let before = rest.cap(now);
        rest.on_report(report, in_flight, now);
        if rest.cap(now) != before {
            self.refresh();
        }
        let Some(member) = self.get(account) else { return };
        if let Some(trial) = pass.endpoint.take() {
            match member.gate.on_end(trial, shown(report.verdict, member.cause == Cause::Share)) {
                Then::GoesOn => {}
                Then::Closes => self.close(account, now),
                Then::Fails => self.open(account, Cause::Trial, &settings, now, luck()),
            }
            self.is_changed = true;
            return;
        }
        // What began before it was left out, or before it was back, is an old story.
        if member.gate.is_closed() && pass.at >= member.gate.since() {
            member.count(report.verdict, now);
            if is_good(report.verdict) == Some(false) {
                self.judge(account, &settings, now, &luck);
            }
        }
    }

    fn judge_pool(
        &mut self,
        settings: &Settings,
        pass: &mut Pass,
        verdict: Verdict,
        now: Instant,
        luck: &impl Fn() -> f64,
    ) {
        if let Some(trial) = pass.pool.take() {
            let then = self.pool.on_end(trial, shown(verdict, true));
            self.is_changed = true;
            match then {
                Then::GoesOn => {}
                Then::Closes => {
                    self.pool.close(now);
                    self.shares.forget();
                    self.members.iter_mut().flatten().for_each(Member::forget);
                    self.tell(Event::Closed { account: None });
                    self.refresh();
                }
                Then::Fails => self.open_pool(Cause::Trial, settings, now, luck()),
            }
        } else if self.pool.is_closed() && pass.at >= self.pool.since() {
            let Some(is_good) = is_good(verdict) else { return };
            self.shares.count(is_good, now);
            if !is_good {
                let counts = self.shares.counts(now);
                if counts.all() >= LEAST_OF_POOL && counts.success() < GOOD_SHARE_OF_POOL {
                    self.open_pool(Cause::Share, settings, now, luck());
                }
            }
        }
    }

    fn open_pool(&mut self, cause: Cause, settings: &Settings, now: Instant, luck: f64) {
        let open = self.pool.open(settings, now, luck);
        self.tell(Event::Opened { account: None, cause, open });
        self.refresh();
    }

    /// An endpoint has failed: perhaps it has to be left out, or those that are have to come back.
    fn judge(&mut self, account: usize, settings: &Settings, now: Instant, luck: &impl Fn() -> f64) {
        let pool = self.shares.counts(now);
        let Some(member) = self.get(account) else { return };
        let Some((cause, may_be_chance)) = member.suspicion(settings, pool, now) else { return };
        if cause == Cause::Unreachable {
            return self.open(account, cause, settings, now, luck());
        }
        let (mut all, mut out, mut is_another_good) = (0_usize, 0_usize, false);
        for (at, member) in self.members.iter_mut().enumerate() {
            let Some(member) = member.as_mut().filter(|member| !member.is_draining) else { continue };
            all += 1;
            out += usize::from(member.is_out_by_share());
            is_another_good |= at != account
                && member.gate.is_closed()
                && !member.is_down
                && member.suspicion(settings, pool, now).is_none();
        }
        if !is_another_good {
            self.panic(settings, now);
        } else if !may_be_chance && out < (all * settings.max_out as usize / 100).max(1) {
            self.open(account, cause, settings, now, luck());
        }
    }

    fn panic(&mut self, settings: &Settings, now: Instant) {
        let mut is_any = false;
        for member in self.members.iter_mut().flatten().filter(|member| member.is_out_by_share()) {
            member.gate.close(now);
            // Back, and under suspicion until an answer clears it.
            member.failures = settings.failures;
            is_any = true;
        }
        if is_any {
            self.tell(Event::Panicked);
            self.refresh();
        }
    }

    fn open(&mut self, account: usize, cause: Cause, settings: &Settings, now: Instant, luck: f64) {
        let Some(member) = self.get(account) else { return };
        let open = member.gate.open(settings, now, luck);
        if cause != Cause::Trial {
            member.cause = cause;
        }
        self.tell(Event::Opened { account: Some(account), cause, open });
        self.refresh();
    }

    fn close(&mut self, account: usize, now: Instant) {
        let Some(member) = self.get(account) else { return };
        member.gate.close(now);
        member.forget();
        self.tell(Event::Closed { account: Some(account) });
        self.refresh();
    }

    /// What an account may have, when it has given out so many.
    #[must_use]
    pub fn left(&self, account: usize, used: Limits, now: Instant) -> Left {
        const NONE: Caps = Caps { unary: Some(0), streams: Some(0) };
        let Some(member) = self.members.get(account).and_then(Option::as_ref) else { return Left::default() };
        let room = |gate: &Gate| if gate.opens_until().is_some() { Some(0) } else { gate.room() };
        let room = [room(&self.pool), room(&member.gate)].into_iter().flatten().min();
        let breaker = match room {
            None => Caps::default(),
            Some(0) => NONE,
            Some(room) => {
                Caps { unary: Some(used.unary.saturating_add(room)), streams: Some(used.streams.saturating_add(room)) }
            }
        };
        let check = if member.is_down && !self.standing.ignores_checks { NONE } else { Caps::default() };
        let [unary, streams] = member.rests.map(|rest| rest.cap(now));
        Left { breaker, check, rest: Caps { unary, streams } }
    }

    /// When no endpoint takes a request for now: how long until one is tried. None when one does, or when an operator
    /// drains all of them.
    #[must_use]
    pub fn shut(&self, now: Instant) -> Option<Duration> {
        if !self.standing.is_shut {
            return None;
        }
        let serving = || self.members.iter().flatten().filter(|member| !member.is_draining);
        let ends = || serving().map(|member| member.gate.opens_until());
        // The upstream's own breaker may end while nobody is there yet to be tried.
        let first = if ends().all(|end| end.is_some()) { ends().flatten().min() } else { None };
        let until = self.pool.opens_until().max(first)?;
        Some(until.saturating_duration_since(now))
    }

    /// The endpoint that is to be tried with the next request: not one that may have none, or the others that are to be
    /// tried would wait for it.
    #[must_use]
    pub fn to_try(&self) -> Option<usize> {
        let is_to_try = |member: &Member| {
            let is_away = member.is_draining || member.is_down && !self.standing.ignores_checks;
            !is_away && member.gate.room().is_some_and(|room| room > 0)
        };
        self.members.iter().position(|member| member.as_ref().is_some_and(is_to_try))
    }

    /// How the breaker of an endpoint is, or with none that of the upstream.
    #[must_use]
    pub fn state(&self, account: Option<usize>, now: Instant) -> State {
        let gate = match account {
            None => Some(&self.pool),
            Some(account) => self.members.get(account).and_then(Option::as_ref).map(|member| &member.gate),
        };
        match gate {
            Some(gate) if gate.is_half_open() => State::HalfOpen,
            Some(gate) => {
                gate.opens_until().map_or(State::Closed, |until| State::Open(until.saturating_duration_since(now)))
            }
            None => State::Closed,
        }
    }

    /// Whether no endpoint takes a request for now: see [`Breakers::shut`].
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.standing.is_shut
    }

    /// Whether time alone is going to change something.
    #[must_use]
    pub fn awaits_time(&self) -> bool {
        self.next.is_some()
    }

    /// Whether what an account may have has changed since it was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Whether a number of trials hangs on every credit that comes and goes.
    #[must_use]
    pub fn is_trying(&self) -> bool {
        self.standing.is_trying
    }

    /// What has happened since it was asked last.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() < MOST_EVENTS {
            self.events.push(event);
        }
    }

    fn get(&mut self, account: usize) -> Option<&mut Member> {
        self.members.get_mut(account)?.as_mut()
    }

    /// Something has changed: what follows from all endpoints together is found anew.
    fn refresh(&mut self) {
        let serving = || self.members.iter().flatten().filter(|member| !member.is_draining);
        let is_open = |member: &&Member| member.gate.opens_until().is_some();
        self.standing.ignores_checks = !serving().any(|member| !is_open(&member) && !member.is_down);
        self.standing.is_shut =
            self.pool.opens_until().is_some() || (serving().count() > 0 && serving().all(|member| is_open(&member)));
        self.standing.is_trying =
            self.pool.is_half_open() || self.members.iter().flatten().any(|member| member.gate.is_half_open());
        let rests = self.members.iter().flatten().flat_map(|member| member.rests.iter().filter_map(Rest::until));
        let opens = self.members.iter().flatten().filter_map(|member| member.gate.opens_until());
        self.next = self.pool.opens_until().into_iter().chain(opens).chain(rests).min();
        self.is_changed = true;
    }
}
