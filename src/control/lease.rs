//! A lease on a limit that several instances hold together: a batch of requests, taken from a bucket that all of them
//! share, and used here one by one.
//!
//! The bucket never gives more than the limit allows, so neither do all leases together. What an instance lets through
//! without a lease, because no answer came in time, it owes: the next ask tells of it, and the bucket gives so much less
//! to everybody. So over a long time the limit holds as if there were one instance, and for a moment each instance may
//! be ahead of it by its share of the burst.

use crate::control::gcra::Nanos;

/// The lease on one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// May be used.
    tokens: u32,
    /// Let through without a token, and not told yet.
    owed: u32,
    /// How many are asked for when nobody waits.
    batch: u32,
    /// Requests that wait for an answer.
    waiting: u32,
    /// What the bucket had left at its last answer.
    room: u32,
    /// The bucket has nothing before this.
    empty_until: Nanos,
    answered_at: Option<Nanos>,
    used_at: Nanos,
    is_asked: bool,
}

/// What is said to the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Let through already; below zero: given back unused.
    pub owed: i64,
    /// Asked for.
    pub want: u32,
}

/// What the bucket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// At most what was asked for.
    pub given: u32,
    /// Left for everybody.
    pub room: u32,
    /// Until it has one more, if it has none left.
    pub wait: Nanos,
}

/// Whether a request can be decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Either way.
    Known,
    /// An answer is on its way.
    Asked,
    /// Somebody must ask.
    Ask,
}

/// A batch that was used up sooner doubles, one that lasted longer is halved.
const SOON: Nanos = 50_000_000;
const LATE: Nanos = 200_000_000;

impl Lease {
    /// A request comes. From [`Standing::Ask`] on, the lease counts as asked for.
    pub fn look(&mut self, now: Nanos) -> Standing {
        if self.tokens > 0 || now < self.empty_until {
            return Standing::Known;
        }
        self.waiting = self.waiting.saturating_add(1);
        if std::mem::replace(&mut self.is_asked, true) { Standing::Asked } else { Standing::Ask }
    }

    /// The same for a request that has looked before, and still waits.
    pub fn look_again(&mut self, now: Nanos) -> Standing {
        if self.is_asked && self.tokens == 0 && now >= self.empty_until { Standing::Asked } else { self.look(now) }
    }

    /// Takes one token and says how many may come at once from here on, or how long there is none. None: nobody knows.
    pub fn take(&mut self, now: Nanos) -> Option<Result<u32, Nanos>> {
        self.used_at = now;
        if let Some(left) = self.tokens.checked_sub(1) {
            self.tokens = left;
            return Some(Ok(left.saturating_add(self.room)));
        }
        let wait = self.empty_until.checked_sub(now).filter(|wait| *wait > 0)?;
        Some(Err(wait))
    }

    /// Takes one token, if there is one: what there is counts also while the bucket cannot be asked.
    pub fn take_rest(&mut self, now: Nanos) -> Option<u32> {
        self.used_at = now;
        self.tokens = self.tokens.checked_sub(1)?;
        Some(self.tokens)
    }

    /// One was let through without a token. More than `most` is not owed: what was let through long ago has come back to
    /// the bucket by itself.
    pub fn owe(&mut self, most: u32) {
        self.owed = self.owed.saturating_add(1).min(most);
    }

    /// A token was not used after all.
    pub fn give_back(&mut self) {
        self.tokens = self.tokens.saturating_add(1);
    }

    /// Whether it is time to ask for the next batch, so that nobody has to wait for it. It then counts as asked for.
    pub fn runs_low(&mut self, now: Nanos) -> bool {
        let low = self.batch > 1 && self.tokens <= self.batch / 4 && !self.is_asked && now >= self.empty_until;
        self.is_asked |= low;
        low
    }

    /// What to say to the bucket.
    #[must_use]
    pub fn ask(&mut self, most: u32) -> Ask {
        let owed = i64::from(std::mem::take(&mut self.owed));
        Ask { owed, want: self.batch.max(self.waiting).clamp(1, most.max(1)) }
    }

