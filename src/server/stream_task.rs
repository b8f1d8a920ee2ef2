//! HTTP/2 streams as tasks that are cut, one by one, when their client takes nothing.
//!
//! hyper polls a response body only when the stream has flow-control credit, so a stalled stream is one whose body
//! handed out a frame and has not been asked again. Nothing inside the body can act then; the task around the stream
//! can: it drops the stream, h2 sends `RST_STREAM`, and the neighbours never notice.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::writer::Writer;
use crate::body::{Body, BodyError};
use crate::context::RequestContext;
use crate::error::Reason;
use crate::tasks::Group;

/// What the body tells the task: odd while a frame is with the client's side, and a new number for each frame.
type Pace = Arc<AtomicU32>;

/// A response body that leaves a trace of being asked.
#[derive(Debug)]
pub(super) struct Paced {
    body: Body,
    pace: Option<Pace>,
}

impl Paced {
    /// A body nobody watches: HTTP/1, where the socket itself shows a stall.
    pub(super) fn unwatched(body: Body) -> Self {
        Self { body, pace: None }
    }

    pub(super) fn new(body: Body, pace: Pace) -> Self {
        Self { body, pace: Some(pace) }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Some(pace) = &this.pace {
            let last = pace.load(Relaxed);
            match &polled {
                Poll::Ready(Some(Ok(_))) => pace.store(last.wrapping_add(2) | 1, Relaxed),
                _ => pace.store(last & !1, Relaxed),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Starts the streams of one connection. The service's call announces a request, and hyper hands over its stream
/// right after the call returns, so the two are paired by order.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamExecutor {
    announced: Arc<Mutex<Option<Watched>>>,
    /// Shutdown waits for streams as for connections: one that is cut has a record to write.
    tasks: Group,
}

/// What is needed to cut a stream.
#[derive(Debug)]
struct Watched {
    context: RequestContext,
    pace: Pace,
    writer: Option<Writer>,
}

impl StreamExecutor {
    pub(super) fn new(tasks: Group) -> Self {
        Self { announced: Arc::default(), tasks }
    }

    /// Announces the request whose stream comes next; its response body reports to the returned trace.
    /// A stream that may become a tunnel brings its writer.
    pub(super) fn announce(&self, context: RequestContext, writer: Option<Writer>) -> Pace {
        let pace = Pace::default();
        *self.slot() = Some(Watched { context, pace: Arc::clone(&pace), writer });
        pace
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Watched>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        // Started by a stream and not by the connection: its announcement would be another's.
        if let Some(writer) = Writer::current() {
            return self.tasks.spawn(writer.run(stream));
        }
        match self.slot().take() {
            Some(watched) => self.tasks.spawn(StreamTask { stream, watched, is_known: false, blocked: None }),
            None => self.tasks.spawn(stream),
        }
    }
}

pin_project! {
    struct StreamTask<F> {
        #[pin]
        stream: F,
        watched: Watched,
        // Whether the request knows this task.
        is_known: bool,
        // The frame that the client does not take, and when the patience with it ends.
        blocked: Option<(u32, Pin<Box<Sleep>>)>,
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let context = &this.watched.context;
        if !std::mem::replace(this.is_known, true) {
            context.served_by(cx.waker());
        }
        if context.is_cut() {
            return Poll::Ready(());
        }
        let stream = this.stream;
        let polled = match &this.watched.writer {
            Some(writer) => writer.poll(|| stream.poll(cx)),
            None => stream.poll(cx),
        };
        if polled.is_ready() {
            return Poll::Ready(());
        }
        let frame = this.watched.pace.load(Relaxed);
        if frame & 1 == 0 {
            if this.blocked.take().is_some() {
                context.notes().blocked_since.clear();
            }
            return Poll::Pending;
        }
        if this.blocked.as_ref().is_none_or(|(held, _)| *held != frame) {
            let patience = context.notes().stall.get().unwrap_or_else(|| context.connection().stall_timeout());
            let now = Instant::now();
            context.notes().blocked_since.set(now.saturating_duration_since(context.received_at()));
            *this.blocked = Some((frame, Box::pin(tokio::time::sleep_until(now + patience))));
        }
        if let Some((_, timer)) = this.blocked {
            ready!(timer.as_mut().poll(cx));
            context.notes().set_reason(Reason::ClientStalled);
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, RequestId};
    use http_body_util::{BodyExt as _, channel::Channel};
    use hyper::rt::Executor as _;
    use std::time::{Duration, SystemTime};

    fn context(stall: Duration) -> RequestContext {
        let connection = Arc::new(Connection::new("test".into(), None, None, false, stall));
        RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), connection, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_frame_is_not_taken_is_dropped_after_its_time() {
        let executor = StreamExecutor::default();
        let context = context(Duration::from_secs(10));
        let pace = executor.announce(context.clone(), None);
        let mut body = Paced::new(Body::full("tokens"), pace);
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        let began = Instant::now();
        executor.execute(async move {
            let _held = held;
            body.frame().await.expect("a frame").expect("data");
            std::future::pending::<()>().await; // no credit ever comes
        });
        dropped.await.expect_err("the stream was dropped");
        assert_eq!(began.elapsed(), Duration::from_secs(10));
        assert_eq!(context.notes().reason(), Some(Reason::ClientStalled));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_producer_is_not_the_clients_stall() {
        let executor = StreamExecutor::default();
        let context = context(Duration::from_secs(10));
        let pace = executor.announce(context.clone(), None);
        let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(4);
        let mut body = Paced::new(Body::boxed(channel), pace);
        let (ended, end) = tokio::sync::oneshot::channel();
        executor.execute(async move {
            while let Some(frame) = body.frame().await {
                frame.expect("data");
            }
            let _ = ended.send(());
        });
        sender.send_data(Bytes::from_static(b"a")).await.expect("room");
        tokio::time::sleep(Duration::from_secs(60)).await;
        sender.send_data(Bytes::from_static(b"b")).await.expect("room");
        drop(sender);
        end.await.expect("the stream ran to its end");
        assert_eq!(context.notes().reason(), None);
    }
}
