//! Groups of requests that are judged together.
//!
//! Whoever judges the first answers after a change judges the quick ones: the slow ones are still under way. So a
//! request joins a cohort when it *starts*, and a cohort is judged when all its members have ended, or so long after its
//! last start that the rest counts as slow.
//!
//! A client that leaves tells that the answer would have taken longer, and no more than that. Its time counts and its
//! answer does not, which for a mean is the whole truth about it when clients leave at random: neither a success nor a
//! failure.

use super::float;

/// Latencies count up to this multiple of the baseline, so that one outlier decides nothing.
const CLIP: f64 = 4.0;

/// The first cohort waits this much longer, since the half that has ended is the quicker one.
const LENIENT: f64 = 2.0;

/// The id of no cohort.
pub(super) const NONE: u32 = 0;
/// Cohorts at most, the open ones among them. What starts while there are as many joins none.
const MOST: usize = 16;

/// The state in which its members started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// Well below the limit.
    Light,
    /// At the limit.
    Full {
        /// What the limit was.
        limit: f64,
    },
}

/// What a cohort says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) kind: Kind,
    pub(super) opened: f64,
    /// Answers that it rests on.
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) variance: f64,
}

#[derive(Debug)]
struct Cohort {
    id: u32,
    kind: Kind,
    opened: f64,
    closed: Option<f64>,
    /// Members that did not leave the cohort.
    members: usize,
    ended: usize,
    /// Members whose latency is known.
    answered: usize,
    /// Members whose answer has begun and not ended, and the times to those beginnings.
    begun: usize,
    beginnings: f64,
    /// Latencies and the times of those who left, clipped.
    sum: f64,
    answers: f64,
    squares: f64,
}

impl Cohort {
    fn new(id: u32, kind: Kind, opened: f64) -> Self {
        Self {
            id,
            kind,
            opened,
            closed: None,
            members: 0,
            ended: 0,
            answered: 0,
            begun: 0,
            beginnings: 0.0,
            sum: 0.0,
            answers: 0.0,
            squares: 0.0,
        }
    }

    fn answer(&mut self, latency: f64) {
        self.answered += 1;
        self.sum += latency;
        self.answers += latency;
        self.squares += latency * latency;
    }

    /// How long it waits for its last members, and what counts for those who are not back then. Before the baseline is
    /// known, half of the members tell.
    fn clip(&self, clip: f64) -> f64 {
        if clip.is_finite() || self.ended * 2 < self.members {
            clip
        } else {
            LENIENT * clip_of(self.sum / float(self.ended))
        }
    }

    /// None when it has nothing to say.
    fn verdict(mut self, clip: f64) -> Option<Verdict> {
        // An answer that has begun and does not end may wait for its client: it counts as far as the service is known to
        // have taken.
        if self.begun > 0 {
            let mean = self.beginnings / float(self.begun);
            (0..self.begun).for_each(|_| self.answer(mean));
        }
        for _ in self.ended + self.begun..self.members {
            self.answer(clip);
        }
        // Those who left before an answer could be expected are no sign of anything.
        if self.members == 0 || self.answered == 0 && self.sum * 4.0 < clip * float(self.members) {
            return None;
        }
        let count = float(self.answered.max(1));
        let mean = self.answers / count;
        Some(Verdict {
            kind: self.kind,
            opened: self.opened,
            count,
            mean: (self.sum / count).min(clip),
            variance: (self.squares / count - mean * mean).max(0.0),
        })
    }
}

/// All cohorts of one window.
#[derive(Debug, Default)]
pub(super) struct Cohorts {
    all: Vec<Cohort>,
    last: u32,
}

