//! The places under a cap on connections, whose number may change while they are taken.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// Places that are waited for in turn. A lower cap takes effect as places come back: nobody loses the one it has.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Semaphore,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    cap: usize,
    /// Places beyond the cap, each to vanish when it comes back.
    surplus: usize,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Inner>);

impl Places {
    pub(super) fn new(cap: usize) -> Self {
        let cap = cap.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner { free: Semaphore::new(cap), books: Mutex::new(Books { cap, surplus: 0 }) }))
    }

    /// Waits for a place.
    pub(super) async fn take(&self) -> Place {
        // The semaphore is never closed, so this cannot fail; and a place is counted by its guard alone.
        if let Ok(permit) = self.0.free.acquire().await {
            permit.forget();
        }
        Place(Arc::clone(&self.0))
    }

    /// Sets how many places there are.
    pub(super) fn set_cap(&self, cap: usize) {
        let cap = cap.min(Semaphore::MAX_PERMITS);
        let mut books = self.0.books.lock().unwrap_or_else(PoisonError::into_inner);
        let (more, fewer) = (cap.saturating_sub(books.cap), books.cap.saturating_sub(cap));
        let forgiven = more.min(books.surplus);
        books.surplus -= forgiven;
        self.0.free.add_permits(more - forgiven);
        books.surplus += fewer - self.0.free.forget_permits(fewer);
        books.cap = cap;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut books = self.0.books.lock().unwrap_or_else(PoisonError::into_inner);
        if books.surplus > 0 {
            books.surplus -= 1;
        } else {
            self.0.free.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cap_may_change_while_places_are_taken() {
        let places = Places::new(3);
        let free = || places.0.free.available_permits();
        let mut taken = vec![places.take().await, places.take().await, places.take().await];
        places.set_cap(1);
        assert_eq!(free(), 0);
        taken.pop();
        taken.pop();
        assert_eq!(free(), 0, "two places were too many");
        taken.pop();
        assert_eq!(free(), 1);
        taken.push(places.take().await);
        places.set_cap(2);
        assert_eq!(free(), 1);
        places.set_cap(0);
        places.set_cap(1);
        assert_eq!(free(), 0, "the one place is taken");
        taken.pop();
        assert_eq!(free(), 1);
    }
}
