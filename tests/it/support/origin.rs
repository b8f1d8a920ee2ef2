//! A scripted upstream that counts what it sees.
//!
//! | path | answers |
//! |---|---|
//! | `/head` | the request's head, as JSON |
//! | `/echo` | the request's body and trailers, as they come |
//! | `/delay/MS` | `ok` after this time |
//! | `/status/CODE` | this status |
//! | `/bytes/N` | this many bytes, with their length |
//! | `/gate` | `ok` once the test opens the gate |
//! | `/sse/N/MS` | N events, one every MS, then `[DONE]` |
//! | `/sse-gate` | one event, and the end once the test opens the gate |
//! | `/hold` | one event and then nothing for ever |
//! | `/hang` | nothing, not even a head |
//! | `/flood/SIZE` | frames of this size as fast as they are taken, for ever |
//! | `/ticks/SIZE/MS` | a frame of this size every MS, for ever |
//! | `/reset/N` | N bytes, then a reset |
//! | `/trailers` | a body and then `x-checksum: abc` |
//! | `/discard` | reads the body and says how many bytes it had |
//! | `/ws` | a WebSocket that echoes |
//! | `/tunnel` | switches to `echo`: bytes come back as they are |

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, Stream, StreamExt as _, stream};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

pub(crate) type OriginRequest = Request<Incoming>;
pub(crate) type ScriptFuture = Pin<Box<dyn Future<Output = Response<Script>> + Send>>;
type Handler = Arc<dyn Fn(OriginRequest, Scene) -> ScriptFuture + Send + Sync>;
type Frames = Pin<Box<dyn Stream<Item = io::Result<Frame<Bytes>>> + Send>>;

const REMEMBERED: usize = 20_000;

/// An upstream in a runtime of its own, on a free port or a socket file. It ends with this value.
#[derive(Debug)]
pub(crate) struct Origin {
    address: Option<SocketAddr>,
    path: Option<PathBuf>,
    speaks: Speaks,
    counts: Arc<Counts>,
    runtime: Option<Runtime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    H2c,
    Tls,
}

/// What the upstream saw.
#[derive(Debug)]
struct Counts {
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    cancelled: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    records: Mutex<Vec<Arc<Record>>>,
    gate: Semaphore,
}

/// The head of a request, as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

/// The fate of one request.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) path: String,
    /// Body bytes handed to the connection.
    pub(crate) bytes: AtomicU64,
    times: Mutex<Times>,
    finished: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    progress: Instant,
    ended: Option<Instant>,
}

impl Record {
    pub(crate) fn new(path: &str) -> Arc<Self> {
        let times = Mutex::new(Times { progress: Instant::now(), ended: None });
        Arc::new(Self { path: path.to_owned(), bytes: AtomicU64::new(0), times, finished: AtomicBool::new(false) })
    }

    pub(crate) fn progress(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, SeqCst);
        self.times.lock().unwrap().progress = Instant::now();
    }

    pub(crate) fn end(&self) {
        self.times.lock().unwrap().ended = Some(Instant::now());
    }

    /// Whether the exchange is over, complete or cut.
    pub(crate) fn ended(&self) -> bool {
        self.times.lock().unwrap().ended.is_some()
    }

    /// When it ended.
    pub(crate) fn ended_at(&self) -> Option<Instant> {
        self.times.lock().unwrap().ended
    }

    /// How long nothing was taken, as of now.
    pub(crate) fn silence(&self) -> Duration {
        self.times.lock().unwrap().progress.elapsed()
    }

    /// Whether it ended before its script did.
    pub(crate) fn cancelled(&self) -> bool {
        self.ended() && !self.finished.load(SeqCst)
    }

    pub(crate) fn taken(&self) -> u64 {
        self.bytes.load(SeqCst)
    }
}

/// What a script gets besides the request.
#[derive(Debug)]
pub(crate) struct Scene {
    counts: Arc<Counts>,
    record: Arc<Record>,
}

