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

impl Shutdown {
    /// The end of a part, which may come before that of the whole and comes with it at the latest.
    #[must_use]
    pub(super) fn part(&self) -> Self {
        Self { drain: self.drain.child_token(), cut: self.cut.clone() }
    }
}
