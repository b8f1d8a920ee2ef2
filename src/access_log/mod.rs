//! The access log: one line for each exchange, written when it is over.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`AccessLog`]: takes lines from the workers, writes them in batches on a thread of its own |
//! | `line.rs` | [`Line`]: what a line says, as JSON and as text |
//!
//! A worker never waits for the log. It puts its line into a buffer of bounded bytes; when whoever reads the log is so
//! slow that the buffer is full, the line is dropped, and `headworks_access_log_dropped_total` says so.

mod line;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use line::{Format, Line};

use crate::metrics::{Counter, Registry};
use crate::tasks;

/// Bytes that wait for the writer at most; as many again may be in its hands.
const CAPACITY: usize = 4 * 1024 * 1024;
/// How long closing waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where lines go. A cheap clone; the log is closed with the last one, or before by [`AccessLog::close`].
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    format: Format,
    queue: Arc<Queue>,
}

impl AccessLog {
    /// A log on standard output.
    #[must_use]
    pub fn to_stdout(format: Format, registry: &Registry) -> Self {
        Self::new(format, registry, io::stdout())
    }

    /// A log on `out`, which is written to by a thread of its own.
    pub fn new(format: Format, registry: &Registry, out: impl Write + Send + 'static) -> Self {
        Self::with_capacity(format, registry, out, CAPACITY)
    }

    fn with_capacity(format: Format, registry: &Registry, out: impl Write + Send + 'static, capacity: usize) -> Self {
        let dropped = registry.counter(
            "headworks_access_log_dropped_total",
            "Lines of the access log that were dropped since nobody took them in time.",
            &[],
        );
        let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new(), capacity, dropped });
        let writer = Arc::clone(&queue);
        if let Err(error) = tasks::thread("access-log", move || writer.drain(out)) {
            tracing::error!(%error, "no thread for the access log; its lines are dropped");
            queue.lock().end = End::Done;
        }
        Self(Arc::new(Handle { format, queue }))
    }

    /// Writes down one exchange, or drops its line; never waits.
    pub fn write(&self, line: &Line<'_>) {
        self.0.queue.push(line.render(self.0.format).as_bytes());
    }

    /// Waits until what was written is out, for two seconds at most. Later lines are dropped.
    pub fn close(&self) {
        self.0.queue.close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Lines on their way to the writer.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// No more lines are taken.
    Closed,
    /// And all are out.
    Done,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.end != End::Open || state.lines.len() + line.len() > self.capacity {
            drop(state);
            return self.dropped.inc();
        }
        let was_empty = state.lines.is_empty();
        state.lines.extend_from_slice(line);
        drop(state);
        // The writer sleeps only while there are no lines: so a busy log costs no system call a line.
        if was_empty {
            self.changed.notify_all();
        }
    }

    fn drain(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            while state.lines.is_empty() {
                if state.end != End::Open {
                    state.end = End::Done;
                    return self.changed.notify_all();
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut state.lines, &mut batch);
            drop(state);
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                self.dropped.add(batch.split(|byte| *byte == b'\n').skip(1).count() as u64);
            }
            batch.clear();
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        if state.end == End::Open {
            state.end = End::Closed;
        }
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, PATIENCE, |state| state.end != End::Done);
        drop(waited);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}
