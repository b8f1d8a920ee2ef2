//! `headworks run`, and the start that `--upstream` and `demo` share.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{FAILED, USAGE, is_coloured};
use crate::app::App;
use crate::config::{self, Config};

/// Serves `config` until the process is told to stop.
pub(super) fn run(config: Result<Config, config::Error>, errors: &mut impl Write) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            let _ = write!(errors, "{}", error.render(is_coloured()));
            return ExitCode::from(USAGE);
        }
    };
    log_events(&config.log.level);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match serve(config, |_| {}) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            FAILED
        }
    }
}

/// Builds the runtime and serves until a signal says to stop; a second one ends at once. `started` learns the
/// addresses.
pub(super) fn serve(
    config: Config,
    started: impl FnOnce(&App),
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = runtime(config.server.threads)?;
    let served = runtime.block_on(async {
        let app = App::build(config).await?;
        started(&app);
        app.run(stop_signal(), stop_signal).await;
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

/// Events go to standard error, since standard output is the access log's. `RUST_LOG` overrides the level.
pub(super) fn log_events(level: &str) {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(level)).unwrap_or_default();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_coloured());
    // A second call, as in tests of this module, leaves the first in force.
    let _ = subscriber.try_init();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task failed")));
}

/// Completes at SIGTERM or SIGINT.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be received; stop the process by force");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
