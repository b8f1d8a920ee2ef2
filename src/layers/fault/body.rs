//! A body that comes slowly, or not at all for a time.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::body::{Body, BodyError};

/// Parts a second into which a slow body is cut, and how far behind its pace it may fall before the rest is forgiven.
const PARTS: u32 = 10;
const BEHIND: Duration = Duration::from_millis(100);

/// Holds one frame at most: while it waits, nothing is read from the body below.
pub(super) struct Slowed {
    inner: Body,
    held: Bytes,
    pace: Option<Pace>,
    stall: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

struct Pace {
    /// Bytes a second.
    rate: NonZeroU32,
    /// When the next part may go.
    due: Instant,
}

impl Slowed {
    pub(super) fn new(inner: Body, rate: Option<NonZeroU32>, stall: Option<Duration>) -> Self {
        let pace = rate.map(|rate| Pace { rate, due: Instant::now() });
        Self { inner, held: Bytes::new(), pace, stall, timer: None }
    }

    /// The next part of what is held, and the wait behind it.
    fn part(&mut self) -> Bytes {
        let part = match &self.pace {
            None => std::mem::take(&mut self.held),
            Some(pace) => {
                let most = usize::try_from(pace.rate.get().div_ceil(PARTS)).unwrap_or(usize::MAX);
                self.held.split_to(most.min(self.held.len()))
            }
        };
        let now = Instant::now();
        let rested = self.stall.take().map(|stall| now + stall);
        let paced = self.pace.as_mut().map(|pace| {
            let micros = part.len() as u64 * 1_000_000 / u64::from(pace.rate.get());
            let from = rested.unwrap_or_else(|| pace.due.max(now.checked_sub(BEHIND).unwrap_or(now)));
            pace.due = from + Duration::from_micros(micros);
            pace.due
        });
        self.timer = paced.or(rested).map(|until| Box::pin(tokio::time::sleep_until(until)));
        part
    }
}

impl http_body::Body for Slowed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if let Some(timer) = &mut this.timer {
                ready!(timer.as_mut().poll(cx));
                this.timer = None;
            }
            if !this.held.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(this.part()))));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                over => return Poll::Ready(over),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (held, below) = (self.held.len() as u64, self.inner.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = below.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(below.lower().saturating_add(held));
        hint
    }
}
