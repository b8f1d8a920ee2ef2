//! The byte streams that connections to endpoints run over.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// A stream to an endpoint.
pub(super) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// A socket that an endpoint may stop reading without losing its answer.
///
/// A server that refuses an upload answers early and closes. The write that then fails would make hyper throw the
/// answer away, although it is there to be read. So a broken write side only falls silent: the read side decides
/// what became of the request, and it always hears of a peer that is gone.
pub(super) struct Socket {
    inner: Inner,
    write_broken: bool,
    read_ended: bool,
}

enum Inner {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self { inner: Inner::Tcp(stream), write_broken: false, read_ended: false }
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self { inner: Inner::Unix(stream), write_broken: false, read_ended: false }
    }
}

macro_rules! each {
    ($on:expr, $kind:ident { $($variant:ident)|* }, $stream:ident => $call:expr) => {
        match $on { $($kind::$variant($stream) => { let $stream = Pin::new($stream); $call })* }
    };
}

impl Socket {
    fn tolerate<T>(&mut self, result: io::Result<T>) -> Poll<io::Result<T>> {
        match result {
            Err(error) if !self.read_ended && is_broken(&error) => {
                self.write_broken = true;
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }
}

fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = ready!(each!(&mut this.inner, Inner { Tcp | Unix }, stream => stream.poll_read(cx, buf)));
        this.read_ended |= result.is_err() || (buf.filled().len() == before && buf.remaining() > 0);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_broken && !this.read_ended {
            return Poll::Pending;
        }
        let result = ready!(each!(&mut this.inner, Inner { Tcp | Unix }, stream => stream.poll_write(cx, buf)));
        this.tolerate(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_broken && !this.read_ended {
            return Poll::Pending;
        }
        let result =
            ready!(each!(&mut this.inner, Inner { Tcp | Unix }, stream => stream.poll_write_vectored(cx, bufs)));
        this.tolerate(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.get_mut().inner, Inner { Tcp | Unix }, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.write_broken {
            return Poll::Ready(Ok(()));
        }
        each!(&mut this.inner, Inner { Tcp | Unix }, stream => stream.poll_shutdown(cx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Self { Plain | Tls }, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Self { Plain | Tls }, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Self { Plain | Tls }, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Self { Plain | Tls }, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Self { Plain | Tls }, stream => stream.poll_shutdown(cx))
    }
}
