//! The choice by a key: the same key, the same endpoint.
//!
//! Rendezvous hashing: each endpoint draws a number from the key and its own identity, and the greatest wins. So when
//! an endpoint goes, its keys alone move, and they spread over all others; and every proxy and every process that knows
//! the same endpoints agrees. Weights are as of Schindelhauer and Schomaker, "Weighted Distributed Hash Tables" (2005).

use super::peer::{Peer, float};
use super::{Choice, Load, Rank, Round, STALE, median};

/// How many times as crowded as the middle of the pool an endpoint may be before others take over.
const BOUND: f64 = 2.0;
/// Requests that crowd nobody: without them, two at once would move a key in a quiet pool.
const QUIET: f64 = 4.0;

/// An endpoint for a key.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    rank: Rank,
    score: f64,
    is_crowded: bool,
}

impl Place {
    fn is_nearer_home(&self, other: &Self) -> bool {
        (self.rank, -self.score) < (other.rank, -other.score)
    }

    fn is_better(&self, other: &Self) -> bool {
        (self.is_crowded, self.rank, -self.score) < (other.is_crowded, other.rank, -other.score)
    }
}

impl Choice {
    /// The endpoint of the key, or the next one while that is full, too crowded or failing.
    pub(super) fn by_key(&mut self, key: u64, round: &Round<'_, impl Fn(usize) -> Load>) -> Option<usize> {
        let bound = BOUND * self.usual_crowd(round);
        let mut found: Option<(Place, Place)> = None;
        for at in 0..self.peers.len() {
            let Some(place) = self.place(at, key, bound, round) else { continue };
            let (home, best) = found.get_or_insert((place, place));
            if place.is_nearer_home(home) {
                *home = place;
            }
            if place.is_better(best) {
                *best = place;
            }
        }
        let (home, best) = found?;
        let is_passed_over = home.is_crowded && home.at != best.at;
        Some(if is_passed_over && self.may_try(home.at, round) { home.at } else { best.at })
    }

    fn place(&self, at: usize, key: u64, bound: f64, round: &Round<'_, impl Fn(usize) -> Load>) -> Option<Place> {
        let peer = self.peers.get(at)?.as_ref()?;
        let rank = self.rank(at, round)?;
        // One that has just come takes up its keys one by one.
        let weight = f64::from(peer.member.weight) / peer.chill(round.ask.at, self.settings.slow_start);
        let is_crowded = !peer.is_well() || crowd(peer, round.load(at).used) > bound;
        Some(Place { at, rank, score: score(key, peer.member.identity, weight), is_crowded })
    }

    /// Whether the endpoint of a key, which is passed over for what it did long ago, is looked at again.
    fn may_try(&mut self, home: usize, round: &Round<'_, impl Fn(usize) -> Load>) -> bool {
        let now = round.ask.at;
        if !self.is_try_due(now) || round.load(home).used > 0 {
            return false;
        }
        let Some(peer) = self.peer(home) else { return false };
        let is_stale = peer.seen_at().is_none_or(|seen| now.saturating_duration_since(seen) >= STALE);
        if is_stale {
            peer.tried_at = Some(now);
            self.since_try = (0, Some(now));
        }
        is_stale
    }

    /// How crowded the middle of the pool is.
    fn usual_crowd(&mut self, round: &Round<'_, impl Fn(usize) -> Load>) -> f64 {
        self.scratch.clear();
        for (at, peer) in self.peers.iter().enumerate() {
            let Load { used, limit } = round.load(at);
            if let Some(peer) = peer.as_ref().filter(|_| limit > 0) {
                self.scratch.push(crowd(peer, used));
            }
        }
        median(&mut self.scratch).unwrap_or(f64::INFINITY)
    }
}

/// Requests for the weight. Latency has no part in it: some keys ask for more than others, and would move to and fro. An
/// endpoint that is slow has the more requests for it.
fn crowd(peer: &Peer, used: usize) -> f64 {
    (float(used) + QUIET) / f64::from(peer.member.weight)
}

/// What an endpoint draws for a key: the greatest wins, as often as the weights say.
fn score(key: u64, identity: u64, weight: f64) -> f64 {
    // From 0 to 1, without both.
    #[expect(clippy::cast_precision_loss, reason = "52 bits fit exactly")]
    let drawn = ((mix(key ^ identity) >> 12) as f64 + 0.5) / 4_503_599_627_370_496.0;
    weight / -drawn.ln()
}

/// The finalizer of `SplitMix64`: every bit of the input changes half of the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
