//! Takes up another configuration while requests run: all of it, or nothing.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Handle`]: one reload at a time, from the file to one swap |
//! | `build.rs` | what a configuration needs, built and bound: everything that may fail |
//! | `watch.rs` | notices that files have changed |

mod build;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

pub use build::{BuildError, Built, House};

use crate::config::{self, Config};
use crate::metrics::{Counter, Gauge, Registry};
use crate::server::{BindError, Listeners, Prepared, Server};
use crate::snapshot::Current;
use crate::tasks;
use watch::Watched;

/// Brings a filter of the event log in force; the error says why not.
pub type SetLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Reloads. A cheap clone.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    parts: Parts,
    current: Current,
    /// One reload at a time.
    turn: tokio::sync::Mutex<()>,
    /// Another configuration, or another time to watch, is in force.
    published: Notify,
    watched: Mutex<Watched>,
    last: Mutex<Option<Report>>,
    metrics: Metrics,
}

/// What a reload works on.
pub struct Parts {
    /// Where the configuration is read; none when it came from the command line.
    pub source: Option<PathBuf>,
    /// Keeps what outlives a snapshot.
    pub house: House,
    /// Holds the cap on connections.
    pub server: Arc<Server>,
    /// What is listened on.
    pub listeners: Arc<Listeners>,
    /// Sets the filter of the event log.
    pub set_level: SetLevel,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// The admin port.
    Admin,
    /// A file has changed.
    Change,
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal => "SIGHUP",
            Self::Admin => "admin",
            Self::Change => "file changed",
        })
    }
}

/// What came of a reload.
#[derive(Clone, Debug)]
pub struct Report {
    /// When it ended.
    pub at: SystemTime,
    /// Who asked.
    pub trigger: Trigger,
    /// The generation in force afterwards.
    pub generation: u64,
    /// What is not as the file says, since it needs a restart, and the file's own warnings; or why nothing has changed.
    pub result: Result<Vec<String>, String>,
}

struct Metrics {
    applied: Counter,
    refused: Counter,
    generation: Gauge,
    timestamp: Gauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let reloads = |result| {
            let help = "Reloads of the configuration.";
            registry.counter("headworks_reloads_total", help, &[("result", result)])
        };
        let help = "The number of the configuration in force: 1 at the start.";
        let metrics = Self {
            applied: reloads("applied"),
            refused: reloads("refused"),
            generation: registry.gauge("headworks_config_generation", help, &[]),
            timestamp: registry.gauge(
                "headworks_config_loaded_timestamp_seconds",
                "When the configuration in force was taken up.",
                &[],
            ),
        };
        metrics.in_force(1);
        metrics
    }

    fn in_force(&self, generation: u64) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.timestamp.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}

/// A configuration with everything it needs.
struct Ready {
    config: Arc<Config>,
    built: Built,
    prepared: Prepared,
}

impl Handle {
    /// Reloads from `parts.source` what `current` points to.
    #[must_use]
    pub fn new(parts: Parts, current: Current, registry: &Registry) -> Self {
        let files: Vec<_> = current.load().config.files.iter().chain(&parts.source).cloned().collect();
        Self(Arc::new(Inner {
            turn: tokio::sync::Mutex::default(),
            published: Notify::new(),
            watched: Mutex::new(Watched::read(files)),
            last: Mutex::default(),
            metrics: Metrics::new(registry),
            parts,
            current,
        }))
    }

    /// Reads the configuration, builds and binds what it needs, and swaps once. On any error nothing changes. It goes
    /// on when the future is dropped.
    pub async fn reload(&self, trigger: Trigger) -> Report {
        let inner = Arc::clone(&self.0);
        let done = tasks::run(async move { inner.reload(trigger).await }).await;
        done.unwrap_or_else(|error| self.0.refused(trigger, error.to_string()))
    }