    /// What the bucket said to it; `most` bounds a batch, and an empty bucket is not asked again before `pause`.
    pub fn answer(&mut self, answer: Answer, now: Nanos, most: u32, pause: Nanos) {
        self.batch = match self.answered_at.map(|at| now.saturating_sub(at)) {
            Some(since) if since < SOON => self.batch.saturating_mul(2),
            Some(since) if since < LATE => self.batch,
            _ => self.batch / 2,
        };
        self.batch = self.batch.clamp(1, most.max(1));
        self.answered_at = Some(now);
        self.tokens = self.tokens.saturating_add(answer.given);
        self.room = answer.room;
        self.empty_until = if answer.room == 0 { now.saturating_add(answer.wait.max(pause)) } else { now };
        (self.waiting, self.is_asked) = (0, false);
    }

    /// No answer will come. What was told is owed still, up to `most`.
    pub fn unanswered(&mut self, ask: Option<Ask>, most: u32) {
        let told = ask.map_or(0, |ask| u32::try_from(ask.owed).unwrap_or(0));
        self.owed = self.owed.saturating_add(told).min(most);
        (self.waiting, self.is_asked) = (0, false);
    }

    /// Whether nobody has used it for `time`, and nobody waits.
    #[must_use]
    pub fn is_idle(&self, now: Nanos, time: Nanos) -> bool {
        !self.is_asked && now.saturating_sub(self.used_at) >= time
    }

