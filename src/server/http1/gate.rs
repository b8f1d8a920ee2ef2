//! Follows a client's bytes from message to message, without IO: what passes, what waits, what is refused.

use super::chunked::Chunked;
use super::head::{self, Framing, Refused};
use super::{Bounds, Violation};

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Gate {
    state: State,
    bounds: Bounds,
    /// Heads that have passed.
    passed: u64,
    /// Whether the message under way asks to switch protocols.
    upgrade: bool,
}

#[derive(Clone, Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    /// Behind a request that asks to switch protocols: what follows is not read before it has its answer.
    Parked,
    Closed,
}

/// What is to be done with bytes. Those before `at` pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All pass.
    Pass,
    /// A head begins at `at` that is not whole. The gate wants to see it again from there, with more behind it.
    Hold {
        /// Where.
        at: usize,
    },
    /// From `at` on nobody knows yet what the bytes are.
    Park {
        /// Where.
        at: usize,
    },
    /// At `at` stands a message that is refused, and nothing behind it is read.
    Refuse {
        /// Where.
        at: usize,
        /// Why.
        violation: Violation,
        /// What takes its place.
        canonical: Vec<u8>,
    },
    /// From `at` on the body is malformed, and nothing behind it is read.
    Break {
        /// Where.
        at: usize,
        /// How.
        what: &'static str,
    },
}

impl Gate {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { state: State::Head, bounds, passed: 0, upgrade: false }
    }

    /// Heads that have passed.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Whether it waits for the answer to a request that asks to switch protocols.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked)
    }

    /// The protocol was not switched: what follows is the next request.
    pub fn resume(&mut self) {
        self.state = State::Head;
    }

    /// Looks at the bytes that follow those which have passed.
    pub fn advance(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            match &mut self.state {
                State::Parked | State::Closed => return Step::Park { at },
                _ if rest.is_empty() => return Step::Pass,
                State::Head => match head::read(rest, self.bounds) {
                    Ok(None) => return Step::Hold { at },
                    Ok(Some(head)) => {
                        at += head.length;
                        self.passed += 1;
                        self.upgrade = head.upgrade;
                        self.body(head.framing);
                    }
                    Err(refused) => {
                        self.state = State::Closed;
                        let canonical = canonical(rest, &refused);
                        return Step::Refuse { at, violation: refused.violation, canonical };
                    }
                },
                State::Length(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    at += step;
                    *left -= step as u64;
                    if *left == 0 {
                        self.message_ends();
                    }
                }
                State::Chunked(chunked) => match chunked.advance(rest) {
                    Ok(step) => {
                        at += step;
                        if chunked.is_done() {
                            self.message_ends();
                        }
                    }
                    Err((step, violation)) => {
                        self.state = State::Closed;
                        return Step::Break { at: at + step, what: violation.what };
                    }
                },
            }
        }
    }

    /// Refuses the head under way for a reason outside its bytes.
    pub fn refuse(&mut self) -> Vec<u8> {
        self.state = State::Closed;
        message(b"", b"")
    }

    fn body(&mut self, framing: Framing) {
        match framing {
            Framing::Length(0) => self.message_ends(),
            Framing::Length(length) => self.state = State::Length(length),
            Framing::Chunked => self.state = State::Chunked(Chunked::new(self.bounds)),
        }
    }

    fn message_ends(&mut self) {
        self.state = if self.upgrade { State::Parked } else { State::Head };
    }
}

/// Asks for what the refused request asked for, as far as that can be told: so the log can name it, and HEAD gets no
/// body.
fn canonical(bytes: &[u8], refused: &Refused) -> Vec<u8> {
    let method = bytes.get(refused.method.clone()).unwrap_or_default();
    let target = bytes.get(refused.target.clone()).unwrap_or_default();
    message(method, target)
}

fn message(method: &[u8], target: &[u8]) -> Vec<u8> {
    let method = if method.is_empty() { b"-" } else { method };
    let target = if target.is_empty() { b"*" } else { target };
    [method, b" ", target, b" HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"].concat()
}

#[cfg(test)]
mod tests;
