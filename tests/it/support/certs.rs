//! An authority made for one test, and what it signed.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;

/// Files in a directory of their own, which goes with this value.
#[derive(Debug)]
pub(crate) struct Certs {
    dir: TempDir,
}

impl Certs {
    /// `ca.pem`, and `NAME.pem` with `NAME.key` for `server` (localhost, 127.0.0.1), `other` (other.test), `client`, and
    /// `expired` (localhost); `crl.pem` revokes `other`.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        // Who issues and who is issued must differ by name, or OpenSSL takes the certificate for a self-signed one.
        authority.distinguished_name.push(DnType::CommonName, "test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let all = [
            ("server", &["localhost", "127.0.0.1"][..]),
            ("other", &["other.test"]),
            ("client", &["client.test"]),
            ("expired", &["localhost"]),
        ];
        for (number, (file, names)) in all.into_iter().enumerate() {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, file);
            params.serial_number = Some(SerialNumber::from(number as u64 + 1));
            if file == "expired" {
                (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
            }
            let cert = params.signed_by(&key, &authority).unwrap();
            std::fs::write(dir.path().join(format!("{file}.pem")), cert.pem()).unwrap();
            std::fs::write(dir.path().join(format!("{file}.key")), key.serialize_pem()).unwrap();
        }
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(2_u64),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2999, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(dir.path().join("crl.pem"), list.signed_by(&authority).unwrap().pem().unwrap()).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// The path as it stands in a configuration.
    pub(crate) fn name(&self, file: &str) -> String {
        self.path(file).to_str().unwrap().to_owned()
    }

    /// A server with the certificate `name`; with `verify`, it wants a client certificate of this authority.
    pub(crate) fn server(&self, name: &str, alpn: &[&str], verify: bool) -> ServerConfig {
        let builder = if verify {
            let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots())).build().unwrap();
            ServerConfig::builder().with_client_cert_verifier(verifier)
        } else {
            ServerConfig::builder().with_no_client_auth()
        };
        let (chain, key) = self.pair(name);
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// A client that trusts this authority only.
    pub(crate) fn client(&self, alpn: &[&str]) -> ClientConfig {
        let mut config = ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// The same, with the certificate `name` to show.
    pub(crate) fn client_with(&self, name: &str, alpn: &[&str]) -> ClientConfig {
        let (chain, key) = self.pair(name);
        let builder = ClientConfig::builder().with_root_certificates(self.roots());
        let mut config = builder.with_client_auth_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        roots
    }

    fn pair(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap();
        (vec![chain], PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap())
    }
}