    /// What came of the last reload; none when there was none.
    #[must_use]
    pub fn last(&self) -> Option<Report> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reloads whenever a file's content changes, for as long as the future is kept.
    pub async fn watch(self) {
        if self.0.parts.source.is_some() {
            watch::watch(self).await;
        }
    }
}

impl Inner {
    async fn reload(self: Arc<Self>, trigger: Trigger) -> Report {
        let _turn = self.turn.lock().await;
        let inner = Arc::clone(&self);
        // It reads files, which may lie on a disk that is slow.
        let ready = tasks::blocking(move || inner.ready()).await.unwrap_or_else(|error| Err(error.to_string()));
        match ready {
            Ok(ready) => self.publish(trigger, ready),
            Err(why) => self.refused(trigger, why),
        }
    }

    /// Everything that may fail. Changes nothing for anybody.
    fn ready(&self) -> Result<Ready, String> {
        let Some(path) = &self.parts.source else {
            return Err("the configuration came from the command line: there is no file to read".into());
        };
        // Read before the file is: what changes after that is found by the next look.
        let files: Vec<_> = self.watched().files().chain([path]).cloned().collect();
        *self.watched() = Watched::read(files);
        let config = config::load(path).map_err(|error| {
            // What is wrong may lie in a file that this one names.
            self.watched().also(error.files());
            error.to_string()
        })?;
        self.watched().also(&config.files);
        let config = Arc::new(config);
        let built = self.parts.house.build(&config).map_err(|error| error.to_string())?;
        let prepared = self.parts.listeners.prepare(&built.doors).map_err(|error: BindError| error.to_string())?;
        Ok(Ready { config, built, prepared })
    }

    /// Cannot fail.
    fn publish(&self, trigger: Trigger, Ready { config, built, prepared }: Ready) -> Report {
        let before = self.current.load_full();
        let mut warnings = needs_restart(&before.config, &config);
        if before.config.log.level != config.log.level
            && let Err(why) = (self.parts.set_level)(&config.log.level)
        {
            warnings.push(format!("log.level stays as it was: {why}"));
        }
        warnings.extend(config.warnings.iter().cloned());
        let generation = before.generation + 1;
        self.current.store(Arc::new(self.parts.house.furnish(&config, built, generation)));
        self.parts.server.set_max_connections(config.server.max_connections);
        self.parts.server.set_memory(config.server.memory);
        self.parts.listeners.apply(prepared);
        drop(before);
        self.parts.house.sweep();
        let source = self.parts.source.as_deref();
        self.watched().retain(|path| Some(path) == source || config.files.iter().any(|file| file == path));
        self.published.notify_waiters();
        self.metrics.applied.inc();
        self.metrics.in_force(generation);
        tracing::info!(%trigger, generation, "the configuration is in force");
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        self.note(Report { at: SystemTime::now(), trigger, generation, result: Ok(warnings) })
    }

    fn refused(&self, trigger: Trigger, why: String) -> Report {
        let generation = self.current.load().generation;
        self.metrics.refused.inc();
        // What was built in vain has counted itself among the upstreams.
        self.parts.house.sweep();
        tracing::error!(%trigger, generation, "the configuration was not taken up, that of before stays in force:\n{why}");
        self.note(Report { at: SystemTime::now(), trigger, generation, result: Err(why) })
    }

    fn note(&self, report: Report) -> Report {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        report
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What another configuration says in vain until the next start.
fn needs_restart(before: &Config, after: &Config) -> Vec<String> {
    let changed = [
        ("server.threads", before.server.threads != after.server.threads),
        ("[admin]", before.admin != after.admin),
        ("log.access", before.log.access != after.log.access),
    ];
    let say = |(key, _): (&str, bool)| format!("{key} has changed, which takes effect at the next start only");
    changed.into_iter().filter(|(_, changed)| *changed).map(say).collect()
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("last", &self.last()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("source", &self.source).finish_non_exhaustive()
    }
}
