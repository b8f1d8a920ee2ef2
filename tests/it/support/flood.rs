//! A raw HTTP/1.1 upstream that sends as fast as it can and knows to the byte what was taken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use super::Record;
use super::origin::{BlockOnHere as _, runtime};

/// Who reads, and what became of it.
type Streams = Arc<Mutex<Vec<(SocketAddr, Arc<Record>)>>>;

/// It writes to the socket itself, so that no library's buffer blurs the count. Its own send buffer is small, and
/// what still lies in it is subtracted.
#[derive(Debug)]
pub(crate) struct Flood {
    address: SocketAddr,
    streams: Streams,
    runtime: Option<Runtime>,
}

impl Flood {
    pub(crate) fn new() -> Self {
        let runtime = runtime();
        let listener = runtime.block_on_here(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_send_buffer_size(4096).unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(4096).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let streams = Streams::default();
        runtime.spawn(accept(listener, Arc::clone(&streams)));
        Self { address, streams, runtime: Some(runtime) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The streams, by the order of their requests; `path` tells whose they are.
    pub(crate) fn records(&self) -> Vec<Arc<Record>> {
        self.streams.lock().unwrap().iter().map(|(_, record)| Arc::clone(record)).collect()
    }

    /// Body bytes that have left this upstream's send buffer, by path.
    pub(crate) fn taken(&self) -> HashMap<String, u64> {
        let unsent = unsent(self.address.port());
        let streams = self.streams.lock().unwrap();
        let taken = streams.iter().map(|(peer, record)| {
            let waiting = unsent.get(&peer.port()).copied().unwrap_or(0);
            (record.path.clone(), record.taken().saturating_sub(waiting))
        });
        taken.collect()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, streams: Streams) {
    while let Ok((stream, peer)) = listener.accept().await {
        let streams = Arc::clone(&streams);
        tokio::spawn(async move {
            let mut stream = stream;
            let Some(path) = request_path(&mut stream).await else { return };
            let record = Record::new(&path);
            streams.lock().unwrap().push((peer, Arc::clone(&record)));
            pour(&mut stream, &record).await;
            record.end();
        });
    }
}

async fn request_path(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let count = stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
        head.extend_from_slice(&part[..count]);
    }
    Some(String::from_utf8_lossy(&head).split(' ').nth(1)?.to_owned())
}

/// Ends when the reader's side closes: a read tells of a FIN or a reset even while no write is possible.
async fn pour(stream: &mut TcpStream, record: &Record) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 1099511627776\r\n\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let chunk = [b'x'; 4096];
    let (mut read, mut write) = stream.split();
    let closed = async {
        let mut rest = [0; 256];
        while read.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    };
    let pouring = async {
        while let Ok(count) = write.write(&chunk).await {
            record.progress(count as u64);
        }
    };
    tokio::select! {
        () = closed => {}
        () = pouring => {}
    }
}

/// Bytes in the send buffers of the sockets with this local port, by the port of their peer.
fn unsent(port: u16) -> HashMap<u16, u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let rows = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, peer, _, queues) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let number = |text: &str| u16::from_str_radix(text.rsplit(':').next()?, 16).ok();
        let queue = u64::from_str_radix(queues.split(':').next()?, 16).ok()?;
        (number(local)? == port).then_some((number(peer)?, queue))
    });
    rows.collect()
}
