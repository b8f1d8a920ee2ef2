//! Which of the endpoints that have a free credit gets the next request.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Choice`]: what is known of all endpoints, and the choice by load |
//! | `turn.rs` | the choice by turns |
//! | `keyed.rs` | the choice by a key: the same key, the same endpoint |
//! | `peer.rs` | what is known of one endpoint, and what it costs to ask it |
//!
//! **By load**, which is the default, the next request goes where it would cost least: the usual time to a head, times
//! the requests that are there with this one, over the weight. The time is a plain mean that nothing but answers
//! changes: one that fell while an endpoint is not asked would make a slow one look idle, and after a quiet minute all
//! of them. A failure counts as a second at least, for an endpoint that fails at once would be the fastest of all. Costs
//! that differ by less than a quarter of an idle request differ by chance: among them endpoints take turns.
//!
//! **Zones.** While an endpoint that is near has a free credit, no other is asked, unless those that are near fail, or
//! are several times as slow as others.
//!
//! **Tries.** An endpoint whose last answers were bad would not be asked again, and nobody would see it recover. So of
//! [`EVERY`] requests one goes to an endpoint that is passed over for what it did long ago, and one in half a minute.
//!
//! Every choice looks at each endpoint once or twice, and allocates nothing. In a pool of more than [`SCAN`] the choice
//! by load looks at the best of five.

mod keyed;
mod peer;
mod turn;

use std::time::Duration;

use tokio::time::Instant;

use super::ask::{Ask, Class};
use crate::entropy;

use peer::{Health, Peer};
pub use peer::{Member, Sample, View};

/// Endpoints beyond which not all are looked at.
pub const SCAN: usize = 64;
/// How many are looked at then.
const DRAWN: usize = 5;
/// Of so many requests one tries an endpoint that was bad.
pub const EVERY: u32 = 512;
/// A try is due after this time too.
const TRY_AFTER: Duration = Duration::from_secs(30);
/// What was seen more recently is not tried.
const STALE: Duration = Duration::from_secs(5);
/// Endpoints are bad that are so many times as slow as the one that would be asked.
const BAD: f64 = 2.0;
/// Those that are near are passed over when they are so many times as slow as others.
const FAR_BETTER: f64 = 4.0;
/// In idle requests, how much costs may differ by chance.
const CHANCE: f64 = 0.25;

/// How endpoints are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Where the request costs least.
    #[default]
    LeastLoaded,
    /// In turn.
    RoundRobin,
    /// In turn, as often as the weights say.
    Weighted,
    /// The same key goes to the same endpoint, or to the next while that one is full or crowded. A request without key
    /// goes where it costs least.
    Hash,
}

/// What is set for the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The way.
    pub policy: Policy,
    /// How long an endpoint that comes or comes back is spared: from a tenth of its share to all of it.
    pub slow_start: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { policy: Policy::default(), slow_start: Some(Duration::from_secs(10)) }
    }
}

/// The credits of one endpoint in the class that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How many are out.
    pub used: usize,
    /// How many there are.
    pub limit: usize,
}

impl Load {
    /// Whether one is free.
    #[must_use]
    pub fn has_room(self) -> bool {
        self.used < self.limit
    }
}

/// One of each class.
#[derive(Clone, Copy, Debug, Default)]
struct PerClass<T> {
    unary: T,
    stream: T,
}

impl<T> PerClass<T> {
    fn of(&mut self, class: Class) -> &mut T {
        match class {
            Class::Unary => &mut self.unary,
            Class::Stream => &mut self.stream,
        }
    }
}

/// Endpoints of one rank are equally good for a request. A lower one is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Good,
    Far,
    /// One that the request has been to.
    Avoided,
}

/// What a single choice goes by.
struct Round<'a, L> {
    ask: &'a Ask,
    load: &'a L,
    /// Whether those that are near are all that is asked while they have room.
    prefers_near: bool,
}

impl<L: Fn(usize) -> Load> Round<'_, L> {
    fn load(&self, at: usize) -> Load {
        (self.load)(at)
    }
}

/// See the module's text. Endpoints are named by their accounts in the ledger.
#[derive(Debug, Default)]
pub struct Choice {
    settings: Settings,
    /// By account; none where no endpoint is.
    peers: Vec<Option<Peer>>,
    /// Where endpoints that cost the same take turns.
    next: PerClass<usize>,
    /// What stands for the estimate of an endpoint that nothing is known of, in seconds: the middle of those that are
    /// well. While there are none, nothing is better than what is known.
    median: Option<f64>,
    /// Answers until the median is looked for again.
    until_median: usize,
    /// Whether some endpoints are nearer than others.
    has_zones: bool,
    /// Choices since it was last looked for somebody to try, and when that was.
    since_try: (u32, Option<Instant>),
    /// The endpoint that comes first, whatever it costs.
    trial: Option<usize>,
    /// Numbers whose median is wanted. As many as there are endpoints.
    scratch: Vec<f64>,
}