impl Scene {
    fn new(counts: &Arc<Counts>, path: &str) -> Self {
        let now = counts.in_flight.fetch_add(1, SeqCst) + 1;
        counts.max_in_flight.fetch_max(now, SeqCst);
        let record = Record::new(path);
        counts.records.lock().unwrap().push(Arc::clone(&record));
        Self { counts: Arc::clone(counts), record }
    }

    /// Waits until the test opens the gate for one more.
    pub(crate) async fn gate(&self) {
        self.counts.gate.acquire().await.expect("the gate stays").forget();
    }

    /// An answer of these bytes.
    pub(crate) fn full(self, status: u16, kind: &'static str, bytes: impl Into<Bytes>) -> Response<Script> {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        let frames = stream::iter((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
        let script = Script { frames: Box::pin(frames), left: Some(length), scene: self };
        if length == 0 {
            script.finish();
        }
        let response = Response::builder().status(status).header(CONTENT_TYPE, kind);
        response.header(CONTENT_LENGTH, length).body(script).unwrap()
    }

    /// An answer whose frames come as `frames` has them.
    pub(crate) fn stream<S>(self, kind: &'static str, frames: S) -> Response<Script>
    where
        S: Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static,
    {
        let script = Script { frames: Box::pin(frames), left: None, scene: self };
        Response::builder().header(CONTENT_TYPE, kind).body(script).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.counts.in_flight.fetch_sub(1, SeqCst);
        if !self.record.finished.load(SeqCst) {
            self.counts.cancelled.fetch_add(1, SeqCst);
        }
        self.record.end();
    }
}

/// A response body that notes how far it came.
pub(crate) struct Script {
    frames: Frames,
    left: Option<u64>,
    scene: Scene,
}

impl Script {
    fn finish(&self) {
        self.scene.record.finished.store(true, SeqCst);
    }
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = std::task::ready!(self.frames.poll_next_unpin(cx));
        match &frame {
            // Not the script's own end: the client has gone.
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            None | Some(Err(_)) => self.finish(),
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.scene.record.progress(size);
                self.left = self.left.map(|left| left.saturating_sub(size));
                if self.left == Some(0) || frame.is_trailers() {
                    self.finish();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Origin {
    /// HTTP/1.1 on a free port.
    pub(crate) fn h1() -> Self {
        Self::tcp(Speaks::Http1, None, Arc::new(by_path))
    }

    /// HTTP/2 by prior knowledge on a free port.
    pub(crate) fn h2c() -> Self {
        Self::tcp(Speaks::H2c, None, Arc::new(by_path))
    }

    /// TLS on a free port; the version is what ALPN agreed on.
    pub(crate) fn tls(config: ServerConfig) -> Self {
        Self::tcp(Speaks::Tls, Some(TlsAcceptor::from(Arc::new(config))), Arc::new(by_path))
    }

    /// HTTP/1.1 with a script of the test's own.
    pub(crate) fn scripted<F, R>(script: F) -> Self
    where
        F: Fn(OriginRequest, Scene) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Script>> + Send + 'static,
    {
        Self::tcp(Speaks::Http1, None, Arc::new(move |request, scene| Box::pin(script(request, scene)) as ScriptFuture))
    }

    /// The same over HTTP/2 by prior knowledge.
    pub(crate) fn scripted_h2c<F, R>(script: F) -> Self
    where
        F: Fn(OriginRequest, Scene) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Script>> + Send + 'static,
    {
        Self::tcp(Speaks::H2c, None, Arc::new(move |request, scene| Box::pin(script(request, scene)) as ScriptFuture))
    }

    /// The same over TLS; the version is what ALPN agreed on.
    pub(crate) fn scripted_tls<F, R>(config: ServerConfig, script: F) -> Self
    where
        F: Fn(OriginRequest, Scene) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Script>> + Send + 'static,
    {
        let handler = move |request, scene| Box::pin(script(request, scene)) as ScriptFuture;
        Self::tcp(Speaks::Tls, Some(TlsAcceptor::from(Arc::new(config))), Arc::new(handler))
    }

    /// HTTP/1.1 on a socket file.
    pub(crate) fn unix(path: &Path) -> Self {
        let runtime = runtime();
        let counts = Arc::new(Counts::new());
        let listener = runtime.block_on_here(async { UnixListener::bind(path).unwrap() });
        let shared = Arc::clone(&counts);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Speaks::Http1, None, Arc::clone(&shared), Arc::new(by_path)));
            }
        });
        Self { address: None, path: Some(path.to_owned()), speaks: Speaks::Http1, counts, runtime: Some(runtime) }
    }

    fn tcp(speaks: Speaks, tls: Option<TlsAcceptor>, handler: Handler) -> Self {
        let runtime = runtime();
        let counts = Arc::new(Counts::new());
        let listener = runtime.block_on_here(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            // Inherited by what is accepted: the kernel holds little that the proxy has not taken.
            socket.set_send_buffer_size(8 * 1024).unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(4096).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&counts);
        runtime.spawn(accept(listener, speaks, tls, shared, handler));
        Self { address: Some(address), path: None, speaks, counts, runtime: Some(runtime) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.address.expect("a TCP origin")
    }

    /// As it stands in `endpoints`.
    pub(crate) fn url(&self) -> String {
        match (self.speaks, self.address) {
            (Speaks::Http1, Some(address)) => format!("http://{address}"),
            (Speaks::H2c, Some(address)) => format!("h2c://{address}"),
            (Speaks::Tls, Some(address)) => format!("https://localhost:{}", address.port()),
            (_, None) => format!("unix:{}", self.path.as_deref().unwrap().display()),
        }
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(SeqCst)
    }

    /// Requests that have begun and not ended, bodies included.
    pub(crate) fn in_flight(&self) -> usize {
        self.counts.in_flight.load(SeqCst)
    }

    pub(crate) fn max_in_flight(&self) -> usize {
        self.counts.max_in_flight.load(SeqCst)
    }

    /// Requests whose answer was dropped before its script ended.
    pub(crate) fn cancelled(&self) -> usize {
        self.counts.cancelled.load(SeqCst)
    }

    /// The heads of the requests, oldest first.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.counts.seen.lock().unwrap().clone()
    }

    /// The head of the last request.
    pub(crate) fn last(&self) -> Seen {
        self.counts.seen.lock().unwrap().last().expect("the origin saw a request").clone()
    }

    /// The fates of the requests, oldest first.
    pub(crate) fn records(&self) -> Vec<Arc<Record>> {
        self.counts.records.lock().unwrap().clone()
    }

    /// Lets this many scripts pass the gate.
    pub(crate) fn open_gate(&self, count: usize) {
        self.counts.gate.add_permits(count);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Counts {
    fn new() -> Self {
        Self {
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            seen: Mutex::new(Vec::new()),
            records: Mutex::new(Vec::new()),
            gate: Semaphore::new(0),
        }
    }
}

pub(super) fn runtime() -> Runtime {
    super::raise_file_limit();
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// `block_on` that also works inside the runtime of a test.
pub(super) trait BlockOnHere {
    fn block_on_here<T: Send>(&self, future: impl Future<Output = T> + Send) -> T;
}

impl BlockOnHere for Runtime {
    fn block_on_here<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| self.block_on(future)).join().unwrap())
    }
}

