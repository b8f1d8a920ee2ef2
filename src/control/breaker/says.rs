//! What is set for breakers, and what they say.

use std::time::Duration;

use tokio::time::Instant;

use super::gate::Trial;
use crate::control::ask::Class;
use crate::control::published::steer::Caps;

/// What is set for the breakers of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// So many requests in a row that find no connection or get no answer.
    pub failures: u32,
    /// How long an endpoint is left out the first time.
    pub shortest: Duration,
    /// And at most.
    pub longest: Duration,
    /// Percent of the endpoints that are left out at once at most; one may always be.
    pub max_out: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { failures: 5, shortest: Duration::from_secs(1), longest: Duration::from_secs(60), max_out: 30 }
    }
}

/// Why a breaker opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection could be made, several times in a row.
    Unreachable,
    /// No connection or no answer, several times in a row.
    Failures,
    /// Too few of its requests succeed.
    Share,
    /// A trial went wrong.
    Trial,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unreachable, Self::Failures, Self::Share, Self::Trial];

    /// The name in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Failures => "failures",
            Self::Share => "share",
            Self::Trial => "trial",
        }
    }
}

/// How a breaker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Requests pass.
    #[default]
    Closed,
    /// None passes for so long.
    Open(Duration),
    /// Trials pass.
    HalfOpen,
}

impl State {
    /// The names of all, in metrics.
    pub const LABELS: [&'static str; 3] = ["closed", "open", "half_open"];

    /// The name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open(_) => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Something that operators want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A breaker has opened.
    Opened {
        /// The endpoint's account; none for the upstream's own.
        account: Option<usize>,
        /// Why.
        cause: Cause,
        /// For how long.
        open: Duration,
    },
    /// Trials pass.
    HalfOpen {
        /// The endpoint's account; none for the upstream's own.
        account: Option<usize>,
    },
    /// A breaker has closed.
    Closed {
        /// The endpoint's account; none for the upstream's own.
        account: Option<usize>,
    },
    /// All endpoints are under suspicion, so those that were left out are back.
    Panicked,
}

/// A request as the breakers know it, kept with its credit.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    pub(super) class: Class,
    pub(super) at: Instant,
    pub(super) endpoint: Option<Trial>,
    pub(super) pool: Option<Trial>,
}

impl Pass {
    /// When it was given out.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// The class of the credit that it began with.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }
}

/// What an account may have at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// By its breaker, or by the upstream's.
    pub breaker: Caps,
    /// By its health check.
    pub check: Caps,
    /// By the rest that it has asked for.
    pub rest: Caps,
}
