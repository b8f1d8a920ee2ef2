//! Opens listening sockets. A unix socket's file is replaced when nobody answers on it, and removed with its listener.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::config::{self, ListenAddress};
use crate::server::connection::socket::Socket;

/// Connections that wait in the kernel to be accepted; the system may allow fewer.
const BACKLOG: u32 = 1024;

/// Marks the name of a unix socket that is handed over together with its file. Without it the file is the supervisor's,
/// who listens there when this process is gone. No listener's name ends so.
pub(super) const WITH_FILE: &str = "+file";

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listening {
    /// Opens what the settings say.
    pub(super) fn open(settings: &config::Listener) -> io::Result<Self> {
        match &settings.address {
            ListenAddress::Tcp(address) => open_tcp(*address, settings.reuse_port).map(Self::Tcp),
            address @ ListenAddress::Unix(_) => Self::at(address, settings.mode),
        }
    }

    /// Listens at an address; `mode` is for a unix socket.
    pub(crate) fn at(address: &ListenAddress, mode: u32) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => open_tcp(*address, false).map(Self::Tcp),
            ListenAddress::Unix(path) => {
                let listener = open_unix(path, mode)?;
                Ok(Self::Unix(listener, SocketFile::of(path)?))
            }
        }
    }

    /// Takes over a socket that is listening already.
    pub(super) fn adopt_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Self::Tcp)
    }

    /// The same, with its file, which goes with it if it is ours.
    pub(super) fn adopt_unix(
        listener: std::os::unix::net::UnixListener,
        path: &Path,
        is_ours: bool,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let file = SocketFile::of(path)?;
        file.ours.store(is_ours, Relaxed);
        Ok(Self::Unix(UnixListener::from_std(listener)?, file))
    }

    /// Another descriptor of the same socket, for another process, with the name that it goes by there.
    pub(crate) fn handed(&self, name: &str) -> io::Result<(String, OwnedFd)> {
        match self {
            Self::Tcp(listener) => Ok((name.to_owned(), listener.as_fd().try_clone_to_owned()?)),
            Self::Unix(listener, file) => {
                let mark = if file.is_ours() { WITH_FILE } else { "" };
                Ok((format!("{name}{mark}"), listener.as_fd().try_clone_to_owned()?))
            }
        }
    }

    /// Waits for a client.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(socket, peer)| Socket::Tcp(socket, peer)),
            Self::Unix(listener, _) => listener.accept().await.map(|(socket, _)| Socket::Unix(socket)),
        }
    }

    /// Where it listens; tells the port that the system chose for port 0.
    pub(crate) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(_, file) => Ok(ListenAddress::Unix(file.path.clone())),
        }
    }

    /// Takes over what may change while it is open: the permissions of a unix socket.
    pub(super) fn adjust(&self, settings: &config::Listener) {
        if let Self::Unix(_, file) = self
            && file.is_ours()
        {
            drop(fs::set_permissions(&file.path, fs::Permissions::from_mode(settings.mode)));
        }
    }

    /// Leaves the file of a unix socket in its place at the end: another process listens on it too.
    pub(crate) fn keep_file(&self) {
        if let Self::Unix(_, file) = self {
            file.ours.store(false, Relaxed);
        }
    }
}

fn open_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if reuse_port {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn open_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path)? => {
            fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    // Nobody can connect before `listen`, so the socket is never more open than it should be.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

/// Whether the file is a socket that nobody listens on.
fn is_stale(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    // A full backlog would make a blocking call wait.
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    Ok(socket.connect(&SockAddr::unix(path)?).is_err_and(refused))
}

/// The file of a unix socket, removed when its listener goes, unless it is somebody else's.
pub(crate) struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
    ours: AtomicBool,
}

impl SocketFile {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: identity(path)?, ours: AtomicBool::new(true) })
    }

    fn is_ours(&self) -> bool {
        self.ours.load(Relaxed) && identity(&self.path).is_ok_and(|id| id == self.id)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl fmt::Debug for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SocketFile").field(&self.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as StdUnixStream;

    fn settings(path: &Path, mode: u32) -> config::Listener {
        let text = format!("[server]\nlisten = \"unix:{}\"\n[[route]]\nrespond = {{}}\n", path.display());
        let config = config::parse(&text, "x.toml", Path::new("")).expect("a configuration");
        config::Listener { mode, ..config.server.listeners[0].clone() }
    }

    #[tokio::test]
    async fn the_file_lives_as_long_as_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listening = Listening::open(&settings(&path, 0o640)).unwrap();
        assert_eq!(listening.address().unwrap(), ListenAddress::Unix(path.clone()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        listening.adjust(&settings(&path, 0o600));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = StdUnixStream::connect(&path).unwrap();
        assert!(matches!(listening.accept().await, Ok(Socket::Unix(_))));
        drop(listening);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_answers_on_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listening::open(&settings(&path, 0o600)).expect("a stale file is replaced");
        let error = Listening::open(&settings(&path, 0o600)).expect_err("somebody answers");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(StdUnixStream::connect(&path).is_ok(), "the first is still there");

        // Another process has taken the place: its file is not ours to remove.
        fs::remove_file(&path).unwrap();
        let other = Listening::open(&settings(&path, 0o600)).unwrap();
        drop(first);
        assert!(StdUnixStream::connect(&path).is_ok());
        other.keep_file();
        drop(other);
        assert!(path.exists(), "it was handed over");

        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        let error = Listening::open(&settings(&path, 0o600)).expect_err("no socket");
        assert_eq!(error.to_string(), "there is a file that is no socket");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