async fn accept(
    listener: TcpListener,
    speaks: Speaks,
    tls: Option<TlsAcceptor>,
    counts: Arc<Counts>,
    handler: Handler,
) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let (tls, counts, handler) = (tls.clone(), Arc::clone(&counts), Arc::clone(&handler));
        tokio::spawn(async move {
            let Some(tls) = tls else {
                return serve(stream, speaks, None, counts, handler).await;
            };
            if let Ok(stream) = tls.accept(stream).await {
                let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                serve(stream, speaks, alpn, counts, handler).await;
            }
        });
    }
}

async fn serve<S>(stream: S, speaks: Speaks, alpn: Option<Vec<u8>>, counts: Arc<Counts>, handler: Handler)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    counts.connections.fetch_add(1, SeqCst);
    let service = service_fn(move |request: OriginRequest| {
        let path = request.uri().path().to_owned();
        {
            let mut seen = counts.seen.lock().unwrap();
            if seen.len() < REMEMBERED {
                seen.push(Seen { uri: request.uri().clone(), headers: request.headers().clone() });
            }
        }
        let answer = handler(request, Scene::new(&counts, &path));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(stream);
    if speaks == Speaks::H2c || alpn.as_deref() == Some(b"h2") {
        let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.timer(TokioTimer::new()).max_send_buf_size(4096).max_concurrent_streams(1000).enable_connect_protocol();
        let _ = server.serve_connection(io, service).await;
    } else {
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).max_buf_size(64 * 1024);
        let _ = server.serve_connection(io, service).with_upgrades().await;
    }
}

