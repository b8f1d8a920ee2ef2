//! Those who wait for a credit of one class, and who of them is next.

use std::collections::VecDeque;

use super::ask::Ask;

/// Names a place in a queue. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// One who waits. `W` is whatever wakes it.
#[derive(Debug)]
pub struct Waiter<W> {
    /// Its place.
    pub ticket: Ticket,
    /// What it waits for.
    pub ask: Ask,
    /// What wakes it.
    pub wake: W,
}

/// See the module's text. First come, first served.
#[derive(Debug)]
pub struct Queue<W> {
    waiting: VecDeque<Waiter<W>>,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<W> Queue<W> {
    /// One more waits. Tickets must come in their order.
    pub fn push(&mut self, waiter: Waiter<W>) {
        self.waiting.push_back(waiter);
    }

    /// Who is next.
    #[must_use]
    pub fn next(&self) -> Option<&Waiter<W>> {
        self.waiting.front()
    }

    /// Takes out who is next.
    pub fn pop(&mut self) -> Option<Waiter<W>> {
        self.waiting.pop_front()
    }

    /// One leaves. None when the ticket has been served or has left before.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let place = self.waiting.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        self.waiting.remove(place)
    }

    /// Takes out all, in the order of their tickets.
    pub fn take_all(&mut self) -> Vec<Waiter<W>> {
        self.waiting.drain(..).collect()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
