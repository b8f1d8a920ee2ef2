//! Clients that do exactly what a test says.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// No step of a client takes longer, or the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that sends and takes bytes when it is told to, and not before.
#[derive(Debug)]
pub(crate) struct Raw<S = TcpStream> {
    stream: S,
    kept: Vec<u8>,
    /// Bytes taken from the socket so far.
    pub(crate) taken: u64,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// A field as text, empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// Breaks off by a reset.
    pub(crate) fn abort(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// A connection that has become a tunnel to the origin's echo.
    pub(crate) async fn tunnel(addr: SocketAddr) -> Self {
        let mut client = Self::connect(addr).await;
        client
            .send("GET /tunnel HTTP/1.1\r\nhost: test.local\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        assert_eq!(client.head().await.0, 101);
        client
    }

    /// A connection whose kernel takes little more than what is read from it.
    pub(crate) async fn connect_small(addr: SocketAddr, receive_buffer: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(receive_buffer).unwrap();
        let stream = socket.connect(addr).await.unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, kept: Vec::new(), taken: 0 }
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("the peer takes the bytes").unwrap();
    }

    /// Sends as much of it as is taken at once.
    pub(crate) async fn send_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes).await
    }

    /// A GET request without a body.
    pub(crate) async fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test.local\r\n\r\n")).await;
    }

    /// Takes what there is, at most 1 KiB; 0 at the end.
    async fn take(&mut self) -> io::Result<usize> {
        let mut part = [0; 1024];
        let count = timeout(PATIENCE, self.stream.read(&mut part)).await.expect("the peer says something")?;
        self.kept.extend_from_slice(&part[..count]);
        self.taken += count as u64;
        Ok(count)
    }

    /// Status and fields of an answer; what follows is kept.
    pub(crate) async fn head(&mut self) -> (u16, HeaderMap) {
        let end = loop {
            if let Some(at) = self.kept.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            let count = self.take().await.unwrap();
            assert!(count > 0, "the connection ended within the head: {:?}", String::from_utf8_lossy(&self.kept));
        };
        let head: Vec<u8> = self.kept.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let fields = lines.map(|line| line.split_once(':').expect("a field"));
        let fields = fields.map(|(name, value)| (name.parse().unwrap(), value.trim().parse().unwrap()));
        (status, HeaderMap::from_iter(fields.collect::<Vec<(http::HeaderName, http::HeaderValue)>>()))
    }

    /// Takes bytes until `text` has come; gives everything up to and with it.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.kept.windows(text.len()).position(|w| w == text.as_bytes()) {
                let part: Vec<u8> = self.kept.drain(..at + text.len()).collect();
                return String::from_utf8_lossy(&part).into_owned();
            }
            let count = self.take().await.unwrap();
            assert!(count > 0, "ended before {text:?}: {:?}", String::from_utf8_lossy(&self.kept));
        }
    }

    /// Exactly so many bytes.
    pub(crate) async fn read_n(&mut self, count: usize) -> Vec<u8> {
        while self.kept.len() < count {
            assert!(self.take().await.unwrap() > 0, "ended after {} of {count} bytes", self.kept.len());
        }
        self.kept.drain(..count).collect()
    }

    /// Exactly so many bytes, or none at a clean end.
    pub(crate) async fn read_n_or_end(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.kept.len() < count {
            if self.take().await.unwrap() == 0 {
                assert!(self.kept.is_empty(), "ended within what was wanted: {:?}", self.kept);
                return None;
            }
        }
        Some(self.kept.drain(..count).collect())
    }

    /// So many bytes, or what there is when the peer closes, in whatever way.
    pub(crate) async fn read_n_or_reset(&mut self, count: usize) -> Vec<u8> {
        while self.kept.len() < count && self.take().await.is_ok_and(|count| count > 0) {}
        let count = count.min(self.kept.len());
        self.kept.drain(..count).collect()
    }

    /// Everything up to the end of the connection; an error when it was reset.
    pub(crate) async fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        while self.take().await? > 0 {}
        Ok(std::mem::take(&mut self.kept))
    }

    /// Whether the peer says nothing for so long.
    pub(crate) async fn is_silent(&mut self, during: Duration) -> bool {
        self.kept.is_empty() && timeout(during, self.take()).await.is_err()
    }

    /// Ends our direction only.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}

/// The body of a request.
pub(crate) type Payload = UnsyncBoxBody<Bytes, io::Error>;

pub(crate) fn empty() -> Payload {
    Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body that the test feeds.
pub(crate) fn channel() -> (Sender<Bytes, io::Error>, Payload) {
    let (sender, body) = Channel::new(1);
    (sender, body.boxed_unsync())
}

/// A request in the form that both versions take: an absolute target.
pub(crate) fn request(method: &str, addr: SocketAddr, path: &str, body: Payload) -> Request<Payload> {
    let uri = format!("http://{addr}{path}");
    Request::builder().method(method).uri(uri).header("host", addr.to_string()).body(body).unwrap()
}

/// The same in the form of HTTP/1.1: a target without authority.
fn plain_request(method: &str, path: &str, body: Payload) -> Request<Payload> {
    Request::builder().method(method).uri(path).header("host", "test.local").body(body).unwrap()
}

/// An HTTP/1.1 connection.
pub(crate) async fn h1(addr: SocketAddr) -> http1::SendRequest<Payload> {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// An HTTP/2 connection by prior knowledge, with windows of `window` bytes a stream.
pub(crate) async fn h2(addr: SocketAddr, window: u32) -> http2::SendRequest<Payload> {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    h2_over(TokioIo::new(stream), window).await
}

/// An HTTP/2 connection over TLS, by ALPN.
pub(crate) async fn h2_tls(addr: SocketAddr, config: ClientConfig) -> http2::SendRequest<Payload> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "ALPN agrees on h2");
    h2_over(TokioIo::new(stream), 1 << 20).await
}

pub(crate) async fn h2_over<I>(io: I, window: u32) -> http2::SendRequest<Payload>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let mut client = http2::Builder::new(TokioExecutor::new());
    client.timer(TokioTimer::new()).initial_stream_window_size(window).initial_connection_window_size(1 << 30);
    let (sender, connection) = client.handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// One GET over HTTP/1.1, whole.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Answer {
    let request = plain_request("GET", path, empty());
    Answer::of(h1(addr).await.send_request(request).await.expect("an answer")).await.expect("a whole body")
}

impl Answer {
    /// Reads an answer to its end.
    pub(crate) async fn of(response: http::Response<hyper::body::Incoming>) -> hyper::Result<Self> {
        let (head, body) = response.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.expect("the body ends")?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status, headers: head.headers, trailers, body: body.to_bytes() })
    }
}
