//! Opens byte streams to one endpoint: name, socket, TLS.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::io::{Socket, Stream};
use super::settings::{Address, EndpointSettings, Protocol, Scheme, Settings};
use super::tls::{ClientError, Tls};
use crate::error::{ProxyError, Reason};

/// A peer that says nothing for this long is probed, and probed again at this pace.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// Written bytes that nobody acknowledges for this long mean that the peer is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Which version of HTTP a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// How one endpoint is reached.
pub(super) struct Connector {
    address: Address,
    protocol: Protocol,
    tls: Option<Tls>,
    limit: Duration,
    receive_buffer: Option<u32>,
}

impl Connector {
    pub(super) fn new(settings: &Settings, endpoint: &EndpointSettings) -> Result<Self, ClientError> {
        let tls = match &endpoint.address {
            Address::Tcp { authority, scheme: Scheme::Https } => {
                Some(Tls::new(&settings.tls, settings.protocol, authority)?)
            }
            _ => None,
        };
        let address = endpoint.address.clone();
        let receive_buffer = settings.pool.receive_buffer.map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        Ok(Self { address, protocol: settings.protocol, tls, limit: settings.timeout.connect, receive_buffer })
    }

    /// The version that is known before a connection is open; none when TLS is going to choose.
    pub(super) fn version(&self) -> Option<Version> {
        match (self.protocol, &self.address) {
            (Protocol::Http1, _) => Some(Version::Http1),
            (Protocol::Http2, _) | (_, Address::Tcp { scheme: Scheme::H2c, .. }) => Some(Version::Http2),
            (_, Address::Tcp { scheme: Scheme::Https, .. }) => None,
            _ => Some(Version::Http1),
        }
    }

    /// Opens a stream. `http1` asks for HTTP/1.1 where TLS has the choice. The caller puts a time on it.
    pub(super) async fn connect(&self, http1: bool) -> Result<(Stream, Version), ConnectError> {
        let failed = |error| ConnectError::new(Reason::ConnectFailed, error);
        let socket = match &self.address {
            Address::Unix(path) => Socket::from(UnixStream::connect(path).await.map_err(failed)?),
            Address::Tcp { authority, scheme } => {
                let default = if *scheme == Scheme::Https { 443 } else { 80 };
                let addresses = resolve(authority.host(), authority.port_u16().unwrap_or(default)).await?;
                let stream = first_of(&addresses, self.limit, self.receive_buffer).await.map_err(failed)?;
                configure(&stream).map_err(failed)?;
                Socket::from(stream)
            }
        };
        match &self.tls {
            Some(tls) => tls.handshake(socket, http1).await,
            None => Ok((Stream::Plain(socket), self.version().unwrap_or(Version::Http1))),
        }
    }
}

/// All addresses of a host. The only place that asks for names.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let failed = |error| ConnectError::new(Reason::DnsFailed, error);
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect();
    if addresses.is_empty() { Err(failed(io::Error::other("the name has no address"))) } else { Ok(addresses) }
}

/// Connects to the first address that answers. One that swallows packets takes no more than its share of the time.
async fn first_of(addresses: &[SocketAddr], limit: Duration, receive: Option<u32>) -> io::Result<TcpStream> {
    let until = Instant::now() + limit;
    let mut last = io::Error::other("no address");
    for (tried, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = until.saturating_duration_since(Instant::now()) / left;
        match timeout(share, open(*address, receive)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// The receive buffer must be set before: the window's scale is agreed on with the first packet.
async fn open(address: SocketAddr, receive: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(size) = receive {
        socket.set_recv_buffer_size(size)?;
    }
    socket.connect(address).await
}

/// Small writes leave at once, and a peer that vanished without a word is noticed.
fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd"))]
    let keepalive = keepalive.with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

/// Why no connection could be opened. Cloned to each request that waited for it.
#[derive(Clone, Debug)]
pub(super) struct ConnectError {
    pub(super) reason: Reason,
    cause: Arc<dyn StdError + Send + Sync>,
}

impl ConnectError {
    pub(super) fn new(reason: Reason, cause: impl StdError + Send + Sync + 'static) -> Self {
        // A socket's own time-out is a slow connect like any other.
        let cause: Arc<dyn StdError + Send + Sync> = Arc::new(cause);
        let timed_out = cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
        Self { reason: if timed_out { Reason::ConnectTimeout } else { reason }, cause }
    }
}

impl From<ConnectError> for ProxyError {
    fn from(error: ConnectError) -> Self {
        Self::new(error.reason, error)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl StdError for ConnectError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.source()
    }
}
