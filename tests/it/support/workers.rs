//! An HTTP/1.1 service with a number of workers, which goes on working for clients who left.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Luck;
use super::origin::{BlockOnHere as _, runtime};

/// Each request takes one worker for a time; those that find none wait inside, in order.
#[derive(Debug)]
pub(crate) struct Workers {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    workers: Semaphore,
    time: Duration,
    /// Not the same time for each, but exponential with this mean.
    is_random: bool,
    /// Whether answers say how long their requests waited inside.
    reports: bool,
    luck: AtomicU64,
    /// Microseconds in which workers were held.
    held: AtomicU64,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
    served: AtomicUsize,
}

impl Workers {
    /// Each request takes the same time.
    pub(crate) fn new(workers: usize, time: Duration) -> Self {
        Self::start(workers, time, false, false)
    }

    /// The same, and its answers say how long their requests waited inside.
    pub(crate) fn reporting(workers: usize, time: Duration) -> Self {
        Self::start(workers, time, false, true)
    }

    /// Each takes a time of its own, exponential with this mean.
    pub(crate) fn exponential(workers: usize, time: Duration) -> Self {
        Self::start(workers, time, true, false)
    }

    fn start(workers: usize, time: Duration, is_random: bool, reports: bool) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on_here(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(4096).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            workers: Semaphore::new(workers),
            time,
            is_random,
            reports,
            luck: AtomicU64::new(1),
            held: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            most_inside: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// So many workers fall out, each when it is done with what it has.
    pub(crate) fn lose(&self, workers: usize) {
        let shared = Arc::clone(&self.shared);
        let losing = async move { shared.workers.acquire_many(workers as u32).await.unwrap().forget() };
        drop(self.runtime.as_ref().unwrap().spawn(losing));
    }

    /// So many are there again.
    pub(crate) fn gain(&self, workers: usize) {
        self.shared.workers.add_permits(workers);
    }

    /// How long workers have been held, over all of them.
    pub(crate) fn held(&self) -> Duration {
        Duration::from_micros(self.shared.held.load(SeqCst))
    }

    /// Requests that are done, whether or not anybody waited for them.
    pub(crate) fn served(&self) -> usize {
        self.shared.served.load(SeqCst)
    }

    /// Requests inside at once, at most, since this was asked last.
    pub(crate) fn most_inside(&self) -> usize {
        self.shared.most_inside.swap(self.shared.inside.load(SeqCst), SeqCst)
    }
}

impl Shared {
    fn takes(&self) -> Duration {
        if !self.is_random {
            return self.time;
        }
        // The same times in every run.
        let count = self.luck.fetch_add(1, SeqCst);
        self.time.mul_f64(Luck::new(count).exponential())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut head = Vec::new();
    loop {
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(count) if count > 0 => head.extend_from_slice(&part[..count]),
            _ => return,
        }
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        head.clear();
        let inside = shared.inside.fetch_add(1, SeqCst) + 1;
        shared.most_inside.fetch_max(inside, SeqCst);
        let arrived = Instant::now();
        let worker = shared.workers.acquire().await.unwrap();
        let since = Instant::now();
        let waited = (since - arrived).as_secs_f64() * 1e3;
        tokio::time::sleep(shared.takes()).await;
        shared.held.fetch_add(since.elapsed().as_micros() as u64, SeqCst);
        drop(worker);
        shared.inside.fetch_sub(1, SeqCst);
        shared.served.fetch_add(1, SeqCst);
        let report =
            if shared.reports { format!("x-headworks-queue-delay-ms: {waited:.3}\r\n") } else { String::new() };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n{report}\r\nok\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
