//! A client's socket, of either kind: what differs between TCP and unix sockets is said here and nowhere else.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::snapshot::Limits;

/// A client's socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// With its peer's address: asked for later it may be gone, and a peer without one is taken for a local one.
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// The same call on whichever kind it is.
macro_rules! either {
    ($socket:expr, $inner:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($inner, _) => $call,
            Socket::Unix($inner) => $call,
        }
    };
}

impl Socket {
    /// Who is at the other end; nobody with an address on a unix socket.
    pub(in crate::server) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_, peer) => Some(*peer),
            Self::Unix(_) => None,
        }
    }

    /// The address it was accepted on.
    pub(in crate::server) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket, _) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    pub(super) fn raw(&self) -> SockRef<'_> {
        either!(self, socket => SockRef::from(socket))
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_read_ready(cx))
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_write_ready(cx))
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<tokio::io::Ready> {
        either!(self, socket => socket.ready(interest).await)
    }

    pub(super) fn try_io<R>(&self, interest: Interest, work: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        either!(self, socket => socket.try_io(interest, work))
    }

    /// Reads what is there. Fewer bytes than asked for mean that the socket is empty now, and saying so to tokio
    /// spares the system call that would find it out. That must happen inside `try_io`, which looks at the readiness
    /// before it reads: bytes that come in between are then not forgotten.
    pub(super) fn read_some(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut few = None;
        let result = self.try_io(Interest::READABLE, || {
            let read = io::Read::read(&mut &*self.raw(), buf)?;
            if read > 0 && read < buf.len() {
                few = Some(read);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(read)
        });
        few.map_or(result, Ok)
    }

    /// Waits for bytes and adds them to `seen`, at most 2 KiB; 0 at the end.
    pub(in crate::server) async fn read_more(&self, seen: &mut BytesMut) -> io::Result<usize> {
        loop {
            self.ready(Interest::READABLE).await?;
            match self.append(seen) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    fn append(&self, seen: &mut BytesMut) -> io::Result<usize> {
        let mut buf = [0; 2 * 1024];
        let read = self.read_some(&mut buf)?;
        seen.extend_from_slice(buf.get(..read).unwrap_or_default());
        Ok(read)
    }

    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        either!(self, socket => socket.try_read(buf))
    }

    pub(super) fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        either!(self, socket => socket.try_write(buf))
    }

    pub(super) fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        either!(self, socket => socket.try_write_vectored(bufs))
    }

    /// Ends our direction.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.raw().shutdown(Shutdown::Write)
    }

    /// Makes the coming close a reset: what the client has not taken is thrown away instead of being kept by the
    /// kernel, and it cannot take the cut for a clean end. A unix socket knows no reset: there the close is an end.
    pub(super) fn reset_on_close(&self) {
        if let Self::Tcp(socket, _) = self {
            drop(SockRef::from(socket).set_linger(Some(Duration::ZERO)));
        }
    }

    /// Sets the options that a served connection wants. They are wishes: where one is refused the connection still
    /// works.
    pub(in crate::server) fn prepare(&self, limits: Limits) {
        match self {
            Self::Tcp(socket, _) => prepare_tcp(&SockRef::from(socket), limits),
            // Its send buffer is the peer's receive buffer: without a bound a stall would show late.
            Self::Unix(socket) => drop(SockRef::from(socket).set_send_buffer_size(limits.buffer)),
        }
    }
}

fn prepare_tcp(raw: &SockRef<'_>, limits: Limits) {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    drop(raw.set_tcp_nodelay(true));
    drop(raw.set_tcp_keepalive(&keepalive));
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Without it the kernel takes megabytes for a client that reads nothing, and a stall shows minutes late.
        drop(raw.set_tcp_notsent_lowat(u32::try_from(limits.buffer).unwrap_or(u32::MAX)));
        // Longer than any stall, since the kernel counts a closed window as well.
        drop(raw.set_tcp_user_timeout(Some((limits.longest_stall * 2).max(Duration::from_secs(60)))));
    }
}
