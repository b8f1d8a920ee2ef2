//! The service behind the proxy: workers with a queue, or workers that all requests share. It goes on working for
//! clients who left.

use std::collections::{BTreeSet, VecDeque};

use super::script;
use crate::support::Luck;

/// How long requests take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Law {
    Constant,
    Exponential,
    /// The deviation is twice the mean.
    Lognormal,
    /// Nine of ten take a third of the mean, the tenth takes twenty times as much as they.
    Bimodal,
}

impl Law {
    /// A time whose mean is `mean`.
    fn draw(self, mean: f64, luck: &mut Luck) -> f64 {
        match self {
            Self::Constant => mean,
            Self::Exponential => mean * luck.exponential(),
            Self::Lognormal => {
                let sigma = 5_f64.ln().sqrt();
                mean * (sigma * luck.normal() - sigma * sigma / 2.0).exp()
            }
            Self::Bimodal => {
                let short = mean / (0.9 + 0.1 * 20.0);
                if luck.unit() < 0.9 { short } else { 20.0 * short }
            }
        }
    }
}

/// See the module's text. Times are seconds, requests are numbers.
#[derive(Debug)]
pub(super) struct Service {
    settings: script::Service,
    luck: Luck,
    workers: f64,
    slower: f64,
    /// Waiting for a worker, with the work they bring.
    queue: VecDeque<(usize, f64)>,
    busy: usize,
    /// By the virtual time at which a shared worker is done with them; the number keeps equals apart.
    shared: BTreeSet<(u64, usize)>,
    virtual_time: f64,
    seen: f64,
}

impl Service {
    pub(super) fn new(settings: &script::Service, seed: u64) -> Self {
        Self {
            luck: Luck::new(seed ^ 0x5eed),
            workers: settings.workers,
            slower: 1.0,
            queue: VecDeque::new(),
            busy: 0,
            shared: BTreeSet::new(),
            virtual_time: 0.0,
            seen: 0.0,
            settings: settings.clone(),
        }
    }

    pub(super) fn change(&mut self, now: f64, change: script::Change) {
        self.pass(now);
        self.workers = self.settings.workers * change.workers;
        self.slower = change.slower;
    }

    pub(super) fn take(&mut self, now: f64, request: usize) {
        let work = self.settings.law.draw(self.settings.mean, &mut self.luck) * self.slower;
        if self.settings.is_sharing {
            self.pass(now);
            self.shared.insert(((self.virtual_time + work).to_bits(), request));
        } else {
            self.queue.push_back((request, work));
        }
    }

    /// Requests that a worker takes up at this moment, with the time at which they will be done.
    pub(super) fn begin(&mut self, now: f64) -> Option<(usize, f64)> {
        if self.busy as f64 >= self.workers.floor() {
            return None;
        }
        let (request, work) = self.queue.pop_front()?;
        self.busy += 1;
        Some((request, now + work * self.slowdown((self.busy + self.queue.len()) as f64)))
    }

    /// A worker is done with a request that it had begun.
    pub(super) fn end(&mut self) {
        self.busy -= 1;
    }

    /// The request that will be done next by shared workers if nothing comes between, and when.
    pub(super) fn next_shared(&mut self, now: f64) -> Option<(usize, f64)> {
        self.pass(now);
        let &(done, request) = self.shared.first()?;
        let rate = self.rate();
        (rate > 0.0).then(|| (request, now + (f64::from_bits(done) - self.virtual_time).max(0.0) / rate))
    }

    /// That request is done.
    pub(super) fn end_shared(&mut self, now: f64) {
        self.pass(now);
        self.shared.pop_first();
    }

    /// Requests inside for each worker.
    pub(super) fn utilization(&self) -> f64 {
        (self.busy + self.queue.len() + self.shared.len()) as f64 / self.workers.max(1.0)
    }

    pub(super) fn workers(&self) -> f64 {
        self.workers
    }

    fn rate(&self) -> f64 {
        let count = self.shared.len() as f64;
        if count == 0.0 { 0.0 } else { (self.workers / count).min(1.0) / self.slowdown(count) }
    }

    fn pass(&mut self, now: f64) {
        self.virtual_time += (now - self.seen) * self.rate();
        self.seen = now;
    }

    fn slowdown(&self, inside: f64) -> f64 {
        1.0 + self.settings.contention * (inside / self.workers.max(1.0) - 1.5).max(0.0)
    }
}
