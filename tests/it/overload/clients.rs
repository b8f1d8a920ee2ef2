//! Many clients, each with a deadline, that come at their own pace whatever becomes of those before them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Luck, empty, request};

/// What became of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was served within its patience.
    Served,
    /// It was told to come back later.
    Refused,
    /// Its patience ended first.
    Late,
    /// Anything else.
    Failed,
}

/// One client: when it came, in seconds of the run, how long it took, and how it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    pub(super) came: f64,
    pub(super) took: f64,
    pub(super) end: End,
}

type Sender = SendRequest<http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::io::Error>>;

/// Clients of one address. They share connections as those of a service mesh do.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    pub(super) address: SocketAddr,
    /// How long one waits for its answer.
    pub(super) patience: Duration,
    /// How often one that was not served asks again, a tenth of its patience later.
    pub(super) retries: usize,
    idle: Arc<Mutex<Vec<Sender>>>,
    visits: Arc<Mutex<Vec<Visit>>>,
}

impl Clients {
    pub(super) fn new(address: SocketAddr, patience: Duration, retries: usize) -> Self {
        Self { address, patience, retries, idle: Arc::default(), visits: Arc::default() }
    }

    /// `rate` of them a second by chance (a Poisson process), for `time`; gives what became of them.
    pub(super) async fn come(&self, rate: f64, time: Duration) -> Vec<Visit> {
        let mut luck = Luck::new(7);
        let mut tasks = JoinSet::new();
        let began = Instant::now();
        let mut next = 0.0;
        while next < time.as_secs_f64() {
            // A machine that is late catches up: the load is what was asked for.
            while next <= began.elapsed().as_secs_f64() {
                let clients = self.clone();
                tasks.spawn(async move { clients.visit(next).await });
                next += luck.exponential() / rate;
            }
            while tasks.try_join_next().is_some() {}
            sleep(Duration::from_millis(1)).await;
        }
        tasks.join_all().await;
        std::mem::take(&mut self.visits.lock().unwrap())
    }

    async fn visit(&self, came: f64) {
        for tries in 0..=self.retries {
            let since = Instant::now();
            let end = timeout(self.patience, self.ask()).await.unwrap_or(End::Late);
            if tries == 0 {
                // What counts is the first answer: the rest is load.
                self.visits.lock().unwrap().push(Visit { came, took: since.elapsed().as_secs_f64(), end });
            }
            if end == End::Served {
                return;
            }
            sleep(self.patience / 10).await;
        }
    }

    async fn ask(&self) -> End {
        let Some(mut sender) = self.sender().await else { return End::Failed };
        let Ok(answer) = sender.send_request(request("GET", self.address, "/", empty())).await else {
            return End::Failed;
        };
        let status = answer.status();
        if answer.into_body().collect().await.is_err() {
            return End::Failed;
        }
        self.idle.lock().unwrap().push(sender);
        match status {
            StatusCode::OK => End::Served,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => End::Refused,
            _ => End::Failed,
        }
    }

    async fn sender(&self) -> Option<Sender> {
        loop {
            let Some(sender) = self.idle.lock().unwrap().pop() else { break };
            if sender.is_ready() {
                return Some(sender);
            }
        }
        let stream = TcpStream::connect(self.address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    }
}
