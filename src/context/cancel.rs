//! An exchange that an operator cancels.
//!
//! Before the head of its answer is out, the layer that renders errors answers in place of the upstream. After that
//! there is nothing left to say, and the exchange is cut: on HTTP/1 with its connection, on HTTP/2 by itself. One word
//! of bits decides which it is, so that a head that goes out at the same moment cannot slip through.

use std::sync::atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::RequestContext;
use super::connection::Protocol;
use super::notes::FirstReason;
use crate::error::Reason;

const CANCELLED: u8 = 1;
/// The error has been rendered: the head that goes out is ours.
const ANSWERED: u8 = 2;
const HEAD_OUT: u8 = 4;
const CUT: u8 = 8;
const OVER: u8 = 16;

#[derive(Debug, Default)]
pub(super) struct Fate {
    bits: AtomicU8,
    why: FirstReason,
    /// The task of the exchange, where that is not its connection's.
    task: Mutex<Option<Waker>>,
}

impl Fate {
    fn set(&self, bit: u8) -> u8 {
        self.bits.fetch_or(bit, AcqRel)
    }

    fn has(&self, bit: u8) -> bool {
        self.bits.load(Acquire) & bit != 0
    }

    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestContext {
    /// Cancels the exchange. False when it was over already.
    #[must_use]
    pub fn cancel(&self, why: Reason) -> bool {
        self.0.fate.why.set(why);
        let before = self.0.fate.set(CANCELLED);
        if before & OVER != 0 {
            return false;
        }
        if before & HEAD_OUT == 0 {
            self.wake();
        } else {
            self.cut();
        }
        true
    }

    /// Why the upstream's answer is not waited for any more; none while it is.
    #[must_use]
    pub fn cancelled(&self) -> Option<Reason> {
        if self.0.fate.has(CANCELLED) { self.0.fate.why.get() } else { None }
    }

    /// The client is told by an answer.
    pub fn answer_cancelled(&self) {
        self.0.fate.set(ANSWERED);
    }

    /// The head of an answer goes out.
    pub fn head_goes_out(&self) {
        let before = self.0.fate.set(HEAD_OUT);
        if before & CANCELLED != 0 && before & ANSWERED == 0 {
            self.cut();
        }
    }

    /// The exchange is over: its connection may serve the next.
    pub fn ends(&self) {
        self.0.fate.set(OVER);
    }

    /// Whether the exchange must end at once, without another word.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.0.fate.has(CUT)
    }

    /// Waits until the exchange is cut; remembers the task that waits, and no other.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.served_by(cx.waker());
        if self.is_cut() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Tells which task serves the exchange, where that is not its connection's.
    pub fn served_by(&self, task: &Waker) {
        let mut known = self.0.fate.task();
        if known.as_ref().is_none_or(|known| !known.will_wake(task)) {
            *known = Some(task.clone());
        }
    }

    /// Ends the exchange at once, with its connection or by itself.
    pub fn cut(&self) {
        let why = self.0.fate.why.get().unwrap_or(Reason::Cancelled);
        self.notes().set_reason(why);
        self.0.fate.set(CUT);
        if self.connection().protocol() != Some(Protocol::Http2) {
            self.connection().end(why);
        }
        self.wake();
    }

    /// Ends the exchange at once, be a head out or not: the client gets no further word.
    pub fn reset(&self, why: Reason) {
        self.0.fate.why.set(why);
        self.cut();
    }

    fn wake(&self) {
        let task = self.0.fate.task().clone();
        if let Some(task) = task {
            task.wake();
        }
        self.connection().wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, RequestId};
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    fn exchange(protocol: Protocol) -> RequestContext {
        let connection = Connection::new("test".into(), None, None, false, Duration::ZERO);
        connection.speaks(protocol);
        RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), Arc::new(connection), None)
    }

    #[test]
    fn before_the_head_it_is_answered_and_the_connection_lives() {
        let exchange = exchange(Protocol::Http1);
        assert!(exchange.cancel(Reason::Cancelled) && exchange.cancelled().is_some() && !exchange.is_cut());
        exchange.answer_cancelled();
        exchange.head_goes_out();
        assert!(!exchange.is_cut() && !exchange.connection().is_ended());
        assert!(exchange.cancel(Reason::Cancelled), "once more cuts what the client does not take");
        assert!(exchange.is_cut());
    }

    #[test]
    fn after_the_head_it_is_cut_with_its_connection_or_alone() {
        for (protocol, with_connection) in [(Protocol::Http1, true), (Protocol::Http2, false)] {
            let exchange = exchange(protocol);
            exchange.head_goes_out();
            assert!(exchange.cancel(Reason::Cancelled) && exchange.is_cut());
            assert_eq!(exchange.connection().is_ended(), with_connection);
            assert_eq!(exchange.notes().reason(), Some(Reason::Cancelled));
        }
    }

    #[test]
    fn a_reset_leaves_nobody_to_answer() {
        let exchange = exchange(Protocol::Http1);
        exchange.reset(Reason::FaultReset);
        assert!(exchange.is_cut() && exchange.connection().is_ended() && exchange.cancelled().is_none());
        assert_eq!(exchange.notes().reason(), Some(Reason::FaultReset));
    }

    #[test]
    fn a_head_that_crosses_the_word_is_cut() {
        let exchange = exchange(Protocol::Http1);
        assert!(exchange.cancel(Reason::Cancelled));
        exchange.head_goes_out(); // nobody had looked
        assert!(exchange.is_cut());
    }

    #[test]
    fn what_is_over_is_left_alone() {
        let exchange = exchange(Protocol::Http1);
        exchange.head_goes_out();
        exchange.ends();
        assert!(!exchange.cancel(Reason::Cancelled) && !exchange.is_cut() && !exchange.connection().is_ended());
    }

    #[test]
    fn a_connection_knows_its_exchanges() {
        let first = exchange(Protocol::Http2);
        let connection = Arc::clone(first.connection());
        let second = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 2), Arc::clone(&connection), None);
        let ids = || connection.exchanges().iter().map(RequestContext::id).collect::<Vec<_>>();
        assert_eq!(ids(), [first.id(), second.id()]);
        drop(first);
        assert_eq!(ids(), [second.id()]);
        drop(second);
        assert_eq!((ids(), connection.active()), (vec![], 0));
    }
}
