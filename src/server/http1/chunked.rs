//! A body in chunks (RFC 9112, section 7.1), followed byte by byte across reads; its data is skipped, never copied.

use super::{Bounds, TOKEN, VALUE, Violation, is};

/// More digits than any size has, and fewer than overflow.
const MOST_DIGITS: u8 = 15;
/// Bytes of extensions on one line, and on all lines of a body; nobody uses them.
const MOST_EXTENSION: u32 = 256;
const MOST_EXTENSIONS: u32 = 8 * 1024;

/// Fields that no trailer may have: they frame the message, or mean one hop.
const FORBIDDEN: [&[u8]; 13] = [
    b"connection",
    b"content-length",
    b"content_length",
    b"expect",
    b"host",
    b"keep-alive",
    b"max-forwards",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"transfer_encoding",
    b"upgrade",
];
/// The longest of them.
const LONGEST_FORBIDDEN: usize = 17;

/// Where in its body a reader stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    bounds: Bounds,
    extensions: u32,
    trailer_bytes: usize,
    trailer_fields: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64, part: Part, bytes: u32 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    LineStart,
    Name { known: Known },
    Value,
    ValueLf,
    EndLf,
    Done,
}

/// Parts of an extension: `;name`, `=value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    NameStart,
    Name,
    ValueStart,
    Token,
    Quoted,
    Escaped,
    QuoteEnd,
}

/// The beginning of a trailer's name, in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    bytes: [u8; LONGEST_FORBIDDEN],
    length: usize,
}

impl Known {
    fn add(mut self, byte: u8) -> Self {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
        }
        self.length = (self.length + 1).min(LONGEST_FORBIDDEN + 1);
        self
    }

    fn is_forbidden(&self) -> bool {
        self.bytes.get(..self.length).is_some_and(|name| FORBIDDEN.contains(&name))
    }
}

const SIZE: State = State::Size { digits: 0, size: 0 };

impl Chunked {
    /// At the beginning of a body whose trailers are bounded so.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { state: SIZE, bounds, extensions: 0, trailer_bytes: 0, trailer_fields: 0 }
    }

    /// Whether the body is over.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Follows `bytes` to their end or to that of the body, and says how many belong to the body. With a violation
    /// comes the number of bytes before it.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, (usize, Violation)> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            match self.state {
                State::Done => break,
                State::Data { left } => {
                    let there = bytes.len() - at;
                    let step = usize::try_from(left).unwrap_or(usize::MAX).min(there);
                    at += step;
                    let left = left - step as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                }
                state => {
                    self.state = self.step(state, byte).map_err(|what| (at, Violation::bad(what)))?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    fn step(&mut self, state: State, byte: u8) -> Result<State, &'static str> {
        Ok(match (state, byte) {
            (State::Size { digits: 0, .. }, b'\r' | b';') => return Err("a chunk without a size"),
            (
                State::Size { size, .. }
                | State::Extension { size, part: Part::Name | Part::Token | Part::QuoteEnd, .. },
                b'\r',
            ) => State::SizeLf { size },
            (State::Size { size, .. }, b';') => State::Extension { size, part: Part::NameStart, bytes: 0 },
            (State::Size { digits, size }, _) => {
                let digit = char::from(byte).to_digit(16).ok_or("a chunk size that is no hexadecimal number")?;
                if digits == MOST_DIGITS {
                    return Err("a chunk size that is too large");
                }
                State::Size { digits: digits + 1, size: size * 16 + u64::from(digit) }
            }
            (State::Extension { size, part, bytes }, _) => {
                self.extensions += 1;
                if bytes >= MOST_EXTENSION || self.extensions > MOST_EXTENSIONS {
                    return Err("chunk extensions that are too long");
                }
                let part = extension(part, byte).ok_or("a malformed chunk extension")?;
                State::Extension { size, part, bytes: bytes + 1 }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::LineStart,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => SIZE,
            (State::SizeLf { .. }, _) => return Err("a bare CR after a chunk size"),
            (State::DataCr | State::DataLf, _) => return Err("a chunk that is longer than its size"),
            (State::EndLf, b'\n') => State::Done,
            (State::LineStart | State::Name { .. } | State::Value | State::ValueLf | State::EndLf, _) => {
                return self.trailer(state, byte);
            }
            (State::Data { .. } | State::Done, _) => state,
        })
    }

    fn trailer(&mut self, state: State, byte: u8) -> Result<State, &'static str> {
        self.trailer_bytes += 1;
        // hyper counts the last line too, and stops at its bound.
        if self.trailer_bytes + 4 > self.bounds.bytes {
            return Err("trailers that are too long");
        }
        Ok(match (state, byte) {
            (State::LineStart, b'\r') => State::EndLf,
            (State::LineStart, _) if is(TOKEN, byte) => {
                self.trailer_fields += 1;
                if self.trailer_fields > self.bounds.fields {
                    return Err("too many trailers");
                }
                State::Name { known: Known { bytes: [0; LONGEST_FORBIDDEN], length: 0 }.add(byte) }
            }
            (State::Name { known }, _) if is(TOKEN, byte) => State::Name { known: known.add(byte) },
            (State::Name { known }, b':') if known.is_forbidden() => return Err("a trailer that no trailer may be"),
            (State::Name { .. }, b':') => State::Value,
            (State::Value, b'\r') => State::ValueLf,
            (State::Value, _) if is(VALUE, byte) => State::Value,
            (State::ValueLf, b'\n') => State::LineStart,
            _ => return Err("a malformed trailer"),
        })
    }
}

/// The grammar of RFC 9112, section 7.1.1, without its bad white space.
fn extension(part: Part, byte: u8) -> Option<Part> {
    Some(match (part, byte) {
        (Part::Name | Part::Token | Part::QuoteEnd, b';') => Part::NameStart,
        (Part::NameStart | Part::Name, _) if is(TOKEN, byte) => Part::Name,
        (Part::Name, b'=') => Part::ValueStart,
        (Part::ValueStart, b'"') => Part::Quoted,
        (Part::ValueStart | Part::Token, _) if is(TOKEN, byte) => Part::Token,
        (Part::Quoted, b'"') => Part::QuoteEnd,
        (Part::Quoted, b'\\') => Part::Escaped,
        (Part::Quoted | Part::Escaped, _) if is(VALUE, byte) => Part::Quoted,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