impl Cohorts {
    /// A request joins the open cohort of its kind, which closes when it has `size` members.
    pub(super) fn join(&mut self, now: f64, kind: Kind, size: usize) -> u32 {
        let is_open = |cohort: &Cohort| cohort.closed.is_none() && same(cohort.kind, kind);
        if !self.all.iter().any(is_open) {
            if self.all.len() >= MOST {
                return NONE;
            }
            self.last = self.last.checked_add(1).unwrap_or(NONE + 1);
            self.all.push(Cohort::new(self.last, kind, now));
        }
        let Some(cohort) = self.all.iter_mut().find(|cohort| is_open(cohort)) else { return NONE };
        cohort.members += 1;
        if cohort.members >= size {
            cohort.closed = Some(now);
        }
        cohort.id
    }

    /// A member's answer begins after `latency`.
    pub(super) fn begin(&mut self, id: u32, latency: f64, clip: f64) {
        if let Some(cohort) = self.get(id) {
            cohort.begun += 1;
            cohort.beginnings += latency.min(clip);
        }
    }

    /// The word is taken back, and followed by another.
    pub(super) fn unbegin(&mut self, id: u32, latency: f64, clip: f64) {
        if let Some(cohort) = self.get(id) {
            cohort.begun = cohort.begun.saturating_sub(1);
            cohort.beginnings = (cohort.beginnings - latency.min(clip)).max(0.0);
        }
    }

    /// A member was answered after `latency`.
    pub(super) fn answer(&mut self, id: u32, latency: f64, clip: f64) {
        if let Some(cohort) = self.get(id) {
            cohort.ended += 1;
            cohort.answer(latency.min(clip));
        }
    }

    /// A member was refused, which counts as slow at the limit, and tells nothing of how long an uncrowded answer takes.
    pub(super) fn refuse(&mut self, id: u32, clip: f64) {
        match self.get(id).map(|cohort| cohort.kind) {
            Some(Kind::Full { .. }) => self.answer(id, clip, clip),
            Some(Kind::Light) => self.forget(id),
            None => {}
        }
    }

    /// A member's client left after `elapsed`.
    pub(super) fn leave(&mut self, id: u32, elapsed: f64, clip: f64) {
        if elapsed >= clip {
            return self.answer(id, clip, clip);
        }
        if let Some(cohort) = self.get(id) {
            cohort.ended += 1;
            cohort.sum += elapsed;
        }
    }

    /// A member is as if it had never been.
    pub(super) fn forget(&mut self, id: u32) {
        if let Some(cohort) = self.get(id) {
            cohort.members = cohort.members.saturating_sub(1);
        }
    }

    /// Takes no more members into the open cohort of light starts.
    pub(super) fn close_light(&mut self, now: f64) {
        for cohort in self.all.iter_mut().filter(|cohort| cohort.kind == Kind::Light) {
            cohort.closed.get_or_insert(now);
        }
    }

    /// Forgets those that started at a limit which is no longer in force.
    pub(super) fn drop_full(&mut self) {
        self.all.retain(|cohort| cohort.kind == Kind::Light);
    }

