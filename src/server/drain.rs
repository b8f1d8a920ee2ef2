//! The end of the proxy: nothing new, time for what is under way, and then a word for each that is cut.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::accept::Server;
use crate::body::kind::Kind;
use crate::context::RequestContext;
use crate::error::Reason;

/// What is cut may still say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long what is under way may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// Requests with one answer, the wait in the queue included.
    pub requests: Duration,
    /// Event streams, gRPC and tunnels.
    pub streams: Duration,
}

/// What was cut at the end of the grace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Requests with one answer.
    pub requests: usize,
    /// Event streams, gRPC and tunnels.
    pub streams: usize,
}

impl Server {
    /// Stops accepting, asks clients to go, and gives requests and streams their grace, or what is left of it until
    /// `hurry`. Then each request whose head is not out is answered, and everything else is reset.
    pub async fn drain(&self, grace: Grace, hurry: impl Future<Output = ()>) -> Cut {
        let tasks = &self.entry().tasks;
        self.shutdown().drain.cancel();
        let mut cut = Cut::default();
        let began = Instant::now();
        let cuts = async {
            let streams_first = grace.streams < grace.requests;
            sleep_until(began + grace.requests.min(grace.streams)).await;
            cut.add(self.cut(|is_stream| is_stream == streams_first || grace.streams == grace.requests));
            sleep_until(began + grace.requests.max(grace.streams)).await;
        };
        let in_time = tokio::select! {
            () = tasks.ended() => true,
            () = cuts => false,
            () = hurry => false,
        };
        if in_time {
            return cut;
        }
        cut.add(self.cut(|_| true));
        drop(timeout(LAST_WORDS, tasks.ended()).await);
        // What is left now has no request, or a client that does not even take the end.
        self.shutdown().cut.cancel();
        drop(timeout(LAST_WORDS, tasks.ended()).await);
        cut
    }

    fn cut(&self, which: impl Fn(bool) -> bool) -> Cut {
        let mut cut = Cut::default();
        self.entry().connections.each(|connection| {
            for exchange in connection.exchanges() {
                let is_stream = lasts(&exchange);
                if which(is_stream) && exchange.cancel(Reason::Drained) {
                    *(if is_stream { &mut cut.streams } else { &mut cut.requests }) += 1;
                }
            }
        });
        cut
    }
}

fn lasts(exchange: &RequestContext) -> bool {
    matches!(exchange.notes().kind(), Some(Kind::Stream | Kind::Upgrade))
}

impl Cut {
    fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.streams += more.streams;
    }
}
