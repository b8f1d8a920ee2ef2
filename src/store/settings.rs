//! Where the store is, and who asks.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub address: Address,
    /// The number of its database.
    pub database: u32,
    /// Who asks; none: whoever the password is of.
    pub username: Option<Arc<str>>,
    /// None: it asks for none.
    pub password: Option<Password>,
    /// The authorities that its certificate may be of, a PEM file; none: the system's.
    pub ca: Option<PathBuf>,
    /// Before every key. Instances with the same share their limits.
    pub prefix: Arc<str>,
    /// Mixed into the hashes of what is counted; all instances have the same.
    pub secret: Option<Password>,
    /// How long a request waits for the first answer about its key.
    pub wait: Duration,
    /// How many instances there are at least.
    pub instances: u32,
}

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port.
    Tcp {
        /// A name or an IP address, without brackets.
        host: Arc<str>,
        /// Its port.
        port: u16,
        /// Whether over TLS.
        tls: bool,
    },
    /// A socket file.
    Unix(PathBuf),
}

/// As the configuration writes it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Arc<str>);

impl Password {
    /// Of this text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(hidden)")
    }
}
