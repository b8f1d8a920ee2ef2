//! The choice by turns.

use super::{Choice, Load, Policy, Round};

impl Choice {
    /// Smooth weighted round robin, as nginx has it: each endpoint gains its weight, and the one that is ahead is taken
    /// and pays for all. So a heavy endpoint is not asked several times in a row. One that has no room neither gains nor
    /// pays: it does not catch up on what it could not take.
    pub(super) fn by_turn(&mut self, round: &Round<'_, impl Fn(usize) -> Load>) -> Option<usize> {
        let best = (0..self.peers.len()).filter_map(|at| self.rank(at, round)).min()?;
        let is_weighted = self.settings.policy == Policy::Weighted;
        let slow_start = self.settings.slow_start;
        let mut ahead: Option<(usize, f64)> = None;
        let mut sum = 0.0;
        for at in 0..self.peers.len() {
            if self.rank(at, round) != Some(best) {
                continue;
            }
            let Some(peer) = self.peer(at) else { continue };
            let weight = if is_weighted { f64::from(peer.member.weight) } else { 1.0 };
            let gain = weight / peer.chill(round.ask.at, slow_start);
            sum += gain;
            let turn = peer.turn.of(round.ask.class);
            *turn += gain;
            // Sums of the same numbers in another order differ in their last bits.
            if ahead.is_none_or(|(_, most)| *turn > most + 1e-6) {
                ahead = Some((at, *turn));
            }
        }
        let (found, _) = ahead?;
        *self.peer(found)?.turn.of(round.ask.class) -= sum;
        Some(found)
    }
}
