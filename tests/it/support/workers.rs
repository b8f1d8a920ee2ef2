//! An HTTP/1.1 service with a fixed number of workers, which goes on working for clients who left.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::origin::{BlockOnHere as _, runtime};

/// Each request takes one worker for the same time; those that find none wait inside, in order.
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
    /// Whether answers say how long their requests waited inside.
    reports: bool,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
    served: AtomicUsize,
}

impl Workers {
    pub(crate) fn new(workers: usize, time: Duration) -> Self {
        Self::start(workers, time, false)
    }

    /// The same, and its answers say how long their requests waited inside.
    pub(crate) fn reporting(workers: usize, time: Duration) -> Self {
        Self::start(workers, time, true)
    }

    fn start(workers: usize, time: Duration, reports: bool) -> Self {
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
            reports,
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

    /// Requests that are done, whether or not anybody waited for them.
    pub(crate) fn served(&self) -> usize {
        self.shared.served.load(SeqCst)
    }

    /// Requests inside at once, at most, since this was asked last.
    pub(crate) fn most_inside(&self) -> usize {
        self.shared.most_inside.swap(self.shared.inside.load(SeqCst), SeqCst)
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
        let waited = arrived.elapsed().as_secs_f64() * 1e3;
        tokio::time::sleep(shared.time).await;
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
