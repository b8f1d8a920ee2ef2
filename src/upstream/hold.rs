//! Holds a body back until the upstream asks for it (RFC 9110, section 10.1.1).
//!
//! A client that says `Expect: 100-continue` is asked for its body when the body is first polled. So it is not polled
//! before the upstream has said 100, or has been silent for a while: not every server knows of this. An upstream that
//! answers instead gets nothing of the body, and its connection carries no further request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::EXPECT;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::body::{Body, BodyError};
use crate::context::Request;

/// How long an upstream may keep silent before it gets the body all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// The word on one body. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Hold(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    word: Word,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Word {
    #[default]
    Awaited,
    Asked,
    Declined,
}

impl Hold {
    /// Holds back the body of a request that comes with an expectation.
    pub(super) fn of(request: &mut Request) -> Option<Self> {
        if request.body().is_end_stream() || !request.headers().contains_key(EXPECT) {
            return None;
        }
        let hold = Self::default();
        let asked = hold.clone();
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                asked.ask();
            }
        });
        let body = std::mem::take(request.body_mut());
        *request.body_mut() = Body::boxed(Held { body, hold: hold.clone(), patience: None, is_open: false });
        Some(hold)
    }

    /// The body is wanted.
    pub(super) fn ask(&self) {
        let mut state = self.state();
        if state.word == Word::Awaited {
            state.word = Word::Asked;
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }

    /// An answer came: a body that was not asked for by now never is. Whether that is so.
    pub(super) fn decline(&self) -> bool {
        let mut state = self.state();
        if state.word == Word::Awaited {
            state.word = Word::Declined;
        }
        state.word == Word::Declined
    }

    /// Whether the body is still held back.
    pub(super) fn is_awaited(&self) -> bool {
        self.state().word == Word::Awaited
    }

    fn poll_asked(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.word == Word::Asked {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body that is held back.
struct Held {
    body: Body,
    hold: Hold,
    /// Set when it is first asked for, which is when the head goes out.
    patience: Option<Pin<Box<Sleep>>>,
    is_open: bool,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if !this.is_open {
            if this.hold.poll_asked(cx).is_pending() {
                let patience = this.patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
                ready!(patience.as_mut().poll(cx));
                this.hold.ask();
                ready!(this.hold.poll_asked(cx));
            }
            (this.is_open, this.patience) = (true, None);
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use tokio::time::{Instant, timeout};

    fn request() -> Request {
        http::Request::post("/").header(EXPECT, "100-continue").body(Body::full("body")).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn the_body_comes_when_it_is_asked_for_and_not_before() {
        let mut request = request();
        let hold = Hold::of(&mut request).expect("an expectation");
        let mut body = request.into_body();
        assert!(timeout(PATIENCE / 2, body.frame()).await.is_err());
        hold.ask();
        assert!(!hold.decline(), "too late");
        assert!(body.frame().await.expect("a frame").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_consent_after_a_while() {
        let mut request = request();
        Hold::of(&mut request).expect("an expectation");
        let began = Instant::now();
        assert!(request.into_body().frame().await.expect("a frame").is_ok());
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_declined_never_comes() {
        let mut request = request();
        let hold = Hold::of(&mut request).expect("an expectation");
        assert!(hold.decline());
        assert!(timeout(PATIENCE * 60, request.into_body().frame()).await.is_err());
    }

    #[test]
    fn nothing_is_held_without_an_expectation_or_without_a_body() {
        assert!(Hold::of(&mut Request::new(Body::full("body"))).is_none());
        let mut request = request();
        *request.body_mut() = Body::empty();
        assert!(Hold::of(&mut request).is_none());
    }
}
