//! Opens one connection more. It belongs to no request: whoever is first in line when it is there gets it, and a
//! request that leaves takes nothing from those behind it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::{Instant, timeout};

use super::state::{Http1, Http2};
use super::{Pool, Slot};
use crate::error::Reason;
use crate::tasks;
use crate::upstream::connect::{ConnectError, Version};
use crate::upstream::first_byte::Uploads;
use crate::upstream::handshake;

/// A connection being opened, counted by the pool until it is there or has failed.
pub(super) struct Opening {
    pool: Arc<Pool>,
    http1: bool,
    settled: bool,
    /// Last, so that what follows from its drop comes after this one's end is told.
    slot: Arc<Slot>,
}

enum Opened {
    Http1(Http1),
    Http2(Arc<Http2>),
}

impl Opening {
    pub(super) fn start(pool: &Arc<Pool>, http1: bool) {
        let slot = Arc::new(Slot(Arc::downgrade(pool)));
        let opening = Self { pool: Arc::clone(pool), http1, settled: false, slot };
        if tokio::runtime::Handle::try_current().is_ok() {
            tasks::detach(opening.run());
        }
    }

    async fn run(self) {
        let opened = match timeout(self.pool.connect, self.open()).await {
            Ok(result) => result,
            Err(elapsed) => Err(ConnectError::new(Reason::ConnectTimeout, elapsed)),
        };
        match opened {
            Ok(opened) => self.succeed(opened),
            Err(error) => self.fail(&error),
        }
    }

    async fn open(&self) -> Result<Opened, ConnectError> {
        let slot = Arc::clone(&self.slot);
        let (stream, version) = self.pool.connector.connect(self.http1).await?;
        match version {
            Version::Http1 => {
                let (sender, cut) = handshake::http1(stream, self.pool.buffer, Arc::clone(&slot)).await?;
                Ok(Opened::Http1(Http1 { sender, cut, slot, clock: None, used: false }))
            }
            Version::Http2 => {
                let (sender, limit) = handshake::http2(stream, self.pool.buffer, Arc::clone(&slot)).await?;
                if limit.load(Relaxed) == 0 {
                    let refused = io::Error::other("the peer allows no streams");
                    return Err(ConnectError::new(Reason::ConnectFailed, refused));
                }
                Ok(Opened::Http2(Arc::new(Http2 { sender, limit, uploads: Uploads::default(), _slot: slot })))
            }
        }
    }

    fn succeed(mut self, opened: Opened) {
        self.settled = true;
        self.pool.counts.connects.fetch_add(1, Relaxed);
        let now = Instant::now();
        self.pool.settle(|state| match opened {
            Opened::Http1(connection) => state.add_http1(connection, self.http1, now),
            Opened::Http2(connection) => state.add_http2(connection, now, &self.pool.bounds),
        });
    }

    fn fail(mut self, error: &ConnectError) {
        self.settled = true;
        let failed = self.pool.settle(|state| state.open_failed(self.http1));
        if failed.is_empty() {
            tracing::debug!(%error, "a connection that nobody waits for any more could not be opened");
        }
        for deliver in failed {
            let _ = deliver.send(Err(error.clone()));
        }
    }
}

impl Drop for Opening {
    /// The runtime is shutting down. Another connection would meet the same fate, so all who wait are told.
    fn drop(&mut self) {
        if !self.settled {
            let waiters = self.pool.lock().abandon(self.http1);
            let stopped = ConnectError::new(Reason::Internal, io::Error::other("opening a connection was given up"));
            for deliver in waiters {
                let _ = deliver.send(Err(stopped.clone()));
            }
        }
    }
}
