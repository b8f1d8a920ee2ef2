//! A service shaped like the `OpenAI` chat API: twenty tokens a second, each its own event.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::body::Body;
use crate::context::Response;
use crate::tasks;

const ANSWER: &str = "A headworks stands where a canal leaves the river. It takes in as much water as the canal can \
carry, holds the rest back for a while, and tells those upstream when to send more. This answer came to you one token \
at a time; had you stopped reading, its producer would have stopped writing.";
const TOKENS_PER_SECOND: u32 = 20;
const LARGEST_REQUEST: usize = 1 << 20;

/// Serves `listener` for as long as the runtime lives.
pub(super) fn spawn(listener: TcpListener) {
    tasks::detach(async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tasks::detach(async move {
                let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new());
                let _ = http.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
}

async fn answer(request: http::Request<Incoming>) -> Response {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/chat/completions") => chat(request.into_body()).await,
        (&Method::GET, "/v1/models") => {
            json_response(StatusCode::OK, &json!({ "object": "list", "data": [{ "id": "demo", "object": "model" }] }))
        }
        (&Method::GET, "/") => json_response(StatusCode::OK, &json!({ "try": "POST /v1/chat/completions" })),
        _ => error(StatusCode::NOT_FOUND, "no such address"),
    }
}

async fn chat(body: Incoming) -> Response {
    let Ok(body) = Limited::new(body, LARGEST_REQUEST).collect().await else {
        return error(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large");
    };
    let Ok(request) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
        return error(StatusCode::BAD_REQUEST, "the request is not JSON");
    };
    if request.get("stream").and_then(Value::as_bool) == Some(true) {
        return event_stream();
    }
    let tokens = ANSWER.split_inclusive(' ').count();
    let mut answer = completion("chat.completion", "message", ANSWER, Some("stop"));
    if let Some(fields) = answer.as_object_mut() {
        fields.insert(
            "usage".to_owned(),
            json!({ "prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1 }),
        );
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    json_response(StatusCode::OK, &answer)
}

fn event_stream() -> Response {
    let mut ticks = interval(Duration::from_secs(1) / TOKENS_PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut response =
        Response::new(Body::boxed(Tokens { words: ANSWER.split_inclusive(' '), ticks, said: Said::Words }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
    response
}

/// The answer, an event a tick.
struct Tokens {
    words: std::str::SplitInclusive<'static, char>,
    ticks: Interval,
    said: Said,
}

enum Said {
    Words,
    Finish,
    All,
}

impl http_body::Body for Tokens {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if matches!(this.said, Said::All) {
            return Poll::Ready(None);
        }
        ready!(this.ticks.poll_tick(cx));
        let event = match this.words.next() {
            Some(word) => format!("data: {}\n\n", completion("chat.completion.chunk", "delta", word, None)),
            None if matches!(this.said, Said::Words) => {
                this.said = Said::Finish;
                format!("data: {}\n\n", completion("chat.completion.chunk", "delta", "", Some("stop")))
            }
            None => {
                this.said = Said::All;
                "data: [DONE]\n\n".to_owned()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}

fn completion(object: &str, part: &str, content: &str, finish_reason: Option<&str>) -> Value {
    json!({
        "id": "chatcmpl-demo", "object": object, "created": 0, "model": "demo",
        "choices": [{ "index": 0, part: { "role": "assistant", "content": content }, "finish_reason": finish_reason }],
    })
}

fn error(status: StatusCode, message: &str) -> Response {
    json_response(status, &json!({ "error": { "message": message, "type": "invalid_request_error" } }))
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::full(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
