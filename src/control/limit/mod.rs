//! How many credits an endpoint should have: fixed, or found by measuring.
//!
//! | file | does |
//! |---|---|
//! | `knee.rs` | steers the limit to where more requests would only wait inside the service |
//! | `cohort.rs` | groups of requests that are judged together, by the state in which they *started* |
//! | `baseline.rs` | how long an answer takes when the service is not crowded |
//! | `dip.rs` | when the limit is lowered for a moment to see that |
//! | `ghosts.rs` | requests that were given up here and may still be worked on there |
//!
//! A [`Window`] is told when a request starts, when it ends and when the queue changes, and says how many credits there
//! are. It knows no credit, no queue and no clock.

mod baseline;
mod cohort;
mod dip;
mod ghosts;
mod knee;

use std::time::Duration;

use tokio::time::Instant;

use ghosts::Ghosts;
use knee::Knee;

/// What is set for the window of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// Always the same number.
    Fixed(usize),
    /// Found by measuring.
    Adaptive(Bounds),
}

impl Settings {
    /// The limit before anything is known.
    #[must_use]
    pub fn initial(self) -> usize {
        match self {
            Self::Fixed(limit) => limit,
            Self::Adaptive(bounds) => bounds.initial.min(bounds.max).max(bounds.min),
        }
    }
}

/// What an adaptive window keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Never fewer credits, other than for requests that were given up.
    pub min: usize,
    /// Never more credits.
    pub max: usize,
    /// Credits before anything is known.
    pub initial: usize,
}

impl Default for Bounds {
    /// Eight finds 64 workers within seconds, and does not drown a service that has four.
    fn default() -> Self {
        Self { min: 2, max: 10_000, initial: 8 }
    }
}

/// How a request ended, and how long the service took. That time is without what client or proxy held it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, or the head of one that lasts.
    Answered(Duration),
    /// An answer that admits a fault of the service.
    Failed(Duration),
    /// The service says, or shows by silence, that it has too much to do.
    Overloaded {
        /// It may still be working on the request.
        is_abandoned: bool,
    },
    /// The client left after this time; the service may still be working on the request.
    Left(Duration),
    /// Nothing was learned about the service.
    Unknown,
}

/// A request under way, as the window knows it.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    at: Instant,
    cohort: u32,
    /// The time to its head, once that is there.
    head: Option<Duration>,
}

impl Start {
    /// When it started.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }
}

/// What can be said about a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// The limit that has been found, or is fixed.
    pub found: usize,
    /// Credits that are withheld for requests that were given up.
    pub ghosts: usize,
    /// The limit is lowered for a moment to measure.
    pub is_measuring: bool,
    /// How long an uncrowded answer takes; none while unknown, or when nothing is measured.
    pub baseline: Option<Duration>,
}

/// The number of credits of one endpoint.
#[derive(Debug)]
pub struct Window(Kind);

#[derive(Debug)]
enum Kind {
    Fixed(usize),
    Adaptive(Box<Adaptive>),
}

#[derive(Debug)]
struct Adaptive {
    /// Times inside are seconds since this moment: all that is done with them is arithmetic.
    epoch: Instant,
    knee: Knee,
    ghosts: Ghosts,
}

impl Window {
    /// A window that knows nothing yet. `unix` is the time of day at `now`: proxies that share a service measure
    /// together, since a moment's rest that only one of them gives is no rest.
    #[must_use]
    pub fn new(settings: Settings, now: Instant, unix: Duration) -> Self {
        Self(match settings {
            Settings::Fixed(limit) => Kind::Fixed(limit),
            Settings::Adaptive(bounds) => Kind::Adaptive(Box::new(Adaptive {
                epoch: now,
                knee: Knee::new(bounds, unix.as_secs_f64()),
                ghosts: Ghosts::default(),
            })),
        })
    }

