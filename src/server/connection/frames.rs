//! What a client's HTTP/2 frames tell before h2 reads them: floods, field blocks without an end, and how often begun
//! work is thrown away.
//!
//! [`FrameGate`] stands between h2 and the socket (or TLS) and follows the heads of the frames; it changes nothing as
//! long as the client behaves. hyper has no call for "calm down", so a connection that has used up a budget gets no
//! further frame of its client, but ones of ours that make h2 say it: a field block that does not end. h2 then resets
//! all streams, sends GOAWAY with `ENHANCE_YOUR_CALM`, and closes as it always does.

use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::context::Connection;
use crate::control::cancel_budget::CancelBudget;
use crate::control::frame_budget::{CONTINUATION, FrameBudget, FrameHead, HEADERS};
use crate::error::Reason;

/// Shared by the gate, the streams and the clocks of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    connection: Arc<Connection>,
    /// Streams whose answer was handed over whole.
    answered: AtomicU64,
    /// Since when a field block is open, in milliseconds since the connection was; 0: none is.
    block_since: AtomicU64,
    /// A budget is used up: nothing more of this client is read or served.
    spent: AtomicBool,
    /// The connection ends anyway, and what breaks off with it is nobody's cancellation.
    over: AtomicBool,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    cancels: CancelBudget,
    /// Who reads, while it waits for the client.
    reader: Option<Waker>,
}

impl Frames {
    pub(super) fn new(connection: Arc<Connection>, cancel_budget: NonZeroU32) -> Arc<Self> {
        let books = Books { cancels: CancelBudget::new(cancel_budget, Instant::now()), reader: None };
        Arc::new(Self {
            connection,
            answered: AtomicU64::new(0),
            block_since: AtomicU64::new(0),
            spent: AtomicBool::new(false),
            over: AtomicBool::new(false),
            books: Mutex::new(books),
        })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a budget is used up: what has not begun must not begin.
    pub(super) fn is_spent(&self) -> bool {
        self.spent.load(Relaxed)
    }

    /// Since when a field block has been without its end.
    pub(super) fn head_since(&self) -> Option<Instant> {
        let since = self.block_since.load(Relaxed);
        (since > 0).then(|| self.connection.opened_at() + Duration::from_millis(since))
    }

    /// The connection ends, by whomever.
    pub(super) fn end(&self) {
        self.over.store(true, Relaxed);
    }

    /// A stream has its whole answer.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    /// A stream was reset by its client, or by h2 for its client's fault, before its answer was whole.
    pub(super) fn cancelled(&self) {
        if self.over.load(Relaxed) || self.is_spent() {
            return;
        }
        let paid = self.books().cancels.cancel(self.answered.load(Relaxed), Instant::now());
        if !paid {
            self.spend(Reason::CancelBudget);
        }
    }

    fn spend(&self, reason: Reason) {
        self.connection.mark_cut(reason);
        if self.spent.swap(true, Relaxed) {
            return;
        }
        tracing::info!(peer = ?self.connection.peer, listener = %self.connection.listener, %reason, "ends a connection");
        if let Some(reader) = self.books().reader.take() {
            reader.wake();
        }
    }

    /// Remembers whom to wake; true when there is no need to wait.
    fn wait(&self, waker: &Waker) -> bool {
        let mut books = self.books();
        if !books.reader.as_ref().is_some_and(|reader| reader.will_wake(waker)) {
            books.reader = Some(waker.clone());
        }
        self.is_spent()
    }
}

/// Where the bytes are among the frames.
#[derive(Debug)]
struct Walk {
    head: [u8; 9],
    /// Bytes of the head that are here.
    have: usize,
    /// Bytes of the payload, or of the preface, that are still to come.
    payload: usize,
    /// The highest stream that was opened.
    last_stream: u32,
    /// The stream whose field block is open.
    open_block: Option<u32>,
}

const PREFACE_LENGTH: usize = 24;

impl Walk {
    fn new() -> Self {
        Self { head: [0; 9], have: 0, payload: PREFACE_LENGTH, last_stream: 0, open_block: None }
    }

