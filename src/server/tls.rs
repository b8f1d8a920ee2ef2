//! TLS towards clients: certificates chosen by the name the client asks for, the version of HTTP by ALPN.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::config::{self, Certificate};
use crate::snapshot::Door;
use crate::tls;

/// Builds the door of each listener. Fails with the name of the one whose certificates cannot be used.
pub fn doors(listeners: &[config::Listener]) -> Result<Vec<Arc<Door>>, (Arc<str>, io::Error)> {
    let door = |settings: &config::Listener| {
        let tls = acceptor(&settings.tls).map_err(|error| (Arc::clone(&settings.name), error))?;
        Ok(Arc::new(Door { settings: settings.clone(), tls }))
    };
    listeners.iter().map(door).collect()
}

/// Reads the certificates and keys of a listener; none when it is plain.
fn acceptor(certificates: &[Certificate]) -> io::Result<Option<TlsAcceptor>> {
    if certificates.is_empty() {
        return Ok(None);
    }
    let provider = tls::provider();
    let keys = certificates
        .iter()
        .map(|Certificate { cert, key }| {
            let chain = tls::load_certs(cert).map_err(io::Error::other)?;
            let private = tls::load_key(key).map_err(io::Error::other)?;
            CertifiedKey::from_der(chain, private, &provider)
                .map(Arc::new)
                .map_err(|error| io::Error::other(format!("{} with {}: {error}", cert.display(), key.display())))
        })
        .collect::<io::Result<Vec<_>>>()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByName { keys }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// The first certificate that is good for the name; the first of all for a client that names none or another.
struct ByName {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let good = |key: &&Arc<CertifiedKey>| {
            let parsed = key.cert.first().and_then(|cert| ParsedCertificate::try_from(cert).ok());
            name.as_ref().zip(parsed).is_some_and(|(name, cert)| verify_server_name(&cert, name).is_ok())
        };
        self.keys.iter().find(good).or_else(|| self.keys.first()).cloned()
    }
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByName").field("certificates", &self.keys.len()).finish()
    }
}
