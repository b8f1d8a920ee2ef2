//! A body that can be sent from its beginning, as long as it is short.
//!
//! What the client sends is kept while it is sent on. Another attempt gets what was kept, and then the rest from where
//! the client stands: so one that fails in the middle of an upload is repeated whole, and a body that nobody has asked
//! for yet is still with its client. The first byte beyond the bound, and a committed answer, end the keeping; the body
//! goes on as before.
//!
//! What is kept is one buffer, copied: bytes kept as they came would keep alive whatever they were cut from. It is
//! reserved from `server.memory` before the first byte; without room nothing is kept.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use crate::body::{Body, BodyError};
use crate::context::RequestContext;
use crate::error::Reason;

/// The largest frame of what is sent again.
const FRAME: usize = 16 * 1024;

/// Keeps a body, see the module's text. Dropped, it keeps nothing any more.
#[derive(Debug)]
pub(in crate::upstream) struct Replay(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    source: Body,
    /// The source has said all, or broken off: it is not asked again.
    is_over: bool,
    kept: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// Bytes that may be kept.
    room: usize,
    keeping: Keeping,
    /// Which attempt may read: those before it have failed.
    attempt: usize,
    context: Option<RequestContext>,
    /// Of the memory of the request's context.
    reserved: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    /// All that was sent is kept.
    All,
    /// Nothing more is added: the answer has come. What is kept may still be on its way.
    Enough,
    /// Something is missing.
    Lost,
}

impl State {
    /// Keeps bytes that are sent on.
    fn keep(&mut self, bytes: &[u8]) {
        if self.keeping != Keeping::All {
            return;
        }
        if self.kept.len() + bytes.len() > self.room || !self.reserve(bytes.len()) {
            self.keeping = Keeping::Lost;
            self.free();
            return;
        }
        self.kept.extend_from_slice(bytes);
    }

    /// Reserves all that may be kept, once: these first bytes, and those that may follow.
    fn reserve(&mut self, first: usize) -> bool {
        let Some(context) = self.context.as_ref().filter(|_| self.reserved == 0) else { return true };
        let rest = self.source.size_hint().upper().and_then(|upper| usize::try_from(upper).ok());
        let bytes = rest.map_or(self.room, |rest| rest.saturating_add(first).min(self.room)) as u64;
        let taken = context.reserve(bytes);
        self.reserved = if taken { bytes } else { 0 };
        taken
    }

    fn free(&mut self) {
        (self.kept, self.trailers) = (Vec::new(), None);
        if let Some(context) = self.context.as_ref().filter(|_| self.reserved > 0) {
            context.give_back(self.reserved);
        }
        self.reserved = 0;
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.free();
    }
}

impl Replay {
    /// Keeps `room` bytes of a body at most. Beside it comes the body for the first attempt.
    pub(in crate::upstream) fn of(source: Body, room: usize, context: Option<RequestContext>) -> (Self, Body) {
        let state = State {
            source,
            is_over: false,
            kept: Vec::new(),
            trailers: None,
            room,
            keeping: Keeping::All,
            attempt: 0,
            context,
            reserved: 0,
        };
        let shared = Arc::new(Mutex::new(state));
        (Self(Arc::clone(&shared)), Body::boxed(Attempt { shared, number: 0, sent: 0, sent_trailers: false }))
    }

    /// Whether all that was sent is kept.
    pub(in crate::upstream) fn is_whole(&self) -> bool {
        lock(&self.0).keeping == Keeping::All
    }

    /// The body for another attempt. The one before breaks off, should anybody still read it. None when not all was
    /// kept.
    pub(in crate::upstream) fn again(&self) -> Option<Body> {
        let mut state = lock(&self.0);
        if state.keeping != Keeping::All {
            return None;
        }
        state.attempt += 1;
        let attempt = Attempt { shared: Arc::clone(&self.0), number: state.attempt, sent: 0, sent_trailers: false };
        Some(Body::boxed(attempt))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        if state.keeping == Keeping::All {
            state.keeping = Keeping::Enough;
        }
    }
}

