//! TLS towards endpoints: whom to trust, what to show, which version of HTTP to agree on.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::uri::Authority;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::connect::{ConnectError, Version};
use super::io::{Socket, Stream};
use super::settings::{Protocol, Tls as Settings};
use crate::error::Reason;
use crate::tls::{FileError, load_certs, load_key, provider, system_roots};

#[cfg(test)]
mod tests;

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// Sessions remembered per endpoint, to save round trips when connections are opened anew.
const SESSIONS: usize = 32;

/// TLS towards one endpoint. Its sessions are resumed with this endpoint only.
pub(super) struct Tls {
    /// Offers what the protocol allows.
    any: TlsConnector,
    /// Offers HTTP/1.1 only, for requests that h2 cannot carry.
    http1: TlsConnector,
    name: ServerName<'static>,
    protocol: Protocol,
}

impl Tls {
    pub(super) fn new(settings: &Settings, protocol: Protocol, authority: &Authority) -> Result<Self, ClientError> {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = settings.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| ClientError::ServerName(name.to_owned()))?;
        let base = config(settings)?;
        let offering = |protocols: &[&[u8]]| {
            let mut config = base.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            // A session resumed with a client certificate would skip the proof that the certificate is still ours.
            config.resumption = match settings.client {
                Some(_) => Resumption::disabled(),
                None => Resumption::in_memory_sessions(SESSIONS),
            };
            TlsConnector::from(Arc::new(config))
        };
        let any = match protocol {
            Protocol::Auto => offering(&[H2, HTTP1]),
            Protocol::Http1 => offering(&[HTTP1]),
            Protocol::Http2 => offering(&[H2]),
        };
        Ok(Self { any, http1: offering(&[HTTP1]), name, protocol })
    }

    pub(super) async fn handshake(&self, socket: Socket, http1: bool) -> Result<(Stream, Version), ConnectError> {
        let failed = |error| ConnectError::new(Reason::TlsFailed, error);
        let connector = if http1 { &self.http1 } else { &self.any };
        let stream = connector.connect(self.name.clone(), socket).await.map_err(failed)?;
        let version = match stream.get_ref().1.alpn_protocol() {
            Some(H2) => Version::Http2,
            _ if self.protocol == Protocol::Http2 => {
                return Err(failed(io::Error::other("the peer does not speak h2")));
            }
            _ => Version::Http1,
        };
        Ok((Stream::Tls(Box::new(stream)), version))
    }
}

fn config(settings: &Settings) -> Result<ClientConfig, ClientError> {
    let roots = match &settings.ca {
        None => system_roots().ok_or(ClientError::NoRoots)?,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for cert in load_certs(path)? {
                roots.add(cert).map_err(|cause| ClientError::Unusable(path.clone(), cause))?;
            }
            Arc::new(roots)
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Provider)?
        .with_root_certificates(roots);
    match &settings.client {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => builder
            .with_client_auth_cert(load_certs(cert)?, load_key(key)?)
            .map_err(|cause| ClientError::Unusable(cert.clone(), cause)),
    }
}

/// Why a client cannot be built from its settings.
#[derive(Debug)]
pub enum ClientError {
    /// A file cannot be read.
    File(FileError),
    /// A file can be read, but rustls does not take what it holds.
    Unusable(PathBuf, rustls::Error),
    /// Not a name that a certificate could be checked against.
    ServerName(String),
    /// The system has no trusted authorities, and none are configured.
    NoRoots,
    /// The cryptography of this build does not fit.
    Provider(rustls::Error),
    /// The endpoint's address cannot be put into a header field.
    Address(String),
}

impl From<FileError> for ClientError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Unusable(path, error) => write!(f, "{} cannot be used: {error}", path.display()),
            Self::ServerName(name) => write!(f, "`{name}` is not a server name that TLS can verify"),
            Self::NoRoots => f.write_str("the system trusts no certificate authority; name a `ca` file"),
            Self::Provider(error) => write!(f, "TLS cannot be set up: {error}"),
            Self::Address(address) => write!(f, "`{address}` cannot be used as a host"),
        }
    }
}

impl StdError for ClientError {}