/// An answer to HEAD has the length of the body and no body; hyper sees to it on HTTP/1 only.
fn by_path(request: OriginRequest, scene: Scene) -> ScriptFuture {
    let is_head = request.method() == Method::HEAD;
    Box::pin(async move {
        let mut response = play(request, scene).await;
        if is_head {
            let body = response.body_mut();
            (body.frames, body.left) = (Box::pin(stream::empty()), Some(0));
            body.finish();
        }
        response
    })
}

async fn play(mut request: OriginRequest, scene: Scene) -> Response<Script> {
    const SSE: &str = "text/event-stream";
    const TEXT: &str = "text/plain";
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let name = parts.next().unwrap_or_default();
    let mut number = || parts.next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    match name {
        "head" => scene.full(200, "application/json", describe(&request)),
        "echo" => {
            let kind = request.headers().contains_key("trailer").then_some("x-checksum");
            let mut response = scene.stream("application/octet-stream", request.into_body().map_err_io());
            if let Some(kind) = kind {
                response.headers_mut().insert("trailer", kind.parse().unwrap());
            }
            response
        }
        "delay" => {
            sleep(Duration::from_millis(number())).await;
            scene.full(200, TEXT, "ok")
        }
        "status" => {
            let status = u16::try_from(number()).unwrap();
            scene.full(status, TEXT, if matches!(status, 204 | 304) { "" } else { "status" })
        }
        "bytes" => {
            let count = usize::try_from(number()).unwrap();
            scene.full(200, "application/octet-stream", vec![b'x'; count])
        }
        "gate" => {
            scene.gate().await;
            scene.full(200, TEXT, "ok")
        }
        "sse" => {
            let (count, pause) = (number(), Duration::from_millis(number()));
            scene.stream(SSE, events(count, pause))
        }
        "sse-gate" => {
            let counts = Arc::clone(&scene.counts);
            scene.stream(SSE, event("open").chain(last(async move { counts.gate.acquire().await.unwrap().forget() })))
        }
        "hold" => {
            let cut = last(broken(request.into_body())).map(|_| Err(io::ErrorKind::ConnectionAborted.into()));
            scene.stream(SSE, event("open").chain(cut))
        }
        "hang" => {
            broken(request.into_body()).await;
            drop(scene);
            std::future::pending().await
        }
        "flood" => {
            let chunk = Bytes::from(vec![b'x'; usize::try_from(number().max(1)).unwrap()]);
            scene.stream("application/octet-stream", stream::repeat_with(move || Ok(Frame::data(chunk.clone()))))
        }
        "ticks" => {
            let (size, pause) = (usize::try_from(number().max(1)).unwrap(), Duration::from_millis(number()));
            scene.stream("application/octet-stream", ticks(Bytes::from(vec![b'x'; size]), pause))
        }
        "reset" => {
            let bytes = Bytes::from(vec![b'x'; usize::try_from(number()).unwrap()]);
            let cut = last(sleep(Duration::from_millis(20))).map(|_| Err(io::Error::other("cut by the script")));
            scene.stream("application/octet-stream", stream::iter([Ok(Frame::data(bytes))]).chain(cut))
        }
        "trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", "abc".parse().unwrap());
            let frames = stream::iter([Ok(Frame::data(Bytes::from("body"))), Ok(Frame::trailers(trailers))]);
            let mut response = scene.stream(TEXT, frames);
            response.headers_mut().insert("trailer", "x-checksum".parse().unwrap());
            response
        }
        "discard" => {
            let mut count = 0;
            while let Some(Ok(frame)) = request.body_mut().frame().await {
                count += frame.data_ref().map_or(0, Bytes::len);
            }
            scene.full(200, TEXT, count.to_string())
        }
        "ws" | "tunnel" => upgrade(&mut request, scene, name == "ws"),
        _ => scene.full(200, TEXT, "ok"),
    }
}

