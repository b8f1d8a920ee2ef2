//! From a configuration to what serves it.

use std::fmt;
use std::sync::Arc;

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::layers::shed::{ShedLayer, Strain};
use crate::live::{Live, Plan};
use crate::metrics::Registry;
use crate::server;
use crate::snapshot::{Door, Snapshot};
use crate::stack::Shared;

/// What stays through all changes of configuration.
#[derive(Debug)]
pub struct House {
    registry: Registry,
    live: Live,
    strain: Arc<Strain>,
}

/// Everything a configuration needs that may fail, and nothing changed yet.
#[derive(Debug)]
pub struct Built {
    /// One for each listener.
    pub doors: Vec<Arc<Door>>,
    plan: Plan,
}

/// Something cannot be built.
#[derive(Debug)]
pub struct BuildError {
    /// Which part.
    pub what: String,
    /// Why not.
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

impl std::error::Error for BuildError {}

impl House {
    /// Counts in `registry`, logs to `access_log`.
    #[must_use]
    pub fn new(registry: Registry, access_log: Option<AccessLog>) -> Self {
        Self { live: Live::new(registry.clone(), access_log), registry, strain: Arc::default() }
    }

    /// What all routes shed by.
    #[must_use]
    pub fn strain(&self) -> &Arc<Strain> {
        &self.strain
    }

    /// Builds what is not there yet.
    pub fn build(&self, config: &Config) -> Result<Built, BuildError> {
        let doors = server::doors(&config.server.listeners)
            .map_err(|(name, cause)| BuildError { what: format!("listener {name}"), cause: cause.into() })?;
        let plan = self.live.plan(config).map_err(|error| BuildError { what: error.what, cause: error.cause })?;
        Ok(Built { doors, plan })
    }

    /// Brings what was built in force, and makes the snapshot that points to it.
    #[must_use]
    pub fn furnish(&self, config: &Arc<Config>, built: Built, generation: u64) -> Snapshot {
        let shared = Shared {
            registry: self.registry.clone(),
            records: built.plan.records().clone(),
            upstreams: built.plan.upstreams(),
            limiters: built.plan.limiters().clone(),
            faults: built.plan.faults().clone(),
            outcomes: built.plan.outcomes().clone(),
            shed: ShedLayer::new(Arc::clone(&self.strain), config.server.overload.memory),
        };
        self.live.commit(config, built.plan);
        Snapshot::new(config, &shared, built.doors, generation)
    }

    /// Forgets the metrics of what is gone.
    pub fn sweep(&self) {
        self.registry.sweep();
    }
}