    /// Takes other settings and keeps what was learned, as far as it fits.
    pub fn apply(&mut self, settings: Settings, now: Instant, unix: Duration) {
        match (&mut self.0, settings) {
            (Kind::Adaptive(adaptive), Settings::Adaptive(bounds)) => adaptive.knee.set_bounds(bounds),
            _ => *self = Self::new(settings, now, unix),
        }
    }

    /// How many requests may be in flight, those not counted that were given up.
    #[must_use]
    pub fn limit(&self) -> usize {
        match &self.0 {
            Kind::Fixed(limit) => *limit,
            Kind::Adaptive(adaptive) => adaptive.limit(),
        }
    }

    /// Whether starts and ends have to be told.
    #[must_use]
    pub fn is_adaptive(&self) -> bool {
        matches!(self.0, Kind::Adaptive(_))
    }

    /// For operators.
    #[must_use]
    pub fn view(&self) -> View {
        match &self.0 {
            Kind::Fixed(limit) => View { found: *limit, ghosts: 0, is_measuring: false, baseline: None },
            Kind::Adaptive(adaptive) => View {
                found: adaptive.knee.found(),
                ghosts: adaptive.ghosts.count(),
                is_measuring: adaptive.knee.is_measuring(),
                baseline: adaptive.knee.baseline().map(Duration::from_secs_f64),
            },
        }
    }

    /// A request starts; `in_flight` counts it. Ask [`Window::limit`] afterwards, as after each of the following.
    pub fn on_start(&mut self, now: Instant, in_flight: usize) -> Start {
        let cohort = match &mut self.0 {
            Kind::Fixed(_) => cohort::NONE,
            Kind::Adaptive(adaptive) => {
                let (all, seconds) = (in_flight + adaptive.ghosts.count(), adaptive.seconds(now));
                if in_flight > adaptive.limit() {
                    adaptive.knee.on_excess(seconds);
                }
                adaptive.knee.on_start(seconds, all)
            }
        };
        Start { at: now, cohort, head: None }
    }

    /// The answer begins, after `latency`; its end may keep us waiting.
    pub fn on_head(&mut self, start: &mut Start, latency: Duration) {
        if let Kind::Adaptive(adaptive) = &mut self.0 {
            start.head = Some(latency);
            adaptive.knee.on_head(start.cohort, latency.as_secs_f64());
        }
    }

    /// What there is to learn from a request is known: its answer is over, or has turned out to last.
    pub fn on_end(&mut self, now: Instant, start: Start, outcome: Outcome) {
        let Kind::Adaptive(adaptive) = &mut self.0 else { return };
        let now = adaptive.seconds(now);
        let started = adaptive.seconds(start.at);
        adaptive.knee.on_end(now, start.cohort, start.head.map(|head| head.as_secs_f64()), outcome);
        match outcome {
            Outcome::Answered(latency) | Outcome::Failed(latency) => {
                adaptive.ghosts.on_answer(started, latency.as_secs_f64());
            }
            // Once its answer has begun, a service notices that nobody reads on.
            Outcome::Left(_) | Outcome::Overloaded { is_abandoned: true } if start.head.is_none() => {
                adaptive.ghosts.on_abandoned(started, adaptive.knee.found());
            }
            Outcome::Left(_) | Outcome::Overloaded { .. } | Outcome::Unknown => {}
        }
    }

    /// What is in flight or waits has changed, or time has passed.
    pub fn on_change(&mut self, now: Instant, in_flight: usize, waiting: usize) {
        let Kind::Adaptive(adaptive) = &mut self.0 else { return };
        let now = adaptive.seconds(now);
        adaptive.knee.on_change(now, in_flight + adaptive.ghosts.count(), waiting);
        adaptive.ghosts.on_change(now, in_flight, waiting, adaptive.knee.limit());
    }
}

impl Adaptive {
    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.epoch).as_secs_f64()
    }

    fn limit(&self) -> usize {
        self.ghosts.leave_of(self.knee.limit())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn float(n: usize) -> f64 {
    n as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "limits are small and not negative")]
fn whole(x: f64) -> usize {
    x as usize
}