impl Choice {
    /// Brings other settings in force; what is known stays.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// An endpoint comes in place of whoever had the account; one that is cold is spared at first.
    pub fn join(&mut self, account: usize, member: Member, cold_since: Option<Instant>) {
        if self.peers.len() <= account {
            self.peers.resize_with(account + 1, || None);
        }
        if let Some(place) = self.peers.get_mut(account) {
            *place = Some(Peer::new(member, cold_since));
        }
        self.look();
    }

    /// Sets another weight or zone for an endpoint that stays.
    pub fn change(&mut self, account: usize, member: Member) {
        if let Some(peer) = self.peer(account) {
            peer.member = member;
        }
        self.look();
    }

    /// An endpoint goes.
    pub fn leave(&mut self, account: usize) {
        if let Some(place) = self.peers.get_mut(account) {
            *place = None;
        }
        self.look();
    }

    /// An endpoint that was away, drained or ejected, is back. What was known of it is forgotten, and it is spared at
    /// first.
    pub fn come_back(&mut self, account: usize, now: Instant) {
        if let Some(peer) = self.peer(account) {
            peer.come_back(now);
        }
        self.look();
    }

    /// Requests that have to show whether an endpoint is well again go there while it has room, whatever it costs.
    pub fn try_out(&mut self, account: Option<usize>) {
        self.trial = account;
    }

    /// What an endpoint did with a request.
    pub fn learn(&mut self, account: usize, sample: Sample, now: Instant) {
        let Some(peer) = self.peer(account) else { return };
        let is_first = peer.estimate().is_none();
        peer.learn(sample, now);
        if is_first || self.until_median == 0 {
            self.look();
        }
        self.until_median = self.until_median.saturating_sub(1);
    }

    /// For operators. None when there is no such endpoint.
    #[must_use]
    pub fn view(&self, account: usize) -> Option<View> {
        Some(self.peers.get(account)?.as_ref()?.view())
    }

    /// The endpoint that gets the next request, of those that have room; none when no one has.
    pub fn choose(&mut self, ask: &Ask, load: impl Fn(usize) -> Load) -> Option<usize> {
        let trial = self.trial.filter(|at| ask.avoid != Some(*at) && load(*at).has_room());
        let found = if trial.is_some() {
            trial
        } else if self.peers.len() == 1 {
            load(0).has_room().then_some(0)
        } else {
            let round = Round { ask, load: &load, prefers_near: self.has_zones && self.prefers_near(&load) };
            self.since_try.0 = self.since_try.0.saturating_add(1);
            match (self.settings.policy, ask.affinity) {
                (Policy::RoundRobin | Policy::Weighted, _) => self.by_turn(&round),
                (Policy::Hash, Some(key)) => self.by_key(key, &round),
                (Policy::LeastLoaded | Policy::Hash, _) => self.by_load(&round),
            }
        }?;
        self.peer(found)?.requests += 1;
        Some(found)
    }

    fn by_load(&mut self, round: &Round<'_, impl Fn(usize) -> Load>) -> Option<usize> {
        let count = self.peers.len();
        if count > SCAN
            && let Some(found) = self.best_of_a_few(round)
        {
            return Some(found);
        }
        let (rank, least, best) = self.best_of(0..count, round)?;
        if let Some(bad) = self.worth_a_try(best, rank, round) {
            return Some(bad);
        }
        let most = least + CHANCE * self.cost(best, 0, round);
        let next = (*self.next.of(round.ask.class)).min(count);
        let is_as_good =
            |at: &usize| self.rank(*at, round) == Some(rank) && self.cost(*at, round.load(*at).used, round) <= most;
        let found = (next..count).chain(0..next).find(is_as_good)?;
        *self.next.of(round.ask.class) = if found + 1 == count { 0 } else { found + 1 };
        Some(found)
    }

