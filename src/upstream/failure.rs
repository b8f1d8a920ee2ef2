//! Which reason a failed exchange has.

use std::error::Error as StdError;
use std::sync::{Arc, OnceLock};

use crate::body::{BodyError, End, Watch};
use crate::error::Reason;

/// The reason that no response head came.
pub(super) fn reason(error: &hyper::Error) -> Reason {
    if let Some(body) = find::<BodyError>(error) {
        return of_upload(body.reason);
    }
    if let Some(error) = find::<h2::Error>(error) {
        // What our side found wrong with the peer's frames; everything else is the peer's own decision, or its end.
        return if error.is_library() { Reason::UpstreamProtocol } else { Reason::UpstreamClosed };
    }
    match error {
        _ if error.is_parse() => Reason::UpstreamProtocol,
        _ if error.is_user() => Reason::Internal,
        _ => Reason::UpstreamClosed,
    }
}

/// Whether the peer says that it has not looked at the request: a refused stream, or one beyond the last that a
/// GOAWAY covers. Then it may be sent again, whatever its method.
pub(super) fn is_unprocessed(error: &(dyn StdError + 'static)) -> bool {
    find::<h2::Error>(error).is_some_and(|error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The request's body does not know that its producer is the client, and names the upstream.
fn of_upload(reason: Reason) -> Reason {
    match reason {
        Reason::UpstreamReset | Reason::UpstreamStalled => Reason::RequestIncomplete,
        other => other,
    }
}

/// Remembers why the request's body broke off: on h2 the error that follows says no more than "reset".
#[derive(Clone, Default)]
pub(super) struct UploadFailed(Arc<OnceLock<Reason>>);

impl UploadFailed {
    /// Why it did.
    pub(super) fn get(&self) -> Option<Reason> {
        self.0.get().copied().map(of_upload)
    }
}

/// Rides in the request's body. Holds the stream's place as long as something is being sent.
pub(super) struct Upload<G> {
    pub(super) failed: UploadFailed,
    pub(super) _guard: G,
}

impl<G: Send> Watch for Upload<G> {
    fn end(&mut self, end: End) {
        if let End::Failed(reason) = end {
            let _ = self.failed.0.set(reason);
        }
    }
}
