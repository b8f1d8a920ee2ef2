//! What a request wants of admission.

use tokio::time::Instant;

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
}

impl Ask {
    /// A request that asks for nothing in particular.
    #[must_use]
    pub fn new(class: Class, at: Instant) -> Self {
        Self { class, at, affinity: None, avoid: None }
    }
}
