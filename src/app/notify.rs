//! Tells whoever started the process how it is (`sd_notify`): systemd, or the program that it takes over from.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::UnixDatagram;

/// Where a supervisor listens.
pub(super) const SOCKET: &str = "NOTIFY_SOCKET";
/// Where the supervisor of the program before this one listens, which is this one's after the hand-over.
pub(super) const HEIR: &str = "HEADWORKS_NOTIFY_SOCKET";

/// Whom to tell.
#[derive(Debug)]
pub(super) struct Notifier {
    /// Waits for the first word.
    first: Option<OsString>,
    /// Hears everything that comes later.
    later: Option<OsString>,
}

impl Notifier {
    pub(super) fn from_env() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let (first, heir) = (var(SOCKET), var(HEIR));
        // An heir's own socket goes with the program before it, and an empty name says that there was no supervisor.
        let later = if std::env::var_os(HEIR).is_some() { heir } else { first.clone() };
        Self { first, later }
    }

    /// The supervisor's socket, for an heir.
    pub(super) fn supervisor(&self) -> Option<&OsStr> {
        self.later.as_deref()
    }

    /// Requests are taken for the first time.
    pub(super) fn ready(&self) {
        tell(self.first.as_deref(), "READY=1");
    }

    /// Anything else, in the words of `sd_notify`.
    pub(super) fn say(&self, state: &str) {
        tell(self.later.as_deref(), state);
    }
}

/// A supervisor that does not listen is its own fault, but worth a word.
fn tell(to: Option<&OsStr>, state: &str) {
    if let Some(Err(error)) = to.map(|to| send(to, state)) {
        tracing::warn!(%error, state, "the supervisor cannot be told");
    }
}

fn send(to: &OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = to.as_encoded_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    socket.send_to(state.as_bytes(), to).map(drop)
}
