//! A store that instances share: Redis, or Valkey.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Store`]: the one connection, whether it is there, how many instances there are |
//! | `settings.rs` | where it is |
//! | `limit.rs` | [`Shared`]: one limit that is shared; leases, and what it does without them |
//! | `session.rs` | the one task that talks with it |
//! | `scripts.rs` | what it does by itself |
//! | `wire.rs` `resp.rs` | a connection, and the protocol on it |
//!
//! Requests do not talk with the store. Each instance takes batches of requests for the keys that are busy
//! (`control/lease.rs`) and lets requests pass by what it has; a task asks for the next batch before one runs out. A
//! request whose key is not known waits for the first answer, `store.wait` at most. Behind that, and while the store is
//! away, each instance goes by its share: the limit over the number of instances, which say once a second that they
//! live. What it lets through so is told when the store is back, up to a share of one burst.
//!
//! Bounded: keys with a lease by `max_keys` of the limit, asks under way by `ASKS`, replies by `resp.rs`, one
//! connection. What lies in the store has an end: a bucket goes when it would be full, the list of instances ten seconds
//! after the last of them. Keys are hashes. An address is found by trying all of them, unless
//! `store.secret` is mixed in.

mod limit;
mod resp;
mod scripts;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

pub use limit::{Digest, Rule, Shared};
pub use settings::{Address, Password, Settings};
pub use wire::StoreError;

use crate::entropy;
use crate::metrics::{Counter, Gauge, Registry};
use crate::tasks::{self, Task};
use crate::tls::sha256;
use limit::{Limit, Note};
use wire::{Connector, Failure};

/// Asks that may wait for their turn. What is more goes by the instance's share.
const ASKS: usize = 4096;

/// The store. Its task ends with it.
pub struct Store {
    settings: Settings,
    common: Arc<Common>,
    /// What the task begins with.
    idle: Mutex<Option<(Connector, mpsc::Receiver<Note>)>>,
    task: OnceLock<Task>,
}

/// What requests and the task know.
struct Common {
    asks: mpsc::Sender<Note>,
    is_up: AtomicBool,
    /// Whether it was said that it is away.
    is_told: AtomicBool,
    instances: AtomicU32,
    at_least: u32,
    wait: Duration,
    prefix: Arc<str>,
    address: String,
    /// This instance's, among the others.
    name: String,
    limits: Mutex<Vec<Weak<Limit>>>,
    registry: Registry,
    metrics: Metrics,
}

struct Metrics {
    up: Gauge,
    instances: Gauge,
    answered: Counter,
    dropped: Counter,
    lost: Counter,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let asks = |result| {
            let help = "What was asked of the store about shared limits.";
            registry.counter("headworks_store_asks_total", help, &[("result", result)])
        };
        Self {
            up: registry.gauge("headworks_store_up", "Whether the shared store answers.", &[]),
            instances: registry.gauge("headworks_store_instances", "Instances that share the store.", &[]),
            answered: asks("answered"),
            dropped: asks("dropped"),
            lost: registry.counter("headworks_store_losses_total", "Times that the shared store went away.", &[]),
        }
    }
}

impl Store {
    /// A store that is not asked yet.
    pub fn new(settings: &Settings, registry: &Registry) -> Result<Self, StoreError> {
        let connector = Connector::new(settings)?;
        let (asks, asked) = mpsc::channel(ASKS);
        let common = Common {
            asks,
            is_up: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            instances: AtomicU32::new(settings.instances.max(1)),
            at_least: settings.instances.max(1),
            wait: settings.wait,
            prefix: Arc::clone(&settings.prefix),
            address: settings.address.to_string(),
            name: format!("{:032x}", entropy::random_u128()),
            limits: Mutex::default(),
            registry: registry.clone(),
            metrics: Metrics::new(registry),
        };
        let idle = Mutex::new(Some((connector, asked)));
        Ok(Self { settings: settings.clone(), common: Arc::new(common), idle, task: OnceLock::new() })
    }

    /// What it was built from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Connects, and stays so. Does nothing the second time.
    pub fn start(&self) {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((connector, asks)) = idle {
            let _ = self.task.set(tasks::spawn(session::run(Arc::clone(&self.common), connector, asks)));
        }
    }

    /// What a key is called in the store, of all that tells it from others.
    #[must_use]
    pub fn digest(&self, value: &[u8]) -> Digest {
        let secret = self.settings.secret.as_ref().map(Password::bytes).unwrap_or_default();
        let mut text = Vec::with_capacity(secret.len() + value.len() + 8);
        text.extend_from_slice(&(secret.len() as u64).to_le_bytes());
        text.extend_from_slice(secret);
        text.extend_from_slice(value);
        let mut digest = Digest::default();
        let hash = sha256(&text).unwrap_or_default();
        digest.iter_mut().zip(hash).for_each(|(part, byte)| *part = byte);
        digest
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.common.metrics.up.set(0);
    }
}

impl Common {
    fn is_up(&self) -> bool {
        self.is_up.load(Relaxed)
    }

    fn instances(&self) -> u32 {
        self.instances.load(Relaxed).max(1)
    }

    fn is_there(&self) {
        self.is_up.store(true, Relaxed);
        self.metrics.up.set(1);
        let instances = self.instances();
        tracing::info!(store = %self.address, instances, "the shared store is there");
        self.is_told.store(false, Relaxed);
    }

    /// Said once, until it is back.
    fn goes_away(&self, failure: &Failure) {
        self.metrics.up.set(0);
        if self.is_up.swap(false, Relaxed) {
            self.metrics.lost.inc();
        }
        if self.is_told.swap(true, Relaxed) {
            tracing::debug!(store = %self.address, %failure, "the shared store is still away");
        } else {
            let instances = self.instances();
            tracing::warn!(
                store = %self.address, %failure, instances,
                "the shared store is away: until it is back, this instance goes by its share of the shared limits"
            );
        }
    }

    fn enlist(&self, limit: &Arc<Limit>) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.retain(|limit| limit.strong_count() > 0);
        limits.push(Arc::downgrade(limit));
    }

    fn limits(&self) -> Vec<Arc<Limit>> {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.iter().filter_map(Weak::upgrade).collect()
    }

    fn key(&self, limit: &str, digest: &Digest) -> String {
        let mut key = format!("{}:limit:{limit}:", self.prefix);
        for byte in digest {
            // Writing to a string does not fail.
            let _ = write!(key, "{byte:02x}");
        }
        key
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("settings", &self.settings).finish_non_exhaustive()
    }
}
