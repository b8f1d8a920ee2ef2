//! How many HTTP/2 frames a client may send that carry nothing.
//!
//! Settings, pings, priorities, window updates and resets are free to send and cost their receiver work, some an
//! answer. In a working connection they keep step with requests and with the bytes that are sent to the client; what
//! exceeds that is paid from a small reserve, and the rest is a flood.

use tokio::time::Instant;

/// What stands in a frame's head (RFC 9113, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Of the payload, in bytes.
    pub length: u32,
    /// The type.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
}

/// `DATA`
pub const DATA: u8 = 0;
/// `HEADERS`
pub const HEADERS: u8 = 1;
/// `CONTINUATION`
pub const CONTINUATION: u8 = 9;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl FrameHead {
    /// Reads the nine bytes.
    #[must_use]
    pub fn read([a, b, c, kind, flags, stream @ ..]: [u8; 9]) -> Self {
        let length = u32::from_be_bytes([0, a, b, c]);
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) }
    }

    /// Whether it begins or goes on with a field block that does not end here.
    #[must_use]
    pub fn leaves_block_open(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION) && self.flags & END_HEADERS == 0
    }
}

/// The reserve of one connection.
#[derive(Debug)]
pub struct FrameBudget {
    left: u64,
    refilled_at: Instant,
}

/// For frames that come before anything was sent.
const MOST: u64 = 4000;
/// What must be answered; the answer's own bytes earn half of it again.
const ANSWERED: u64 = 8;
/// What a request may bring with it.
const REQUEST: u64 = 8;
/// Bytes sent that pay for one frame: a frame of one token pays for the window updates and the ping that it causes.
const BYTES: u64 = 4;
/// Each millisecond pays for one frame: a trickle is no flood.
const PER_MILLI: u64 = 1;

impl FrameBudget {
    /// A full reserve.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { left: MOST, refilled_at: now }
    }

    /// Bytes were sent to the client.
    pub fn sent(&mut self, bytes: usize) {
        self.earn(u64::try_from(bytes).unwrap_or(u64::MAX) / BYTES);
    }

    /// Pays for a frame that has come; false when there is nothing left to pay with. The clock is read only then.
    pub fn take(&mut self, frame: FrameHead, now: impl FnOnce() -> Instant) -> bool {
        let cost = match frame.kind {
            HEADERS => {
                self.earn(REQUEST);
                return true;
            }
            DATA if frame.length > 0 || frame.flags & END_STREAM != 0 => return true,
            SETTINGS | PING => ANSWERED,
            _ => 1,
        };
        if self.left < cost {
            let now = now();
            let millis = now.saturating_duration_since(self.refilled_at).as_millis();
            self.refilled_at = now;
            self.earn(u64::try_from(millis).unwrap_or(u64::MAX).saturating_mul(PER_MILLI));
        }
        let paid = self.left.checked_sub(cost);
        self.left = paid.unwrap_or(self.left);
        paid.is_some()
    }

    fn earn(&mut self, amount: u64) {
        self.left = self.left.saturating_add(amount).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, length: u32) -> FrameHead {
        FrameHead { length, kind, flags: 0, stream: 1 }
    }

    #[test]
    fn a_head_is_read_as_it_stands() {
        let head = FrameHead::read([1, 2, 3, HEADERS, END_STREAM, 0x80, 0, 1, 5]);
        assert_eq!(head, FrameHead { length: 0x01_02_03, kind: HEADERS, flags: END_STREAM, stream: 0x01_05 });
        assert!(head.leaves_block_open());
        assert!(!FrameHead { flags: END_HEADERS, ..head }.leaves_block_open());
        assert!(!frame(DATA, 0).leaves_block_open());
    }

    #[test]
    fn a_flood_ends_when_the_reserve_does() {
        for (kind, most) in [(PING, MOST / ANSWERED), (SETTINGS, MOST / ANSWERED), (WINDOW_UPDATE, MOST), (DATA, MOST)]
        {
            let now = Instant::now();
            let mut budget = FrameBudget::new(now);
            let taken = (0..100_000).take_while(|_| budget.take(frame(kind, 0), || now)).count();
            assert_eq!(taken as u64, most, "frames of type {kind}");
        }
    }

    #[test]
    fn the_answers_to_a_flood_do_not_pay_for_it() {
        let now = Instant::now();
        for (kind, answer) in [(PING, 17), (SETTINGS, 9)] {
            let mut budget = FrameBudget::new(now);
            let taken = (0..100_000).take_while(|_| {
                budget.sent(answer);
                budget.take(frame(kind, 0), || now)
            });
            assert!(taken.count() < 2000, "frames of type {kind}");
        }
    }

    #[test]
    fn a_stream_of_tokens_pays_for_its_window_updates_and_pings() {
        let now = Instant::now();
        let mut budget = FrameBudget::new(now);
        for _ in 0..100_000 {
            budget.sent(9 + 5 + 20);
            for kind in [WINDOW_UPDATE, WINDOW_UPDATE, PING] {
                assert!(budget.take(frame(kind, 0), || now));
            }
            budget.sent(17);
        }
    }

    #[test]
    fn requests_and_their_bytes_cost_nothing_and_a_trickle_is_no_flood() {
        let start = Instant::now();
        let mut budget = FrameBudget::new(start);
        for n in 0..100_000_u64 {
            assert!(budget.take(frame(HEADERS, 100), || start) && budget.take(frame(DATA, 1), || start));
            assert!(budget.take(frame(PING, 8), || start + Duration::from_millis(10 * n)));
        }
    }
}
