//! `/upstreams`: the credits, the queue and the connections of each endpoint; and their metrics, read when asked for.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::reply::{Reply, Rows};
use super::streams::seconds;
use crate::control::breaker::State;
use crate::metrics::{Kind, write_head, write_labels};
use crate::upstream::{EndpointState, PoolStats, Upstream};

const COLUMNS: &[&str] = &[
    "upstream",
    "endpoint",
    "state",
    "breaker",
    "next_trial_s",
    "check",
    "credits_used",
    "credits_limit",
    "published",
    "streams_used",
    "streams_limit",
    "queued",
    "requests",
    "latency_ms",
    "connections",
    "idle",
    "waiting",
    "connects",
    "reuses",
    "cancelled",
];

/// One row for each endpoint.
pub(super) fn list(upstreams: &[Arc<Upstream>]) -> Reply {
    let rows = upstreams.iter().flat_map(|upstream| {
        let queued = upstream.waiting();
        upstream.endpoints().into_iter().map(move |state| row(upstream, &state, queued))
    });
    let cells: Vec<_> = rows.collect();
    Reply::Rows(Rows { name: "endpoints", columns: COLUMNS, total: cells.len(), cells })
}

fn row(upstream: &Upstream, state: &EndpointState, queued: usize) -> Vec<Value> {
    let pool = state.endpoint.client().stats();
    let (streams_used, streams_limit) =
        state.streams.map_or((Value::Null, Value::Null), |credits| (credits.used.into(), credits.limit.into()));
    vec![
        (**upstream.name()).into(),
        (**state.endpoint.label()).into(),
        if state.is_draining { "draining" } else { "serving" }.into(),
        state.breaker.label().into(),
        match state.breaker {
            State::Open(wait) => seconds(wait),
            State::Closed | State::HalfOpen => Value::Null,
        },
        state.is_down.map_or(Value::Null, |is_down| if is_down { "down" } else { "up" }.into()),
        state.unary.used.into(),
        state.unary.limit.into(),
        state.published.unary.map_or(Value::Null, Into::into),
        streams_used,
        streams_limit,
        queued.into(),
        state.known.requests.into(),
        state.known.latency.map_or(Value::Null, |latency| millis(latency).into()),
        pool.connections.into(),
        pool.idle.into(),
        pool.waiting.into(),
        pool.connects.into(),
        pool.reuses.into(),
        pool.cancelled.into(),
    ]
}

/// In steps of a microsecond.
fn millis(time: Duration) -> f64 {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).as_secs_f64() * 1e3
}

/// A number of an endpoint's pool.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    value: fn(&PoolStats) -> u64,
}

const FAMILIES: [Family; 6] = [
    Family {
        name: "headworks_pool_connections",
        help: "Connections to an endpoint: being opened, in use, idle and closing.",
        kind: Kind::Gauge,
        value: |stats| stats.connections as u64,
    },
    Family {
        name: "headworks_pool_connections_idle",
        help: "Connections to an endpoint that carry no request.",
        kind: Kind::Gauge,
        value: |stats| stats.idle as u64,
    },
    Family {
        name: "headworks_pool_waiting",
        help: "Requests that wait for a connection.",
        kind: Kind::Gauge,
        value: |stats| stats.waiting as u64,
    },
    Family {
        name: "headworks_pool_connects_total",
        help: "Connections opened.",
        kind: Kind::Counter,
        value: |stats| stats.connects,
    },
    Family {
        name: "headworks_pool_reuses_total",
        help: "Requests sent on a connection that had carried one before.",
        kind: Kind::Counter,
        value: |stats| stats.reuses,
    },
    Family {
        name: "headworks_pool_cancelled_total",
        help: "Requests given up before their response had ended.",
        kind: Kind::Counter,
        value: |stats| stats.cancelled,
    },
];

/// Absent while nothing is known.
const LATENCY: (&str, &str, Kind) = (
    "headworks_endpoint_latency_seconds",
    "Mean time to a response head, failures counted as a second at least: what the choice goes by.",
    Kind::Gauge,
);

/// Adds the metrics of all endpoints to a page.
pub(super) fn encode(upstreams: &[Arc<Upstream>], out: &mut String) {
    let endpoints = upstreams.iter().flat_map(|upstream| {
        upstream.endpoints().into_iter().map(move |state| {
            let labels = [("upstream", &**upstream.name()), ("endpoint", &**state.endpoint.label())];
            (write_labels(&labels), state.endpoint.client().stats(), state.known.latency)
        })
    });
    let endpoints: Vec<_> = endpoints.collect();
    if endpoints.is_empty() {
        return;
    }
    for Family { name, help, kind, value } in FAMILIES {
        write_head(out, name, help, kind);
        for (labels, stats, _) in &endpoints {
            let _ = writeln!(out, "{name}{{{labels}}} {}", value(stats));
        }
    }
    let (name, help, kind) = LATENCY;
    write_head(out, name, help, kind);
    for (labels, _, latency) in &endpoints {
        if let Some(latency) = latency {
            let _ = writeln!(out, "{name}{{{labels}}} {}", latency.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::metrics::{Registry, name_fault};
    use std::path::Path;

    fn upstreams() -> Vec<Arc<Upstream>> {
        let text = "[upstream.app]\nendpoints = ['http://a:1', 'http://b:1']\nlimit = { in_flight = 3, streams = 2 }\n";
        let config = config::parse(text, "x.toml", Path::new("")).expect("a configuration");
        let build = |settings| Arc::new(Upstream::new(settings, &Registry::new()).expect("an upstream"));
        config.upstreams.iter().map(build).collect()
    }

    #[test]
    fn each_endpoint_has_a_row() {
        let Reply::Rows(rows) = list(&upstreams()) else { panic!("no rows") };
        assert_eq!(rows.total, 2);
        assert!(rows.cells.iter().all(|row| row.len() == COLUMNS.len()));
        let text: Vec<_> = rows.cells[1].iter().take(12).map(Value::to_string).collect();
        assert_eq!(
            text,
            ["\"app\"", "\"http://b:1\"", "\"serving\"", "\"closed\"", "null", "null", "0", "3", "null", "0", "2", "0"]
        );
    }

    #[test]
    fn names_keep_the_rules_and_labels_are_there() {
        for Family { name, help, kind, .. } in FAMILIES {
            assert_eq!(name_fault(name, help, kind), None, "{name}");
        }
        assert_eq!(name_fault(LATENCY.0, LATENCY.1, LATENCY.2), None);
        let mut page = String::new();
        encode(&upstreams(), &mut page);
        assert!(page.contains("headworks_pool_connections{upstream=\"app\",endpoint=\"http://b:1\"} 0\n"), "{page}");
        let mut page = String::new();
        encode(&[], &mut page);
        assert_eq!(page, "");
    }
}
