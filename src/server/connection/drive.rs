//! Drives hyper's connection until it ends or must: the client has gone, a clock has run out, it has served enough, or
//! the proxy drains.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use tokio::time::timeout;

use super::deadlines::{Deadlines, Overdue};
use super::endings::Ending;
use super::frames::Frames;
use super::io::{gone, lost};
use super::socket::Socket;
use super::{LAST_CALL, Session};
use crate::context::Connection;
use crate::error::Reason;

/// How long a connection without a request may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

impl Session {
    /// Drives hyper's connection until it ends or must.
    pub(super) async fn drive<C: Drive>(&self, connection: C, deadlines: Deadlines, frames: Option<&Frames>) {
        let mut connection = std::pin::pin!(connection);
        let mut client = Client {
            overdue: Some(Box::pin(deadlines.pass(&self.connection, frames))),
            gone: Box::pin(gone(&self.socket)),
            has_gone: false,
            socket: Arc::clone(&self.socket),
            lost: None,
            heads_are_held: C::HEADS_ARE_HELD,
        };
        let mut until = self.serve_until(connection.as_mut(), &mut client, self.shutdown.drain.cancelled()).await;
        if matches!(until, Until::Quiet(Ending::Drained)) && self.connection.active() == 0 {
            // A request may be on its way, and hyper closes an HTTP/1.1 connection that idles without another look. The
            // answer to one that came says goodbye.
            let before = self.connection.requests();
            let came = poll_fn(|_| if self.connection.requests() == before { Poll::Pending } else { Poll::Ready(()) });
            let served = self.serve_until(connection.as_mut(), &mut client, came);
            until = timeout(LAST_CALL, served).await.unwrap_or(Until::Quiet(Ending::Drained));
        }
        if let Until::Quiet(ending) = until {
            client.overdue = None;
            if C::HEADS_ARE_HELD && self.head_is_under_way() {
                until = self.finish_head(connection.as_mut(), &mut client, deadlines.head, ending).await;
            }
        }
        let ending = match until {
            Until::Over(ending) => ending,
            Until::Quiet(ending) => {
                // Told of the end, the client knows that a request which crosses it was not read.
                connection.as_mut().graceful_shutdown();
                self.say_goodbye(connection, &mut client, ending).await
            }
        };
        self.endings.count(ending);
        if let Some(frames) = frames {
            frames.end();
        }
        if self.connection.cut().is_some_and(|reason| !Ending::was_told(reason)) {
            self.socket.reset_on_close();
        }
    }

    /// Serves what is under way, until all is over or must be.
    async fn say_goodbye<C: Drive, O: Future<Output = Overdue>, G: Future<Output = ()>>(
        &self,
        connection: Pin<&mut C>,
        client: &mut Client<O, G>,
        ending: Ending,
    ) -> Ending {
        let mut goodbye = std::pin::pin!(self.serve_until(connection, client, self.shutdown.cut.cancelled()));
        loop {
            let quiet_since = self.connection.idle_since();
            match timeout(GOODBYE, goodbye.as_mut()).await {
                Ok(Until::Over(Ending::Closed)) => return ending,
                Ok(Until::Over(ending)) => return ending,
                Ok(Until::Quiet(ending)) => {
                    self.connection.mark_cut(Reason::Drained);
                    return ending;
                }
                // One that crossed and was read all the same is served, as is all that was under way.
                Err(_) if self.connection.active() == 0 && self.connection.idle_since() == quiet_since => {
                    return ending;
                }
                Err(_) => {}
            }
        }
    }

    fn head_is_under_way(&self) -> bool {
        self.connection.active() == 0 && self.connection.holds_head()
    }

    /// Serves until the head under way is a request. hyper, told to end, would close: it does not see a head before it
    /// is whole. One that does not become whole in time, or before the end of the grace, is refused.
    async fn finish_head<C: Drive, O: Future<Output = Overdue>, G: Future<Output = ()>>(
        &self,
        mut connection: Pin<&mut C>,
        client: &mut Client<O, G>,
        within: Duration,
        ending: Ending,
    ) -> Until {
        let mut cut = std::pin::pin!(self.shutdown.cut.cancelled());
        let whole_or_cut = poll_fn(|cx| if self.head_is_under_way() { cut.as_mut().poll(cx) } else { Poll::Ready(()) });
        let reason = match timeout(within, self.serve_until(connection.as_mut(), client, whole_or_cut)).await {
            Ok(Until::Over(ending)) => return Until::Over(ending),
            Ok(Until::Quiet(_)) if !self.head_is_under_way() => return Until::Quiet(ending),
            Ok(_) => Reason::Drained,
            Err(_) => Reason::HeaderTimeout,
        };
        self.connection.end_head(reason);
        drop(timeout(GOODBYE, connection).await);
        Until::Over(Ending::refused(reason))
    }