    /// Follows `bytes`; gives each head as it becomes whole.
    fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            let passed = self.payload.min(bytes.len());
            self.payload -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            let Some(rest) = self.head.get_mut(self.have..) else { return };
            let part = rest.len().min(bytes.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..part), bytes.get(..part)) {
                to.copy_from_slice(from);
            }
            self.have += part;
            bytes = bytes.get(part..).unwrap_or_default();
            if self.have == self.head.len() {
                self.have = 0;
                let head = FrameHead::read(self.head);
                self.payload = usize::try_from(head.length).unwrap_or(usize::MAX);
                self.note(head);
                each(head);
            }
        }
    }

    fn note(&mut self, head: FrameHead) {
        if head.kind == HEADERS {
            self.last_stream = self.last_stream.max(head.stream);
        }
        if head.kind == HEADERS || head.kind == CONTINUATION {
            self.open_block = head.leaves_block_open().then_some(head.stream);
        }
    }

    /// Bytes up to the end of what has begun: of the head, or of the payload.
    fn unfinished(&self) -> usize {
        if self.payload > 0 || self.have == 0 { self.payload } else { self.head.len() - self.have }
    }
}

/// The client's side of a connection, as h2 sees it.
#[derive(Debug)]
pub(super) struct FrameGate<S> {
    io: S,
    walk: Walk,
    budget: FrameBudget,
    shared: Arc<Frames>,
    /// Bytes of ours that are still to be read.
    last_words: Vec<u8>,
    has_spoken: bool,
}

impl<S> FrameGate<S> {
    pub(super) fn new(io: S, shared: Arc<Frames>) -> Self {
        let budget = FrameBudget::new(Instant::now());
        Self { io, walk: Walk::new(), budget, shared, last_words: Vec::new(), has_spoken: false }
    }

    /// Looks at what was read. A frame too many is still passed on, and the last of its client.
    fn look(&mut self, bytes: &[u8]) {
        let Self { walk, budget, shared, .. } = self;
        let was_open = walk.open_block.is_some();
        let mut flood = false;
        walk.follow(bytes, |head| flood |= !budget.take(head, Instant::now));
        if walk.open_block.is_some() != was_open {
            let since = shared.connection.opened_at().elapsed().as_millis();
            let since = if was_open { 0 } else { u64::try_from(since).unwrap_or(u64::MAX).max(1) };
            shared.block_since.store(since, Relaxed);
        }
        if flood {
            shared.spend(Reason::ClientFlood);
        }
    }

    /// A field block without an end, which h2 answers with `ENHANCE_YOUR_CALM` after at most 80 frames.
    fn speak(&mut self) {
        let mut words = vec![0; self.walk.unfinished()];
        let stream = self.walk.open_block.unwrap_or((self.walk.last_stream | 1).saturating_add(2));
        if self.walk.open_block.is_none() {
            words.extend_from_slice(&[0, 0, 0, HEADERS, 0]);
            words.extend_from_slice(&stream.to_be_bytes());
        }
        for _ in 0..128 {
            words.extend_from_slice(&[0, 0, 0, CONTINUATION, 0]);
            words.extend_from_slice(&stream.to_be_bytes());
        }
        self.last_words = words;
        self.has_spoken = true;
    }
}

