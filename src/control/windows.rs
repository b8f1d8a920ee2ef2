//! The windows of all endpoints of an upstream, and what they mean for its ledger.
//!
//! An endpoint has as many unary credits as its window says, and as many stream credits as are set, but no more of
//! either than any cap allows: whatever protects it beside the window sets a cap ([`Windows::cap`]). Every call that may
//! change a limit puts it into the ledger: ask [`Ledger::grant`] afterwards.
//!
//! A window is for requests that the service works on. An answer that has begun and does not end waits for its client,
//! or is a long one: when somebody wants its credit and a whole uncrowded latency has passed since its head, it moves
//! to the stream credits. So a few clients that read slowly do not stop a service whose window is small.

use std::time::Duration;

use tokio::time::Instant;

use super::credits::{Class, Ledger, Slot};
use super::limit::{Outcome, Settings, Start, View, Window};
use super::published::steer::Caps;

/// Who has the last word on the credits of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetBy {
    /// The number in the configuration.
    Fixed,
    /// The limit that was found.
    Window,
    /// A moment's rest, in which an uncrowded answer is measured.
    Measuring,
    /// Requests that were given up, and that the endpoint may still be working on.
    Abandoned,
    /// A breaker: it is left out, or tried.
    Breaker,
    /// Its health check.
    Check,
    /// The endpoint itself, which has asked for a rest.
    Rest,
    /// What the endpoint reports of its load.
    Published,
    /// The operator: the endpoint drains.
    Drain,
}

impl SetBy {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Fixed,
        Self::Window,
        Self::Measuring,
        Self::Abandoned,
        Self::Breaker,
        Self::Check,
        Self::Rest,
        Self::Published,
        Self::Drain,
    ];

    /// The name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Window => "window",
            Self::Measuring => "measuring",
            Self::Abandoned => "abandoned",
            Self::Breaker => "breaker",
            Self::Check => "check",
            Self::Rest => "rest",
            Self::Published => "published",
            Self::Drain => "drain",
        }
    }
}

/// The least time after which an answer that has begun counts as a long one.
const LEAST: Duration = Duration::from_millis(10);
/// That time while nothing is known.
const LONGEST: Duration = Duration::from_secs(1);
/// How often, in uncrowded latencies, it is looked for credits that may come free by time alone.
const LOOKS: u32 = 4;

/// Names the credit of an answer that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun(usize);

fn in_flight<W>(ledger: &Ledger<W>, account: usize) -> usize {
    ledger.credits_of(account, Class::Unary).map_or(0, |(used, _)| used)
}

/// See the module's text. Windows are named by the accounts of the ledger.
#[derive(Debug, Default)]
pub struct Windows {
    all: Vec<Option<Entry>>,
    /// Answers that have begun: their credits, and since when. As many as there are credits, at most.
    begun: Vec<Option<(Slot, Instant)>>,
    vacant: Vec<usize>,
    /// When it is worth to look again for what comes free by time alone.
    next_look: Option<Instant>,
    is_changed: bool,
}

#[derive(Debug)]
struct Entry {
    window: Window,
    /// Stream credits without caps.
    streams: usize,
    /// At most one by each who may set one.
    caps: Vec<(SetBy, Limits)>,
    /// What the ledger was told last: the limits, how many unary credits there usually are, and the most of each class.
    told: Option<(Limits, usize, Limits)>,
}

/// Credits of both classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of requests.
    pub unary: usize,
    /// Of streams.
    pub streams: usize,
}

impl Entry {
    /// The lowest cap on unary credits, and who set it; the first of equals.
    fn cap(&self) -> Option<(SetBy, usize)> {
        self.caps.iter().map(|(by, cap)| (*by, cap.unary)).min_by_key(|(_, cap)| *cap)
    }

    fn limits(&self) -> Limits {
        let own = Limits { unary: self.window.limit(), streams: self.streams };
        self.caps.iter().fold(own, |least, (_, cap)| Limits {
            unary: least.unary.min(cap.unary),
            streams: least.streams.min(cap.streams),
        })
    }

    /// What a dry run keeps to. A breaker, a failed check and a drain are no limits, and neither is the endpoint's own word
    /// that it takes nothing.
    fn most(&self) -> Limits {
        let mut most = Limits { unary: usize::MAX, streams: usize::MAX };
        for (by, cap) in &self.caps {
            let is_door = matches!(by, SetBy::Breaker | SetBy::Check | SetBy::Drain);
            let kept = |most: usize, cap: usize| if is_door || cap == 0 { most.min(cap) } else { most };
            most = Limits { unary: kept(most.unary, cap.unary), streams: kept(most.streams, cap.streams) };
        }
        most
    }