    /// Takes out a cohort that can be judged. One that has been closed for `clip` is not waited for.
    pub(super) fn next_verdict(&mut self, now: f64, clip: f64) -> Option<Verdict> {
        loop {
            let at = self.all.iter().position(|cohort| {
                cohort.closed.is_some_and(|at| cohort.ended >= cohort.members || now - at > cohort.clip(clip))
            })?;
            let cohort = self.all.remove(at);
            let clip = cohort.clip(clip);
            if let Some(verdict) = cohort.verdict(clip) {
                return Some(verdict);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a cohort takes members.
    pub(super) fn is_open(&self) -> bool {
        self.all.iter().any(|cohort| cohort.closed.is_none())
    }

    fn get(&mut self, id: u32) -> Option<&mut Cohort> {
        self.all.iter_mut().find(|cohort| cohort.id == id)
    }
}

/// What latencies are clipped to when an uncrowded answer takes `normal`.
pub(super) fn clip_of(normal: f64) -> f64 {
    CLIP * normal
}

fn same(one: Kind, other: Kind) -> bool {
    matches!((one, other), (Kind::Light, Kind::Light) | (Kind::Full { .. }, Kind::Full { .. }))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these sums are exact")]
mod tests {
    use super::*;

    fn four() -> (Cohorts, u32) {
        let mut cohorts = Cohorts::default();
        let ids: Vec<_> = (0..4).map(|n| cohorts.join(f64::from(n), Kind::Light, 4)).collect();
        assert!(ids.iter().all(|id| *id == ids[0]));
        (cohorts, ids[0])
    }

    #[test]
    fn it_is_judged_when_the_slowest_has_ended() {
        let (mut cohorts, id) = four();
        for latency in [1.0, 1.0, 1.0] {
            cohorts.answer(id, latency, CLIP);
            assert_eq!(cohorts.next_verdict(3.0, CLIP), None);
        }
        cohorts.answer(id, 3.0, CLIP);
        let verdict = cohorts.next_verdict(3.0, CLIP).unwrap();
        assert_eq!((verdict.count, verdict.mean, verdict.variance), (4.0, 1.5, 0.75));
    }

    #[test]
    fn who_is_not_back_in_time_counts_as_slow() {
        let (mut cohorts, id) = four();
        cohorts.answer(id, 1.0, CLIP);
        assert_eq!(cohorts.next_verdict(7.0, CLIP), None);
        assert_eq!(cohorts.next_verdict(7.1, CLIP).unwrap().mean, (1.0 + 3.0 * CLIP) / 4.0);
    }

    #[test]
    fn an_answer_that_waits_for_its_client_counts_to_its_beginning() {
        let (mut cohorts, id) = four();
        (0..2).for_each(|_| cohorts.answer(id, 1.0, CLIP));
        (0..2).for_each(|_| cohorts.begin(id, 2.0, CLIP));
        cohorts.unbegin(id, 2.0, CLIP);
        cohorts.answer(id, 3.0, CLIP);
        assert_eq!(cohorts.next_verdict(9.0, CLIP).unwrap().mean, (1.0 + 1.0 + 2.0 + 3.0) / 4.0);
    }

    #[test]
    fn the_first_does_not_wait_for_ever() {
        let (mut cohorts, id) = four();
        cohorts.answer(id, 1.0, f64::INFINITY);
        assert_eq!(cohorts.next_verdict(99.0, f64::INFINITY), None);
        cohorts.answer(id, 1.0, f64::INFINITY);
        assert_eq!(cohorts.next_verdict(99.0, f64::INFINITY).unwrap().mean, 4.5);
    }

    #[test]
    fn a_client_that_leaves_is_neither_success_nor_failure() {
        let (mut cohorts, id) = four();
        cohorts.answer(id, 1.0, CLIP);
        cohorts.answer(id, 1.0, CLIP);
        cohorts.leave(id, 0.5, CLIP);
        cohorts.leave(id, 0.5, CLIP);
        assert_eq!(cohorts.next_verdict(4.0, CLIP).unwrap().mean, 1.5);
    }

    #[test]
    fn when_all_leave_it_matters_how_long_they_waited() {
        for (waited, mean) in [(0.1, None), (3.0, Some(CLIP)), (9.0, Some(CLIP))] {
            let (mut cohorts, id) = four();
            (0..4).for_each(|_| cohorts.leave(id, waited, CLIP));
            assert_eq!(cohorts.next_verdict(4.0, CLIP).map(|verdict| verdict.mean), mean, "{waited}");
        }
    }

    #[test]
    fn one_whose_members_are_all_forgotten_goes_without_a_word() {
        let (mut cohorts, id) = four();
        (0..4).for_each(|_| cohorts.forget(id));
        assert_eq!(cohorts.next_verdict(4.0, CLIP), None);
        assert!(cohorts.is_empty());
    }

    #[test]
    fn there_are_never_more_than_sixteen() {
        let mut cohorts = Cohorts::default();
        let ids: Vec<_> = (0..40).map(|_| cohorts.join(0.0, Kind::Light, 1)).collect();
        assert_eq!(ids.iter().filter(|id| **id != NONE).count(), MOST);
    }
}
