//! What kind of message a head announces.

use http::header::{ACCEPT, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode};

/// Whether a response ends soon or lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One answer.
    Unary,
    /// Server-sent events, JSON lines, or a gRPC call.
    Stream,
    /// The connection becomes something else.
    Upgrade,
}

/// The kind of a response.
#[must_use]
pub fn of_response(status: StatusCode, headers: &HeaderMap) -> Kind {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        Kind::Upgrade
    } else if headers.get(CONTENT_TYPE).is_some_and(streams) {
        Kind::Stream
    } else {
        Kind::Unary
    }
}

/// What a request says about its response in advance. Silence means one answer; the response's head corrects it.
#[must_use]
pub fn of_request(headers: &HeaderMap) -> Kind {
    if headers.contains_key(UPGRADE) {
        Kind::Upgrade
    } else if headers.get(ACCEPT).is_some_and(|value| has_prefix(value, "text/event-stream")) {
        Kind::Stream
    } else {
        Kind::Unary
    }
}

/// Whether a message is of a gRPC call (also gRPC-Web, which frames alike).
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| has_prefix(value, "application/grpc"))
}

fn streams(content_type: &HeaderValue) -> bool {
    const TYPES: [&str; 5] =
        ["text/event-stream", "application/grpc", "application/x-ndjson", "application/ndjson", "application/jsonl"];
    TYPES.iter().any(|prefix| has_prefix(content_type, prefix))
}

fn has_prefix(value: &HeaderValue, prefix: &str) -> bool {
    value.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(content_type: &'static str) -> Kind {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        of_response(StatusCode::OK, &headers)
    }

    #[test]
    fn event_types_stream_whatever_their_case_and_parameters() {
        for content_type in ["text/event-stream", "Text/Event-Stream; charset=utf-8", "application/x-ndjson"] {
            assert_eq!(response(content_type), Kind::Stream, "{content_type}");
        }
        assert_eq!(response("application/grpc+proto"), Kind::Stream);
        assert_eq!(response("application/json"), Kind::Unary);
        assert_eq!(of_response(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new()), Kind::Upgrade);
    }
}
