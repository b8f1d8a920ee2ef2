//! The one body wrapper: it times a body, counts it, and holds what must live exactly as long as the body does.
//!
//! A limiter that gives its permit back at the response head admits any number of streams. Here credits, connection
//! leases and records are [`Watch`]es of the body, told of its end once: complete, failed or dropped.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::upload::{Upload, UploadBounds};
use super::{Body, BodyError, Pulse};
use crate::error::Reason;

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last frame was handed on.
    Complete,
    /// The producer broke off, or a clock ran out.
    Failed(Reason),
    /// The consumer lost interest before the end.
    Dropped,
}

/// Something that lives as long as a body.
///
/// [`Watch::end`] is called once, and only then is the watch dropped; so a guard need do nothing but exist.
pub trait Watch: Send {
    /// Bytes were handed on.
    fn data(&mut self, _bytes: &[u8]) {}
    /// Trailers are about to be handed on. What is taken out of them is not.
    fn trailers(&mut self, _trailers: &mut HeaderMap) {}
    /// Nothing is there yet: the consumer waits for the producer.
    fn waits(&mut self) {}
    /// The producer has been silent since then, and the consumer waits. Told of bodies that have clocks.
    fn silent(&mut self, _since: Instant) {}
    /// The body is over.
    fn end(&mut self, _end: End) {}
}

/// The clocks of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// Longest silence of the producer while the consumer waits for it.
    pub idle: Option<Duration>,
    /// When the body must have ended.
    pub deadline: Option<Instant>,
}

/// See the module's text. Made by [`Body::watch`] and [`Body::time`].
pub struct Relay {
    inner: Body,
    watches: Vec<Box<dyn Watch>>,
    clocks: Clocks,
    /// The other direction, whose bytes break this one's silence.
    beside: Option<Pulse>,
    /// None but on a client's body.
    upload: Option<Box<Upload>>,
    /// Since when the consumer waits for the producer; none while a frame is with the consumer.
    waiting_since: Option<Instant>,
    /// One timer for both clocks, made when first needed. It may fire early and is then set anew: so a busy stream
    /// pays for a timestamp a frame, not for the timer wheel.
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Relay {
    pub(super) fn new(inner: Body) -> Self {
        Self {
            inner,
            watches: Vec::new(),
            clocks: Clocks::default(),
            beside: None,
            upload: None,
            waiting_since: None,
            timer: None,
            ended: false,
        }
    }

    pub(super) fn watch(&mut self, watch: Box<dyn Watch>) {
        self.watches.push(watch);
    }

    pub(super) fn time(&mut self, clocks: Clocks) {
        self.clocks.idle = clocks.idle.or(self.clocks.idle);
        self.clocks.deadline = clocks.deadline.or(self.clocks.deadline);
    }

    pub(super) fn beside(&mut self, pulse: Pulse) {
        self.beside = Some(pulse);
    }

    pub(super) fn bound(&mut self, bounds: UploadBounds) {
        self.upload = Some(Box::new(Upload::new(bounds)));
    }

    pub(super) fn finish(&mut self, end: End) {
        if !self.ended {
            self.ended = true;
            self.timer = None;
            for mut watch in self.watches.drain(..) {
                watch.end(end);
            }
        }
    }

    /// Which clock has run out, or none; leaves the timer armed for the next moment to look again.
    fn poll_clocks(&mut self, cx: &mut Context<'_>) -> Option<Reason> {
        if self.clocks.idle.is_none() && self.clocks.deadline.is_none() && self.upload.is_none() {
            return None;
        }
        loop {
            let now = Instant::now();
            let since = *self.waiting_since.get_or_insert(now);
            let quiet_since = self.beside.as_ref().map_or(since, |pulse| pulse.last().max(since));
            let idle = self.clocks.idle.map(|idle| (quiet_since + idle, Reason::UpstreamStalled));
            let deadline = self.clocks.deadline.map(|deadline| (deadline, Reason::Deadline));
            let upload = self.upload.as_ref().and_then(|upload| upload.overdue(since));
            let (next, reason) = [idle, deadline, upload].into_iter().flatten().min_by_key(|(at, _)| *at)?;
            if next <= now {
                return Some(reason);
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return None;
            }
            timer.as_mut().reset(next);
        }
    }

    /// A frame goes to the consumer, unless it is one too many.
    fn handed_on(&mut self, frame: &mut Frame<Bytes>) -> Result<(), Reason> {
        let waiting_since = self.waiting_since.take();
        if let (Some(upload), Some(bytes)) = (&mut self.upload, frame.data_ref()) {
            upload.took(bytes.len() as u64, waiting_since.map_or(Duration::ZERO, |since| since.elapsed()))?;
        }
        if let Some(bytes) = frame.data_ref() {
            self.tell(bytes);
        } else if let Some(trailers) = frame.trailers_mut() {
            for watch in &mut self.watches {
                watch.trailers(trailers);
            }
        }
        Ok(())
    }

    /// The inner body goes now, not when the consumer lets go: its drop is what cancels the upstream call.
    fn cut(&mut self, reason: Reason) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.inner = Body::empty();
        self.finish(End::Failed(reason));
        Poll::Ready(Some(Err(reason.into())))
    }