    /// Serves until the connection is over, idle, old or used up, or until `signal`.
    async fn serve_until<C: Drive, O: Future<Output = Overdue>, G: Future<Output = ()>>(
        &self,
        mut connection: Pin<&mut C>,
        client: &mut Client<O, G>,
        signal: impl Future<Output = ()>,
    ) -> Until {
        let mut signal = std::pin::pin!(signal);
        poll_fn(|cx| {
            self.connection.driven_by(cx.waker());
            if self.connection.is_ended() {
                return Poll::Ready(Until::Over(self.connection.cut().map_or(Ending::Cancelled, Ending::cut)));
            }
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                // Our body broke off, and to this client the end of the connection would look like the body's.
                if result.as_ref().is_err_and(hyper::Error::is_user) && self.connection.is_close_delimited() {
                    self.socket.reset_on_close();
                }
                return Poll::Ready(Until::Over(Ending::of(&self.connection, result)));
            }
            if let Poll::Ready(until) = client.poll_end(&self.connection, cx) {
                return Poll::Ready(until);
            }
            if client.overdue.is_some() && self.is_used_up() {
                return Poll::Ready(Until::Quiet(Ending::UsedUp));
            }
            signal.as_mut().poll(cx).map(|()| Until::Quiet(Ending::Drained))
        })
        .await
    }

    /// Whether it has served as many requests as it may.
    fn is_used_up(&self) -> bool {
        self.limits.max_requests.is_some_and(|most| self.connection.requests() >= most)
    }
}

/// Why a connection is not served on as before.
enum Until {
    /// There is nobody left to serve.
    Over(Ending),
    /// It takes no further request.
    Quiet(Ending),
}

/// What is known of the client beside its bytes.
struct Client<O, G> {
    /// None once the connection says goodbye.
    overdue: Option<Pin<Box<O>>>,
    gone: Pin<Box<G>>,
    has_gone: bool,
    socket: Arc<Socket>,
    /// Asked where a closed half is not the end.
    lost: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// As in [`Drive`].
    heads_are_held: bool,
}

impl<O: Future<Output = Overdue>, G: Future<Output = ()>> Client<O, G> {
    /// Whether the client, which has closed its sending half, still waits for the answer.
    fn is_awaited(&mut self, connection: &Connection, cx: &mut Context<'_>) -> bool {
        if !connection.allows_half_close() {
            return false;
        }
        let socket = &self.socket;
        let lost = self.lost.get_or_insert_with(|| {
            let socket = Arc::clone(socket);
            Box::pin(async move { lost(&socket).await })
        });
        lost.as_mut().poll(cx).is_pending()
    }

    /// Ready when there is nobody left to serve, or nothing to serve.
    fn poll_end(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Poll<Until> {
        self.has_gone = self.has_gone || self.gone.as_mut().poll(cx).is_ready();
        // What a client said before it went hyper may still read and serve, but nothing is waited for.
        if self.has_gone && connection.active() > 0 && !self.is_awaited(connection, cx) {
            return Poll::Ready(Until::Over(Ending::ClientGone));
        }
        let Some(overdue) = &mut self.overdue else { return Poll::Pending };
        match ready!(overdue.as_mut().poll(cx)) {
            Overdue::Head if self.heads_are_held => {
                self.overdue = None;
                // The connection ends by itself, with an answer where a head has begun.
                connection.end_head(Reason::HeaderTimeout);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Overdue::Head => Poll::Ready(Until::Over(Ending::SlowHead)),
            Overdue::Request => Poll::Ready(Until::Quiet(Ending::Idle)),
            Overdue::Age => Poll::Ready(Until::Quiet(Ending::Old)),
        }
    }
}

/// hyper's two kinds of connection, as far as they are driven alike.
pub(super) trait Drive: Future<Output = hyper::Result<()>> {
    /// Whether hyper sees a head only when it is whole.
    const HEADS_ARE_HELD: bool;

    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, S, B> Drive for http1::UpgradeableConnection<I, S>
where
    http1::UpgradeableConnection<I, S>: Future<Output = hyper::Result<()>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    const HEADS_ARE_HELD: bool = true;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        http1::UpgradeableConnection::graceful_shutdown(self);
    }
}

impl<I, S, B, E> Drive for http2::Connection<I, S, E>
where
    http2::Connection<I, S, E>: Future<Output = hyper::Result<()>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    const HEADS_ARE_HELD: bool = false;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        http2::Connection::graceful_shutdown(self);
    }
}
