//! An HTTP/2 client whose streams become tunnels (RFC 8441), frame by frame.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    sender: SendRequest<Bytes>,
    addr: SocketAddr,
}

/// One stream, after its answer's head.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) sender: SendStream<Bytes>,
    pub(crate) receiver: RecvStream,
}

impl Streams {
    /// Connects by prior knowledge, with windows of `window` bytes a stream, and waits until tunnels are allowed.
    pub(crate) async fn connect(addr: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(1 << 30);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let allowed = async {
            while !sender.is_extended_connect_protocol_enabled() {
                tokio::time::sleep(Duration::from_millis(2)).await;
                sender = sender.clone().ready().await.unwrap();
            }
        };
        timeout(PATIENCE, allowed).await.expect("SETTINGS_ENABLE_CONNECT_PROTOCOL");
        Self { sender, addr }
    }

    /// Asks for a tunnel to `path`.
    pub(crate) async fn ask(&self, path: &str, protocol: &'static str, fields: &[(&str, &str)]) -> Tunnel {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://{}{path}", self.addr))
            .extension(Protocol::from_static(protocol));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, sender) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        let (head, receiver) = timeout(PATIENCE, response).await.expect("an answer").unwrap().into_parts();
        Tunnel { status: head.status.as_u16(), headers: head.headers, sender, receiver }
    }
}

impl Tunnel {
    /// Sends all of it, as the window allows.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8 * 1024) {
            timeout(PATIENCE, self.room(part.len())).await.expect("the window opens");
            self.sender.send_data(Bytes::copy_from_slice(part), false).unwrap();
        }
    }

    /// Waits until the window has room for so many bytes.
    pub(crate) async fn room(&mut self, bytes: usize) {
        self.sender.reserve_capacity(bytes);
        while self.sender.capacity() < bytes {
            std::future::poll_fn(|cx| self.sender.poll_capacity(cx)).await.unwrap().unwrap();
        }
    }

    /// Says that nothing follows.
    pub(crate) fn finish(&mut self) {
        self.sender.send_data(Bytes::new(), true).unwrap();
    }

    /// Breaks off.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.sender.send_reset(reason);
    }

    /// The next bytes; none at a clean end, the reason when it was reset.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Reason> {
        match timeout(PATIENCE, self.receiver.data()).await.expect("the peer says something") {
            Some(Ok(bytes)) => {
                self.receiver.flow_control().release_capacity(bytes.len()).unwrap();
                Ok(Some(bytes))
            }
            Some(Err(error)) => Err(error.reason().unwrap_or_else(|| panic!("{error}"))),
            None => Ok(None),
        }
    }

    /// Exactly so many bytes.
    pub(crate) async fn read_n(&mut self, count: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < count {
            read.extend_from_slice(&self.next().await.expect("no reset").expect("more"));
        }
        assert_eq!(read.len(), count, "more than was wanted");
        read
    }

    /// Takes what has come but gives no room for more, up to the end: why it was reset, if it was.
    pub(crate) async fn held(&mut self) -> Option<Reason> {
        loop {
            match timeout(PATIENCE, self.receiver.data()).await.expect("the peer says something") {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.reason(),
                None => return None,
            }
        }
    }

    /// How it ends: cleanly, or reset.
    pub(crate) async fn end(&mut self) -> Result<Vec<u8>, Reason> {
        let mut rest = Vec::new();
        while let Some(bytes) = self.next().await? {
            rest.extend_from_slice(&bytes);
        }
        Ok(rest)
    }
}
