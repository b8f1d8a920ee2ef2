//! Whether an endpoint is up, by what its health checks find: a single check proves nothing either way.

use super::published::wire::{Value, field};

/// How many checks prove something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// So many in a row that pass, and it is up again.
    pub healthy: u32,
    /// So many in a row that fail, and it is down.
    pub unhealthy: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { healthy: 2, unhealthy: 3 }
    }
}

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    is_down: bool,
    /// Checks in a row that say something else.
    against: u32,
}

impl Health {
    /// It is believed to be so at first.
    #[must_use]
    pub fn new(is_down: bool) -> Self {
        Self { is_down, against: 0 }
    }

    /// What a check has found. Whether that changes anything.
    pub fn on_check(&mut self, has_passed: bool, thresholds: Thresholds) -> bool {
        if has_passed != self.is_down {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let enough = if self.is_down { thresholds.healthy } else { thresholds.unhealthy };
        if self.against >= enough {
            *self = Self::new(!self.is_down);
            return true;
        }
        false
    }

    /// Whether it is down.
    #[must_use]
    pub fn is_down(self) -> bool {
        self.is_down
    }
}

/// The request of `grpc.health.v1.Health/Check` about a service, framed for gRPC.
#[must_use]
pub fn grpc_question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend(message);
    framed
}

/// Whether the answer says `SERVING`; none when it cannot be read.
#[must_use]
pub fn grpc_answer(framed: &[u8]) -> Option<bool> {
    let ([0, length @ ..], rest) = framed.split_first_chunk::<5>()? else { return None };
    let mut message = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    // Zero, which is unknown, is not written.
    let mut status = 0;
    while !message.is_empty() {
        let (number, value, rest) = field(message).ok()?;
        if let (1, Value::Varint(said)) = (number, value) {
            status = said;
        }
        message = rest;
    }
    Some(status == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_checks_in_a_row_change_anything() {
        let mut health = Health::new(false);
        let mut check = |has_passed| {
            let is_changed = health.on_check(has_passed, Thresholds::default());
            (is_changed, health.is_down())
        };
        for has_passed in [true, false, false, true, false, false] {
            assert_eq!(check(has_passed), (false, false));
        }
        assert_eq!(check(false), (true, true));
        for has_passed in [false, true, false, true] {
            assert_eq!(check(has_passed), (false, true));
        }
        assert_eq!(check(true), (true, false));
        assert_eq!(check(true), (false, false));
    }

    #[test]
    fn a_grpc_check_is_a_small_message() {
        assert_eq!(grpc_question(""), [0, 0, 0, 0, 0]);
        assert_eq!(grpc_question("a.B"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        let long = grpc_question(&"x".repeat(300));
        assert_eq!((&long[..8], long.len()), (&[0, 0, 0, 1, 47, 0x0a, 0xac, 2][..], 5 + 303));
        assert_eq!(grpc_answer(&[0, 0, 0, 0, 2, 8, 1]), Some(true));
        assert_eq!(grpc_answer(&[0, 0, 0, 0, 2, 8, 2]), Some(false), "NOT_SERVING");
        assert_eq!(grpc_answer(&[0, 0, 0, 0, 0]), Some(false), "UNKNOWN");
        assert_eq!(grpc_answer(&[0, 0, 0, 0, 5, 0x12, 1, 7, 8, 1]), Some(true), "a field of another time");
        for broken in [&[][..], &[0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 9, 8, 1], &[0, 0, 0, 0, 1, 8]] {
            assert_eq!(grpc_answer(broken), None, "{broken:?}");
        }
    }
}
