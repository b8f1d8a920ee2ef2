//! What is set for a queue.

use std::time::Duration;

use super::hand::Hands;

/// Who of those who wait is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Who waited longest; the newest while the queue stands, for it has the most time left.
    #[default]
    Fifo,
    /// The newest.
    Lifo,
    /// By priority: of 13 turns 8 are for critical requests, 4 for default and 1 for background ones.
    Priority,
    /// Whose deadline is the nearest. One without a deadline has that of its wait.
    Deadline,
    /// Whose key has used the least of the service; by priority before that.
    Fair,
}

impl Order {
    /// Whether priorities stand in lines of their own.
    pub(super) fn has_levels(self) -> bool {
        matches!(self, Self::Priority | Self::Fair)
    }
}

/// Who goes when there is no place for one more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DropPolicy {
    /// The one that comes.
    #[default]
    RejectNewest,
    /// Who waited longest.
    RejectOldest,
    /// The newest of the lowest priority.
    RejectLowest,
    /// Who waited longest of the same key; without one, the one that comes.
    ReplaceSameKey,
}

/// Who counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tenancy {
    /// All together.
    #[default]
    One,
    /// Each key by itself.
    Keys,
    /// Keys of which anybody can have as many as he likes, in a fixed number of queues.
    Strangers(Hands),
    /// The same, and none of the queues may have more places or credits than it leaves to the others.
    Partitions(Hands),
}

impl Tenancy {
    pub(super) fn hands(self) -> Option<Hands> {
        match self {
            Self::Strangers(hands) | Self::Partitions(hands) => Some(hands),
            Self::One | Self::Keys => None,
        }
    }
}

/// Bounds, order and policies of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How many may wait; with 0, whoever finds no credit is refused.
    pub max: usize,
    /// Bytes that those who wait may hold together.
    pub max_bytes: usize,
    /// How long one may wait.
    pub timeout: Duration,
    /// Who is next.
    pub order: Order,
    /// Who goes when there is no place.
    pub drop: DropPolicy,
    /// Who counts as one.
    pub tenancy: Tenancy,
    /// Whether those who would wait too long are told early.
    pub sheds: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max: 1024,
            max_bytes: 16 << 20,
            timeout: Duration::from_secs(1),
            order: Order::default(),
            drop: DropPolicy::default(),
            tenancy: Tenancy::default(),
            sheds: true,
        }
    }
}

/// Why one who wanted to wait, or waited, is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dismissal {
    /// There was no place.
    Full,
    /// The queue stands: more comes than is served, and a long wait would help nobody.
    Shed,
    /// Another got its place.
    Dropped,
    /// A newer request of the same key got its place.
    Replaced,
    /// It would be, or has become, too late.
    TooLate,
}
