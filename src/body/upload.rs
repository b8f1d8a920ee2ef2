//! What a client's body is held to: its size, its silences, and the pace at which it comes.
//!
//! Both clocks run only while the proxy waits for bytes: time in which an upstream takes nothing is no fault of the
//! client. A pace is a mean over windows of waiting, so that bursts and pauses even out.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Reason;

/// How much waiting a pace is measured over; also the grace at the beginning.
pub const WINDOW: Duration = Duration::from_secs(10);

/// See the module's text. What is absent has no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadBounds {
    /// Bytes at most.
    pub max_size: Option<u64>,
    /// Longest silence.
    pub silence: Option<Duration>,
    /// Bytes a second at least.
    pub rate: Option<NonZeroU32>,
}

/// One body under way.
#[derive(Debug)]
pub(super) struct Upload {
    bounds: UploadBounds,
    size: u64,
    /// In this window.
    waited: Duration,
    came: u64,
}

impl Upload {
    pub(super) fn new(bounds: UploadBounds) -> Self {
        Self { bounds, size: 0, waited: Duration::ZERO, came: 0 }
    }

    /// Bytes came after a wait; the reason to cut if they are too many, or too late.
    pub(super) fn took(&mut self, bytes: u64, waited: Duration) -> Result<(), Reason> {
        self.size = self.size.saturating_add(bytes);
        self.waited += waited;
        if self.waited >= WINDOW {
            // These bytes and the end of the window came together, and the bytes were looked at first.
            if !self.has_enough() {
                return Err(Reason::UploadSlow);
            }
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        self.came = self.came.saturating_add(bytes);
        if self.bounds.max_size.is_some_and(|most| self.size > most) { Err(Reason::BodyTooLarge) } else { Ok(()) }
    }

    fn has_enough(&self) -> bool {
        self.bounds.rate.is_none_or(|rate| self.came >= u64::from(rate.get()) * WINDOW.as_secs())
    }

    /// When patience ends, with a client that is waited for since then and stays silent.
    pub(super) fn overdue(&self, since: Instant) -> Option<(Instant, Reason)> {
        let silence = self.bounds.silence.map(|silence| (since + silence, Reason::UploadStalled));
        let pace = self.bounds.rate.map(|_| {
            let left = WINDOW.saturating_sub(self.waited);
            // A window that has its bytes cannot fail; the next one is empty.
            (since + left + if self.has_enough() { WINDOW } else { Duration::ZERO }, Reason::UploadSlow)
        });
        [silence, pace].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn upload(silence: Option<u64>, rate: u32) -> Upload {
        let silence = silence.map(Duration::from_secs);
        Upload::new(UploadBounds { max_size: None, silence, rate: NonZeroU32::new(rate) })
    }

    /// After how many seconds of silence it is cut, and why.
    fn patience(upload: &Upload) -> Option<(u64, Reason)> {
        let now = Instant::now();
        upload.overdue(now).map(|(at, reason)| ((at - now).as_secs(), reason))
    }

    #[test]
    fn silence_counts_from_the_last_bytes() {
        let mut upload = upload(Some(5), 0);
        assert_eq!(patience(&upload), Some((5, Reason::UploadStalled)));
        upload.took(1, 4 * SECOND).expect("no bound on size");
        assert_eq!(patience(&upload), Some((5, Reason::UploadStalled)));
    }

    #[test]
    fn a_drip_is_cut_at_the_end_of_its_window() {
        let mut upload = upload(Some(5), 100);
        for _ in 0..9 {
            upload.took(1, SECOND).expect("no bound on size");
        }
        assert_eq!(patience(&upload), Some((1, Reason::UploadSlow)));
        let mut upload = self::upload(Some(5), 100);
        upload.took(1000, SECOND).expect("no bound on size");
        assert_eq!(patience(&upload), Some((5, Reason::UploadStalled)), "this window has its bytes");
    }

    #[test]
    fn bursts_and_pauses_even_out() {
        let mut upload = upload(None, 100);
        for _ in 0..100 {
            upload.took(1000, 9 * SECOND).expect("no bound on size");
            assert!(patience(&upload).is_some_and(|(left, _)| left >= 10), "{upload:?}");
            // Taken without a wait: the proxy had its hands full.
            upload.took(1, Duration::ZERO).expect("no bound on size");
        }
    }

    #[test]
    fn the_byte_beyond_the_size_is_too_many() {
        let bounds = UploadBounds { max_size: Some(10), ..UploadBounds::default() };
        let mut upload = Upload::new(bounds);
        assert_eq!(upload.took(10, Duration::ZERO), Ok(()));
        assert_eq!(upload.took(1, Duration::ZERO), Err(Reason::BodyTooLarge));
        assert_eq!(patience(&upload), None);
    }
}
