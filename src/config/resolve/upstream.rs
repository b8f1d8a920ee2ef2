//! `[upstream.NAME]`

use crate::config::HostPattern;
use crate::config::decode::Context;
use crate::config::error::{Problem, quote};
use crate::config::file;
use crate::config::values::{Located, Many, Name, Tried};
use crate::config::window::{Algorithm, InFlight};
use crate::control::limit;
use crate::upstream::{Address, EndpointSettings, Limit, Pool, Protocol, Queue, Scheme, Settings, Timeouts, Tls};

use super::count;

/// One upstream; none when it has no endpoint, which has then been said.
pub(super) fn settings(
    name: Located<Name>,
    table: file::Upstream,
    buffer: usize,
    cx: &mut Context<'_>,
) -> Option<Settings> {
    let endpoints = endpoints(&name, table.endpoints?, &table.protocol, cx);
    let tls = tls(table.tls, &endpoints, cx);
    Some(Settings {
        name: name.value.0,
        endpoints,
        protocol: table.protocol.value,
        host: table.host,
        limit: limit(table.limit, cx),
        queue: Queue { max: usize::try_from(table.queue.max.0).unwrap_or(0), timeout: table.queue.timeout.0 },
        timeout: Timeouts {
            connect: table.timeout.connect.0,
            first_byte: table.timeout.first_byte.0,
            idle: table.timeout.idle.0,
            total: table.timeout.total.0,
        },
        pool: Pool {
            max_connections: count(table.pool.max_connections.0),
            max_idle: usize::try_from(table.pool.max_idle.0).unwrap_or(0),
            idle_timeout: table.pool.idle_timeout.0,
            receive_buffer: table.pool.receive_buffer.0.map(|size| size.0),
            max_streams: count(table.pool.max_streams.0),
        },
        tls,
        buffer,
    })
}

fn limit(table: file::Limit, cx: &mut Context<'_>) -> Limit {
    let streams = table.streams.map(|streams| count(streams.0));
    let bounds = match table.in_flight {
        InFlight::Fixed(number) => {
            return Limit { in_flight: limit::Settings::Fixed(count(number.0).get()), streams };
        }
        InFlight::Adaptive => limit::Bounds::default(),
        InFlight::Window(window) => {
            let file::Window { algorithm: Algorithm, min, max, initial, .. } = *window;
            if max.value.0 < min.0 {
                cx.found.error(&max.at, "`max` is less than `min`");
            }
            let number = |number: file::Count| count(number.0).get();
            limit::Bounds { min: number(min), max: number(max.value), initial: number(initial) }
        }
    };
    Limit { in_flight: limit::Settings::Adaptive(bounds), streams: streams.or(Limit::default().streams) }
}

fn endpoints(
    name: &Located<Name>,
    written: Many<Located<EndpointSettings>>,
    protocol: &Located<Protocol>,
    cx: &mut Context<'_>,
) -> Vec<EndpointSettings> {
    if written.items.is_empty() && written.whole {
        cx.found.error(&name.at, format!("the upstream {} has no endpoint", quote(&name.value.0)));
    }
    let mut endpoints: Vec<EndpointSettings> = Vec::with_capacity(written.items.len());
    for Located { value, at } in written.items {
        if endpoints.iter().any(|known| known.address == value.address) {
            cx.found.error(&at, "this endpoint stands here twice");
            continue;
        }
        if protocol.value == Protocol::Http1 && scheme(&value) == Some(Scheme::H2c) {
            let problem = Problem::new("an `h2c://` endpoint speaks HTTP/2, but the upstream's protocol is \"h1\"");
            cx.found.error(&at, problem.hint("write `http://`, or leave `protocol` away"));
        }
        endpoints.push(value);
    }
    endpoints
}

fn tls(table: Option<file::UpstreamTls>, endpoints: &[EndpointSettings], cx: &mut Context<'_>) -> Tls {
    let Some(table) = table else { return Tls::default() };
    if !endpoints.is_empty() && !endpoints.iter().any(|endpoint| scheme(endpoint) == Some(Scheme::Https)) {
        let problem = Problem::new("`tls` is set, but no endpoint of the upstream uses TLS");
        cx.found.error(&table.at, problem.hint("write `https://` before the endpoint"));
    }
    let pair = match (table.cert, table.key) {
        (Some(Tried(cert)), Some(Tried(key))) => cert.zip(key).map(|(cert, key)| (cert.0, key.0)),
        (Some(_), None) => {
            cx.found.error(&table.at, "`cert` needs its `key`");
            None
        }
        (None, Some(_)) => {
            cx.found.error(&table.at, "`key` needs its `cert`");
            None
        }
        (None, None) => None,
    };
    let server_name = table.server_name.and_then(|name| match name.value {
        HostPattern::Exact(host) => Some(host.trim_matches(['[', ']']).to_owned()),
        HostPattern::Suffix(_) => {
            cx.found.error(&name.at, "a server's name cannot be a pattern");
            None
        }
    });
    Tls { ca: table.ca.map(|ca| ca.0), client: pair, server_name }
}

fn scheme(endpoint: &EndpointSettings) -> Option<Scheme> {
    match &endpoint.address {
        Address::Tcp { scheme, .. } => Some(*scheme),
        Address::Unix(_) => None,
    }
}
