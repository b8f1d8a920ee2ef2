//! `[upstream.NAME]`

use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::sync::Arc;

use crate::config::HostPattern;
use crate::config::breaker::Kind;
use crate::config::decode::Context;
use crate::config::endpoint::Listed;
use crate::config::error::{Problem, quote};
use crate::config::file;
use crate::config::retry::{Event, Retry as RetryTable};
use crate::config::values::{Located, Many, Name, Tried};
use crate::config::window::{Algorithm, InFlight, Window};
use crate::context::{Key, Part};
use crate::control::choice::{self, Policy};
use crate::control::health::Thresholds;
use crate::control::queue::{DropPolicy, Hands, Order, Rules, Tenancy};
use crate::control::{breaker, limit, retry_budget};
use crate::upstream::{
    Address, Balance, CheckKind, EndpointSettings, HealthCheck, Limit, On, Pool, Protocol, Queue, Retry, Scheme,
    Settings, Timeouts, Tls,
};

use super::count;

/// One upstream; none when it has no endpoint, which has then been said.
pub(super) fn settings(
    name: Located<Name>,
    mut table: file::Upstream,
    zone: Option<Arc<str>>,
    buffer: usize,
    cx: &mut Context<'_>,
) -> Option<Settings> {
    let listed = table.endpoints?;
    let balance = balance(table.balance, &listed, cx);
    let endpoints = endpoints(&name, listed, &table.protocol, cx);
    let tls = tls(table.tls, &endpoints, cx);
    let connections = table.pool.max_connections.0.map(|number| count(number.0));
    // Where every request needs a connection, more credits than those would only wait in the pool, and fail there.
    let most = connections.filter(|_| endpoints.iter().all(|endpoint| speaks_http1(endpoint, table.protocol.value)));
    let published = super::agent::published(&mut table.limit, &endpoints, cx);
    let limit = limit(table.limit, most, cx);
    Some(Settings {
        name: name.value.0,
        endpoints,
        protocol: table.protocol.value,
        host: table.host,
        zone,
        balance,
        limit,
        published,
        queue: queue(table.queue, cx),
        breaker: table.breaker.0.as_ref().map(breaker),
        health: table.health.map(|health| self::health(health, table.protocol.value, cx)),
        timeout: Timeouts {
            connect: table.timeout.connect.0,
            first_byte: table.timeout.first_byte.0,
            idle: table.timeout.idle.0,
            total: table.timeout.total.0,
        },
        retry: retry(&table.retry),
        pool: Pool {
            max_connections: connections,
            max_idle: usize::try_from(table.pool.max_idle.0).unwrap_or(0),
            idle_timeout: table.pool.idle_timeout.0,
            receive_buffer: table.pool.receive_buffer.0.map(|size| size.0),
            max_streams: count(table.pool.max_streams.0),
        },
        tls,
        buffer,
    })
}

fn breaker(table: &file::Breaker) -> breaker::Settings {
    let &file::Breaker { failures, open, max_out, .. } = table;
    // A share counts millionths.
    let max_out = (max_out.0.get() / 10_000).max(1);
    breaker::Settings { failures: failures.0, shortest: open.from, longest: open.to, max_out }
}

fn health(table: file::Health, protocol: Protocol, cx: &mut Context<'_>) -> HealthCheck {
    let kind = match table.kind.value {
        Kind::Http => CheckKind::Http { path: table.path.0, expect: table.expect.0 },
        Kind::Tcp => CheckKind::Tcp,
        Kind::Grpc => CheckKind::Grpc { service: table.service.0 },
    };
    if table.kind.value == Kind::Grpc && protocol == Protocol::Http1 {
        let problem = Problem::new("a check by gRPC needs HTTP/2, but the upstream's protocol is \"h1\"");
        cx.found.error(&table.kind.at, problem.hint("check by \"http\" or \"tcp\""));
    }
    HealthCheck {
        kind,
        interval: table.interval.0,
        timeout: table.timeout.0,
        thresholds: Thresholds { healthy: table.healthy.0, unhealthy: table.unhealthy.0 },
    }
}