/// The body as one attempt sends it.
struct Attempt {
    shared: Arc<Mutex<State>>,
    number: usize,
    /// Bytes of what is kept that were sent.
    sent: usize,
    sent_trailers: bool,
}

impl Attempt {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = lock(&self.shared);
        if state.attempt != self.number {
            return Poll::Ready(Some(Err(Reason::UpstreamClosed.into())));
        }
        if let Some(rest) = state.kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let bytes = Bytes::copy_from_slice(rest.get(..FRAME).unwrap_or(rest));
            self.sent += bytes.len();
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(trailers) = state.trailers.as_ref().filter(|_| !self.sent_trailers) {
            self.sent_trailers = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        if state.keeping == Keeping::Enough {
            // All of it has been sent.
            state.free();
            self.sent = 0;
        }
        if state.is_over {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut state.source).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    state.keep(bytes);
                    self.sent = state.kept.len();
                } else if let Some(trailers) = frame.trailers_ref().filter(|_| state.keeping == Keeping::All) {
                    state.trailers = Some(trailers.clone());
                }
                self.sent_trailers = frame.is_trailers();
                state.is_over = frame.is_trailers();
            }
            Some(Err(_)) => {
                // Half a body is nothing to begin with.
                (state.is_over, state.keeping) = (true, Keeping::Lost);
                state.free();
            }
            None => state.is_over = true,
        }
        Poll::Ready(frame)
    }
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.get_mut().poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.shared);
        let is_sent = self.sent >= state.kept.len() && (state.trailers.is_none() || self.sent_trailers);
        state.attempt == self.number && is_sent && (state.is_over || state.source.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.shared);
        let left = state.kept.len().saturating_sub(self.sent) as u64;
        let rest = state.source.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(left));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(left)) {
            hint.set_upper(upper);
        }
        hint
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, Connections, RequestId};
    use http_body_util::BodyExt as _;
    use http_body_util::channel::{Channel, Sender};
    use std::time::{Duration, SystemTime};

    fn channel() -> (Sender<Bytes, std::io::Error>, Body) {
        let (sender, channel) = Channel::new(8);
        (sender, Body::boxed(channel))
    }

    async fn next(body: &mut Body) -> Bytes {
        body.frame().await.expect("a frame").expect("no error").into_data().expect("data")
    }

    async fn all(body: Body) -> Bytes {
        body.collect().await.expect("a whole body").to_bytes()
    }

    async fn send(sender: &mut Sender<Bytes, std::io::Error>, text: &'static str) {
        sender.send_data(Bytes::from_static(text.as_bytes())).await.expect("room");
    }

    fn kept(replay: &Replay) -> usize {
        lock(&replay.0).kept.len()
    }

    #[tokio::test]
    async fn an_attempt_begins_with_what_the_others_have_sent() {
        let (mut sender, body) = channel();
        let (replay, mut first) = Replay::of(body, 64, None);
        send(&mut sender, "one ").await;
        assert_eq!(next(&mut first).await, "one ");
        let mut second = replay.again().expect("all was kept");
        assert_eq!(next(&mut second).await, "one ");
        send(&mut sender, "two ").await;
        assert_eq!(next(&mut second).await, "two ");
        assert!(first.frame().await.expect("an error").is_err(), "two must not share what is to come");
        let third = replay.again().expect("all was kept");
        drop((first, second));
        send(&mut sender, "three").await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", http::HeaderValue::from_static("abc"));
        sender.send_trailers(trailers.clone()).await.expect("room");
        drop(sender);
        let mut body = third;
        for _ in 0..2 {
            let whole = body.collect().await.expect("a whole body");
            assert_eq!(whole.trailers(), Some(&trailers));
            assert_eq!(whole.to_bytes(), "one two three");
            body = replay.again().expect("all was kept");
        }
    }

    #[tokio::test]
    async fn what_nobody_has_asked_for_is_whole() {
        let (replay, first) = Replay::of(Body::full("body"), 4, None);
        drop(first);
        let again = replay.again().expect("nothing is missing");
        assert_eq!(again.size_hint().exact(), Some(4));
        assert_eq!(all(again).await, "body");
    }

    #[tokio::test]
    async fn a_body_beyond_the_bound_goes_on_and_is_not_kept() {
        let (mut sender, body) = channel();
        let (replay, mut first) = Replay::of(body, 8, None);
        for part in ["1234", "5678"] {
            send(&mut sender, part).await;
            assert_eq!(next(&mut first).await, part);
        }
        assert_eq!(kept(&replay), 8);
        send(&mut sender, "9").await;
        assert_eq!(next(&mut first).await, "9");
        assert_eq!(kept(&replay), 0);
        assert!(replay.again().is_none());
        send(&mut sender, "0").await;
        drop(sender);
        assert_eq!(all(first).await, "0");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_not_sent_again() {
        let (mut sender, body) = channel();
        let (replay, mut first) = Replay::of(body, 64, None);
        send(&mut sender, "half").await;
        assert_eq!(next(&mut first).await, "half");
        sender.abort(std::io::ErrorKind::BrokenPipe.into());
        assert!(first.frame().await.expect("an error").is_err());
        assert!(first.frame().await.is_none());
        assert!(replay.again().is_none());
    }

    #[tokio::test]
    async fn once_an_answer_is_committed_nothing_is_kept() {
        let (mut sender, body) = channel();
        let (replay, first) = Replay::of(body, 1 << 20, None);
        send(&mut sender, "one ").await;
        let mut first = first;
        assert_eq!(next(&mut first).await, "one ");
        let mut second = replay.again().expect("all was kept");
        let shared = Arc::clone(&replay.0);
        drop(replay);
        // The early answer of one that has not sent all: what was kept is still sent.
        assert_eq!(next(&mut second).await, "one ");
        send(&mut sender, "two ").await;
        send(&mut sender, "three").await;
        drop(sender);
        assert_eq!(next(&mut second).await, "two ");
        assert_eq!(lock(&shared).kept.capacity(), 0);
        assert_eq!(second.size_hint().lower(), 0);
        assert_eq!(all(second).await, "three");
    }

    #[tokio::test]
    async fn long_bodies_are_sent_again_in_frames() {
        let whole: Bytes = (0..50_000_u32).flat_map(u32::to_be_bytes).collect();
        let (replay, first) = Replay::of(Body::full(whole.clone()), whole.len(), None);
        assert_eq!(all(first).await, whole);
        let mut again = replay.again().expect("all was kept");
        assert_eq!(again.size_hint().exact(), Some(whole.len() as u64));
        assert_eq!(next(&mut again).await.len(), FRAME);
        assert_eq!(again.size_hint().exact(), Some((whole.len() - FRAME) as u64));
        assert_eq!(all(again).await, whole.slice(FRAME..));
    }

    #[tokio::test]
    async fn what_is_kept_is_reserved_and_given_back() {
        let list = Arc::new(Connections::default());
        let memory = list.memory();
        memory.set_limit(6);
        let connection = list.open(Connection::new("test".into(), None, None, false, Duration::ZERO));
        let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), connection, None);
        let (replay, first) = Replay::of(Body::full("body"), 600, Some(context.clone()));
        assert_eq!(memory.reserved(), 0, "nothing was read yet");
        assert_eq!(all(first).await, "body");
        assert_eq!(memory.reserved(), 4, "no more can come");
        let (none, second) = Replay::of(Body::full("body"), 600, Some(context.clone()));
        assert_eq!(all(second).await, "body", "there is no room to keep it, and it goes on");
        assert!(none.again().is_none());
        drop(replay);
        assert_eq!(memory.reserved(), 0);
        drop((none, context));
        assert_eq!(memory.reserved(), 0);
    }
}
