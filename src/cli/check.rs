//! `headworks check FILE`: everything that is wrong with a configuration, or what it holds.

use std::io::{self, Write};
use std::path::Path;

use crate::config::{self, Config};
use crate::server;

/// Writes the summary to `out`, or the warnings and the report to `err`. The exit code is 0, or 2 for errors.
pub(super) fn run(path: &Path, colour: bool, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    match config::load(path) {
        Ok(config) => {
            for warning in config.warnings.iter().chain(&server::certificate_warnings(&config.server.listeners)) {
                writeln!(err, "warning: {warning}")?;
            }
            if let Err((listener, error)) = server::doors(&config.server.listeners) {
                writeln!(err, "error: listener {listener}: {error}")?;
                return Ok(2);
            }
            writeln!(out, "{}: ok ({})", path.display(), summary(&config))?;
            Ok(0)
        }
        Err(error) => {
            write!(err, "{}", error.render(colour))?;
            Ok(2)
        }
    }
}

/// `2 listeners, 3 routes, 1 upstream`
#[must_use]
fn summary(config: &Config) -> String {
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let listeners = count(config.server.listeners.len(), "listener");
    format!("{listeners}, {}, {}", count(config.routes.len(), "route"), count(config.upstreams.len(), "upstream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (u8, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, text).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(&path, false, &mut out, &mut err).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(dir.path().to_str().unwrap(), "DIR");
        (code, text(out), text(err))
    }

    #[test]
    fn a_good_file_is_summed_up() {
        let (code, out, err) = check("[upstream.a]\nendpoints = 'http://a'\n[[route]]\nrespond = {}\n");
        assert_eq!(code, 0);
        assert_eq!(out, "DIR/x.toml: ok (1 listener, 1 route, 1 upstream)\n");
        assert_eq!(err, "warning: DIR/x.toml:1:11: no route leads to the upstream `a`\n");
    }

    #[test]
    fn a_bad_file_is_reported() {
        let (code, out, err) = check("a = 1\n");
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.starts_with("error: there is neither") && err.contains("unknown key `a`"), "{err}");
        assert!(err.ends_with("DIR/x.toml: 2 errors\n"), "{err}");
    }
}
