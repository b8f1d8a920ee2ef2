//! What an upstream says of its own load, and what that means for its credits. The contract with services is
//! `docs/capacity.md`.
//!
//! | file | does |
//! |---|---|
//! | `fields.rs` | finds reports in a head or in trailers, and takes them out |
//! | `orca.rs` | reads the three forms of an ORCA load report, and writes one |
//! | `wire.rs` | base64 and protobuf, as far as a load report needs them |
//! | `agent.rs` | reads the answer of an agent that is polled |
//! | `steer.rs` | makes credits of the reports of one endpoint |
//! | `heard.rs` | the same for all endpoints of an upstream, as caps on their credits |
//!
//! A report is a stranger's word: its length and its parts are bounded, and what cannot be read is left out, whole.

pub mod agent;
pub mod fields;
pub mod heard;
pub mod orca;
pub mod steer;
pub(super) mod wire;

use std::fmt;
use std::time::Duration;

/// A report is no longer than this, in bytes.
pub const MOST_BYTES: usize = 4096;
/// A report has no more parts than these.
const MOST_PARTS: usize = 64;
/// A queue that is longer says nothing more.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);
/// More credits than anybody has.
const MOST_CREDITS: f64 = 1e6;

/// What an upstream says of its load. What it does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// Requests that it wants in flight from this proxy.
    pub credit: Option<usize>,
    /// How long requests wait inside before they are worked on.
    pub queue_delay: Option<Duration>,
    /// How much of it is in use, not negative; above 1 it has more to do than it can.
    pub utilization: Option<f64>,
    /// Requests a second that it serves.
    pub rps: Option<f64>,
}

impl LoadReport {
    /// Whether there is anything in it that credits can be made of.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.credit.is_none() && self.queue_delay.is_none() && self.utilization.is_none()
    }

    /// What this one does not say is taken from `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            credit: self.credit.or(other.credit),
            queue_delay: self.queue_delay.or(other.queue_delay),
            utilization: self.utilization.or(other.utilization),
            rps: self.rps.or(other.rps),
        }
    }
}

/// Whoever knows how much something has to do.
pub trait Pressure: fmt::Debug + Send + Sync {
    /// What is to be said of it at the moment, with an answer that lasts or with one that does not.
    fn pressure(&self, is_stream: bool) -> LoadReport;
}

/// The form in which a report came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// ORCA, as pairs of text.
    Text,
    /// ORCA, as JSON.
    Json,
    /// ORCA, as protobuf.
    Binary,
    /// The fields of headworks.
    Plain,
    /// The answer of an agent.
    Agent,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Text, Self::Json, Self::Binary, Self::Plain, Self::Agent];

    /// The name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Text => "orca_text",
            Self::Json => "orca_json",
            Self::Binary => "orca_binary",
            Self::Plain => "plain",
            Self::Agent => "agent",
        }
    }
}

/// Why a report cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub &'static str);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A number as text: finite, in the notation of JSON or C.
fn number(text: &str) -> Result<f64, Fault> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or(Fault("a value that is no finite number"))
}

fn not_negative(number: f64) -> Result<f64, Fault> {
    // Zero has no sign here.
    if number >= 0.0 { Ok(number.abs()) } else { Err(Fault("a negative value")) }
}

fn millis(number: f64) -> Result<Duration, Fault> {
    let seconds = not_negative(number)? / 1e3;
    Ok(Duration::try_from_secs_f64(seconds).map_or(LONGEST_DELAY, |delay| delay.min(LONGEST_DELAY)))
}

fn credits(number: f64) -> Result<usize, Fault> {
    Ok(whole(not_negative(number)?.min(MOST_CREDITS)))
}

/// A part of so many, and one at least unless the part is none.
#[expect(clippy::cast_precision_loss, reason = "credits are far below 2^52")]
fn part(of: usize, part: f64) -> usize {
    whole((of as f64 * part).ceil())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "credits are small and not negative")]
fn whole(number: f64) -> usize {
    number as usize
}
