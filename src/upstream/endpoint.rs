//! One endpoint with its connections, which outlive a change of configuration that leaves their settings as they are.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;

use super::settings::{Address, EndpointSettings, HostPolicy, Pool, Protocol, Scheme, Settings, Tls};
use super::{Client, ClientError};

/// See the module's text.
#[derive(Debug)]
pub struct Endpoint {
    settings: EndpointSettings,
    /// What its connections were built from.
    recipe: Recipe,
    client: Arc<Client>,
}

/// Everything that a connection to an endpoint depends on. Equal recipes make equal connections.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recipe {
    address: Address,
    protocol: Protocol,
    host: HostPolicy,
    /// With the content of its files; none when the endpoint does not use TLS.
    tls: Option<(Tls, u64)>,
    pool: Pool,
    connect: std::time::Duration,
    buffer: usize,
}

impl Recipe {
    pub(super) fn new(settings: &Settings, endpoint: &EndpointSettings) -> Self {
        let uses_tls = matches!(&endpoint.address, Address::Tcp { scheme: Scheme::Https, .. });
        Self {
            address: endpoint.address.clone(),
            protocol: settings.protocol,
            host: settings.host.clone(),
            tls: uses_tls.then(|| (settings.tls.clone(), content(&settings.tls))),
            pool: settings.pool,
            connect: settings.timeout.connect,
            buffer: settings.buffer,
        }
    }
}

/// Tells whether the files have changed. What cannot be read is told when it is used.
fn content(tls: &Tls) -> u64 {
    let mut hasher = DefaultHasher::new();
    let client = tls.client.iter().flat_map(|(cert, key)| [cert, key]);
    for path in tls.ca.iter().chain(client) {
        let path: &Path = path;
        std::fs::read(path).ok().hash(&mut hasher);
    }
    hasher.finish()
}

impl Endpoint {
    /// An endpoint without connections. Reads the files that TLS needs.
    pub(super) fn new(settings: &Settings, endpoint: &EndpointSettings) -> Result<Arc<Self>, ClientError> {
        let recipe = Recipe::new(settings, endpoint);
        let client = Client::new(settings, endpoint)?;
        Ok(Arc::new(Self { settings: endpoint.clone(), recipe, client }))
    }

    /// The address as written, without secrets.
    #[must_use]
    pub fn label(&self) -> &Arc<str> {
        &self.settings.label
    }

    pub(super) fn settings(&self) -> &EndpointSettings {
        &self.settings
    }

    pub(super) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Its connections.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }
}
