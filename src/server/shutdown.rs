//! When connections must end.

use tokio_util::sync::CancellationToken;

/// When to end: first politely, then at once.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Serve what is under way, and nothing new.
    pub(super) drain: CancellationToken,
    /// The grace is over.
    pub(super) cut: CancellationToken,
}