    /// The best of some that are drawn; none when the full scan may find a better one.
    fn best_of_a_few(&self, round: &Round<'_, impl Fn(usize) -> Load>) -> Option<usize> {
        let draw = |_| usize::try_from(entropy::random_u64() % self.peers.len() as u64).unwrap_or(0);
        let with_room = (0..DRAWN * 3).map(draw).filter(|at| round.load(*at).has_room());
        let (rank, _, best) = self.best_of(with_room.take(DRAWN), round)?;
        (rank == Rank::Good).then_some(best)
    }

    fn best_of(
        &self,
        all: impl Iterator<Item = usize>,
        round: &Round<'_, impl Fn(usize) -> Load>,
    ) -> Option<(Rank, f64, usize)> {
        let costs = all.filter_map(|at| Some((self.rank(at, round)?, self.cost(at, round.load(at).used, round), at)));
        costs.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))
    }

    /// None when it has no room, or is not there.
    fn rank(&self, at: usize, round: &Round<'_, impl Fn(usize) -> Load>) -> Option<Rank> {
        let peer = self.peers.get(at)?.as_ref()?;
        match peer.member.is_near {
            _ if !round.load(at).has_room() => None,
            _ if round.ask.avoid == Some(at) => Some(Rank::Avoided),
            false if round.prefers_near => Some(Rank::Far),
            _ => Some(Rank::Good),
        }
    }

    /// What one more request costs beside `used`.
    fn cost(&self, at: usize, used: usize, round: &Round<'_, impl Fn(usize) -> Load>) -> f64 {
        let Some(peer) = self.peers.get(at).and_then(Option::as_ref) else { return f64::INFINITY };
        peer.cost(used, self.median) * peer.chill(round.ask.at, self.settings.slow_start)
    }

    fn prefers_near(&self, load: &impl Fn(usize) -> Load) -> bool {
        let best = |is_near: bool| {
            let peers = self.peers.iter().enumerate().filter_map(|(at, peer)| Some((at, peer.as_ref()?)));
            let with_room = peers.filter(|(at, peer)| peer.member.is_near == is_near && load(*at).has_room());
            with_room.map(|(_, peer)| peer.health()).reduce(Health::best)
        };
        match (best(true), best(false)) {
            (None, _) => false,
            (_, None) => true,
            (Some(near), Some(far)) => {
                let lags = near.time.zip(far.time).is_some_and(|(near, far)| near > FAR_BETTER * far);
                !lags && (near.is_well() || !far.is_well())
            }
        }
    }

    /// An endpoint that is passed over in favour of `best` for what it did long ago, when it is time to look at one.
    fn worth_a_try(&mut self, best: usize, rank: Rank, round: &Round<'_, impl Fn(usize) -> Load>) -> Option<usize> {
        if !self.is_try_due(round.ask.at) {
            return None;
        }
        self.since_try = (0, Some(round.ask.at));
        let usual = self.peers.get(best)?.as_ref()?.health().time?;
        let peers = self.peers.iter().enumerate().filter_map(|(at, peer)| Some((at, peer.as_ref()?)));
        let bad = peers.filter(|(at, peer)| {
            round.load(*at).used == 0
                && self.rank(*at, round).is_some_and(|its| its <= rank)
                && peer.health().time.is_some_and(|time| time > BAD * usual)
        });
        let (at, seen) = bad.filter_map(|(at, peer)| Some((at, peer.seen_at()?))).min_by_key(|(_, seen)| *seen)?;
        if round.ask.at.saturating_duration_since(seen) < STALE {
            return None;
        }
        self.peer(at)?.tried_at = Some(round.ask.at);
        Some(at)
    }

    fn is_try_due(&mut self, now: Instant) -> bool {
        let (count, at) = &mut self.since_try;
        *count >= EVERY || now.saturating_duration_since(*at.get_or_insert(now)) >= TRY_AFTER
    }

    fn peer(&mut self, account: usize) -> Option<&mut Peer> {
        self.peers.get_mut(account)?.as_mut()
    }

    /// Looks at the pool as a whole.
    fn look(&mut self) {
        let is_near = |is_near: bool| self.peers.iter().flatten().any(|peer| peer.member.is_near == is_near);
        self.has_zones = is_near(true) && is_near(false);
        self.scratch.clear();
        self.scratch.extend(self.peers.iter().flatten().filter(|peer| peer.is_well()).filter_map(Peer::estimate));
        self.until_median = self.scratch.len().min(SCAN);
        self.median = median(&mut self.scratch);
    }
}

/// The lower one of two.
fn median(numbers: &mut [f64]) -> Option<f64> {
    let middle = numbers.len().checked_sub(1)? / 2;
    let (_, median, _) = numbers.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*median)
}

#[cfg(test)]
mod tests;
