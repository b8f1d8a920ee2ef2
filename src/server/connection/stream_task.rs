//! HTTP/2 streams as tasks that are cut, one by one, when their client takes nothing.
//!
//! hyper polls a response body only when the stream has flow-control credit, so a stalled stream is one whose body
//! handed out a frame and has not been asked again. Nothing inside the body can act then; the task around the stream
//! can: it drops the stream, h2 sends `RST_STREAM`, and the neighbours never notice.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::frames::Frames;
use super::writer::Writer;
use crate::body::{Body, BodyError};
use crate::context::RequestContext;
use crate::error::Reason;
use crate::tasks::Group;

/// What the body tells the task.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// Odd while a frame is with the client's side, and a new number for each frame.
    pace: AtomicU32,
    /// Nothing more is to come: what the client cancels from here on is no work thrown away.
    answered: AtomicBool,
}

impl Trace {
    /// The answer is whole, or broke off by no fault of the client.
    pub(super) fn answer(&self) {
        self.answered.store(true, Relaxed);
    }
}

/// A response body that leaves a trace of being asked.
#[derive(Debug)]
pub(super) struct Paced {
    body: Body,
    trace: Option<Arc<Trace>>,
}

impl Paced {
    /// A body nobody watches: HTTP/1, where the socket itself shows a stall.
    pub(super) fn unwatched(body: Body) -> Self {
        Self { body, trace: None }
    }

    pub(super) fn new(body: Body, trace: Arc<Trace>) -> Self {
        Self { body, trace: Some(trace) }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Some(trace) = &this.trace {
            let last = trace.pace.load(Relaxed);
            match &polled {
                Poll::Ready(Some(Ok(frame))) => {
                    trace.pace.store(last.wrapping_add(2) | 1, Relaxed);
                    if frame.is_trailers() || this.body.is_end_stream() {
                        trace.answer();
                    }
                }
                Poll::Ready(_) => {
                    trace.pace.store(last & !1, Relaxed);
                    trace.answer();
                }
                Poll::Pending => trace.pace.store(last & !1, Relaxed),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let ends = self.body.is_end_stream();
        if let Some(trace) = self.trace.as_ref().filter(|_| ends) {
            trace.answer();
        }
        ends
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Starts the streams of one connection. The service's call announces a request, and hyper hands over its stream
/// right after the call returns, so the two are paired by order.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    announced: Arc<Mutex<Option<Watched>>>,
    /// Shutdown waits for streams as for connections: one that is cut has a record to write.
    tasks: Group,
    frames: Arc<Frames>,
}

/// What is needed to cut a stream.
#[derive(Debug)]
struct Watched {
    context: RequestContext,
    trace: Arc<Trace>,
    frames: Arc<Frames>,
    writer: Option<Writer>,
}

impl StreamExecutor {
    pub(super) fn new(tasks: Group, frames: Arc<Frames>) -> Self {
        Self { announced: Arc::default(), tasks, frames }
    }

    /// Announces the request whose stream comes next; its response body reports to the returned trace.
    /// A stream that may become a tunnel brings its writer.
    pub(super) fn announce(&self, context: RequestContext, writer: Option<Writer>) -> Arc<Trace> {
        let trace = Arc::new(Trace::default());
        let frames = Arc::clone(&self.frames);
        *self.slot() = Some(Watched { context, trace: Arc::clone(&trace), frames, writer });
        trace
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

/// Ready at the second look.
///
/// hyper asks whether the client has reset a stream only after the service was asked and was not ready. So a service
/// waits for this before it does anything, and a stream that was opened and reset in one breath costs no upstream call.
pub(super) async fn second_look() {
    let mut looked = false;
    std::future::poll_fn(|_| if std::mem::replace(&mut looked, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

pin_project! {
    struct StreamTask<F> {
        #[pin]
        stream: F,
        watched: Watched,
        // Whether the request knows this task, which is so from the first look on.
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
        let is_first = !std::mem::replace(this.is_known, true);
        if is_first {
            context.served_by(cx.waker());
        }
        if context.is_cut() {
            return Poll::Ready(());
        }
        let mut stream = this.stream;
        let mut poll = || match &this.watched.writer {
            Some(writer) => writer.poll(|| stream.as_mut().poll(cx)),
            None => stream.as_mut().poll(cx),
        };
        let mut polled = poll();
        if polled.is_pending() && is_first {
            polled = poll();
        }
        let trace = &this.watched.trace;
        if polled.is_ready() {
            let frames = &this.watched.frames;
            if trace.answered.load(Relaxed) {
                frames.answered();
            } else {
                frames.cancelled();
            }
            return Poll::Ready(());
        }
        let frame = trace.pace.load(Relaxed);
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

    fn executor(context: &RequestContext) -> StreamExecutor {
        let frames = Frames::new(Arc::clone(context.connection()), std::num::NonZeroU32::MIN);
        StreamExecutor::new(Group::default(), frames)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_frame_is_not_taken_is_dropped_after_its_time() {
        let context = context(Duration::from_secs(10));
        let executor = executor(&context);
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

    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_paid_for() {
        let context = context(Duration::from_secs(10));
        let executor = executor(&context);
        for spent in [false, true] {
            executor.announce(context.clone(), None);
            executor.execute(second_look());
            executor.tasks.clone().ended().await;
            assert_eq!(executor.frames.is_spent(), spent);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_producer_is_not_the_clients_stall() {
        let context = context(Duration::from_secs(10));
        let executor = executor(&context);
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
