//! All connections of clients that are open, so that an operator can look at them.
//!
//! The list is as long as there are connections, whose number is bounded where they are accepted. It is split, so that
//! connections that come and go at once seldom wait for each other; a request never touches it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Connection, Memory};

/// Parts of the list.
const PARTS: usize = 16;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Connections {
    next: AtomicU64,
    parts: [Mutex<HashMap<u64, Weak<Connection>>>; PARTS],
    memory: Arc<Memory>,
}

impl Connections {
    /// What they and their requests may hold together.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Gives a connection its number, and lists it for as long as it lives.
    #[must_use]
    pub fn open(self: &Arc<Self>, mut connection: Connection) -> Arc<Connection> {
        let id = self.next.fetch_add(1, Relaxed) + 1;
        connection.list(id, Place { id, list: Arc::clone(self) });
        let connection = Arc::new(connection);
        self.part(id).insert(id, Arc::downgrade(&connection));
        connection
    }

    /// The connection with this number.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Arc<Connection>> {
        self.part(id).get(&id).and_then(Weak::upgrade)
    }

    /// Shows each to `look`. One that ends meanwhile may be shown or not.
    pub fn each(&self, mut look: impl FnMut(&Arc<Connection>)) {
        for part in &self.parts {
            // The last to hold a connection takes this lock to end its place, and that may be `look`.
            let part: Vec<_> = lock(part).values().filter_map(Weak::upgrade).collect();
            part.iter().for_each(&mut look);
        }
    }

    fn part(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Weak<Connection>>> {
        let at = usize::try_from(id).unwrap_or(0) % PARTS;
        lock(self.parts.get(at).unwrap_or(&self.parts[0]))
    }
}

fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place on the list, left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    list: Arc<Connections>,
}

impl Place {
    pub(super) fn memory(&self) -> &Memory {
        &self.list.memory
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.list.part(self.id).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_connection_is_listed_as_long_as_it_lives() {
        let list = Arc::new(Connections::default());
        let open = || list.open(Connection::new("test".into(), None, None, false, Duration::ZERO));
        let count = || {
            let mut count = 0;
            list.each(|_| count += 1);
            count
        };
        let kept: Vec<_> = (0..100).map(|_| open()).collect();
        assert_eq!(count(), 100);
        assert_eq!(list.get(kept[7].id()).map(|found| found.id()), Some(kept[7].id()));
        let gone = kept[7].id();
        drop(kept);
        assert_eq!((count(), list.get(gone).is_none()), (0, true));
        assert!(list.parts.iter().all(|part| lock(part).is_empty()), "nothing is left behind");
    }
}
