//! `headworks demo`: the proxy in front of a built-in service that streams tokens like an LLM.

mod upstream;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;

use super::{FAILED, run};
use crate::app::Setup;
use crate::config;
use crate::reload::SetLevel;
use crate::server::Inherited;

/// Serves until interrupted.
pub(super) fn run(listen: SocketAddr, admin: SocketAddr, out: &mut impl Write, errors: &mut impl Write) -> ExitCode {
    let set_level = run::log_events("info");
    match start(listen, admin, set_level, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(errors, "error: {error}");
            FAILED
        }
    }
}

fn start(
    listen: SocketAddr,
    admin: SocketAddr,
    set_level: SetLevel,
    out: &mut impl Write,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let text = settings(listener.local_addr()?, listen, admin);
    let config = config::parse(&text, "demo", Path::new("."))?;
    listener.set_nonblocking(true)?;
    run::serve(Setup { config, source: None, inherited: Inherited::default(), set_level }, |app| {
        upstream::spawn(listener);
        let address = |wanted: &str| {
            let found = app.addresses().into_iter().find(|(name, _)| (&**name == "admin") == (wanted == "admin"));
            found.map_or_else(|| "?".to_owned(), |(_, address)| address.to_string())
        };
        let _ = write!(out, "{}", invitation(&address("proxy"), &address("admin")));
        let _ = out.flush();
    })
}

/// Few credits and a short queue, so that a small burst shows what a refusal looks like.
fn settings(upstream: SocketAddr, listen: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "[server]
listen = \"{listen}\"
[admin]
listen = \"{admin}\"
[upstream.llm]
endpoints = \"http://{upstream}\"
limit = {{ in_flight = 4 }}
queue = {{ max = 4, timeout = \"5s\" }}
"
    )
}

fn invitation(proxy: &str, admin: &str) -> String {
    format!(
        r#"headworks stands on http://{proxy} in front of a built-in service that streams tokens.
It may do 4 answers at once; 4 more may wait up to 5 s. Try in another terminal:

  # a streamed chat
  curl -N http://{proxy}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"demo","stream":true,"messages":[{{"role":"user","content":"hello"}}]}}'

  # a burst of 20: 4 are served, 4 wait, the rest is told when to come back
  for i in $(seq 20); do curl -s -o /dev/null -w '%{{http_code}} retry-after=%header{{retry-after}}\n' http://{proxy}/v1/chat/completions -d '{{"model":"demo","stream":true}}' & done; wait

  # what the proxy saw
  curl -s http://{admin}/metrics | grep -E 'requests_total|queue|credits'

Ctrl-C stops it.
"#
    )
}
