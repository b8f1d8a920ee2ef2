//! Waiting for a condition, never for a guess.

use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Polls `condition` every 5 ms until it holds; false when it still does not after `within`.
pub(crate) async fn eventually(mut condition: impl FnMut() -> bool, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Lets this process, and the programs it starts, hold some thousand sockets.
pub(crate) fn raise_file_limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let pid = std::process::id().to_string();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let soft = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        if soft.is_some_and(|soft| soft < 8192) {
            let raised = Command::new("prlimit").args(["--pid", &pid, "--nofile=8192:"]).status();
            assert!(raised.is_ok_and(|status| status.success()), "cannot raise the limit of open files to 8192");
        }
    });
}