impl<S: AsyncRead + Unpin> FrameGate<S> {
    /// What h2 reads once a budget is used up: the rest of the frame that has begun, as far as it is there, and then
    /// what is ours.
    fn poll_last(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let unfinished = self.walk.unfinished();
        if unfinished > 0 && !self.has_spoken {
            let mut bytes = [0; 1024];
            let mut rest = ReadBuf::new(bytes.get_mut(..unfinished.min(buf.remaining()).min(1024)).unwrap_or_default());
            if let Poll::Ready(Ok(())) = Pin::new(&mut self.io).poll_read(cx, &mut rest)
                && !rest.filled().is_empty()
            {
                self.walk.follow(rest.filled(), |_| {});
                buf.put_slice(rest.filled());
                return Poll::Ready(Ok(()));
            }
        }
        if !self.has_spoken {
            self.speak();
        }
        let part = buf.remaining().min(self.last_words.len());
        buf.put_slice(self.last_words.get(..part).unwrap_or_default());
        self.last_words.drain(..part);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameGate<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.shared.is_spent() {
            return this.poll_last(cx, buf);
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if polled.is_pending() {
            return if this.shared.wait(cx.waker()) { this.poll_last(cx, buf) } else { Poll::Pending };
        }
        let read = buf.filled().get(before..).unwrap_or_default();
        if read.is_empty() {
            this.shared.end();
        }
        this.look(read);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameGate<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf));
        Poll::Ready(this.written(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs));
        Poll::Ready(this.written(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<S> FrameGate<S> {
    fn written(&mut self, written: io::Result<usize>) -> io::Result<usize> {
        match &written {
            Ok(bytes) => self.budget.sent(*bytes),
            Err(_) => self.shared.end(),
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn gate(burst: u32) -> (FrameGate<tokio::io::DuplexStream>, tokio::io::DuplexStream, Arc<Frames>) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let connection = Connection::new("test".into(), None, None, false, Duration::from_secs(1));
        let frames = Frames::new(Arc::new(connection), NonZeroU32::new(burst).unwrap());
        (FrameGate::new(ours, Arc::clone(&frames)), theirs, frames)
    }

    fn frame(length: u8, kind: u8, flags: u8, stream: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
        bytes.resize(9 + usize::from(length), 0);
        bytes
    }

    #[test]
    fn heads_are_found_however_the_bytes_are_cut() {
        let bytes =
            [vec![b'p'; PREFACE_LENGTH], frame(3, 4, 0, 0), frame(0, 4, 1, 0), frame(200, HEADERS, 4, 7)].concat();
        for cut in 1..bytes.len() {
            let (mut walk, mut kinds) = (Walk::new(), Vec::new());
            for part in bytes.chunks(cut) {
                walk.follow(part, |head| kinds.push((head.kind, head.length)));
            }
            assert_eq!(kinds, [(4, 3), (4, 0), (HEADERS, 200)]);
            assert_eq!((walk.unfinished(), walk.last_stream, walk.open_block), (0, 7, None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_block_is_open_until_its_end_comes() {
        let (mut gate, mut client, frames) = gate(1);
        let mut buf = [0; 4096];
        let says = [vec![b'p'; PREFACE_LENGTH], frame(2, HEADERS, 0, 1)].concat();
        for (bytes, open) in [(says, true), (frame(1, CONTINUATION, 0, 1), true), (frame(1, CONTINUATION, 4, 1), false)]
        {
            client.write_all(&bytes).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(gate.read(&mut buf).await.unwrap(), bytes.len());
            assert_eq!(frames.head_since().is_some(), open);
        }
    }

    #[tokio::test]
    async fn a_client_whose_budget_is_used_up_is_heard_no_more() {
        let (mut gate, mut client, frames) = gate(2);
        let mut buf = [0; 4096];
        client.write_all(&[b'p'; PREFACE_LENGTH]).await.unwrap();
        // A frame of which a part has come.
        client.write_all(&frame(50, 0, 0, 1)[..20]).await.unwrap();
        assert_eq!(gate.read(&mut buf).await.unwrap(), PREFACE_LENGTH + 20);
        (0..3).for_each(|_| frames.cancelled());
        assert!(frames.is_spent());
        assert_eq!(frames.connection.cut(), Some(Reason::CancelBudget));
        client.write_all(&[7; 1000]).await.unwrap();
        let (mut walk, mut kinds) = (Walk::new(), Vec::new());
        walk.follow(&[&[b'p'; PREFACE_LENGTH], &frame(50, 0, 0, 1)[..20]].concat(), |_| {});
        loop {
            let read = gate.read(&mut buf).await.unwrap();
            if read == 0 {
                break;
            }
            walk.follow(&buf[..read], |head| kinds.push(head.kind));
        }
        assert_eq!(kinds, [vec![HEADERS], vec![CONTINUATION; 128]].concat());
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let (mut gate, _client, frames) = gate(1);
        let reading = crate::tasks::run(async move { gate.read(&mut [0; 64]).await.unwrap() });
        while frames.books().reader.is_none() {
            tokio::task::yield_now().await;
        }
        frames.cancelled();
        frames.cancelled();
        assert!(reading.await.unwrap() > 0);
    }

    #[tokio::test]
    async fn what_breaks_off_with_the_connection_costs_nothing() {
        let (mut gate, client, frames) = gate(1);
        drop(client);
        assert_eq!(gate.read(&mut [0; 64]).await.unwrap(), 0);
        (0..10).for_each(|_| frames.cancelled());
        assert!(!frames.is_spent());
    }
}
