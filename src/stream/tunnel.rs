//! Carries bytes both ways after a switch of protocols (WebSocket), with a bounded buffer a side.
//!
//! A side that has nothing more to say is told so to the other (half-close) and the other may still finish. The
//! tunnel ends when both are done, when either breaks, or when neither says anything for the idle time.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::body::End;
use crate::error::Reason;

/// Once one side has said all, the other may be silent for no longer than this.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Bytes a direction may hold.
const BUFFER: usize = 8 * 1024;

/// Carries bytes until the tunnel ends, and says how it ended. `heard` learns of what came from the client, `passed` of
/// what went to it.
///
/// Dropping the future closes both sides.
pub async fn carry(
    client: impl AsyncRead + AsyncWrite,
    upstream: impl AsyncRead + AsyncWrite,
    idle: Option<Duration>,
    mut heard: impl FnMut(&[u8]),
    mut passed: impl FnMut(&[u8]),
) -> End {
    let active = Activity::new();
    let (from_client, to_client) = tokio::io::split(client);
    let (from_upstream, to_upstream) = tokio::io::split(upstream);
    let up = pump(from_client, to_upstream, |bytes| {
        active.note();
        heard(bytes);
    });
    let down = pump(from_upstream, to_client, |bytes| {
        active.note();
        passed(bytes);
    });
    let both = async {
        let up = async {
            up.await
                .inspect(|()| active.half_closed())
                .map_err(|failed| failed.reason(Reason::ClientGone, Reason::UpstreamReset))
        };
        let down = async {
            down.await
                .inspect(|()| active.half_closed())
                .map_err(|failed| failed.reason(Reason::UpstreamReset, Reason::ClientGone))
        };
        tokio::try_join!(up, down)
    };
    tokio::select! {
        outcome = both => outcome.map_or_else(End::Failed, |_| End::Complete),
        () = silence(&active, idle) => End::Failed(Reason::UpstreamStalled),
    }
}

/// Which end of a direction failed.
enum Failed {
    Reading,
    Writing(io::Error),
}

impl Failed {
    fn reason(self, reading: Reason, writing: Reason) -> Reason {
        match self {
            Self::Reading => reading,
            Self::Writing(error) if error.kind() == io::ErrorKind::TimedOut => Reason::ClientStalled,
            Self::Writing(_) => writing,
        }
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut passed: impl FnMut(&[u8]),
) -> Result<(), Failed> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.map_err(|_| Failed::Reading)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return to.shutdown().await.map_err(Failed::Writing);
        }
        to.write_all(bytes).await.map_err(Failed::Writing)?;
        to.flush().await.map_err(Failed::Writing)?;
        passed(bytes);
    }
}

/// When either side last said something.
struct Activity {
    began: Instant,
    last_millis: AtomicU64,
    is_half_closed: AtomicBool,
    changed: Notify,
}

impl Activity {
    fn half_closed(&self) {
        self.note();
        self.is_half_closed.store(true, Relaxed);
        self.changed.notify_one();
    }

    fn bound(&self, idle: Option<Duration>) -> Option<Duration> {
        if self.is_half_closed.load(Relaxed) {
            Some(idle.map_or(LAST_WORDS, |idle| idle.min(LAST_WORDS)))
        } else {
            idle
        }
    }

    fn new() -> Self {
        Self {
            began: Instant::now(),
            last_millis: AtomicU64::new(0),
            is_half_closed: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    fn note(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(elapsed, Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last_millis.load(Relaxed))
    }
}

/// Ends when nothing has been active for `idle`, or for a short time once half of the tunnel is closed.
async fn silence(active: &Activity, idle: Option<Duration>) {
    loop {
        let Some(bound) = active.bound(idle) else {
            active.changed.notified().await;
            continue;
        };
        let until = active.last() + bound;
        if until <= Instant::now() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = active.changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    const IDLE: Option<Duration> = Some(Duration::from_secs(10));

    #[tokio::test(start_paused = true)]
    async fn each_side_may_finish_after_the_other() {
        let (mut client, near) = duplex(64);
        let (far, mut upstream) = duplex(64);
        let (mut up, mut down) = (0, 0);
        let tunnel = carry(near, far, IDLE, |bytes| up += bytes.len(), |bytes| down += bytes.len());
        let talk = async {
            client.write_all(b"last words").await.expect("open");
            client.shutdown().await.expect("open");
            let mut heard = String::new();
            upstream.read_to_string(&mut heard).await.expect("text");
            assert_eq!(heard, "last words");
            upstream.write_all(b"answer").await.expect("still open this way");
            drop(upstream);
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.expect("text");
            assert_eq!(heard, "answer");
        };
        let (end, ()) = tokio::join!(tunnel, talk);
        assert_eq!((end, up, down), (End::Complete, 10, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_tunnel_does_not_stand_for_long() {
        let (mut client, near) = duplex(64);
        let (far, _upstream) = duplex(64);
        client.shutdown().await.expect("open");
        let began = Instant::now();
        let end = carry(near, far, None, |_| (), |_| ()).await;
        assert_eq!((end, began.elapsed()), (End::Failed(Reason::UpstreamStalled), LAST_WORDS));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_on_both_sides_ends_it() {
        let (mut client, near) = duplex(64);
        let (far, _upstream) = duplex(64);
        let began = Instant::now();
        let talk = async {
            tokio::time::sleep(Duration::from_secs(6)).await;
            client.write_all(b"x").await.expect("open");
            std::future::pending::<()>().await;
        };
        let end = tokio::select! { end = carry(near, far, IDLE, |_| (), |_| ()) => end, () = talk => unreachable!("it waits") };
        assert_eq!((end, began.elapsed().as_secs()), (End::Failed(Reason::UpstreamStalled), 16));
    }
}
