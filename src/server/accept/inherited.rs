//! Listening sockets that were there when the process began: those of systemd, or of the program that this one takes
//! over from.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, MutexGuard, PoisonError};

use listenfd::ListenFd;

use super::bind::{Listening, WITH_FILE};
use crate::config::ListenAddress;

/// See the module's text. Each is taken once.
#[derive(Debug, Default)]
pub struct Inherited(Mutex<Vec<Socket>>);

#[derive(Debug)]
struct Socket {
    /// Its name in `LISTEN_FDNAMES`.
    name: String,
    address: ListenAddress,
    listener: Listener,
    /// Whether the file of a unix socket is ours to remove.
    with_file: bool,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Inherited {
    /// Takes what `LISTEN_FDS` tells of, and takes that out of the environment: to be called while the process has one
    /// thread. What is no listening socket of ours to have is left alone.
    #[must_use]
    pub fn from_env() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut fds = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..fds.len() {
            let name = names.next().unwrap_or_default();
            let (name, with_file) = match name.strip_suffix(WITH_FILE) {
                Some(name) => (name.to_owned(), true),
                None => (name, false),
            };
            let found = match fds.take_tcp_listener(index) {
                Ok(Some(listener)) => {
                    listener.local_addr().ok().map(|at| (ListenAddress::Tcp(at), Listener::Tcp(listener)))
                }
                _ => fds.take_unix_listener(index).ok().flatten().and_then(|listener| {
                    let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
                    Some((ListenAddress::Unix(path), Listener::Unix(listener)))
                }),
            };
            if let Some((address, listener)) = found {
                sockets.push(Socket { name, address, listener, with_file });
            }
        }
        Self(Mutex::new(sockets))
    }

    /// The socket that is bound to this address. One that the system has chosen the port of is known by its name and its
    /// host: what is meant for this machine alone must not be open to others.
    pub(crate) fn take(&self, address: &ListenAddress, name: &str) -> Option<Listening> {
        let mut sockets = self.sockets();
        let is_it = |socket: &Socket| {
            socket.address == *address || (socket.name == name && is_any_port_of(address, &socket.address))
        };
        let at = sockets.iter().position(is_it)?;
        let Socket { address, listener, with_file, .. } = sockets.remove(at);
        drop(sockets);
        let taken = match (listener, address) {
            (Listener::Tcp(listener), _) => Listening::adopt_tcp(listener),
            (Listener::Unix(listener), ListenAddress::Unix(path)) => Listening::adopt_unix(listener, &path, with_file),
            (Listener::Unix(_), ListenAddress::Tcp(_)) => return None,
        };
        taken.inspect_err(|error| tracing::warn!(%name, %error, "an inherited socket cannot be used")).ok()
    }

    /// Closes what nobody has taken, and says so.
    pub fn close_rest(&self) {
        for Socket { name, address, .. } in self.sockets().drain(..) {
            tracing::warn!(%address, %name, "an inherited socket is closed: no listener has its address");
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_any_port_of(wanted: &ListenAddress, bound: &ListenAddress) -> bool {
    match (wanted, bound) {
        (ListenAddress::Tcp(wanted), ListenAddress::Tcp(bound)) => wanted.port() == 0 && wanted.ip() == bound.ip(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_without_a_port_of_its_own_is_known_by_its_name_and_host() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = ListenAddress::Tcp(listener.local_addr().unwrap());
        let socket = Socket { name: "admin".into(), address, listener: Listener::Tcp(listener), with_file: false };
        let inherited = Inherited(Mutex::new(vec![socket]));
        let take = |host: &str, name| inherited.take(&ListenAddress::Tcp(host.parse().unwrap()), name).is_some();
        assert!(!take("127.0.0.1:0", "admin"), "it would be open to other machines");
        assert!(!take("0.0.0.0:0", "web"));
        assert!(take("0.0.0.0:0", "admin"));
    }
}
