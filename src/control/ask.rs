//! What a request wants of admission.

use std::num::NonZeroU32;

use tokio::time::Instant;

use crate::context::Priority;

/// The two kinds of credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A request with one answer.
    Unary,
    /// An event stream, an upgrade or a gRPC stream: something that lasts.
    Stream,
}

/// A request as far as admission knows it. Small, for whoever waits keeps one.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Which credit it takes.
    pub class: Class,
    /// When it asked.
    pub at: Instant,
    /// Equal for requests that should go to the same endpoint; none when it does not matter.
    pub affinity: Option<u64>,
    /// The endpoint, by its account, that gets it only when no other has a free credit.
    pub avoid: Option<usize>,
    /// How much it matters.
    pub priority: Priority,
    /// When its answer will be worth nothing any more.
    pub deadline: Option<Instant>,
    /// Equal for requests that count together in the queue, hashed under a secret seed. Zero where nobody wants to know.
    pub tenant: u64,
    /// How much of a fair share is its own, beside that of others.
    pub weight: NonZeroU32,
    /// What it holds while it waits, in bytes.
    pub bytes: usize,
}

impl Ask {
    /// A request that asks for nothing in particular.
    #[must_use]
    pub fn new(class: Class, at: Instant) -> Self {
        Self {
            class,
            at,
            affinity: None,
            avoid: None,
            priority: Priority::default(),
            deadline: None,
            tenant: 0,
            weight: NonZeroU32::MIN,
            bytes: 0,
        }
    }
}
