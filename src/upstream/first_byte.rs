//! The clock of an answer's beginning.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http_body::Body as _;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::{End, Pulse, Watch};
use crate::context::Request;

/// A request that is complete within this time is not said to be late: it would cost more than it tells.
const LATE: Duration = Duration::from_millis(5);

/// An upload of which an upstream takes nothing for so long stands still. Longer than any round trip, in which the best
/// of them wait for their window.
const STANDS_STILL: Duration = Duration::from_millis(250);

/// A timer that a connection keeps for all its requests: moving a timer that is set costs a fraction of setting one.
pub(super) type Clock = Option<Pin<Box<Sleep>>>;

/// How long an upstream may take to begin its answer. It counts from the last bytes of the request that were taken,
/// so that a long upload is no fault of the upstream.
pub(super) struct FirstByte {
    limit: Option<Duration>,
    /// None without a request body.
    upload: Option<Arc<Progress>>,
}

/// When a request that was long in coming was complete. In the extensions of its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct AskedAt(pub(super) Instant);

/// How far the body of a request has come.
#[derive(Debug)]
pub(super) struct Progress {
    pulse: Pulse,
    /// More is wanted than the client has sent.
    is_awaited: AtomicBool,
}

impl Progress {
    /// Whether the upstream takes nothing of what the client has sent.
    fn stands_still(&self, now: Instant) -> bool {
        let is_offered = !self.is_awaited.load(Relaxed) && !self.pulse.is_over();
        is_offered && now.saturating_duration_since(self.pulse.last()) > STANDS_STILL
    }
}

/// The uploads of an h2 connection. They share its window: one that the upstream does not read may use all of it up,
/// and then no other goes on (RFC 9113, section 5.2.1).
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<Vec<Weak<Progress>>>);

impl Uploads {
    /// Another one, until its body is dropped. They are as many as the connection has streams, at most.
    pub(super) fn add(&self, first_byte: &FirstByte) {
        let Some(progress) = &first_byte.upload else { return };
        let mut all = self.lock();
        all.retain(|upload| upload.strong_count() > 0);
        all.push(Arc::downgrade(progress));
    }

    /// Whether one of them stands still.
    pub(super) fn stand_still(&self) -> bool {
        let all = self.lock();
        let mut running = all.iter().filter_map(Weak::upgrade).peekable();
        running.peek().is_some() && {
            let now = Instant::now();
            running.any(|upload| upload.stands_still(now))
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Progress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Upload(Arc<Progress>);

impl Watch for Upload {
    fn data(&mut self, _bytes: &[u8]) {
        self.0.pulse.beat();
        self.0.is_awaited.store(false, Relaxed);
    }

    fn waits(&mut self) {
        self.0.is_awaited.store(true, Relaxed);
    }

    fn end(&mut self, _end: End) {
        self.0.pulse.stop();
        self.0.is_awaited.store(false, Relaxed);
    }
}

impl FirstByte {
    /// Begins to watch what is sent of `request`.
    pub(super) fn watch(limit: Option<Duration>, request: &mut Request) -> Self {
        let mut upload = None;
        if !request.body().is_end_stream() {
            let progress = Arc::new(Progress { pulse: Pulse::default(), is_awaited: AtomicBool::new(false) });
            upload = Some(Arc::clone(&progress));
            request.body_mut().watch_in_place(Box::new(Upload(progress)));
        }
        Self { limit, upload }
    }

    /// Whether the upstream would take more of the request than the client has sent: then it is the client that is
    /// late.
    pub(super) fn awaits_client(&self) -> bool {
        self.upload.as_ref().is_some_and(|progress| progress.is_awaited.load(Relaxed))
    }

    /// The bytes of an upload that goes on beside the answer.
    pub(super) fn pulse(&self) -> Option<Pulse> {
        self.upload.as_ref().map(|progress| progress.pulse.clone()).filter(|pulse| !pulse.is_over())
    }

    /// When the last byte of the request was sent, if that was long after the first.
    pub(super) fn asked_late(&self) -> Option<AskedAt> {
        let pulse = &self.upload.as_ref()?.pulse;
        (pulse.age_at_last() > LATE).then(|| AskedAt(pulse.last()))
    }

    /// Ends when the answer should have begun; never without a limit.
    pub(super) async fn overdue(&self, clock: &mut Clock) {
        let Some(limit) = self.limit else { return std::future::pending().await };
        let mut until = Instant::now() + limit;
        loop {
            let clock = clock.get_or_insert_with(|| Box::pin(sleep_until(until)));
            clock.as_mut().reset(until);
            clock.as_mut().await;
            match self.upload.as_deref().map(|progress| progress.pulse.last()) {
                Some(last) if last + limit > Instant::now() => until = last + limit,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, channel::Channel};

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_the_last_byte_of_the_request() {
        let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(1);
        let mut request = http::Request::new(Body::boxed(channel));
        let first_byte = FirstByte::watch(Some(LIMIT), &mut request);
        let mut body = request.into_body();
        let began = Instant::now();
        let uploading = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                sender.send_data(Bytes::from_static(b"part")).await.expect("room");
                body.frame().await.expect("a frame").expect("data");
            }
            std::future::pending::<()>().await;
        };
        let mut clock = None;
        tokio::select! {
            () = uploading => unreachable!("it waits"),
            () = first_byte.overdue(&mut clock) => {}
        }
        assert_eq!(began.elapsed(), Duration::from_secs(5 * 8) + LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_serves_request_after_request() {
        let mut clock = None;
        for _ in 0..3 {
            let first_byte = FirstByte::watch(Some(LIMIT), &mut Request::default());
            let began = Instant::now();
            first_byte.overdue(&mut clock).await;
            assert_eq!(began.elapsed(), LIMIT);
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }
}