/// The head as JSON: a field that came several times is an array of several.
fn describe(request: &OriginRequest) -> String {
    let mut headers = serde_json::Map::new();
    for name in request.headers().keys() {
        let values =
            request.headers().get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into());
        headers.insert(name.to_string(), serde_json::Value::Array(values.collect()));
    }
    serde_json::json!({
        "method": request.method().as_str(),
        "uri": request.uri().to_string(),
        "path": request.uri().path_and_query().map(ToString::to_string),
        "version": format!("{:?}", request.version()),
        "headers": headers,
    })
    .to_string()
}

fn event(data: &str) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + use<> {
    stream::iter([Ok(Frame::data(Bytes::from(format!("data: {data}\n\n"))))])
}

/// `[DONE]` once `ready`.
fn last(ready: impl Future<Output = ()> + Send) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    stream::once(async move {
        ready.await;
        Ok(Frame::data(Bytes::from("data: [DONE]\n\n")))
    })
}

/// Events at fixed times: one that is late does not delay the others.
fn events(count: u64, pause: Duration) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    let start = Instant::now();
    stream::unfold(0_u64, move |at| async move {
        if at > count {
            return None;
        }
        sleep_until(start + pause * u32::try_from(at).unwrap()).await;
        let data = if at == count { "data: [DONE]\n\n".to_owned() } else { format!("data: {at}\n\n") };
        Some((Ok(Frame::data(Bytes::from(data))), at + 1))
    })
}

/// Ends when the request's body breaks off, and never otherwise. A server that does not read its request does not learn
/// that the client is gone; this one wants to.
async fn broken(mut body: Incoming) {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return;
        }
    }
    std::future::pending::<()>().await;
}

fn ticks(chunk: Bytes, pause: Duration) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    let start = Instant::now();
    stream::unfold(0_u32, move |at| {
        let chunk = chunk.clone();
        async move {
            sleep_until(start + pause * at).await;
            Some((Ok(Frame::data(chunk)), at + 1))
        }
    })
}

fn upgrade(request: &mut OriginRequest, scene: Scene, websocket: bool) -> Response<Script> {
    let wanted = request.headers().get(UPGRADE).cloned();
    let Some(wanted) = wanted else {
        return scene.full(426, "text/plain", "an upgrade is wanted here");
    };
    let accept = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let upgraded = hyper::upgrade::on(request);
    let counts = Arc::clone(&scene.counts);
    tokio::spawn(async move {
        let Ok(io) = upgraded.await else { return };
        // The tunnel is a request in flight of its own: it ends when the tunnel does.
        let tunnel = Scene::new(&counts, "tunnel");
        let mut io = TokioIo::new(io);
        if websocket {
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                let closing = message.is_close();
                if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() || closing {
                    break;
                }
            }
            // Whatever is queued, the answer to a close frame included, goes out.
            while let Some(Ok(_)) = socket.next().await {}
        } else {
            let (mut read, mut write) = tokio::io::split(&mut io);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        }
        tunnel.record.finished.store(true, SeqCst);
    });
    let mut response = scene.full(101, "text/plain", Bytes::new());
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(CONNECTION, "upgrade".parse().unwrap());
    headers.insert(UPGRADE, wanted);
    if let Some(accept) = accept {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept.parse().unwrap());
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
}

/// The frames of a body that came in.
trait MapErrIo {
    fn map_err_io(self) -> Frames;
}

impl MapErrIo for Incoming {
    fn map_err_io(self) -> Frames {
        Box::pin(http_body_util::BodyStream::new(self).map(|frame| frame.map_err(io::Error::other)))
    }
}
