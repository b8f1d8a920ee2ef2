//! What both sides of the proxy need of TLS: the cryptography, and certificates and keys read from files.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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

/// Reads all certificates of a PEM file; at least one.
pub fn load_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read = || -> Result<Vec<_>, pem::Error> {
        let certs = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
        if certs.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(certs) }
    };
    read().map_err(|cause| FileError::new("certificates", path, cause))
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
}
