//! The only place that spawns.
//!
//! A task belongs to a value: [`spawn`] returns a [`Task`] that ends its task when dropped, and connections are
//! counted in a [`Group`] that shutdown waits for. Every task awaits only what is bounded elsewhere.

use std::future::Future;
use std::io;

use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::task::TaskTracker;

/// A task that ends with its owner.
#[derive(Debug)]
#[must_use = "dropping a Task ends it"]
pub struct Task(AbortHandle);

impl Task {
    /// Whether it has come to its end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a task that lives no longer than the returned value.
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(run(future).abort_handle())
}

/// Starts a task that ends by itself: a connection driver, whose socket ends it.
pub fn detach(future: impl Future<Output = ()> + Send + 'static) {
    drop(run(future));
}

/// Starts work whose result is awaited; aborted when the process ends.
pub fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    tokio::spawn(future)
}

/// Does what blocks for a moment, such as reading files, where it holds up nobody.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

/// Starts a thread, for what blocks all the time. It ends by itself.
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Tasks that shutdown waits for.
#[derive(Clone, Debug, Default)]
pub struct Group(TaskTracker);

impl Group {
    /// Starts a task of the group.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        detach(self.0.track_future(future));
    }

    /// How many run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until all have ended. No further one may be started afterwards.
    pub async fn ended(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// Hands hyper's own tasks (h2 streams and connection drivers) to this module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Executor;

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        drop(run(future));
    }
}