fn retry(table: &RetryTable) -> Retry {
    let on = |event: Event| table.on.items.contains(&event);
    let statuses = table.on.items.iter().filter_map(|event| match event {
        Event::Status(status) => Some(*status),
        _ => None,
    });
    Retry {
        attempts: table.attempts.0,
        on: On {
            connect: on(Event::Connect),
            reset: on(Event::Reset),
            timeout: on(Event::Timeout),
            unavailable: on(Event::Unavailable),
            statuses: statuses.collect(),
        },
        budget: retry_budget::Settings { share: table.budget.0.get(), floor: table.floor.0 },
        max_body: table.max_body.0,
        backoff: table.backoff.0,
        hedge: table.hedge.0,
    }
}

fn limit(table: file::Limit, most: Option<NonZeroUsize>, cx: &mut Context<'_>) -> Limit {
    let streams = table.streams.map(|streams| count(streams.0));
    let dry_run = table.dry_run.0;
    let bounds = match table.in_flight {
        InFlight::Fixed(number) => {
            return Limit { in_flight: limit::Settings::Fixed(count(number.0).get()), streams, dry_run };
        }
        InFlight::Adaptive => limit::Bounds::default(),
        InFlight::Window(window) => {
            let Window { algorithm: Algorithm, min, max, initial, .. } = *window;
            if max.value.0 < min.0 {
                cx.found.error(&max.at, "`max` is less than `min`");
            }
            let number = |number: file::Count| count(number.0).get();
            limit::Bounds { min: number(min), max: number(max.value), initial: number(initial) }
        }
    };
    let most = most.map_or(usize::MAX, NonZeroUsize::get);
    let bounds = limit::Bounds { min: bounds.min.min(most), max: bounds.max.min(most), ..bounds };
    Limit { in_flight: limit::Settings::Adaptive(bounds), streams: streams.or(Limit::default().streams), dry_run }
}

/// Whether a connection surely takes one request at a time.
fn speaks_http1(endpoint: &EndpointSettings, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Http1 => true,
        Protocol::Http2 => false,
        Protocol::Auto => !matches!(scheme(endpoint), Some(Scheme::Https | Scheme::H2c)),
    }
}

fn balance(table: file::Balance, endpoints: &Many<Located<Listed>>, cx: &mut Context<'_>) -> Balance {
    let Located { value: policy, at } = table.policy;
    let weighed = endpoints.items.iter().find_map(|listed| listed.value.weighed_at.as_ref());
    if let (Policy::RoundRobin, Some(at)) = (policy, weighed) {
        let problem = Problem::new("weights say nothing where every endpoint has the same turn");
        cx.found.error(at, problem.hint("write `balance.policy = \"weighted\"`"));
    }
    match (&table.by, policy) {
        (None, Policy::Hash) => {
            let problem = Problem::new("\"hash\" needs a key");
            cx.found.error(&at, problem.hint("say by what, as `by = \"client\"` or `by = \"header:x-session\"`"));
        }
        (Some(Tried(Some(by))), Policy::Hash) if by.value.parts().is_empty() => {
            cx.found.error(&by.at, "\"all\" would send everything to one endpoint");
        }
        (Some(Tried(Some(by))), Policy::LeastLoaded | Policy::RoundRobin | Policy::Weighted) => {
            let problem = Problem::new("`by` is the key of the policy \"hash\"");
            cx.found.error(&by.at, problem.hint("write `policy = \"hash\"`, or leave `by` away"));
        }
        _ => {}
    }
    let choice = choice::Settings { policy, slow_start: table.slow_start.0 };
    Balance { choice, by: table.by.and_then(|Tried(by)| Some(by?.value)) }
}

