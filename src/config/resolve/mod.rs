//! From the shape of the file to [`Config`]: defaults, names, and what must fit together.

mod admin;
mod agent;
mod listener;
mod rate_limit;
mod route;
mod store;
mod upstream;

use std::num::{NonZeroU32, NonZeroUsize};

use super::decode::Context;
use super::error::{Problem, Span, quote, remark};
use super::file;
use super::units::show_size;
use super::values::{Located, Name, Size};
use super::{Config, ListenAddress, Log, Overload, Secrets, Server, Stream};
use crate::body::UploadBounds;
use crate::context::Shares;

/// Everything together. It is only good when the context holds no error.
pub(super) fn config(root: file::Root, name: &str, text: &str, cx: &mut Context<'_>) -> Config {
    let stream = Stream {
        buffer: root.stream.buffer.0,
        stall_timeout: root.stream.stall_timeout.0,
        upload: UploadBounds {
            max_size: root.server.max_body_size.0.map(|size| size.0 as u64),
            silence: root.stream.upload_timeout.0,
            rate: root.stream.upload_rate.0.and_then(bytes_a_second),
        },
    };
    let admin_at = root.admin.as_ref().map(|admin| admin.listen.clone());
    let zone = root.server.zone.clone().map(|Name(zone)| zone);
    let server = server(root.server, stream, admin_at.as_ref(), cx);

    let names: Vec<Located<Name>> = root.upstream.items.iter().map(|(name, _)| name.clone()).collect();
    let upstreams: Vec<_> = root
        .upstream
        .items
        .into_iter()
        .filter_map(|(name, table)| upstream::settings(name, table?, zone.clone(), stream.buffer, cx))
        .collect();

    let has_store = root.store.is_some();
    let store = root.store.and_then(|table| store::settings(table, cx));
    let whole = root.upstream.whole;
    let known =
        route::Known { listeners: &server.listeners, names: &names, whole, upstreams: &upstreams, stream, has_store };
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
    let admin = root.admin.map(|table| admin::admin(table, cx));
    let secrets = Secrets::new(std::mem::take(&mut cx.secrets));
    let files = cx.files.clone();
    Config {
        server,
        log,
        store,
        admin,
        upstreams,
        routes,
        warnings,
        secrets,
        files,
        effective: serde_json::Value::Null,
    }
}

fn server(
    server: file::Server,
    stream: Stream,
    admin: Option<&Located<ListenAddress>>,
    cx: &mut Context<'_>,
) -> Server {
    Server {
        listeners: listener::listeners(server.listen, server.listener.0, admin, cx),
        threads: server.threads.0.map(|threads| count(threads.0).get()),
        trusted_proxies: server.trusted_proxies,
        max_connections: count(server.max_connections.0).get(),
        max_connections_per_client: match server.max_connections_per_client.0 {
            Some(most) => count(most.0).get(),
            None => (count(server.max_connections.0).get() / 4).max(256),
        },
        header_timeout: server.timeout.header.0,
        idle_timeout: server.timeout.idle.0,
        max_age: server.timeout.age.0,
        memory: server.memory.0.map(|size| memory(&size, stream.buffer, server.max_header_size.0, cx)),
        overload: Overload {
            delay: server.overload.delay.0,
            memory: server.overload.memory.0.map(|share| share.0.get()),
        },
        cancel_budget: NonZeroU32::new(server.cancel_budget.0).unwrap_or(NonZeroU32::MIN),
        max_requests: server.max_requests.map(|most| u64::from(most.0)),
        max_streams: server.max_streams.0,
        max_header_size: server.max_header_size.0,
        max_headers: count(server.max_headers.0).get(),
        grace: server.grace.0,
        stream_grace: server.stream_grace.unwrap_or(server.grace).0,
        drain_delay: server.drain_delay.0,
        watch: server.watch.0,
        stream,
    }
}

/// The budget, which one connection with one request must fit into, or nothing would ever be served.
fn memory<const MIN: u64, const MAX: u64>(
    size: &Located<Size<MIN, MAX>>,
    buffer: usize,
    header: usize,
    cx: &mut Context<'_>,
) -> u64 {
    let (bytes, shares) = (size.value.0 as u64, Shares::new(buffer, header));
    let connection = shares.connection + shares.tls;
    let least = (connection + shares.request + shares.upload_h2).max(connection.div_ceil(3) * 4);
    if bytes < least {
        let problem =
            Problem::new(format!("one request alone may hold {}", show_size(least.next_multiple_of(1 << 10))));
        cx.found.error(&size.at, problem.hint("raise it, or lower `stream.buffer` or `server.max_header_size`"));
    }
    bytes
}

/// Names and addresses that may stand once.
#[derive(Default)]
struct Unique {
    names: Vec<String>,
    addresses: Vec<ListenAddress>,
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
    fn address(&mut self, address: &ListenAddress, at: &Span, cx: &mut Context<'_>) {
        if !address.is_any_port() && self.addresses.contains(address) {
            cx.found.error(at, "this address is listened on twice");
        } else {
            self.addresses.push(address.clone());
        }
    }
}

fn bytes_a_second<const MIN: u64, const MAX: u64>(size: Size<MIN, MAX>) -> Option<NonZeroU32> {
    u32::try_from(size.0).ok().and_then(NonZeroU32::new)
}

/// A number whose lower bound is checked where it is read.
fn count(number: u32) -> NonZeroUsize {
    usize::try_from(number).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}
