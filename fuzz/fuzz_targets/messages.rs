//! Bytes in, what the upstream sees: what the gate lets through is read by hyper and by a strict reader of its own, and
//! both must read the same messages. Each is then sent on, and must arrive as one message, the same.
#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use headworks::body::Body;
use headworks::error::ProxyError;
use headworks::layers::forward::ForwardLayer;
use headworks::server::http1::Bounds;
use headworks::server::http1::gate::{Gate, Step};
use headworks_fuzz::{Message, messages};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::service::service_fn;
use libfuzzer_sys::fuzz_target;
use tower_layer::Layer as _;

const BOUNDS: Bounds = Bounds { bytes: 8192, fields: 32 };

fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else { return };
    let (passed, broken) = gate(data, usize::from(*size).max(1));
    let ours = messages(&passed);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let theirs = runtime.block_on(read(passed));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        compare(ours, theirs);
    }
    // hyper stops where it was asked to.
    let stops = |message: &Message| !message.is_http_11 || message.fields.contains_key("connection");
    if !ours.iter().any(stops) {
        assert_eq!(ours.iter().filter(|message| message.whole).count(), theirs.len(), "{ours:?} and {theirs:?}");
    }
    assert!(theirs.len() <= ours.len(), "{ours:?} and {theirs:?}");
    assert!(!broken || ours.last().is_some_and(|message| !message.whole), "a malformed body ends cleanly: {ours:?}");
    for request in theirs {
        let (method, body) = (request.method().clone(), request.body().clone());
        let target = request.uri().path_and_query().map_or("/".to_owned(), ToString::to_string);
        let Some(sent) = runtime.block_on(send_on(request)) else { continue };
        let [message] = &messages(&sent)[..] else { panic!("not one message: {:?}", String::from_utf8_lossy(&sent)) };
        assert_eq!(
            (message.method.as_str(), &message.target, &message.body[..]),
            (method.as_str(), &target, &body[..])
        );
        assert!(message.whole && message.is_http_11);
    }
});

/// What passes of bytes that come in pieces, and whether a body was found malformed.
fn gate(data: &[u8], size: usize) -> (Vec<u8>, bool) {
    let mut gate = Gate::new(BOUNDS);
    let (mut passed, mut held) = (Vec::new(), Vec::new());
    for piece in data.chunks(size) {
        held.extend_from_slice(piece);
        loop {
            match gate.advance(&held) {
                Step::Pass => passed.append(&mut held),
                Step::Hold { at } => passed.extend(held.drain(..at)),
                Step::Park { at } => {
                    passed.extend(held.drain(..at));
                    gate.resume();
                    if !held.is_empty() {
                        continue;
                    }
                }
                Step::Refuse { at, canonical, .. } => {
                    passed.extend(held.drain(..at));
                    assert_eq!(messages(&canonical).len(), 1);
                    return (passed, false);
                }
                Step::Break { at, .. } => {
                    passed.extend(held.drain(..at));
                    return (passed, true);
                }
            }
            break;
        }
    }
    (passed, false)
}

fn compare(ours: &Message, theirs: &http::Request<Bytes>) {
    assert!(ours.whole, "hyper takes a part for the whole: {ours:?}");
    assert_eq!(ours.method, theirs.method().as_str());
    assert_eq!(ours.body, theirs.body()[..]);
    assert_eq!(ours.is_http_11, theirs.version() == http::Version::HTTP_11);
    if ours.target.starts_with('/') {
        assert_eq!(ours.target, theirs.uri().to_string());
    }
    assert_eq!(ours.fields.len(), theirs.headers().keys_len(), "{ours:?} and {theirs:?}");
    for (name, values) in &ours.fields {
        let found: Vec<_> = theirs.headers().get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect();
        assert_eq!(*values, found, "{name}");
    }
}

/// The messages that hyper reads to their ends. It must find nothing wrong with their heads.
async fn read(bytes: Vec<u8>) -> Vec<http::Request<Bytes>> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: http::Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let (parts, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                seen.borrow_mut().push(http::Request::from_parts(parts, body.to_bytes()));
            }
            Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::new())))
        }
    });
    let io = Memory { input: bytes, at: 0, output: Rc::default(), answers: false, waiting: None };
    let mut http1 = hyper::server::conn::http1::Builder::new();
    http1.half_close(true).max_headers(BOUNDS.fields).max_header_size(BOUNDS.bytes + 64);
    if let Err(error) = http1.serve_connection(io, service).await {
        assert!(!error.is_parse(), "hyper is the stricter one: {error}");
    }
    seen.take()
}

/// What goes upstream: the duties of an intermediary, and hyper's writing. None for what must not be passed on.
async fn send_on(request: http::Request<Bytes>) -> Option<Vec<u8>> {
    let (mut parts, body) = request.into_parts();
    // As towards an upstream: the path of an absolute target may be empty before its query.
    parts.uri = parts.uri.into_parts().path_and_query.map(http::Uri::from).unwrap_or_default();
    parts.version = http::Version::HTTP_11;
    // Hosts are judged elsewhere.
    parts.headers.insert("host", http::HeaderValue::from_static("a"));
    let output: Rc<RefCell<Vec<u8>>> = Rc::default();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec();
    let io = Memory { input: answer, at: 0, output: Rc::clone(&output), answers: true, waiting: None };
    let captured: Rc<RefCell<Option<headworks::context::Request>>> = Rc::default();
    let mut layer = ForwardLayer::default().layer(Capture(Rc::clone(&captured)));
    let method = parts.method.as_str();
    let may_end_here =
        matches!(method, "OPTIONS" | "TRACE") || ["expect", "via"].iter().any(|name| parts.headers.contains_key(*name));
    let _ = tower_service::Service::call(&mut layer, http::Request::from_parts(parts, Body::full(body))).await;
    let Some(request) = captured.take() else {
        assert!(may_end_here, "it was not passed on");
        return None;
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("a connection");
    let sent = async { drop(sender.send_request(request).await) };
    tokio::task::LocalSet::new()
        .run_until(async {
            let driven = tokio::task::spawn_local(async { drop(connection.await) });
            sent.await;
            driven.abort();
        })
        .await;
    Some(output.take())
}

#[derive(Clone)]
struct Capture(Rc<RefCell<Option<headworks::context::Request>>>);

impl tower_service::Service<headworks::context::Request> for Capture {
    type Response = headworks::context::Response;
    type Error = ProxyError;
    type Future = std::future::Ready<Result<Self::Response, ProxyError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: headworks::context::Request) -> Self::Future {
        *self.0.borrow_mut() = Some(request);
        std::future::ready(Ok(http::Response::new(Body::empty())))
    }
}

/// Bytes to read, and room for those that are written.
struct Memory {
    input: Vec<u8>,
    at: usize,
    output: Rc<RefCell<Vec<u8>>>,
    /// Whether there is nothing to read before something was written.
    answers: bool,
    waiting: Option<Waker>,
}

impl hyper::rt::Read for Memory {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.answers && self.output.borrow().is_empty() {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let rest = &self.input[self.at..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Memory {
    fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.output.borrow_mut().extend_from_slice(bytes);
        self.waiting.take().inspect(Waker::wake_by_ref);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
