//! A request's head: the request line and its fields (RFC 9112, sections 2 to 6).
//!
//! Only what hyper would lose or read otherwise is judged here: bytes, lines, and what frames the body. What the parsed
//! head still shows (`Host`, the path) is judged where both versions meet, in `entry.rs`.

use std::ops::Range;

use http::Uri;

use super::{Bounds, TARGET, TOKEN, VALUE, Violation, has_plain_bytes, is};
use crate::error::Reason;

/// How the body of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes; none without a length.
    Length(u64),
    /// With the last chunk.
    Chunked,
}

/// A whole head that can be read in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its bytes, with the empty line that ends it.
    pub length: usize,
    /// How its body ends.
    pub framing: Framing,
    /// Whether it asks to switch protocols: what follows the message may be anything.
    pub upgrade: bool,
}

/// A head that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub violation: Violation,
    /// Where its method stands; empty when it has none that can be told.
    pub method: Range<usize>,
    /// Where its target stands, when it is a path or an asterisk; empty otherwise.
    pub target: Range<usize>,
}

/// The longest that hyper takes.
const LONGEST_TARGET: usize = 65_534;
const LONGEST_NAME: usize = 65_535;

/// Reads the head at the beginning of `bytes`; none when it is not whole. One empty line before it is tolerated (RFC
/// 9112, section 2.2).
pub fn read(bytes: &[u8], bounds: Bounds) -> Result<Option<Head>, Refused> {
    let clipped = bytes.get(..bounds.bytes).unwrap_or(bytes);
    let mut reader = Reader { bytes: clipped, at: 0, method: 0..0, target: 0..0 };
    let violation = match reader.head(bounds) {
        Ok(head) => return Ok(Some(head)),
        Err(Stop::Partial) if bytes.len() < bounds.bytes => return Ok(None),
        Err(Stop::Partial) => Violation::too_large("the head is too long"),
        Err(Stop::Refuse(violation)) => violation,
    };
    Err(Refused { violation, method: reader.method, target: reader.target })
}

/// Why reading stopped before the end.
enum Stop {
    Partial,
    Refuse(Violation),
}

fn bad<T>(what: &'static str) -> Result<T, Stop> {
    Err(Stop::Refuse(Violation::bad(what)))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    method: Range<usize>,
    target: Range<usize>,
}

