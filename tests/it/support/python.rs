//! The Python interpreter that has other people's clients installed.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Scripts beside the tests.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/python")
}

/// `HEADWORKS_TEST_PYTHON`, or the environment that `scripts/test` makes. A test without it fails: it is no test.
pub(crate) fn python(script: &str) -> Command {
    let python = std::env::var_os("HEADWORKS_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python"), PathBuf::from);
    assert!(
        python.exists(),
        "no {}: run `scripts/test`, or `scripts/test venv` to make it, or set HEADWORKS_TEST_PYTHON to an interpreter \
         with tests/it/python/requirements.txt installed",
        python.display()
    );
    let mut command = Command::new(python);
    command.arg("-u").arg(scripts().join(script));
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    command
}
