//! What is known of one endpoint, and what it costs to ask it.

use std::time::Duration;

use tokio::time::Instant;

use super::PerClass;

/// In seconds, how far back the means look: what is so old counts for the 1/e of a new sample.
const TAU: f64 = 1.0;
/// In seconds, what a failure counts at least.
const FAILURE: f64 = 1.0;
/// No failure counts more, whatever the endpoint asks for.
const LONGEST: Duration = Duration::from_secs(30);
/// In seconds, what the way to an endpoint may take; endpoints that are faster are as good as each other.
const WAY: f64 = 0.001;
/// Part of its share that an endpoint gets which has only just come.
const COLD: f64 = 0.1;

/// What is set for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// How many times the share of an endpoint with a weight of one; never zero.
    pub weight: u32,
    /// Whether it is in the proxy's own zone.
    pub is_near: bool,
    /// Tells it from the others in the choice by key. Equal in every process that knows it by the same address.
    pub identity: u64,
}

impl Default for Member {
    fn default() -> Self {
        Self { weight: 1, is_near: true, identity: 0 }
    }
}

/// What an endpoint did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// The head of an answer came after this time.
    Answered(Duration),
    /// It failed, or had too much to do.
    Failed {
        /// How long that took.
        after: Duration,
        /// What it asks for.
        retry_after: Option<Duration>,
    },
    /// The client left after this time, with no head in sight. It counts up to a second: the client may have spent the
    /// time on its request.
    Left(Duration),
}

/// An endpoint as operators see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Requests that it was chosen for.
    pub requests: u64,
    /// The usual time to a head, failures included; none while nothing is known.
    pub latency: Option<Duration>,
}

/// How well an endpoint does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Health {
    /// Mean share of failures.
    pub(super) failing: f64,
    /// In seconds, the time of an answer and the way; none while nothing is known.
    pub(super) time: Option<f64>,
}

impl Health {
    pub(super) fn is_well(self) -> bool {
        self.failing < 0.5
    }

    /// The better half of each.
    pub(super) fn best(self, other: Self) -> Self {
        let time = match (self.time, other.time) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self { failing: self.failing.min(other.failing), time }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) member: Member,
    pub(super) requests: u64,
    /// What it is ahead of its turn, for each class.
    pub(super) turn: PerClass<f64>,
    /// When it was asked only to see how it is.
    pub(super) tried_at: Option<Instant>,
    /// How many samples the means are of, those of long ago in part.
    samples: f64,
    /// Mean time to a head in seconds.
    estimate: Option<f64>,
    /// Mean share of failures.
    failing: f64,
    learned_at: Option<Instant>,
    cold_since: Option<Instant>,
}

impl Peer {
    pub(super) fn new(member: Member, cold_since: Option<Instant>) -> Self {
        Self {
            member,
            requests: 0,
            turn: PerClass::default(),
            tried_at: None,
            samples: 0.0,
            estimate: None,
            failing: 0.0,
            learned_at: None,
            cold_since,
        }
    }

    pub(super) fn come_back(&mut self, now: Instant) {
        let requests = self.requests;
        *self = Self { requests, ..Self::new(self.member, Some(now)) };
    }

    pub(super) fn learn(&mut self, sample: Sample, now: Instant) {
        let (time, failed) = match sample {
            Sample::Answered(time) => (time.as_secs_f64(), 0.0),
            Sample::Failed { after, retry_after } => {
                let told = after.max(retry_after.unwrap_or_default()).min(LONGEST);
                (told.as_secs_f64().max(FAILURE), 1.0)
            }
            // It would have taken longer still: this is all that a wait without end can tell.
            Sample::Left(time) => {
                let time = time.as_secs_f64().min(FAILURE);
                if self.estimate.is_none_or(|estimate| time <= estimate) {
                    return;
                }
                (time, self.failing)
            }
        };
        let age = self.learned_at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let old = self.samples * (-age / TAU).exp();
        self.samples = old + 1.0;
        self.estimate = Some((self.estimate.unwrap_or_default() * old + time) / self.samples);
        self.failing = (self.failing * old + failed) / self.samples;
        self.learned_at = Some(now);
    }

    /// In seconds; none while nothing is known.
    pub(super) fn estimate(&self) -> Option<f64> {
        self.estimate
    }

    pub(super) fn health(&self) -> Health {
        Health { failing: self.failing, time: self.estimate.map(|time| time + WAY) }
    }

    pub(super) fn is_well(&self) -> bool {
        self.health().is_well()
    }

    /// When it was last known how it is; none when it never was.
    pub(super) fn seen_at(&self) -> Option<Instant> {
        self.learned_at.max(self.tried_at)
    }

    /// What one more request costs beside those that are there, in seconds. `usual` stands for the estimate while there
    /// is none.
    pub(super) fn cost(&self, used: usize, usual: Option<f64>) -> f64 {
        let time = self.estimate.or(usual).unwrap_or_default() + WAY;
        time * (float(used) + 1.0) / f64::from(self.member.weight)
    }

    /// How many times dearer it is for having just come.
    pub(super) fn chill(&self, now: Instant, slow_start: Option<Duration>) -> f64 {
        let (Some(since), Some(slow_start)) = (self.cold_since, slow_start) else { return 1.0 };
        let warm = now.saturating_duration_since(since).as_secs_f64() / slow_start.as_secs_f64();
        // The share grows evenly.
        if warm < 1.0 { 1.0 / (COLD + (1.0 - COLD) * warm) } else { 1.0 }
    }

    pub(super) fn view(&self) -> View {
        // A mean of durations is one.
        let latency = self.estimate.and_then(|time| Duration::try_from_secs_f64(time).ok());
        View { requests: self.requests, latency }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn float(n: usize) -> f64 {
    n as f64
}
