//! An upstream that does by hand what a test says: it takes connections, and tests read and write their bytes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::Raw;

const PATIENCE: Duration = Duration::from_secs(20);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Wire {
    listener: TcpListener,
}

impl Wire {
    pub(crate) async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Raw {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("a connection").unwrap();
        stream.set_nodelay(true).unwrap();
        Raw::over(stream)
    }

    /// The next connection and the head of its first request, in lower case.
    pub(crate) async fn request(&self) -> (Raw, String) {
        let mut stream = self.accept().await;
        let head = stream.until("\r\n\r\n").await.to_ascii_lowercase();
        (stream, head)
    }
}
