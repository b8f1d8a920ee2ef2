//! The TLS handshake: within its time, counted by how it fails, and the place where a client proves who it is.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::Error;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Session;
use super::io::GuardedIo;
use crate::context::ClientCert;
use crate::metrics::{Counter, Registry};
use crate::tls;

/// What a connection over TLS begins with.
pub(in crate::server) struct Handshake {
    pub(in crate::server) acceptor: TlsAcceptor,
    pub(in crate::server) failures: Arc<Failures>,
}

/// How handshakes of one listener fail.
#[derive(Debug)]
pub(in crate::server) struct Failures([Counter; Failure::ALL.len()]);

/// Why a handshake failed. A closed set: what a client sends makes no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// It took longer than a head may.
    Late,
    /// The client left.
    Closed,
    /// The client refused: our certificate, mostly.
    Alert,
    /// No version, cipher or protocol that both know.
    Incompatible,
    /// The client showed no certificate where one is required.
    NoCertificate,
    /// Its certificate is unknown, revoked, out of date, or not its own.
    BadCertificate,
    /// Anything that is no TLS, or broken.
    Malformed,
}

impl Failure {
    const ALL: [Self; 7] = [
        Self::Late,
        Self::Closed,
        Self::Alert,
        Self::Incompatible,
        Self::NoCertificate,
        Self::BadCertificate,
        Self::Malformed,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Late => "timeout",
            Self::Closed => "closed",
            Self::Alert => "refused_by_client",
            Self::Incompatible => "incompatible",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::Malformed => "malformed",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
            None => Self::Closed,
            Some(Error::AlertReceived(_)) => Self::Alert,
            Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => Self::Incompatible,
            Some(Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_)) => Self::BadCertificate,
            Some(_) => Self::Malformed,
        }
    }
}

impl Failures {
    pub(in crate::server) fn new(listener: &str, registry: &Registry) -> Self {
        Self(Failure::ALL.map(|failure| {
            let labels = [("listener", listener), ("reason", failure.label())];
            registry.counter("headworks_tls_handshake_failures_total", "TLS handshakes that failed.", &labels)
        }))
    }

    fn count(&self, failure: Failure) {
        if let Some(counter) = self.0.get(failure as usize) {
            counter.inc();
        }
    }
}

impl Session {
    /// Shakes hands with the client, who has said `seen` already. None when that fails, or the proxy drains.
    pub(super) async fn shake_hands(&self, with: Handshake, seen: BytesMut) -> Option<Box<TlsStream<GuardedIo>>> {
        let Handshake { acceptor, failures } = with;
        let error = match self.in_time(Box::pin(acceptor.accept(self.io(seen)))).await {
            Some(Ok(stream)) => {
                self.identify(&stream);
                return Some(Box::new(stream));
            }
            Some(Err(error)) => error,
            None => {
                if !self.shutdown.drain.is_cancelled() {
                    failures.count(Failure::Late);
                }
                return None;
            }
        };
        let failure = Failure::of(&error);
        failures.count(failure);
        tracing::debug!(peer = ?self.connection.peer, reason = failure.label(), %error, "TLS handshake failed");
        if matches!(failure, Failure::NoCertificate | Failure::BadCertificate) {
            // With TLS 1.3 the client's first request is under way by now. Closed over it, the connection would be
            // reset, and the alert lost that tells the client what is wrong with its certificate.
            let _ = self.in_time(self.io(BytesMut::new()).shutdown()).await;
        }
        None
    }

    fn identify(&self, stream: &TlsStream<GuardedIo>) {
        let Some(der) = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()) else { return };
        if let Some(cert) = tls::sha256(der).and_then(|fingerprint| ClientCert::new(der, fingerprint)) {
            self.connection.identify(cert);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};

    #[test]
    fn a_failure_is_known_by_its_cause() {
        let of = |error: Error| Failure::of(&io::Error::new(io::ErrorKind::InvalidData, error)).label();
        assert_eq!(of(Error::AlertReceived(AlertDescription::UnknownCA)), "refused_by_client");
        assert_eq!(of(Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon)), "incompatible");
        assert_eq!(of(Error::NoCertificatesPresented), "no_certificate");
        assert_eq!(of(Error::InvalidCertificate(CertificateError::Revoked)), "bad_certificate");
        assert_eq!(of(Error::InvalidMessage(InvalidMessage::InvalidContentType)), "malformed");
        assert_eq!(Failure::of(&io::ErrorKind::UnexpectedEof.into()).label(), "closed");
        for (at, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, at, "the counters stand in this order");
        }
    }
}
