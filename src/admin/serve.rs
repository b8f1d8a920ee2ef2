//! The admin port: a small server of its own, so that a full front door never hides what is wrong with it.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::Admin;
use crate::tasks;

/// Connections at most. Scrapers and people need few.
const CONNECTIONS: usize = 64;
/// For a request head, and between requests.
const PATIENCE: Duration = Duration::from_secs(30);

/// The admin port, bound and not yet served.
pub struct Bound {
    listener: TcpListener,
    pages: Arc<Admin>,
}

/// Opens the admin port.
pub async fn bind(address: SocketAddr, pages: Admin) -> io::Result<Bound> {
    Ok(Bound { listener: TcpListener::bind(address).await?, pages: Arc::new(pages) })
}

impl Bound {
    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for as long as the future is kept.
    pub async fn serve(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let socket = match self.listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(listener = "admin", %error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let pages = Arc::clone(&self.pages);
            tasks::detach(async move {
                let service = service_fn(move |request| {
                    let answer = pages.handle(&request);
                    async { Ok::<_, Infallible>(answer) }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                // A scraper that goes away is no news.
                let _ = http.serve_connection(TokioIo::new(socket), service).await;
                drop(place);
            });
        }
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("address", &self.address().ok()).finish_non_exhaustive()
    }
}
