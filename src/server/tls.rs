//! TLS towards clients: certificates chosen by the name the client asks for, the version of HTTP by ALPN, clients
//! known by certificates of their own. All of it is one value, built from files and swapped as a whole.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::config::{self, Certificate};
use crate::snapshot::Door;
use crate::tls;

/// Builds the door of each listener. Fails with the name of the one whose certificates cannot be used.
pub fn doors(listeners: &[config::Listener]) -> Result<Vec<Arc<Door>>, (Arc<str>, io::Error)> {
    let door = |settings: &config::Listener| {
        let tls = server_config(settings).map_err(|error| (Arc::clone(&settings.name), error))?;
        Ok(Arc::new(Door { settings: settings.clone(), tls: tls.map(TlsAcceptor::from) }))
    };
    let doors = listeners.iter().map(door).collect::<Result<_, _>>()?;
    for warning in certificate_warnings(listeners) {
        tracing::warn!("{warning}");
    }
    Ok(doors)
}

/// Certificates that can be read, but that no client will believe.
#[must_use]
pub fn certificate_warnings(listeners: &[config::Listener]) -> Vec<String> {
    let pairs = listeners.iter().flat_map(|listener| listener.tls.iter().map(|pair| (&listener.name, &pair.cert)));
    let warning = |(listener, file): (&Arc<str>, &PathBuf)| {
        let chain = tls::load_certs(file).ok()?;
        let wrong = chain.iter().find_map(tls::wrong_date)?;
        Some(format!("a certificate of the listener {listener} {wrong}: {}", file.display()))
    };
    pairs.filter_map(warning).collect()
}

/// What a listener says of TLS, its files read; none when it is plain.
fn server_config(settings: &config::Listener) -> io::Result<Option<Arc<ServerConfig>>> {
    if settings.tls.is_empty() {
        return Ok(None);
    }
    let provider = tls::provider();
    let keys = keys(&settings.tls, &provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match &settings.client_auth {
        None => builder.with_no_client_auth(),
        Some(auth) => builder.with_client_cert_verifier(verifier(auth, provider)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName { keys }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match tls::tickets() {
        // A session that is resumed skips the check of the client's certificate, which may have been revoked since.
        Some(tickets) if settings.client_auth.is_none() => config.ticketer = tickets,
        _ => config.send_tls13_tickets = 0,
    }
    Ok(Some(Arc::new(config)))
}

fn verifier(auth: &config::ClientAuth, provider: Arc<CryptoProvider>) -> io::Result<Arc<dyn ClientCertVerifier>> {
    let roots = tls::load_roots(&auth.ca).map_err(io::Error::other)?;
    let mut lists = Vec::new();
    for file in &auth.crl {
        lists.extend(tls::load_crls(file).map_err(io::Error::other)?);
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).with_crls(lists);
    let builder = if auth.required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| io::Error::other(format!("`client_auth`: {error}")))
}

fn keys(certificates: &[Certificate], provider: &CryptoProvider) -> io::Result<Vec<Arc<CertifiedKey>>> {
    certificates
        .iter()
        .map(|Certificate { cert, key }| {
            let chain = tls::load_certs(cert).map_err(io::Error::other)?;
            let private = tls::load_key(key).map_err(io::Error::other)?;
            CertifiedKey::from_der(chain, private, provider)
                .map(Arc::new)
                .map_err(|error| io::Error::other(format!("{} with {}: {error}", cert.display(), key.display())))
        })
        .collect()
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
