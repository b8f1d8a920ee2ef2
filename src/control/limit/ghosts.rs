//! Requests that were given up here and may still be worked on there.
//!
//! A service seldom notices that its client has left. If the credit came back at once, a service that stalls would be
//! sent a full window each time the patience of its clients runs out, and would have all that to do when it wakes up.
//! So a ghost keeps the credit until the service has answered a request that was sent one mean latency later.

use std::collections::VecDeque;

/// Weight of one answer in the mean.
const WEIGHT: f64 = 0.02;
/// While only ghosts are left no answer can come, so one request is sent ahead each time this many latencies are over.
const TRICKLE: f64 = 2.0;

#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// When they started, oldest first; never more than the window is large.
    started: VecDeque<f64>,
    /// Mean latency of answers.
    mean: f64,
    /// When a request was last sent ahead.
    trickled: f64,
    /// One may be sent ahead of the ghosts.
    is_trickling: bool,
}

impl Ghosts {
    pub(super) fn count(&self) -> usize {
        self.started.len()
    }

    /// What they leave of a limit.
    pub(super) fn leave_of(&self, limit: usize) -> usize {
        limit.saturating_sub(self.count()).max(usize::from(self.is_trickling))
    }

    pub(super) fn on_abandoned(&mut self, started: f64, most: usize) {
        let place = self.started.partition_point(|known| *known <= started);
        self.started.insert(place, started);
        while self.started.len() > most {
            self.started.pop_front();
        }
    }

    /// A request was answered: what started a latency before it has left the service as well.
    pub(super) fn on_answer(&mut self, started: f64, latency: f64) {
        self.mean = if self.mean == 0.0 { latency } else { self.mean + WEIGHT * (latency - self.mean) };
        while self.started.front().is_some_and(|ghost| ghost + self.mean < started) {
            self.started.pop_front();
        }
    }

    pub(super) fn on_change(&mut self, now: f64, in_flight: usize, waiting: usize, limit: usize) {
        if in_flight > 0 || self.count() < limit || self.started.is_empty() {
            if self.is_trickling {
                self.is_trickling = false;
                self.trickled = now;
            }
        } else if waiting > 0 && now - self.trickled >= TRICKLE * self.mean {
            self.is_trickling = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Ghosts {
        let mut ghosts = Ghosts::default();
        ghosts.on_answer(0.0, 0.1);
        for started in [1.2, 1.0, 1.1] {
            ghosts.on_abandoned(started, 3);
        }
        ghosts
    }

    #[test]
    fn they_keep_their_credits_until_a_later_request_is_answered() {
        let mut ghosts = three();
        assert_eq!(ghosts.leave_of(5), 2);
        ghosts.on_answer(1.05, 0.1);
        assert_eq!(ghosts.count(), 3, "it started too soon after them");
        ghosts.on_answer(1.25, 0.1);
        assert_eq!(ghosts.leave_of(5), 4);
    }

    #[test]
    fn there_are_never_more_than_the_window_is_large() {
        let mut ghosts = three();
        for n in 0..100 {
            ghosts.on_abandoned(2.0 + f64::from(n), 3);
        }
        assert_eq!(ghosts.count(), 3);
    }

    #[test]
    fn when_only_they_are_left_one_request_at_a_time_is_sent_ahead() {
        let mut ghosts = three();
        ghosts.on_change(2.0, 1, 9, 3);
        assert_eq!(ghosts.leave_of(3), 0, "an answer can still come");
        ghosts.on_change(2.0, 0, 9, 3);
        assert_eq!(ghosts.leave_of(3), 1);
        ghosts.on_change(2.0, 1, 8, 3);
        assert_eq!(ghosts.leave_of(3), 0);
        ghosts.on_change(2.1, 0, 8, 3);
        assert_eq!(ghosts.leave_of(3), 0, "it was given up as well, a moment ago");
        ghosts.on_change(2.2, 0, 8, 3);
        assert_eq!(ghosts.leave_of(3), 1);
    }
}
