//! Listening sockets that were there when the process began: those of systemd, or of the program that this one takes
//! over from.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, MutexGuard, PoisonError};

use listenfd::ListenFd;

use super::bind::Listening;
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
                sockets.push(Socket { name, address, listener });
            }
        }
        Self(Mutex::new(sockets))
    }

    /// The socket that is bound to this address. One that the system has chosen the port of is known by its name.
    pub(crate) fn take(&self, address: &ListenAddress, name: &str) -> Option<Listening> {
        let mut sockets = self.sockets();
        let is_it = |socket: &Socket| {
            socket.address == *address || (address.is_any_port() && socket.name == name && socket.is_tcp())
        };
        let at = sockets.iter().position(is_it)?;
        let Socket { address, listener, .. } = sockets.remove(at);
        drop(sockets);
        let taken = match (listener, address) {
            (Listener::Tcp(listener), _) => Listening::adopt_tcp(listener),
            (Listener::Unix(listener), ListenAddress::Unix(path)) => Listening::adopt_unix(listener, &path),
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

impl Socket {
    fn is_tcp(&self) -> bool {
        matches!(self.listener, Listener::Tcp(_))
    }
}