    /// Unary credits without what is withheld to measure, or for requests that were given up.
    fn usual(&self) -> usize {
        let found = self.window.view().found;
        self.cap().map_or(found, |(_, cap)| found.min(cap))
    }
}

impl Windows {
    /// Gives an account a window, or its window other settings, and so many stream credits.
    pub fn set<W>(
        &mut self,
        ledger: &mut Ledger<W>,
        account: usize,
        (settings, streams): (Settings, usize),
        now: Instant,
        unix: Duration,
    ) {
        if self.all.len() <= account {
            self.all.resize_with(account + 1, || None);
        }
        let Some(place) = self.all.get_mut(account) else { return };
        if let Some(entry) = place {
            entry.window.apply(settings, now, unix);
            entry.streams = streams;
        } else {
            let window = Window::new(settings, now, unix);
            *place = Some(Entry { window, streams, caps: Vec::new(), told: None });
        }
        self.tell(ledger, account);
    }

    /// Forgets the window of an account that is no more.
    pub fn remove(&mut self, account: usize) {
        if let Some(place) = self.all.get_mut(account) {
            *place = None;
        }
    }

    /// Allows an account no more than so many credits of each class, or lifts what the same one has set before.
    pub fn cap<W>(&mut self, ledger: &mut Ledger<W>, account: usize, by: SetBy, cap: Option<usize>) {
        self.cap_each(ledger, account, by, Caps { unary: cap, streams: cap });
    }

    /// The same with another number for each class.
    pub fn cap_each<W>(&mut self, ledger: &mut Ledger<W>, account: usize, by: SetBy, caps: Caps) {
        if let Some(entry) = self.get(account) {
            entry.caps.retain(|(known, _)| *known != by);
            if caps != Caps::default() {
                let all = usize::MAX;
                let cap = Limits { unary: caps.unary.unwrap_or(all), streams: caps.streams.unwrap_or(all) };
                entry.caps.push((by, cap));
            }
        }
        self.tell(ledger, account);
    }

    /// The unary and the stream credits that an account has while nobody caps them or measures.
    #[must_use]
    pub fn uncapped(&self, account: usize) -> Option<(usize, usize)> {
        let entry = self.all.get(account)?.as_ref()?;
        Some((entry.window.view().found, entry.streams))
    }

    /// What one has set for an account; the default when that is nothing.
    #[must_use]
    pub fn cap_by(&self, account: usize, by: SetBy) -> Caps {
        let entry = self.all.get(account).and_then(Option::as_ref);
        let cap = entry.and_then(|entry| entry.caps.iter().find(|(known, _)| *known == by));
        let bound = |credits: usize| (credits < usize::MAX).then_some(credits);
        cap.map_or_else(Caps::default, |(_, cap)| Caps { unary: bound(cap.unary), streams: bound(cap.streams) })
    }

    /// A credit was given out. None when there is nothing to learn from it.
    pub fn on_start<W>(&mut self, ledger: &mut Ledger<W>, slot: &Slot, now: Instant) -> Option<Start> {
        if slot.class() != Class::Unary {
            return None;
        }
        let account = slot.endpoint();
        let window = self.window(account)?;
        let start = window.on_start(now, in_flight(ledger, account));
        self.on_change(ledger, account, now);
        Some(start)
    }

