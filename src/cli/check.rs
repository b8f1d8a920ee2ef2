//! `headworks check FILE`: everything that is wrong with a configuration, or what it holds.

use std::io::{self, Write};
use std::path::Path;

use crate::config::{self, Config};
use crate::metrics::Registry;
use crate::reload::House;
use crate::server;

/// Writes the summary to `out`, or the warnings and the report to `err`. The exit code is 0, or 2 for errors.
pub(super) fn run(path: &Path, colour: bool, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    match config::load_and_look(path) {
        Ok(config) => {
            for warning in config.warnings.iter().chain(&server::certificate_warnings(&config.server.listeners)) {
                writeln!(err, "warning: {warning}")?;
            }
            if let Err(error) = House::new(Registry::new(), None).build(&config) {
                writeln!(err, "error: {error}")?;
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

    #[test]
    fn files_that_are_not_there_are_all_told_in_their_places() {
        let (code, _, err) =
            check("[upstream.a]\nendpoints = 'https://a'\ntls = { ca = 'ca.pem', cert = 'a.pem', key = 'a.key' }\n");
        assert_eq!(code, 2);
        for (name, column) in [("ca.pem", 14), ("a.pem", 31), ("a.key", 46)] {
            assert!(err.contains(&format!("cannot read `{name}`: No such file")), "{err}");
            assert!(err.contains(&format!("x.toml:3:{column}\n")), "{err}");
        }
        assert!(err.ends_with("3 errors\n"), "{err}");
    }

    #[test]
    fn what_an_upstream_cannot_use_is_found() {
        let (code, out, err) = check("[upstream.a]\nendpoints = 'https://a'\ntls.ca = 'x.toml'\n");
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.starts_with("error: upstream a: cannot read the certificates in DIR/x.toml"), "{err}");
    }
}