    pub(super) fn tell(&mut self, bytes: &[u8]) {
        for watch in &mut self.watches {
            watch.data(bytes);
        }
    }
}

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            // One that always has something ready never waits for its clocks.
            Poll::Ready(Some(Ok(_))) if this.clocks.deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                this.cut(Reason::Deadline)
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Err(reason) = this.handed_on(&mut frame) {
                    return this.cut(reason);
                }
                // hyper may not poll again after the last frame, so the end is told with it.
                if frame.is_trailers() || this.inner.is_end_stream() {
                    this.finish(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.finish(End::Failed(error.reason));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.finish(End::Complete);
                Poll::Ready(None)
            }
            Poll::Pending => {
                for watch in &mut this.watches {
                    watch.waits();
                }
                let Some(reason) = this.poll_clocks(cx) else {
                    if let Some(since) = this.waiting_since {
                        this.watches.iter_mut().for_each(|watch| watch.silent(since));
                    }
                    return Poll::Pending;
                };
                this.cut(reason)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A body that was over before anybody asked for a frame (a HEAD answer, a 204) has ended well.
        let end = if self.inner.is_end_stream() { End::Complete } else { End::Dropped };
        self.finish(end);
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("clocks", &self.clocks).field("ended", &self.ended).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, channel::Channel};
    use std::sync::{Arc, Mutex};

    type Log = Arc<Mutex<Vec<End>>>;

    struct Recorder(Log);
    impl Watch for Recorder {
        fn end(&mut self, end: End) {
            self.0.lock().expect("no test panics with the lock").push(end);
        }
    }

    fn watched(body: Body) -> (Body, Log) {
        let log = Log::default();
        (body.watch(Box::new(Recorder(Arc::clone(&log)))), log)
    }

    fn ends(log: &Log) -> Vec<End> {
        log.lock().expect("no test panics with the lock").clone()
    }

    #[tokio::test]
    async fn the_end_is_told_with_the_last_frame_and_only_once() {
        let (mut body, log) = watched(Body::full("tokens"));
        assert!(ends(&log).is_empty());
        body.frame().await.expect("a frame").expect("data");
        assert_eq!(ends(&log), [End::Complete]);
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!(ends(&log), [End::Complete]);
    }

    #[tokio::test]
    async fn a_dropped_body_says_so() {
        let (body, log) = watched(Body::full("tokens"));
        drop(body);
        assert_eq!(ends(&log), [End::Dropped]);
    }

    #[tokio::test]
    async fn an_empty_body_that_nobody_polls_is_complete() {
        let (body, log) = watched(Body::empty());
        drop(body);
        assert_eq!(ends(&log), [End::Complete]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_only_while_the_consumer_waits() {
        let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(4);
        let clocks = Clocks { idle: Some(Duration::from_secs(10)), deadline: None };
        let (body, log) = watched(Body::boxed(channel));
        let mut body = body.time(clocks);
        sender.send_data(Bytes::from_static(b"a")).await.expect("room");
        body.frame().await.expect("a frame").expect("data");
        tokio::time::sleep(Duration::from_secs(60)).await; // the consumer is away: no fault of the producer
        sender.send_data(Bytes::from_static(b"b")).await.expect("room");
        body.frame().await.expect("a frame").expect("data");
        let began = Instant::now();
        let error = body.frame().await.expect("an error").expect_err("the producer is silent");
        assert_eq!(error.reason, Reason::UpstreamStalled);
        assert_eq!(began.elapsed().as_secs(), 10);
        assert_eq!(ends(&log), [End::Failed(Reason::UpstreamStalled)]);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_the_other_direction_break_the_silence() {
        let (_sender, channel) = Channel::<Bytes, std::io::Error>::new(1);
        let pulse = Pulse::default();
        let clocks = Clocks { idle: Some(Duration::from_secs(10)), deadline: None };
        let mut body = Body::boxed(channel).time(clocks).beside(pulse.clone());
        let began = Instant::now();
        let talk = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                pulse.beat();
            }
            std::future::pending::<()>().await;
        };
        let frame = tokio::select! { () = talk => unreachable!("it waits"), frame = body.frame() => frame };
        assert_eq!(frame.expect("an error").expect_err("silence").reason, Reason::UpstreamStalled);
        assert_eq!(began.elapsed().as_secs(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_late_only_while_it_is_waited_for() {
        let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(4);
        let rate = std::num::NonZeroU32::new(100);
        let bounds = UploadBounds { max_size: None, silence: Some(Duration::from_secs(30)), rate };
        let (body, log) = watched(Body::boxed(channel));
        let mut body = body.bound(bounds);
        for _ in 0..5 {
            sender.send_data(Bytes::from_static(b"part")).await.expect("room");
            tokio::time::sleep(Duration::from_secs(60)).await; // the upstream takes nothing
            body.frame().await.expect("a frame").expect("data");
        }
        let began = Instant::now();
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.send_data(Bytes::from_static(b"x")).await.expect("room");
            }
        };
        let taken = async {
            loop {
                if let Err(error) = body.frame().await.expect("no end") {
                    break error.reason;
                }
            }
        };
        let reason = tokio::select! { () = drip => unreachable!("for ever"), reason = taken => reason };
        assert_eq!((reason, began.elapsed().as_secs()), (Reason::UploadSlow, 10));
        assert_eq!(ends(&log), [End::Failed(Reason::UploadSlow)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds_although_frames_keep_coming() {
        let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(1);
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut body =
            Body::boxed(channel).time(Clocks { idle: Some(Duration::from_secs(2)), deadline: Some(deadline) });
        let producer = async {
            while sender.send_data(Bytes::from_static(b"x")).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(900)).await;
            }
        };
        let consumer = async {
            loop {
                if let Err(error) = body.frame().await.expect("no end") {
                    break error.reason;
                }
            }
        };
        let reason =
            tokio::select! { () = producer => unreachable!("the consumer holds on"), reason = consumer => reason };
        assert_eq!(reason, Reason::Deadline);
        assert_eq!(Instant::now(), deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds_for_a_body_that_is_always_ready() {
        let deadline = Instant::now() + Duration::from_secs(5);
        let endless =
            futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x"))));
        let clocks = Clocks { idle: None, deadline: Some(deadline) };
        let (body, log) = watched(Body::boxed(http_body_util::StreamBody::new(endless)));
        let mut body = body.time(clocks);
        let mut frames = 0;
        let reason = loop {
            match body.frame().await.expect("no end") {
                Ok(_) => frames += 1,
                Err(error) => break error.reason,
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        };
        assert_eq!((reason, frames), (Reason::Deadline, 5));
        assert_eq!(ends(&log), [End::Failed(Reason::Deadline)]);
    }
}