    /// The answer to a request begins, after `latency`. Its credit stays here until [`Windows::take_back`].
    pub fn on_head(&mut self, slot: Slot, start: &mut Start, latency: Duration, now: Instant) -> Begun {
        if let Some(window) = self.window(slot.endpoint()) {
            window.on_head(start, latency);
        }
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.begun.push(None);
            self.begun.len() - 1
        });
        if let Some(place) = self.begun.get_mut(at) {
            *place = Some((slot, now));
        }
        Begun(at)
    }

    /// The credit of an answer that is over.
    pub fn take_back(&mut self, begun: Begun) -> Option<Slot> {
        let (slot, _) = self.begun.get_mut(begun.0)?.take()?;
        self.vacant.push(begun.0);
        Some(slot)
    }

    /// Somebody finds no free credit: looks for what time alone has set free, unless that was done a moment ago. The
    /// answer is how many credits went from unary to stream ones.
    pub fn relieve<W>(&mut self, ledger: &mut Ledger<W>, now: Instant) -> Option<usize> {
        if !self.is_adaptive() || self.next_look.is_some_and(|at| now < at) {
            return None;
        }
        let Self { all, begun, .. } = self;
        let mut moved = 0;
        let mut shortest = LONGEST;
        for (slot, since) in begun.iter_mut().flatten().filter(|(slot, _)| slot.class() == Class::Unary) {
            let entry = all.get(slot.endpoint()).and_then(Option::as_ref);
            let normal = entry.and_then(|entry| entry.window.view().baseline).map_or(LONGEST, |it| it.max(LEAST));
            shortest = shortest.min(normal);
            if now.saturating_duration_since(*since) > normal {
                ledger.exchange(slot, now);
                moved += usize::from(slot.class() == Class::Stream);
            }
        }
        self.next_look = Some(now + shortest / LOOKS);
        for account in 0..self.all.len() {
            self.on_change(ledger, account, now);
        }
        Some(moved)
    }

    /// What there is to learn from a request is known. Give its credit back first.
    pub fn on_end<W>(&mut self, ledger: &mut Ledger<W>, account: usize, start: Start, outcome: Outcome, now: Instant) {
        if let Some(window) = self.window(account) {
            window.on_end(now, start, outcome);
            self.on_change(ledger, account, now);
        }
    }

    /// Somebody came or left, or time has passed.
    pub fn on_change<W>(&mut self, ledger: &mut Ledger<W>, account: usize, now: Instant) {
        if let Some(window) = self.window(account) {
            window.on_change(now, in_flight(ledger, account), ledger.waiting());
            self.tell(ledger, account);
        }
    }

    /// Whether there is anything to learn.
    #[must_use]
    pub fn is_adaptive(&self) -> bool {
        self.all.iter().flatten().any(|entry| entry.window.is_adaptive())
    }

    /// Whether a limit has changed since it was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// How many credits an account has, and who says so.
    #[must_use]
    pub fn in_force(&self, account: usize) -> Option<(usize, SetBy)> {
        let entry = self.all.get(account)?.as_ref()?;
        let view = entry.window.view();
        let credits = entry.limits().unary;
        let set_by = match entry.cap() {
            Some((by, cap)) if cap <= credits => by,
            _ if !entry.window.is_adaptive() => SetBy::Fixed,
            _ if view.ghosts > 0 => SetBy::Abandoned,
            _ if view.is_measuring => SetBy::Measuring,
            _ => SetBy::Window,
        };
        Some((credits, set_by))
    }

    /// What the window of an account has found.
    #[must_use]
    pub fn view(&self, account: usize) -> Option<View> {
        Some(self.all.get(account)?.as_ref()?.window.view())
    }

    /// Only an adaptive window wants to know.
    fn window(&mut self, account: usize) -> Option<&mut Window> {
        self.get(account).map(|entry| &mut entry.window).filter(|window| window.is_adaptive())
    }

    fn get(&mut self, account: usize) -> Option<&mut Entry> {
        self.all.get_mut(account)?.as_mut()
    }

    fn tell<W>(&mut self, ledger: &mut Ledger<W>, account: usize) {
        let Some(entry) = self.get(account) else { return };
        let told = (entry.limits(), entry.usual(), entry.most());
        if entry.told.replace(told) != Some(told) {
            let (limits, usual, most) = told;
            self.is_changed = true;
            ledger.set_limit(account, Class::Unary, limits.unary);
            ledger.set_usual(account, usual);
            ledger.set_limit(account, Class::Stream, limits.streams);
            ledger.set_most(account, Class::Unary, most.unary);
            ledger.set_most(account, Class::Stream, most.streams);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::credits::{Answer, Ask, Turn};
    use crate::control::limit::Bounds;

    const UNIX: Duration = Duration::from_secs(1_700_000_000);

    fn four() -> (Ledger<()>, Windows, Instant) {
        let (mut ledger, mut windows, now) = (Ledger::new(1, 0, Some(0), 9), Windows::default(), Instant::now());
        let bounds = Bounds { min: 2, max: 4, initial: 4 };
        windows.set(&mut ledger, 0, (Settings::Adaptive(bounds), 3), now, UNIX);
        (ledger, windows, now)
    }

    fn slot(ledger: &mut Ledger<()>) -> Slot {
        match ledger.acquire(&Ask::new(Class::Unary, Instant::now()), || ()) {
            Answer::Granted(slot) => slot,
            other => panic!("expected a credit, got {other:?}"),
        }
    }

    #[test]
    fn an_endpoint_has_what_its_window_says_and_nothing_while_it_drains() {
        let (mut ledger, mut windows, now) = four();
        assert_eq!(windows.in_force(0), Some((4, SetBy::Window)));
        assert!(windows.take_changed() && !windows.take_changed());
        windows.cap(&mut ledger, 0, SetBy::Drain, Some(0));
        assert_eq!((windows.in_force(0), ledger.credits_of(0, Class::Unary)), (Some((0, SetBy::Drain)), Some((0, 0))));
        assert_eq!(ledger.credits_of(0, Class::Stream), Some((0, 0)));
        windows.cap(&mut ledger, 0, SetBy::Drain, None);
        assert_eq!(ledger.credits_of(0, Class::Stream), Some((0, 3)));
        windows.set(&mut ledger, 0, (Settings::Fixed(9), 3), now, UNIX);
        assert_eq!((windows.in_force(0), ledger.credits_of(0, Class::Unary)), (Some((9, SetBy::Fixed)), Some((0, 9))));
        assert!(windows.on_start(&mut ledger, &slot(&mut Ledger::new(1, 1, None, 0)), now).is_none());
    }

    #[test]
    fn a_dry_run_keeps_to_what_is_no_limit() {
        let (mut ledger, mut windows, _) = four();
        ledger.set_dry_run(true);
        let mut out = 0;
        let mut more = |ledger: &mut Ledger<()>| {
            while out < 99 && ledger.try_acquire(&Ask::new(Class::Unary, Instant::now())).is_some() {
                out += 1;
            }
            out
        };
        windows.cap(&mut ledger, 0, SetBy::Drain, Some(0));
        assert_eq!(more(&mut ledger), 0);
        windows.cap(&mut ledger, 0, SetBy::Drain, None);
        windows.cap(&mut ledger, 0, SetBy::Breaker, Some(1));
        assert_eq!(more(&mut ledger), 1, "a trial");
        windows.cap(&mut ledger, 0, SetBy::Breaker, None);
        windows.cap(&mut ledger, 0, SetBy::Published, Some(0));
        assert_eq!(more(&mut ledger), 1, "it takes nothing, it says");
        windows.cap(&mut ledger, 0, SetBy::Published, Some(1));
        assert_eq!((more(&mut ledger), windows.in_force(0)), (99, Some((1, SetBy::Published))));
    }

    #[test]
    fn requests_that_were_given_up_hold_their_credits_until_one_goes_ahead() {
        let (mut ledger, mut windows, now) = four();
        for _ in 0..4 {
            let slot = slot(&mut ledger);
            let start = windows.on_start(&mut ledger, &slot, now).expect("it is adaptive");
            ledger.release(&slot, now);
            windows.on_end(&mut ledger, 0, start, Outcome::Left(Duration::from_millis(5)), now);
        }
        assert_eq!(windows.in_force(0), Some((0, SetBy::Abandoned)));
        assert!(matches!(ledger.acquire(&Ask::new(Class::Unary, Instant::now()), || ()), Answer::Queued(_)));
        assert_eq!(windows.relieve(&mut ledger, now), Some(0));
        let Some(Turn::Granted((), slot)) = ledger.grant(now) else { panic!("one goes ahead") };
        let start = windows.on_start(&mut ledger, &slot, now + Duration::from_secs(1)).expect("it is adaptive");
        assert_eq!(windows.in_force(0), Some((0, SetBy::Abandoned)));
        ledger.release(&slot, now);
        let answered = Outcome::Answered(Duration::from_millis(20));
        windows.on_end(&mut ledger, 0, start, answered, now + Duration::from_millis(1020));
        assert_eq!(windows.in_force(0), Some((4, SetBy::Window)));
    }

    #[test]
    fn an_answer_that_keeps_its_credit_moves_to_the_stream_credits_while_there_are_some() {
        let (mut ledger, mut windows, now) = four();
        let begun: Vec<_> = (0..4)
            .map(|_| {
                let slot = slot(&mut ledger);
                let mut start = windows.on_start(&mut ledger, &slot, now).expect("it is adaptive");
                windows.on_head(slot, &mut start, Duration::from_millis(20), now)
            })
            .collect();
        assert_eq!(windows.relieve(&mut ledger, now), Some(0), "they have only begun");
        assert_eq!(windows.relieve(&mut ledger, now + Duration::from_millis(1)), None, "that was a moment ago");
        assert_eq!(windows.relieve(&mut ledger, now + Duration::from_secs(2)), Some(3));
        assert_eq!((ledger.used(Class::Unary), ledger.used(Class::Stream)), (1, 3));
        for begun in begun {
            ledger.release(&windows.take_back(begun).expect("it is there"), now);
        }
        assert_eq!((ledger.used(Class::Unary), ledger.used(Class::Stream)), (0, 0));
        assert_eq!((windows.begun.len(), windows.vacant.len()), (4, 4), "there is one place for each credit");
    }
}
