//! An HTTP/1.1 service that can be killed and started again on the same port, and answers what a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::origin::{BlockOnHere as _, runtime};

/// See the module's text. It begins alive, and answers 200.
#[derive(Debug)]
pub(crate) struct Switch {
    address: SocketAddr,
    shared: Arc<Shared>,
    listens: Mutex<Option<JoinHandle<()>>>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    /// By the beginning of the path; later ones are looked at first.
    answers: Mutex<Vec<(String, String)>>,
    seen: Mutex<Vec<String>>,
    is_held: watch::Sender<bool>,
}

impl Switch {
    pub(crate) fn new() -> Self {
        let runtime = runtime();
        let shared = Arc::new(Shared {
            answers: Mutex::new(Vec::new()),
            seen: Mutex::new(Vec::new()),
            is_held: watch::Sender::new(false),
        });
        let listener = runtime.block_on_here(async { listen("127.0.0.1:0".parse().unwrap()) });
        let address = listener.local_addr().unwrap();
        let task = runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, listens: Mutex::new(Some(task)), runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes its port and all connections.
    pub(crate) async fn kill(&self) {
        let task = self.listens.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    /// Is there again.
    pub(crate) fn start(&self) {
        let runtime = self.runtime.as_ref().unwrap();
        let listener = runtime.block_on_here(async { listen(self.address) });
        *self.listens.lock().unwrap() = Some(runtime.spawn(accept(listener, Arc::clone(&self.shared))));
    }

    /// Answers requests whose path begins with `path` with this status and these fields, each with its line end.
    pub(crate) fn answer(&self, path: &str, status: u16, fields: &str) {
        let answer = format!("HTTP/1.1 {status} as said\r\n{fields}content-length: 3\r\n\r\nok\n");
        self.shared.answers.lock().unwrap().push((path.to_owned(), answer));
    }

    /// Answers nothing until it is told to go on.
    pub(crate) fn hold(&self, is_held: bool) {
        self.shared.is_held.send_replace(is_held);
    }

    /// How many requests it has read whose path begins so.
    pub(crate) fn seen(&self, path: &str) -> usize {
        self.shared.seen.lock().unwrap().iter().filter(|seen| seen.starts_with(path)).count()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(1024).unwrap()
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Ends with this task, and all connections with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
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
        let text = String::from_utf8_lossy(&head).into_owned();
        let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
        head.clear();
        shared.seen.lock().unwrap().push(path.clone());
        let _ = shared.is_held.subscribe().wait_for(|is_held| !is_held).await;
        let answers = shared.answers.lock().unwrap().clone();
        let found = answers.into_iter().rev().find(|(start, _)| path.starts_with(start.as_str()));
        let answer = found.map_or("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n".to_owned(), |(_, answer)| answer);
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
