//! Starts HTTP on a byte stream, and the task that drives it.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, oneshot};

use super::connect::ConnectError;
use super::io::Stream;
use super::pool::Slot;
use crate::body::Body;
use crate::error::Reason;
use crate::tasks;

/// hyper refuses less.
const LEAST_BUFFER: usize = 8 * 1024;
/// A response head may be this long, and on HTTP/1.1 no longer than the buffer.
const MOST_HEAD: usize = 64 * 1024;
/// One frame.
const FRAME: u32 = 16 * 1024;
/// Large enough that stalled streams never use it up, whatever their number: what a connection may hold is bounded
/// by its streams times their window. It also is what h2 measures tiny unread frames against, so that one stalled
/// stream of tokens cannot make it close the connection of all the others. The same holds towards clients, whose
/// queued uploads are unread streams.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// While streams are open, a silent connection is pinged after this time and given up after the second.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// Cancelled streams that are remembered, so that their late frames are no fault of the peer.
const REMEMBERED_RESETS: usize = 128;
/// Stands for "the peer has not said yet how many streams it takes"; no peer can say this number.
const UNKNOWN: usize = usize::MAX - 1;

/// Sent, it closes the connection at once; dropped, it leaves the connection to end by itself.
pub(super) type Cut = oneshot::Sender<()>;

pub(super) async fn http1(
    stream: Stream,
    buffer: usize,
    slot: Arc<Slot>,
) -> Result<(http1::SendRequest<Body>, Cut), ConnectError> {
    let buffer = buffer.max(LEAST_BUFFER);
    let failed = |error| ConnectError::new(Reason::ConnectFailed, error);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(buffer)
        .max_header_size(buffer.min(MOST_HEAD))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let (cut, cut_off) = oneshot::channel();
    tasks::detach(async move {
        // What goes wrong is told to the request on the connection; without one it is an idle connection's end.
        tokio::select! {
            biased;
            _ = connection.with_upgrades() => {}
            Ok(()) = cut_off => {}
        }
        drop(slot);
    });
    // The pool takes a connection that is not ready for one that has ended.
    sender.ready().await.map_err(failed)?;
    Ok((sender, cut))
}

/// The peer's bound on streams, as of the last request sent.
pub(super) type StreamLimit = Arc<AtomicUsize>;

pub(super) async fn http2(
    stream: Stream,
    buffer: usize,
    slot: Arc<Slot>,
) -> Result<(http2::SendRequest<Body>, StreamLimit), ConnectError> {
    let failed = |error| ConnectError::new(Reason::ConnectFailed, error);
    let spawner = Spawner::default();
    let window = u32::try_from(buffer).unwrap_or(u32::MAX >> 1).clamp(FRAME, u32::MAX >> 1);
    let (sender, mut connection) = http2::Builder::new(spawner.clone())
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(window)
        .initial_max_send_streams(UNKNOWN)
        .max_frame_size(FRAME)
        .max_send_buf_size(buffer.min(u32::MAX as usize))
        .max_header_list_size(u32::try_from(MOST_HEAD).unwrap_or(FRAME))
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_ANSWER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    // Until its settings are here the peer may refuse any stream, so none is sent.
    let known = async {
        loop {
            let polled = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
                Poll::Ready(Ok(())) => {
                    Poll::Ready(Err(ConnectError::new(Reason::ConnectFailed, io::Error::other("closed at once"))))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
                Poll::Pending if connection.current_max_send_streams() != UNKNOWN => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            });
            tokio::select! {
                biased;
                result = polled => break result,
                () = spawner.progress.notified() => {}
            }
        }
    };
    known.await?;
    let limit = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let published = Arc::clone(&limit);
    tasks::detach(async move {
        poll_fn(|cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            let now = connection.current_max_send_streams();
            if published.swap(now, Relaxed) != now {
                slot.changed();
            }
            polled.map(drop)
        })
        .await;
        drop(connection);
        slot.changed();
    });
    Ok((sender, limit))
}

/// Starts hyper's tasks and tells of the progress of the first, the one that reads and writes: hyper's own
/// connection future sleeps while the peer's settings arrive.
#[derive(Clone, Default)]
struct Spawner {
    started: Arc<AtomicBool>,
    progress: Arc<Notify>,
}

impl<F> Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        if self.started.load(Relaxed) {
            return tasks::Executor.execute(future);
        }
        self.started.store(true, Relaxed);
        let progress = Arc::clone(&self.progress);
        let mut future = Box::pin(future);
        tasks::Executor.execute(poll_fn(move |cx| {
            let polled = future.as_mut().poll(cx);
            progress.notify_one();
            polled
        }));
    }
}
