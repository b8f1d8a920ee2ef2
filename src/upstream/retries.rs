//! Whether one more attempt may be made now: admission knows who waits, how much is in flight, and what is left of the
//! budget.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::admission::{Admission, Shared};
use super::books::Books;
use super::credit::Credit;
use super::retry::Denied;
use crate::control::credits::{Ask, Class};

/// Leave for one retry or hedge. It is over when this is dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<Shared>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.books().retries.on_end();
    }
}

/// What is to be known of an upstream before a request is tried again.
#[derive(Debug)]
pub(super) struct Retrying {
    /// Leave to do it.
    pub(super) permit: Permit,
    /// Whether there is more than one endpoint.
    pub(super) has_others: bool,
    /// What is left of the budget, in retries.
    pub(super) left: u64,
}

impl Admission {
    /// Leave to try a request again that has failed at an endpoint, given by its account. `left` is the time that there
    /// is for it.
    pub(super) fn retry(&self, account: usize, left: Option<Duration>, now: Instant) -> Result<Retrying, Denied> {
        let shared = self.shared();
        let mut books = shared.books();
        // What waits has been asked for once; it goes first.
        if books.ledger.waiting() > 0 {
            return Err(Denied::Queue);
        }
        // Half as much again as an answer takes when the service is not crowded.
        let usual = books.windows.view(account).and_then(|view| view.baseline).unwrap_or_default();
        if left.is_some_and(|left| left < usual + usual / 2) {
            return Err(Denied::Deadline);
        }
        let in_flight = in_flight(&books);
        books.retries.take(in_flight, now)?;
        let permit = Permit(Arc::clone(shared));
        let left = books.retries.left();
        Ok(Retrying { permit, has_others: books.members().nth(1).is_some(), left })
    }

    /// Leave to make an attempt beside another that takes long, and a credit for it: never of the same endpoint, and
    /// never while somebody waits for one.
    pub(super) fn hedge(&self, ask: &Ask) -> Option<(Permit, Credit)> {
        let shared = self.shared();
        let mut books = shared.books();
        let in_flight = in_flight(&books);
        if !books.retries.has_hedge() {
            return None;
        }
        let slot = books.ledger.take_other(ask)?;
        let endpoint = books.endpoint(slot.endpoint()).cloned();
        let taken = books.retries.take_for_hedge(in_flight, ask.at).is_ok();
        let Some(endpoint) = endpoint.filter(|_| taken) else {
            books.ledger.release(&slot, ask.at);
            return None;
        };
        let granted = books.start(&slot, ask.at);
        drop(books);
        let permit = Permit(Arc::clone(shared));
        Some((permit, Credit::new(shared, slot, endpoint, granted).for_retry()))
    }
}

fn in_flight<W>(books: &Books<W>) -> usize {
    books.ledger.used(Class::Unary) + books.ledger.used(Class::Stream)
}
