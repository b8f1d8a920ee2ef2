//! What an accept loop does when nothing can be accepted: it neither ends nor spins, and clients are not left hanging.

use std::fs::File;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

/// How long to wait when the process is out of descriptors or memory: some connection must end first.
const PAUSE: Duration = Duration::from_millis(50);
/// The log is told once in this time.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A listener's shortage of descriptors, with one that it keeps back for it.
///
/// For a moment a shortage is waited out: clients wait in the backlog. When it lasts, the spare descriptor is given up
/// for just as long as it takes to accept one client and close it again, so that it can go elsewhere.
#[derive(Debug)]
pub(super) struct Shortage {
    spare: Option<File>,
    /// Whether the last attempt failed too.
    lasts: bool,
    said: Option<Instant>,
    unsaid: u64,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connection that would have been accepted; the next is another.
    Connection,
    /// The process or the system.
    Everything,
}

impl Trouble {
    pub(super) fn of(error: &io::Error) -> Self {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
            PermissionDenied, TimedOut,
        };
        match error.kind() {
            // Linux hands on what is wrong with the new connection, a firewall's word included.
            ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkDown | NetworkUnreachable
            | PermissionDenied | TimedOut => Self::Connection,
            _ => Self::Everything,
        }
    }
}

impl Shortage {
    pub(super) fn new() -> Self {
        Self { spare: spare(), lasts: false, said: None, unsaid: 0 }
    }

    /// Something was accepted.
    pub(super) fn is_over(&mut self) {
        self.lasts = false;
        if self.spare.is_none() {
            self.spare = spare();
        }
    }

    /// Whether a client is to be accepted with the descriptor that this gives up, and closed: when the shortage has
    /// outlasted a pause.
    pub(super) fn gives_up(&mut self) -> bool {
        std::mem::replace(&mut self.lasts, true) && self.spare.take().is_some()
    }

    /// Waits for some connection to end.
    pub(super) async fn pause() {
        tokio::time::sleep(PAUSE).await;
    }

    /// Takes the spare descriptor back.
    pub(super) fn refill(&mut self) {
        self.spare = spare();
    }

    /// How many failures the log is to be told of now; none when it was told a moment ago.
    pub(super) fn speak(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        if self.said.is_some_and(|said| now < said + SAY_EVERY) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_turned_away_only_when_the_shortage_lasts() {
        let mut shortage = Shortage::new();
        assert!(!shortage.gives_up(), "it may be over in a moment");
        assert!(shortage.gives_up());
        assert!(!shortage.gives_up(), "the spare is out");
        shortage.refill();
        assert!(shortage.gives_up());
        shortage.is_over();
        assert!(!shortage.gives_up());
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_is_told_at_a_bounded_rate_and_nothing_is_left_out() {
        let mut shortage = Shortage::new();
        let mut said = Vec::new();
        for _ in 0..1000 {
            said.extend(shortage.speak(Instant::now()));
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        assert_eq!(said, [1, 200, 200, 200, 200]);
    }

    #[test]
    fn one_connections_failure_is_its_own() {
        assert_eq!(Trouble::of(&io::ErrorKind::ConnectionAborted.into()), Trouble::Connection);
        assert_eq!(Trouble::of(&io::Error::from_raw_os_error(24)), Trouble::Everything);
        assert_eq!(Trouble::of(&io::Error::from_raw_os_error(12)), Trouble::Everything);
    }
}
