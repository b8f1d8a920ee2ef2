//! Scripted peers for the tests of this folder.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::body::Body;
use crate::context::{Request, Response};
use crate::error::ProxyError;

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Far above what a cancel takes, a few milliseconds, and far below every time-out in the tests: a busy machine must
/// not fail what is right.
pub(super) const PROMPT: Duration = Duration::from_secs(2);

/// Bounds whatever a test waits for.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("done in time")
}

/// Waits for a condition.
pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

impl Client {
    /// Sends a request that nobody needs afterwards.
    pub(super) async fn ask(&self, mut request: Request, first_byte: Option<Duration>) -> Result<Response, ProxyError> {
        self.send(&mut request, first_byte).await
    }
}

/// An endpoint whose answers the test writes.
pub(super) struct Peer {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
}

impl Peer {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        Self { listener, address }
    }

    pub(super) fn settings(&self, scheme: Scheme) -> Settings {
        let authority = Authority::try_from(self.address.to_string()).expect("an authority");
        settings(Address::Tcp { authority, scheme })
    }

    pub(super) fn client(&self) -> Arc<Client> {
        client(&self.settings(Scheme::Http))
    }

    pub(super) async fn accept_stream(&self) -> TcpStream {
        let (stream, _) = soon(self.listener.accept()).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    pub(super) async fn accept(&self) -> Line {
        Line::new(self.accept_stream().await)
    }
}

pub(super) fn settings(address: Address) -> Settings {
    Settings {
        name: Arc::from("test"),
        endpoints: vec![EndpointSettings::new("peer", address)],
        protocol: Protocol::Auto,
        host: HostPolicy::Keep,
        zone: None,
        balance: Balance::default(),
        limit: Limit::default(),
        published: Published::default(),
        queue: Queue::default(),
        breaker: None,
        health: None,
        timeout: Timeouts { connect: Duration::from_secs(5), ..Timeouts::default() },
        retry: Retry::default(),
        pool: Pool { idle_timeout: Duration::from_secs(30), ..Pool::default() },
        tls: Tls::default(),
        buffer: 64 * 1024,
    }
}

pub(super) fn client(settings: &Settings) -> Arc<Client> {
    Client::new(settings, &settings.endpoints[0]).expect("usable settings")
}

/// The peer's end of an HTTP/1.1 connection, in plain text.
pub(super) struct Line<S = TcpStream> {
    pub(super) stream: S,
    unread: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    /// The next request's head, and its body as far as `content-length` tells; none at the end.
    pub(super) async fn request(&mut self) -> Option<String> {
        soon(async {
            loop {
                if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                    let head = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    let whole = end + 4 + length.unwrap_or(0);
                    if self.unread.len() >= whole {
                        let request = self.unread.drain(..whole).collect();
                        return String::from_utf8(request).ok();
                    }
                }
                match self.stream.read_buf(&mut self.unread).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    pub(super) async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("the client reads");
    }

    /// Waits until the client has closed; whatever it still says is read over.
    pub(super) async fn closed(&mut self) {
        while self.request().await.is_some() {}
    }
}

pub(super) fn get(path: &str) -> Request {
    http::Request::get(path).header("host", "service.test").body(Body::empty()).expect("a request")
}

pub(super) fn post(path: &str, body: Body) -> Request {
    http::Request::post(path).header("host", "service.test").body(body).expect("a request")
}

/// Sends a request and reads the answer to its end.
pub(super) async fn call(client: &Arc<Client>, request: Request) -> Result<String, ProxyError> {
    let response = soon(client.ask(request, None)).await?;
    Ok(read(response).await)
}

pub(super) async fn read(response: Response) -> String {
    let body = soon(response.into_body().collect()).await.expect("a whole body").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in HPACK's static table.
const STATUS_200: u8 = 0x88;
const MAX_CONCURRENT_STREAMS: u8 = 3;

/// The peer's end of an h2 connection, frame by frame: what a well-behaved library would never send can be sent too.
pub(super) struct Frames<S = TcpStream> {
    stream: S,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    pub(super) fn ends_stream(&self) -> bool {
        self.flags & END_STREAM != 0
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Reads the client's preface and allows `streams` at once.
    pub(super) async fn new(mut stream: S, streams: u32) -> Self {
        let mut preface = [0; 24];
        soon(stream.read_exact(&mut preface)).await.expect("a preface");
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut frames = Self { stream };
        frames.allow(streams).await;
        frames
    }

    /// Tells the client how many streams may be open.
    pub(super) async fn allow(&mut self, streams: u32) {
        let mut setting = vec![0, MAX_CONCURRENT_STREAMS];
        setting.extend(streams.to_be_bytes());
        self.write(SETTINGS, 0, 0, &setting).await;
    }

    pub(super) async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).expect("a small frame").to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await.expect("the client reads");
    }

    /// The next frame; none at the end of the connection.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of this kind; all others are read over.
    pub(super) async fn next(&mut self, kind: u8) -> Option<Frame> {
        soon(async {
            loop {
                let frame = self.frame().await?;
                if frame.kind == kind {
                    return Some(frame);
                }
            }
        })
        .await
    }

    /// The stream of the next request.
    pub(super) async fn request(&mut self) -> Option<u32> {
        self.next(HEADERS).await.map(|frame| frame.stream)
    }

    /// Answers 200 without a body.
    pub(super) async fn answer(&mut self, stream: u32) {
        self.write(HEADERS, END_HEADERS | END_STREAM, stream, &[STATUS_200]).await;
    }

    /// Answers 200 and leaves the body open.
    pub(super) async fn begin(&mut self, stream: u32) {
        self.write(HEADERS, END_HEADERS, stream, &[STATUS_200]).await;
    }

    pub(super) async fn reset(&mut self, stream: u32, reason: u32) {
        self.write(RST_STREAM, 0, stream, &reason.to_be_bytes()).await;
    }

    /// Serves nothing after the stream `last`.
    pub(super) async fn go_away(&mut self, last: u32, reason: u32) {
        let payload = [last.to_be_bytes(), reason.to_be_bytes()].concat();
        self.write(GOAWAY, 0, 0, &payload).await;
    }
}
