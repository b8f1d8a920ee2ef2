//! From the shape of the file to [`Config`]: defaults, names, and what must fit together.

mod route;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;

use super::decode::Context;
use super::error::{Problem, Span, quote, remark};
use super::file;
use super::values::{Located, Many, Name};
use super::{Admin, Certificate, Config, Listener, Log, Secrets, Server, Stream};

/// Everything together. It is only good when the context holds no error.
pub(super) fn config(root: file::Root, name: &str, text: &str, cx: &mut Context<'_>) -> Config {
    let stream = Stream { buffer: root.stream.buffer.0, stall_timeout: root.stream.stall_timeout.0 };
    let admin = root.admin.map(|admin| admin.listen);
    let server = server(root.server, stream, admin.as_ref(), cx);

    let names: Vec<Located<Name>> = root.upstream.items.iter().map(|(name, _)| name.clone()).collect();
    let upstreams: Vec<_> = root
        .upstream
        .items
        .into_iter()
        .filter_map(|(name, table)| upstream::settings(name, table?, stream.buffer, cx))
        .collect();

    let whole = root.upstream.whole;
    let known = route::Known { listeners: &server.listeners, names: &names, whole, upstreams: &upstreams, stream };
    let routes = route::routes(root.route.0, &known, cx);
    let used = |name: &Located<Name>| {
        routes.iter().any(|route| route.upstream(&upstreams).is_some_and(|upstream| upstream.name == name.value.0))
    };
    let warnings = names
        .iter()
        .filter(|name| !used(name))
        .map(|at| remark(name, text, &at.at, &format!("no route leads to the upstream {}", quote(&at.value.0))))
        .collect();
    let log = Log { access: root.log.access, level: root.log.level.0 };
    let admin = admin.map(|listen| Admin { listen: listen.value });
    let secrets = Secrets::new(std::mem::take(&mut cx.secrets));
    Config { server, log, admin, upstreams, routes, warnings, secrets }
}

fn server(server: file::Server, stream: Stream, admin: Option<&Located<SocketAddr>>, cx: &mut Context<'_>) -> Server {
    Server {
        listeners: listeners(server.listen, server.listener.0, admin, cx),
        threads: server.threads.0.map(|threads| count(threads.0).get()),
        trusted_proxies: server.trusted_proxies.items,
        max_connections: count(server.max_connections.0).get(),
        header_timeout: server.timeout.header.0,
        idle_timeout: server.timeout.idle.0,
        max_streams: server.max_streams.0,
        max_header_size: server.max_header_size.0,
        grace: server.grace.0,
        stream,
    }
}

fn listeners(
    short: Option<Many<Located<SocketAddr>>>,
    long: Many<file::Listener>,
    admin: Option<&Located<SocketAddr>>,
    cx: &mut Context<'_>,
) -> Vec<Listener> {
    let nothing_said = short.is_none() && long.items.is_empty() && long.whole;
    let all_refused = !long.whole || !long.items.is_empty() || short.as_ref().is_some_and(|short| !short.whole);
    let mut unique = Unique::default();
    let mut listeners = Vec::new();
    for (number, address) in short.into_iter().flat_map(|short| short.items).enumerate() {
        unique.address(&address, cx);
        let name = format!("listen-{}", number + 1);
        unique.name("listener", &name, &address.at, cx);
        listeners.push(Listener { name: name.into(), address: address.value, tls: Vec::new() });
    }
    for listener in long.items {
        let (Some(name), Some(address)) = (listener.name, listener.address) else { continue };
        unique.name("listener", &name.value.0, &name.at, cx);
        unique.address(&address, cx);
        let pair = |pair: file::Certificate| Some(Certificate { cert: pair.cert?.0, key: pair.key?.0 });
        let tls = listener.tls.items.into_iter().filter_map(pair).collect();
        listeners.push(Listener { name: name.value.0, address: address.value, tls });
    }
    if let Some(admin) = admin {
        unique.address(admin, cx);
    }
    if nothing_said {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        listeners.push(Listener { name: "listen-1".into(), address, tls: Vec::new() });
    } else if listeners.is_empty() && !all_refused {
        cx.found.whole(Problem::new("there is no listener").hint("leave `listen` away to listen on 127.0.0.1:8080"));
    }
    listeners
}

/// Names and addresses that may stand once.
#[derive(Default)]
struct Unique {
    names: Vec<String>,
    addresses: Vec<SocketAddr>,
}

impl Unique {
    fn name(&mut self, what: &str, name: &str, at: &Span, cx: &mut Context<'_>) {
        if self.names.iter().any(|taken| taken == name) {
            let name = cx.show(name);
            cx.found.error(at, format!("another {what} has the name {name} already"));
        } else {
            self.names.push(name.into());
        }
    }

    /// Port 0 asks the system for any free port, as often as one likes.
    fn address(&mut self, address: &Located<SocketAddr>, cx: &mut Context<'_>) {
        if address.value.port() != 0 && self.addresses.contains(&address.value) {
            cx.found.error(&address.at, "this address is listened on twice");
        } else {
            self.addresses.push(address.value);
        }
    }
}

/// A number whose lower bound is checked where it is read.
fn count(number: u32) -> NonZeroUsize {
    usize::try_from(number).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}
