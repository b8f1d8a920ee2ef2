//! Both ends of `scripts/bench`: an upstream that costs next to nothing, and readers of event streams.
//!
//! ```text
//! bench_load origin 127.0.0.1:PORT              GET /sse/MS: an event every MS; anything else: a small 200
//! bench_load sse HOST:PORT STREAMS MS SECONDS   opens the streams, prints `ready`, counts, prints `events N`
//! ```
//!
//! Written on bare sockets, so that what is measured is the proxy between them.

#![allow(clippy::print_stdout, reason = "its output is its result")]
#![allow(clippy::disallowed_methods, reason = "a program of its own: its tasks end with it")]

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// As large as a chunk of a chat with one token in it.
const EVENT: &str = concat!(
    r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","#,
    r#""choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}"#,
    "\n\n"
);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["origin", address] => origin(address).await?,
        ["sse", address, streams, pace, seconds] => {
            read(address, streams.parse()?, pace.parse()?, Duration::from_secs(seconds.parse()?)).await?;
        }
        _ => return Err("usage: bench_load origin ADDRESS | sse ADDRESS STREAMS MS SECONDS".into()),
    }
    Ok(())
}

async fn origin(address: &str) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address.parse().map_err(io::Error::other)?)?;
    let listener: TcpListener = socket.listen(4096)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move { drop(serve(stream).await) });
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut kept = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut kept).await? == 0 {
            return Ok(());
        }
        while let Some(end) = kept.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(kept.get(..end).unwrap_or_default()).into_owned();
            kept.drain(..end + 4);
            if let Some(pace) = head.strip_prefix("GET /sse/").and_then(|rest| rest.split(' ').next()) {
                return events(&mut stream, pace.parse().unwrap_or(50)).await;
            }
            stream.write_all(OK).await?;
        }
    }
}

async fn events(stream: &mut TcpStream, pace: u64) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let chunk = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
    let mut pace = interval(Duration::from_millis(pace));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        pace.tick().await;
        stream.write_all(chunk.as_bytes()).await?;
    }
}

async fn read(address: &str, streams: u32, pace: u64, time: Duration) -> Result<(), Box<dyn Error>> {
    let count = Arc::new(AtomicU64::new(0));
    let open = Arc::new(Semaphore::new(0));
    for _ in 0..streams {
        let (address, count, open) = (address.to_owned(), Arc::clone(&count), Arc::clone(&open));
        tokio::spawn(async move {
            if let Err(error) = read_one(&address, pace, &count, &open).await {
                println!("failed {error}");
            }
        });
        // A crowd that arrives all at once would be measured by its arrival.
        sleep(Duration::from_micros(500)).await;
    }
    drop(timeout(Duration::from_secs(30), open.acquire_many(streams)).await??);
    println!("ready");
    let before = count.load(Relaxed);
    sleep(time).await;
    println!("events {}", count.load(Relaxed) - before);
    Ok(())
}

async fn read_one(address: &str, pace: u64, count: &AtomicU64, open: &Semaphore) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET /sse/{pace} HTTP/1.1\r\nhost: bench\r\naccept: text/event-stream\r\n\r\n").as_bytes())
        .await?;
    let mut part = vec![0; 16 * 1024];
    let mut seen = false;
    loop {
        let size = stream.read(&mut part).await?;
        let bytes = part.get(..size).unwrap_or_default();
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // "data: {" begins an event and stands nowhere else; one that two reads share is missed by both, and rare.
        let events = bytes.windows(7).filter(|window| window == b"data: {").count();
        count.fetch_add(events as u64, Relaxed);
        if events > 0 && !seen {
            seen = true;
            open.add_permits(1);
        }
    }
}
