//! The admin port: a small server of its own, so that a full front door never hides what is wrong with it.
//!
//! It has a fixed number of places. Who comes when all are taken gets that of the oldest connection: a client that
//! holds on to its place cannot lock the operator out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Admin;
use crate::config::{self, ListenAddress};
use crate::server::{Inherited, Listening, Socket};
use crate::tasks::{self, Task};

/// Connections at most. Scrapers and people need few.
const CONNECTIONS: usize = 64;
/// For a request head, and between requests.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a request head at most.
const HEAD: usize = 16 * 1024;

/// The admin port, bound and not yet served.
pub struct Bound {
    listener: Arc<Listening>,
    pages: Arc<Admin>,
}

/// Opens the admin port.
pub fn bind(settings: &config::Admin, inherited: &Inherited, pages: Admin) -> io::Result<Bound> {
    let listener = match inherited.take(&settings.listen, "admin") {
        Some(inherited) => inherited,
        None => Listening::at(&settings.listen, settings.mode)?,
    };
    Ok(Bound { listener: Arc::new(listener), pages: Arc::new(pages) })
}

impl Bound {
    /// Where it listens.
    pub fn address(&self) -> io::Result<ListenAddress> {
        self.listener.address()
    }

    /// The socket.
    pub(crate) fn socket(&self) -> Arc<Listening> {
        Arc::clone(&self.listener)
    }

    /// Serves for as long as the future is kept.
    pub async fn serve(self) {
        let mut places = Places::default();
        loop {
            match self.listener.accept().await {
                Ok(Socket::Tcp(socket, _)) => places.give(tasks::spawn(connection(socket, Arc::clone(&self.pages)))),
                Ok(Socket::Unix(socket)) => places.give(tasks::spawn(connection(socket, Arc::clone(&self.pages)))),
                Err(error) => {
                    tracing::warn!(listener = "admin", %error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn connection(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, pages: Arc<Admin>) {
    let service = service_fn(move |request| {
        let pages = Arc::clone(&pages);
        async move { Ok::<_, Infallible>(pages.handle(&request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(HEAD);
    // A scraper that goes away is no news.
    let _ = http.serve_connection(TokioIo::new(socket), service).await;
}

/// The connections that are open, the oldest first.
#[derive(Default)]
struct Places(VecDeque<Task>);

impl Places {
    fn give(&mut self, connection: Task) {
        self.0.retain(|task| !task.has_ended());
        if self.0.len() >= CONNECTIONS {
            self.0.pop_front();
        }
        self.0.push_back(connection);
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("address", &self.address().ok()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_gets_the_place_of_the_oldest() {
        let mut places = Places::default();
        let mut ends = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            let (held, end) = tokio::sync::oneshot::channel::<()>();
            ends.push(end);
            places.give(tasks::spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            }));
        }
        assert_eq!(places.0.len(), CONNECTIONS);
        for end in ends.drain(..CONNECTIONS) {
            end.await.expect_err("the oldest were closed");
        }
        assert!(ends.iter_mut().all(|end| end.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty)));
    }
}