    /// What is to be said when it is let go of: what it owes, less what it did not use. None: nothing.
    #[must_use]
    pub fn settle(&self) -> Option<Ask> {
        let owed = i64::from(self.owed) - i64::from(self.tokens);
        (owed != 0).then_some(Ask { owed, want: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bucket as the store keeps it: `store/scripts.rs` has the same in Lua.
    struct Bucket {
        full_at: i64,
        step: i64,
        burst: i64,
    }

    impl Bucket {
        fn ask(&mut self, ask: Ask, now: Nanos) -> Answer {
            let now = now.cast_signed();
            let full = (self.full_at.max(now) + ask.owed * self.step).clamp(now, now + 2 * self.burst * self.step);
            let room = ((now + self.burst * self.step - full) / self.step).max(0);
            let given = i64::from(ask.want).min((room + 1) / 2);
            self.full_at = full + given * self.step;
            let room = ((now + self.burst * self.step - self.full_at) / self.step).max(0);
            let wait = (self.full_at + self.step - now - self.burst * self.step).max(0);
            let number = |number: i64| u32::try_from(number).expect("small");
            Answer { given: number(given), room: number(room), wait: wait.cast_unsigned() }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Request { on: usize },
        Answer { of: usize },
        Fail { of: usize },
        Forget { of: usize },
        Pass { time: u64 },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            8 => (0..3_usize).prop_map(|on| Event::Request { on }),
            4 => (0..3_usize).prop_map(|of| Event::Answer { of }),
            1 => (0..3_usize).prop_map(|of| Event::Fail { of }),
            1 => (0..3_usize).prop_map(|of| Event::Forget { of }),
            4 => (0..300_u64).prop_map(|time| Event::Pass { time }),
        ];
        prop::collection::vec(event, 1..400)
    }

    proptest! {
        /// However answers are delayed or lost: without borrowing, all instances together never pass more than the limit.
        #[test]
        fn leases_together_keep_the_limit(events in events(), step in 1_i64..200, burst in 1_i64..20) {
            let mut bucket = Bucket { full_at: 0, step, burst };
            let mut leases = [const { None::<Lease> }; 3];
            let mut asked = [const { None::<(Ask, Answer)> }; 3];
            let (mut now, mut passed) = (0_u64, 0_i64);
            for event in events {
                match event {
                    Event::Pass { time } => now += time,
                    Event::Request { on } => {
                        let lease = leases[on].get_or_insert_default();
                        if lease.look(now) == Standing::Ask {
                            let ask = lease.ask(8);
                            asked[on] = Some((ask, bucket.ask(ask, now)));
                        }
                        if let Some(Ok(_)) = lease.take(now) {
                            passed += 1;
                        }
                    }
                    Event::Answer { of } => {
                        if let (Some((_, answer)), Some(lease)) = (asked[of].take(), &mut leases[of]) {
                            lease.answer(answer, now, 8, 0);
                        }
                    }
                    Event::Fail { of } => {
                        if let (Some((ask, _)), Some(lease)) = (asked[of].take(), &mut leases[of]) {
                            lease.unanswered(Some(ask), 0);
                        }
                    }
                    Event::Forget { of } => {
                        if asked[of].is_none() && let Some(ask) = leases[of].take().and_then(|lease| lease.settle()) {
                            bucket.ask(ask, now);
                        }
                    }
                }
                let most = burst + now.cast_signed() / step;
                prop_assert!(passed <= most, "{passed} of {most} at {now}");
            }
        }

        /// What was let through on credit is told sooner or later, and given back tokens are the bucket's again.
        #[test]
        fn debts_are_told(borrowed in 0_u32..10, used in 0_u32..5, given in 5_u32..10) {
            let mut lease = Lease::default();
            lease.look(0);
            let _ = lease.ask(10);
            for _ in 0..borrowed {
                lease.owe(100);
            }
            lease.answer(Answer { given, room: 3, wait: 0 }, 1, 10, 0);
            for _ in 0..used {
                prop_assert!(matches!(lease.take(2), Some(Ok(_))));
            }
            let owed = i64::from(borrowed) - i64::from(given - used);
            prop_assert_eq!(lease.settle().map_or(0, |ask| ask.owed), owed);
            prop_assert_eq!(lease.ask(10).owed, i64::from(borrowed));
            prop_assert_eq!(lease.settle().map_or(0, |ask| ask.owed), -i64::from(given - used));
        }
    }

    #[test]
    fn a_key_is_asked_for_once_and_by_as_many_as_wait() {
        let mut lease = Lease::default();
        assert_eq!([lease.look(5), lease.look(5), lease.look(5)], [Standing::Ask, Standing::Asked, Standing::Asked]);
        assert_eq!(lease.ask(10), Ask { owed: 0, want: 3 });
        assert_eq!(lease.take(5), None, "nobody knows");
        lease.answer(Answer { given: 3, room: 7, wait: 0 }, 6, 10, 0);
        assert_eq!((lease.look(6), lease.take(6)), (Standing::Known, Some(Ok(9))));
        assert_eq!(lease.settle(), Some(Ask { owed: -2, want: 0 }));
    }

    #[test]
    fn an_empty_bucket_is_not_asked_before_it_has_something() {
        let mut lease = Lease::default();
        lease.look(0);
        lease.answer(Answer { given: 0, room: 0, wait: 30 }, 0, 10, 100);
        assert_eq!((lease.look(99), lease.take(99)), (Standing::Known, Some(Err(1))));
        assert_eq!((lease.look(100), lease.take(100)), (Standing::Ask, None));
    }

    #[test]
    fn a_busy_key_takes_larger_batches_and_asks_ahead() {
        let mut lease = Lease::default();
        let answer = |given| Answer { given, room: 100, wait: 0 };
        let mut now = 0;
        let mut wants = Vec::new();
        for _ in 0..6 {
            if !lease.runs_low(now) {
                assert_eq!(lease.look(now), Standing::Ask);
            }
            let ask = lease.ask(16);
            wants.push(ask.want);
            lease.answer(answer(ask.want), now, 16, 0);
            now += SOON / 2;
            while lease.tokens > lease.batch / 4 {
                assert!(matches!(lease.take(now), Some(Ok(_))));
            }
        }
        assert_eq!(wants, [1, 1, 2, 4, 8, 16]);
        lease.is_asked = false;
        lease.answer(answer(0), now + 2 * LATE, 16, 0);
        assert_eq!(lease.batch, 8);
    }

    #[test]
    fn an_answer_that_never_comes_leaves_the_debt() {
        let mut lease = Lease::default();
        lease.look(0);
        lease.owe(2);
        lease.owe(2);
        lease.owe(2);
        let ask = lease.ask(10);
        assert_eq!(ask, Ask { owed: 2, want: 1 });
        lease.owe(2);
        lease.unanswered(Some(ask), 2);
        assert_eq!((lease.look(0), lease.ask(10).owed), (Standing::Ask, 2));
        assert!(!lease.is_idle(1000, 10), "asked");
    }
}
