//! What the configuration says of a limit.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use crate::context::Key;
use crate::control::byte_bucket::ByteBucket;
use crate::control::gcra::{Gcra, Nanos, Room};
use crate::control::surge::Window;
use crate::store;

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// For `RateLimit`, logs and metrics.
    pub name: Arc<str>,
    /// What is counted apart.
    pub by: Key,
    /// What is counted.
    pub cost: Cost,
    /// Requests or bytes per `period`.
    pub amount: NonZeroU64,
    /// One second, minute or hour.
    pub period: Duration,
    /// Requests or bytes that may come at once; the amount of one period when absent in the file.
    pub burst: NonZeroU64,
    /// Keys remembered at most, at 16 bytes each.
    pub max_keys: usize,
    /// Whether it only counts and logs what it would have refused.
    pub dry_run: bool,
    /// Whether all instances with the same store count together. Such a limit counts requests, and is neither raised
    /// nor has top talkers.
    pub shared: bool,
    /// When the rate is higher.
    pub surge: Vec<Window>,
    /// Those who ask most; none when all are equal.
    pub top_talkers: Option<TopTalkers>,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Requests.
    Requests,
    /// Bytes of the requests' bodies, as they are read.
    RequestBytes,
    /// Bytes of the answers' bodies, as they are handed on.
    ResponseBytes,
}

/// Those who ask most, and what they may have when others want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopTalkers {
    /// Who they are told apart by.
    pub by: Key,
    /// How many of them.
    pub count: usize,
    /// Of the rate, for all of them together; below 100.
    pub percent: u8,
}

/// How a bucket is used, in either unit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    Requests(Gcra),
    Bytes(ByteBucket),
}

impl Settings {
    /// What instances count together of a limit of this route.
    pub(super) fn shared_rule(&self, route: &str) -> store::Rule {
        let amount = u32::try_from(self.amount.get()).unwrap_or(u32::MAX);
        store::Rule {
            name: format!("{route}:{}", self.name),
            step: self.period / amount.max(1),
            burst: NonZeroU32::try_from(self.burst).unwrap_or(NonZeroU32::MAX),
            max_keys: self.max_keys,
        }
    }
}

impl Rule {
    /// The rule of the limit itself.
    pub(super) fn new(settings: &Settings) -> Self {
        Self::of(settings, settings.period, settings.burst)
    }

    /// The rule of a share of it.
    pub(super) fn share(settings: &Settings, percent: u8) -> Self {
        let percent = u64::from(percent.max(1));
        let burst = NonZeroU64::new(settings.burst.get() / 100 * percent + settings.burst.get() % 100 * percent / 100);
        let period = settings.period * 100 / u32::try_from(percent).unwrap_or(100);
        Self::of(settings, period, burst.unwrap_or(NonZeroU64::MIN))
    }

    fn of(settings: &Settings, period: Duration, burst: NonZeroU64) -> Self {
        match settings.cost {
            Cost::Requests => {
                let amount = u32::try_from(settings.amount.get()).unwrap_or(u32::MAX);
                let burst = NonZeroU32::try_from(burst).unwrap_or(NonZeroU32::MAX);
                Self::Requests(Gcra::new(period / amount.max(1), burst))
            }
            Cost::RequestBytes | Cost::ResponseBytes => Self::Bytes(ByteBucket::new(settings.amount, period, burst)),
        }
    }

    pub(super) fn room(&self, full_at: Nanos, now: Nanos) -> Room {
        match self {
            Self::Requests(rule) => rule.room(full_at, now),
            Self::Bytes(rule) => rule.room(full_at, now),
        }
    }
}
