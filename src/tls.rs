//! What both sides of the proxy need of TLS: the cryptography, and certificates and keys read from files.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::crypto::hash::HashAlgorithm;
#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, ProducesTickets};
use rustls::{CertificateError, Error, RootCertStore};

/// The cryptography of this build. It is always handed on by value: the process-wide default of rustls is set by
/// whoever comes first, and is a matter of luck when two crates bring their own.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(built_in())))
}

#[cfg(feature = "aws-lc-rs")]
fn built_in() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
fn built_in() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("one of the features `aws-lc-rs` and `ring` is needed");

/// The keys of session tickets, which change by themselves. There is one set for the process: whoever comes back after
/// the configuration has changed still needs no whole handshake. None when there is no randomness for them.
pub fn tickets() -> Option<Arc<dyn ProducesTickets>> {
    static TICKETS: OnceLock<Option<Arc<dyn ProducesTickets>>> = OnceLock::new();
    TICKETS.get_or_init(|| Ticketer::new().ok()).clone()
}

/// SHA-256, by the cryptography that is built in.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Option<[u8; 32]> {
    let provider = provider();
    let hash = provider.cipher_suites.iter().find_map(|suite| {
        let hash = suite.tls13()?.common.hash_provider;
        (hash.algorithm() == HashAlgorithm::SHA256).then_some(hash)
    })?;
    hash.hash(bytes).as_ref().try_into().ok()
}

/// The authorities the system trusts, read once per process; none when there are none. Single ones that cannot be read
/// are skipped, as every system carries some.
#[must_use]
pub fn system_roots() -> Option<Arc<RootCertStore>> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    (!roots.is_empty()).then(|| Arc::clone(roots))
}

/// Reads all certificates of a PEM file; at least one.
pub fn load_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read = || -> Result<Vec<_>, pem::Error> {
        let certs = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
        if certs.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(certs) }
    };
    read().map_err(|cause| FileError::new("certificates", path, cause))
}

/// Reads the authorities of a PEM file.
pub fn load_roots(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for cert in load_certs(path)? {
        roots
            .add(cert)
            .map_err(|error| FileError::new("authorities", path, pem::Error::Io(io::Error::other(error))))?;
    }
    Ok(roots)
}

/// Reads all revocation lists of a PEM file; at least one.
pub fn load_crls(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    let read = || -> Result<Vec<_>, pem::Error> {
        let lists = CertificateRevocationListDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
        if lists.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(lists) }
    };
    read().map_err(|cause| FileError::new("revocation lists", path, cause))
}

/// What is wrong today with the dates of a certificate; none when it is valid.
#[must_use]
pub fn wrong_date(cert: &CertificateDer<'_>) -> Option<&'static str> {
    let parsed = ParsedCertificate::try_from(cert).ok()?;
    let algorithms = provider().signature_verification_algorithms.all;
    // Nobody is trusted, so this fails; it looks at the dates before it looks for an authority.
    let verified =
        verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], UnixTime::now(), algorithms);
    match verified {
        Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            Some("has expired")
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })) => {
            Some("is not valid yet")
        }
        _ => None,
    }
}

/// Reads the first private key of a PEM file.
pub fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|cause| FileError::new("private key", path, cause))
}

/// A PEM file that could not be used.
#[derive(Debug)]
pub struct FileError {
    what: &'static str,
    path: PathBuf,
    cause: pem::Error,
}

impl FileError {
    fn new(what: &'static str, path: &Path, cause: pem::Error) -> Self {
        Self { what, path: path.to_owned(), cause }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read the {} in {}: ", self.what, self.path.display())?;
        match &self.cause {
            pem::Error::Io(error) => write!(f, "{error}"),
            pem::Error::NoItemsFound => f.write_str("the file holds none"),
            other => write!(f, "{other}"),
        }
    }
}

impl StdError for FileError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file_and_the_cause() {
        let missing = load_certs(Path::new("/nowhere/ca.pem")).expect_err("no such file").to_string();
        assert!(missing.starts_with("cannot read the certificates in /nowhere/ca.pem: No such file"), "{missing}");
        let empty = tempfile::NamedTempFile::new().expect("a file");
        let error = load_key(empty.path()).expect_err("no key").to_string();
        assert!(error.ends_with("the file holds none"), "{error}");
        assert!(load_certs(empty.path()).is_err());
    }

    #[test]
    fn the_digest_is_sha_256() {
        let digest = sha256(b"abc").expect("a digest");
        assert_eq!(digest[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(digest[28..], [0xf2, 0x00, 0x15, 0xad]);
    }

    #[test]
    fn a_certificate_is_looked_at_by_its_dates() {
        let made = |from: i32, to: i32| {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
            let key = rcgen::KeyPair::generate().expect("a key");
            params.self_signed(&key).expect("a certificate").der().clone()
        };
        assert_eq!(wrong_date(&made(2000, 2001)), Some("has expired"));
        assert_eq!(wrong_date(&made(2000, 4000)), None);
        assert_eq!(wrong_date(&made(3999, 4000)), Some("is not valid yet"));
    }
}