fn queue(table: file::Queue, cx: &mut Context<'_>) -> Queue {
    let key = table.by.as_ref().map(|by| &by.value);
    let of_strangers = key.is_none_or(|key| key.parts().contains(&Part::Client));
    let tenancy = match table.partitions {
        Some(partitions) => {
            let queues = NonZeroU16::new(u16::try_from(partitions.0).unwrap_or(u16::MAX)).unwrap_or(NonZeroU16::MIN);
            Tenancy::Partitions(Hands::new(queues, count(table.hand.0).get()))
        }
        None if table.order != Order::Fair => Tenancy::One,
        None if of_strangers => Tenancy::Strangers(Hands::for_strangers()),
        None => Tenancy::Keys,
    };
    let replaces = table.drop.value == DropPolicy::ReplaceSameKey;
    if let (Some(by), Tenancy::One, false) = (&table.by, tenancy, replaces) {
        let problem = Problem::new("nothing in this queue goes by a key");
        cx.found.error(&by.at, problem.hint("it is for `order = \"fair\"`, `partitions` and \"replace_same_key\""));
    }
    if replaces && table.by.is_none() {
        let problem = Problem::new("\"replace_same_key\" needs a key");
        cx.found.error(&table.drop.at, problem.hint("`by` says which requests have the same"));
    }
    let is_field = matches!(key.map(Key::parts), Some([Part::Header(_)]));
    if let (Some((name, _)), false) = (table.weights.0.first(), is_field && tenancy != Tenancy::One) {
        let problem = Problem::new("`weights` are for the values of one field that the queue goes by");
        cx.found.error(&name.at, problem.hint("write `order = \"fair\"` and `by = \"header:NAME\"`"));
    }
    let weights = table.weights.0.into_iter();
    let weights = weights.filter_map(|(name, weight)| Some((name.value.0, NonZeroU32::new(weight?.0)?))).collect();
    let by = table.by.map(|by| by.value);
    Queue {
        weights,
        by: (tenancy != Tenancy::One || replaces).then(|| by.unwrap_or_else(|| Part::Client.into())),
        rules: Rules {
            max: usize::try_from(table.max.0).unwrap_or(0),
            max_bytes: table.max_bytes.0,
            timeout: table.timeout.0,
            order: table.order,
            drop: table.drop.value,
            tenancy,
            sheds: table.controlled_delay.0,
        },
    }
}

fn endpoints(
    name: &Located<Name>,
    written: Many<Located<Listed>>,
    protocol: &Located<Protocol>,
    cx: &mut Context<'_>,
) -> Vec<EndpointSettings> {
    if written.items.is_empty() && written.whole {
        cx.found.error(&name.at, format!("the upstream {} has no endpoint", quote(&name.value.0)));
    }
    let mut endpoints: Vec<EndpointSettings> = Vec::with_capacity(written.items.len());
    for Located { value: Listed { endpoint: value, .. }, at } in written.items {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn upstream(text: &str) -> Settings {
        let text = format!("[upstream.a]\n{text}");
        crate::config::parse(&text, "x.toml", Path::new("")).expect("good").upstreams.remove(0)
    }

    #[test]
    fn a_bound_on_connections_is_one_on_the_window_where_each_request_needs_its_own() {
        let window = |settings: &Settings| match settings.limit.in_flight {
            limit::Settings::Adaptive(bounds) => bounds.max,
            limit::Settings::Fixed(limit) => limit,
        };
        let connections = |settings: &Settings| settings.pool.max_connections.map(NonZeroUsize::get);
        let auto = upstream("endpoints = \"http://a\"");
        assert_eq!((window(&auto), connections(&auto)), (10_000, None));
        for (endpoint, bounded) in [("http://a", 9), ("unix:/a", 9), ("h2c://a", 10_000), ("https://a", 10_000)] {
            let small = upstream(&format!("endpoints = \"{endpoint}\"\npool.max_connections = 9"));
            assert_eq!((window(&small), connections(&small)), (bounded, Some(9)), "{endpoint}");
        }
    }
}