/// What the fields say about the body.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl<'a> Reader<'a> {
    fn head(&mut self, bounds: Bounds) -> Result<Head, Stop> {
        if let Some(b'\r' | b'\n') = self.bytes.first() {
            self.line_end()?;
        }
        let is_http_11 = self.request_line()?;
        let mut fields = Fields::default();
        let mut count = 0;
        while self.peek()? != b'\r' {
            let (name, value) = self.field()?;
            count += 1;
            if count > bounds.fields {
                return Err(Stop::Refuse(Violation::too_large("too many fields")));
            }
            fields.add(name, value)?;
        }
        self.line_end()?;
        if fields.chunked && fields.length.is_some() {
            return bad("a length beside chunks");
        }
        if fields.chunked && !is_http_11 {
            return bad("chunks in HTTP/1.0");
        }
        let framing = if fields.chunked { Framing::Chunked } else { Framing::Length(fields.length.unwrap_or(0)) };
        Ok(Head { length: self.at, framing, upgrade: fields.upgrade && is_http_11 })
    }

    /// Whether it is of HTTP/1.1, and not 1.0.
    fn request_line(&mut self) -> Result<bool, Stop> {
        let start = self.at;
        let method = self.run(TOKEN)?;
        if method.is_empty() || self.peek()? != b' ' {
            return bad("the method is no token followed by one space");
        }
        self.method = start..self.at;
        self.at += 1;
        let start = self.at;
        let target = self.run(TARGET)?;
        if target.is_empty() || self.peek()? != b' ' {
            return bad("the target is not followed by one space and a version");
        }
        let place = start..self.at;
        self.at += 1;
        let version = self.run(TARGET)?;
        self.line_end()?;
        check_target(method, target).map_err(Stop::Refuse)?;
        if let [b'/', ..] | b"*" = target {
            self.target = place;
        }
        match version {
            b"HTTP/1.1" => Ok(true),
            b"HTTP/1.0" => Ok(false),
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
                let reason = Reason::VersionRefused;
                Err(Stop::Refuse(Violation { reason, what: "a version that is not spoken here" }))
            }
            _ => bad("no version"),
        }
    }

    fn field(&mut self) -> Result<(&'a [u8], &'a [u8]), Stop> {
        let name = self.run(TOKEN)?;
        match self.peek()? {
            b':' if !name.is_empty() => self.at += 1,
            b':' => return bad("a field without a name"),
            b' ' | b'\t' if name.is_empty() => return bad("a line that begins with white space"),
            b' ' | b'\t' => return bad("white space before the colon"),
            b'\n' => return bad("a bare LF"),
            _ => return bad("a line that is no field"),
        }
        if name.len() > LONGEST_NAME {
            return Err(Stop::Refuse(Violation::too_large("a name is too long")));
        }
        let value = self.value()?;
        self.line_end()?;
        Ok((name, value))
    }

    /// The bytes of a class from here on; they end before the end of what is there.
    fn run(&mut self, class: u8) -> Result<&'a [u8], Stop> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| !is(class, *byte)).ok_or(Stop::Partial)?;
        self.at += length;
        Ok(rest.get(..length).unwrap_or_default())
    }

    /// A field's value with the white space around it. Most bytes are looked at several at once.
    fn value(&mut self) -> Result<&'a [u8], Stop> {
        const STEP: usize = 16;
        let start = self.at;
        let mut rest = self.bytes.get(start..).unwrap_or_default();
        while let Some((step, next)) = rest.split_at_checked(STEP) {
            let odd = step.iter().fold(0, |odd, byte| odd | u8::from(*byte < b' ') | u8::from(*byte == 0x7f));
            if odd != 0 {
                break;
            }
            self.at += STEP;
            rest = next;
        }
        self.run(VALUE)?;
        Ok(self.bytes.get(start..self.at).unwrap_or_default())
    }

    fn peek(&self) -> Result<u8, Stop> {
        self.bytes.get(self.at).copied().ok_or(Stop::Partial)
    }

    fn line_end(&mut self) -> Result<(), Stop> {
        match self.bytes.get(self.at..).unwrap_or_default() {
            [b'\r', b'\n', ..] => {
                self.at += 2;
                Ok(())
            }
            [] | [b'\r'] => Err(Stop::Partial),
            [b'\n', ..] => bad("a bare LF"),
            [b'\r', ..] => bad("a bare CR"),
            _ => bad("a byte that no line may have"),
        }
    }
}

impl Fields {
    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Stop> {
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            14 if is_named(name, b"content-length") => {
                if !name.contains(&b'-') {
                    return bad("a length under a name that some take for it");
                }
                if self.length.replace(length(value.trim_ascii())?).is_some() {
                    return bad("two lengths");
                }
            }
            17 if is_named(name, b"transfer-encoding") => {
                let only = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                if !only || !name.contains(&b'-') || std::mem::replace(&mut self.chunked, true) {
                    return bad("a transfer coding that is not one final chunked");
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Some servers take `_` for `-`, and would see a body where others see none.
fn is_named(name: &[u8], known: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-');
    name.len() == known.len() && name.iter().zip(known).all(same)
}

/// Digits alone, and as many as anybody can count with; a leading zero would mean another base to some.
fn length(value: &[u8]) -> Result<u64, Stop> {
    let canonical = !value.is_empty() && value.len() <= 18 && (value.len() == 1 || value.first() != Some(&b'0'));
    if !canonical || !value.iter().all(u8::is_ascii_digit) {
        return bad("a length that is no plain number");
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// The four forms of a target (RFC 9112, section 3.2), less those that are not served.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), Violation> {
    if method == b"CONNECT" {
        return Err(Violation { reason: Reason::MethodRefused, what: "CONNECT" });
    }
    if target.len() > LONGEST_TARGET {
        return Err(Violation::too_large("the target is too long"));
    }
    match target {
        b"*" if method == b"OPTIONS" => Ok(()),
        [b'/', ..] => {
            let (path, query) = match target.iter().position(|byte| *byte == b'?') {
                Some(at) => target.split_at(at),
                None => (target, &[][..]),
            };
            if !has_plain_bytes(path, query) {
                return Err(Violation::bad("a byte that no target may have"));
            }
            Ok(())
        }
        _ if target.contains(&b'#') => Err(Violation::bad("a fragment in the target")),
        // Read as hyper reads it, which so takes what passes here.
        _ => match Uri::try_from(target).ok().as_ref().map(Uri::scheme_str) {
            Some(Some("http" | "https")) => Ok(()),
            _ => Err(Violation::bad("a target of no form that is served")),
        },
    }
}

#[cfg(test)]
mod tests;
