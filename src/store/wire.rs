//! A connection to the store: what is said goes out in one write, and the replies come in the same order.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::resp::{self, Reply};
use super::settings::{Address, Settings};
use crate::tls::{FileError, load_roots, provider, system_roots};

/// For name, socket, TLS and greeting together.
const CONNECT: Duration = Duration::from_secs(2);
/// Between what is said and its replies. A store that is slower is away.
const REPLY: Duration = Duration::from_millis(500);
/// Bytes that may lie unread: more than the replies to all that is said at once.
const UNREAD: usize = 256 * 1024;

/// How the store is reached.
pub(super) struct Connector {
    settings: Settings,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Why a store cannot be reached at all, whoever answers there.
#[derive(Debug)]
pub enum StoreError {
    /// A file cannot be read.
    File(FileError),
    /// Not a name that a certificate could be checked against.
    ServerName(Arc<str>),
    /// The system has no trusted authorities, and none are configured.
    NoRoots,
    /// The cryptography of this build does not fit.
    Provider(rustls::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::ServerName(name) => write!(f, "`{name}` is not a server name that TLS can verify"),
            Self::NoRoots => f.write_str("the system trusts no certificate authority; name a `ca` file"),
            Self::Provider(error) => write!(f, "TLS cannot be set up: {error}"),
        }
    }
}

impl StdError for StoreError {}

/// Why a connection is of no use any more.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Late,
    Malformed,
    /// An error of the store, or a reply to something else.
    Said(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Late => f.write_str("it did not answer in time"),
            Self::Malformed => f.write_str("its answer could not be read"),
            Self::Said(text) => write!(f, "it said: {text}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Connector {
    pub(super) fn new(settings: &Settings) -> Result<Self, StoreError> {
        let tls = match &settings.address {
            Address::Tcp { host, tls: true, .. } => {
                let name = ServerName::try_from(host.to_string());
                let name = name.map_err(|_| StoreError::ServerName(Arc::clone(host)))?;
                Some((TlsConnector::from(Arc::new(config(settings.ca.as_deref())?)), name))
            }
            _ => None,
        };
        Ok(Self { settings: settings.clone(), tls })
    }

    /// A connection that has shown its password.
    pub(super) async fn connect(&self) -> Result<Wire, Failure> {
        timeout(CONNECT, self.open()).await.map_err(|_elapsed| Failure::Late)?
    }

    async fn open(&self) -> Result<Wire, Failure> {
        let stream: Box<dyn Duplex> = match &self.settings.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp { host, port, .. } => {
                let stream = TcpStream::connect((&**host, *port)).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    None => Box::new(stream),
                    Some((tls, name)) => Box::new(tls.connect(name.clone(), stream).await?),
                }
            }
        };
        let mut wire = Wire { stream, out: Vec::new(), read: Vec::new(), at: 0 };
        if let Some(password) = &self.settings.password {
            match &self.settings.username {
                None => wire.say(&[b"AUTH", password.bytes()]),
                Some(name) => wire.say(&[b"AUTH", name.as_bytes(), password.bytes()]),
            }
            wire.done().await?;
        }
        if self.settings.database != 0 {
            wire.say(&[b"SELECT", self.settings.database.to_string().as_bytes()]);
            wire.done().await?;
        }
        Ok(wire)
    }
}

fn config(ca: Option<&Path>) -> Result<ClientConfig, StoreError> {
    let roots = match ca {
        None => system_roots().ok_or(StoreError::NoRoots)?,
        Some(path) => Arc::new(load_roots(path).map_err(StoreError::File)?),
    };
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().map_err(StoreError::Provider)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection. It is of no use after an error.
pub(super) struct Wire {
    stream: Box<dyn Duplex>,
    out: Vec<u8>,
    read: Vec<u8>,
    /// How much of `read` has been taken.
    at: usize,
}

impl Wire {
    #[cfg(test)]
    pub(super) fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), out: Vec::new(), read: Vec::new(), at: 0 }
    }

    /// Says this with the next [`Wire::flush`]. The caller bounds how much that is.
    pub(super) fn say(&mut self, words: &[&[u8]]) {
        resp::command(&mut self.out, words);
    }

    /// Sends what was said.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        let write = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        timeout(REPLY, write).await.map_err(|_elapsed| Failure::Late)??;
        self.out.clear();
        Ok(())
    }

    /// The next reply; an error of the store is one here.
    pub(super) async fn hear(&mut self) -> Result<Reply, Failure> {
        timeout(REPLY, self.next()).await.map_err(|_elapsed| Failure::Late)?
    }

    /// Sends what was said and takes the one reply to it.
    pub(super) async fn done(&mut self) -> Result<Reply, Failure> {
        self.flush().await?;
        self.hear().await
    }

    async fn next(&mut self) -> Result<Reply, Failure> {
        loop {
            let unread = self.read.get(self.at..).unwrap_or_default();
            if let Some((reply, length)) = resp::reply(unread).map_err(|_| Failure::Malformed)? {
                self.at += length;
                return match reply {
                    Reply::Error(text) => Err(Failure::Said(text)),
                    reply => Ok(reply),
                };
            }
            self.read.drain(..self.at);
            self.at = 0;
            if self.read.len() >= UNREAD {
                return Err(Failure::Malformed);
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}
