//! One body type for the whole house.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Body`]: what every request and response carries |
//! | [`kind`] | tells from a head what kind of message it is |
//! | `pulse.rs` | [`Pulse`]: when bytes last passed in the other direction |
//! | `trailers.rs` | what a trailer must not say |
//! | `upload.rs` | [`UploadBounds`]: what a client's body is held to |
//! | `relay.rs` | [`Relay`]: the one wrapper that times, counts and holds what must live as long as the body |

pub mod kind;
mod pulse;
mod relay;
mod trailers;
mod upload;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

pub use pulse::Pulse;
pub use relay::{Clocks, End, Relay, Watch};
pub use upload::{UploadBounds, WINDOW as UPLOAD_WINDOW};

use crate::error::{Reason, Source};

/// The body of a request or a response.
#[derive(Debug, Default)]
pub struct Body(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Relay(Box<Relay>),
    Boxed(UnsyncBoxBody<Bytes, BodyError>),
}

impl Body {
    /// No bytes at all.
    #[must_use]
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// Bytes known in advance.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(bytes)) }
    }

    /// Any other body, behind a box. An error of ours in it keeps its reason.
    pub fn boxed<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Source>,
    {
        use http_body_util::BodyExt as _;
        let own = |error: B::Error| match error.into().downcast::<BodyError>() {
            Ok(own) => *own,
            Err(error) => BodyError::new(Reason::UpstreamReset, error),
        };
        Self(Kind::Boxed(body.map_err(own).boxed_unsync()))
    }

    /// Hands this body to `watch`, which learns of its bytes and of its end, whichever way it ends.
    #[must_use]
    pub fn watch(self, watch: Box<dyn Watch>) -> Self {
        self.relay(|relay| relay.watch(watch))
    }

    /// The same for a body that stays in its place.
    pub fn watch_in_place(&mut self, watch: Box<dyn Watch>) {
        *self = std::mem::take(self).watch(watch);
    }

    /// Puts clocks on this body; one that is absent leaves what was set before.
    #[must_use]
    pub fn time(self, clocks: Clocks) -> Self {
        self.relay(|relay| relay.time(clocks))
    }

    /// Counts what passes in the other direction against the silence of this body.
    #[must_use]
    pub fn beside(self, pulse: Pulse) -> Self {
        self.relay(|relay| relay.beside(pulse))
    }

    /// Holds this body, a client's, to bounds.
    #[must_use]
    pub fn bound(self, bounds: UploadBounds) -> Self {
        self.relay(|relay| relay.bound(bounds))
    }

    /// Tells the watches of bytes that passed beside this body: those of a tunnel, which outlives its empty answer.
    pub fn tell(&mut self, bytes: &[u8]) {
        if let Kind::Relay(relay) = &mut self.0 {
            relay.tell(bytes);
        }
    }

    /// Tells the watches that it is over, and how.
    pub fn finish(mut self, end: End) {
        if let Kind::Relay(relay) = &mut self.0 {
            relay.finish(end);
        }
    }

    /// All that is done to a body is done by one wrapper, whoever asks for it.
    fn relay(self, change: impl FnOnce(&mut Relay)) -> Self {
        let mut relay = match self.0 {
            Kind::Relay(relay) => relay,
            inner => Box::new(Relay::new(Self(inner))),
        };
        change(&mut relay);
        Self(Kind::Relay(relay))
    }
}

impl From<Incoming> for Body {
    fn from(body: Incoming) -> Self {
        if http_body::Body::is_end_stream(&body) { Self::empty() } else { Self(Kind::Incoming(body)) }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match &mut this.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Incoming(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                let frame = frame.map(|frame| frame.map(trailers::clean));
                Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError::new(broken_off(&error), error))))
            }
            Kind::Relay(relay) => Pin::new(relay.as_mut()).poll_frame(cx),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Incoming(body) => body.is_end_stream(),
            Kind::Relay(relay) => relay.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(body) => body.size_hint(),
            Kind::Relay(relay) => relay.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

/// What stands in a request's body that no body may have. The cause of an [`io::Error`].
#[derive(Clone, Copy, Debug)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Malformed {}

/// Why a body that came in broke off.
fn broken_off(error: &hyper::Error) -> Reason {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::get_ref) {
        Some(cause) if cause.is::<Malformed>() => Reason::MalformedBody,
        _ => Reason::UpstreamReset,
    }
}

/// A body that broke off. The hop that sends it on resets its stream.
#[derive(Debug)]
pub struct BodyError {
    /// Why it broke off.
    pub reason: Reason,
    source: Option<Source>,
}

impl BodyError {
    /// An error with a cause.
    pub fn new(reason: Reason, source: impl Into<Source>) -> Self {
        Self { reason, source: Some(source.into()) }
    }
}

impl From<Reason> for BodyError {
    fn from(reason: Reason) -> Self {
        Self { reason, source: None }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.label())
    }
}

impl StdError for BodyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
