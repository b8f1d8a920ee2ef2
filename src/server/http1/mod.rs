//! A strict reading of HTTP/1.1 in front of hyper's (RFC 9112).
//!
//! hyper reads some messages generously, as others may read them otherwise: a bare LF, a length beside chunks. And what
//! it refuses, it refuses without a reason, a line in the log or a count. So the client's bytes pass a gate first. It
//! knows where each head begins and how each body is framed; what can be read in one way only passes unchanged, and
//! what cannot never reaches hyper, let alone an upstream.
//!
//! | file | does |
//! |---|---|
//! | `head.rs` | reads a request's head |
//! | `chunked.rs` | follows a body in chunks, to the end of its trailers |
//! | `gate.rs` | follows a connection from message to message; pure |
//! | `io.rs` | the gate on a byte stream |
//!
//! A refused message is replaced by a canonical one, the last of its connection, which travels the layers like any
//! other and meets the leaf that refuses it. So answers keep their order, and a refusal looks like all others.

pub mod chunked;
pub mod gate;
pub mod head;
mod io;

pub(super) use io::GateIo;

use crate::error::Reason;

/// What a head may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a head, or of the trailers, at most.
    pub bytes: usize,
    /// Fields at most.
    pub fields: usize,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What the client is told.
    pub reason: Reason,
    /// For the log.
    pub what: &'static str,
}

impl Violation {
    const fn bad(what: &'static str) -> Self {
        Self { reason: Reason::BadRequest, what }
    }

    const fn too_large(what: &'static str) -> Self {
        Self { reason: Reason::HeaderTooLarge, what }
    }
}

/// Classes of bytes: a token's, a field value's, a request target's, and within it a path's and a query's. The last two
/// are what the `http` crate takes, less what no URI may have and some read as a slash.
const TOKEN: u8 = 1;
const VALUE: u8 = 2;
const TARGET: u8 = 4;
const PATH: u8 = 8;
const QUERY: u8 = 16;

static CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "evaluated by the compiler")]
const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = class(byte as u8);
        byte += 1;
    }
    classes
}

const fn class(byte: u8) -> u8 {
    let mut class = match byte {
        b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'z' | b'|' | b'~' | b'0'..=b'9' | b'A'..=b'Z' => {
            TOKEN
        }
        _ => 0,
    };
    if matches!(byte, b'\t' | b' '..=0x7e | 0x80..=0xff) {
        class |= VALUE;
    }
    if matches!(byte, b'!'..=0x7e) {
        class |= TARGET;
    }
    if matches!(byte, b'!' | b'"' | b'$'..=b';' | b'=' | b'@'..=b'[' | b']'..=b'_' | b'a'..=b'~') {
        class |= PATH;
    }
    if matches!(byte, b'!' | b'$'..=b';' | b'=' | b'?'..=b'~') {
        class |= QUERY;
    }
    class
}

/// Whether a byte belongs to a class.
fn is(class: u8, byte: u8) -> bool {
    CLASSES.get(usize::from(byte)).is_some_and(|classes| classes & class != 0)
}

/// Whether a path and a query have no byte that a target may not have.
pub(super) fn has_plain_bytes(path: &[u8], query: &[u8]) -> bool {
    path.iter().all(|byte| is(PATH, *byte)) && query.iter().all(|byte| is(QUERY, *byte))
}
