//! `headworks run`, and the start that `--upstream` and `demo` share.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::signals::Signals;
use super::{FAILED, USAGE, is_coloured};
use crate::app::{App, Setup};
use crate::config::{self, Config};
use crate::reload::SetLevel;
use crate::server::Inherited;

/// Serves `config` until the process is told to stop. `source` is where it was read, and is read again.
pub(super) fn run(config: Result<Config, config::Error>, source: Option<PathBuf>, errors: &mut impl Write) -> ExitCode {
    // First of all, while there is one thread.
    let inherited = Inherited::from_env();
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            let _ = write!(errors, "{}", error.render(is_coloured()));
            return ExitCode::from(USAGE);
        }
    };
    let set_level = log_events(&config.log.level);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match serve(Setup { config, source, inherited, set_level }, |_| {}) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            FAILED
        }
    }
}

/// Builds the runtime and serves until a signal says to stop; a second one ends at once. `started` learns the
/// addresses.
pub(super) fn serve(setup: Setup, started: impl FnOnce(&App)) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = runtime(setup.config.server.threads)?;
    let served = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let app = App::build(setup)?;
        started(&app);
        app.run(async || signals.next().await).await;
        Ok(())
    });
    // A look-up of a name that hangs must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// One thread needs no hand-over between threads, and is the cheapest per request.
fn runtime(threads: Option<usize>) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        Some(1) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder.thread_name("headworks").enable_all().build()
}

/// Events go to standard error, since standard output is the access log's. `RUST_LOG` overrides the level, and then
/// what is returned sets no other.
pub(super) fn log_events(level: &str) -> SetLevel {
    let from_env = EnvFilter::try_from_default_env().ok();
    let is_fixed = from_env.is_some();
    let filter = from_env.or_else(|| EnvFilter::try_new(level).ok()).unwrap_or_default();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_coloured())
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    // A second call, as in tests of this module, leaves the first in force.
    let _ = subscriber.try_init();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task failed")));
    Box::new(move |level| {
        if is_fixed {
            return Err("RUST_LOG overrides it".into());
        }
        let filter = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    })
}
