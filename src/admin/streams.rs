//! `/streams`: every exchange under way, be it one answer, a stream or a tunnel.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::operator::Denied;
use super::reply::{Reply, Rows};
use super::select::{Largest, Selection};
use crate::body::kind::Kind;
use crate::context::{Connections, Protocol, RequestContext, RequestId};
use crate::error::Reason;

const COLUMNS: &[&str] = &[
    "id",
    "connection",
    "client",
    "method",
    "path",
    "route",
    "upstream",
    "endpoint",
    "kind",
    "state",
    "status",
    "age_s",
    "bytes_in",
    "bytes_out",
    "silent_s",
    "stalled_s",
];

/// Characters of a path that are shown.
const PATH: usize = 200;

/// The exchanges, the oldest first or by `?sort=`.
pub(super) fn list(connections: &Connections, selection: &Selection) -> Result<Reply, Denied> {
    let now = Instant::now();
    let key: fn(&RequestContext, Instant) -> u64 = match selection.sort.as_deref() {
        None | Some("age") => |exchange, now| micros(Some(now.saturating_duration_since(exchange.received_at()))),
        Some("bytes") => |exchange, _| exchange.notes().sent.get(),
        Some("silent") => |exchange, now| micros(silent(exchange, now)),
        Some("stalled") => |exchange, now| micros(stalled(exchange, now)),
        Some(_) => {
            return Err(Denied::new(StatusCode::BAD_REQUEST, "sort is one of age, bytes, silent and stalled"));
        }
    };
    let mut largest = Largest::new(selection.limit);
    connections.each(|connection| {
        for exchange in connection.exchanges() {
            largest.show(key(&exchange, now), exchange);
        }
    });
    let (shown, total) = largest.finish();
    let cells = shown.map(|exchange| row(&exchange, now)).collect();
    Ok(Reply::Rows(Rows { name: "streams", columns: COLUMNS, cells, total }))
}

/// Cancels the exchange with this id.
pub(super) fn cancel(connections: &Connections, id: &str) -> Result<Reply, Denied> {
    let gone = || Denied::not_found("there is no such stream; /streams lists them");
    let id: RequestId = id.parse().map_err(|_| gone())?;
    let mut found = None;
    connections.each(|connection| {
        if found.is_none() {
            found = connection.exchanges().into_iter().find(|exchange| exchange.id() == id);
        }
    });
    let exchange = found.filter(|exchange| exchange.cancel(Reason::Cancelled)).ok_or_else(gone)?;
    tracing::info!(request = %id, route = exchange.notes().route.get().map(|name| &**name), "cancelled by an operator");
    Ok(Reply::Facts(vec![("cancelled", id.to_string().into())]))
}

fn row(exchange: &RequestContext, now: Instant) -> Vec<Value> {
    let notes = exchange.notes();
    let text = |text: Option<&Arc<str>>| text.map_or(Value::Null, |text| Value::from(&**text));
    let asked = notes.asked.get();
    vec![
        exchange.id().to_string().into(),
        exchange.connection().id().into(),
        exchange.client().map_or(Value::Null, |client| client.to_string().into()),
        asked.map_or(Value::Null, |asked| asked.method.as_str().into()),
        asked.map_or(Value::Null, |asked| shortened(&asked.path).into()),
        text(notes.route.get()),
        text(notes.upstream.get()),
        text(notes.endpoint.get()),
        kind(exchange).into(),
        state(exchange).into(),
        notes.status().map_or(Value::Null, |status| status.as_u16().into()),
        seconds(now.saturating_duration_since(exchange.received_at())),
        notes.bytes_in().into(),
        notes.sent.get().into(),
        silent(exchange, now).map_or(Value::Null, seconds),
        stalled(exchange, now).map_or(Value::Null, seconds),
    ]
}

fn kind(exchange: &RequestContext) -> Option<&'static str> {
    exchange.notes().kind().map(|kind| match kind {
        Kind::Unary => "unary",
        Kind::Stream => "stream",
        Kind::Upgrade => "tunnel",
    })
}

/// How far it has come.
fn state(exchange: &RequestContext) -> &'static str {
    let notes = exchange.notes();
    if notes.status().is_some() {
        "answering"
    } else if notes.endpoint.get().is_some() {
        "asked"
    } else if notes.upstream.get().is_some() {
        "queued"
    } else {
        "begun"
    }
}

/// For how long the client has waited for the next byte of the upstream's answer.
fn silent(exchange: &RequestContext, now: Instant) -> Option<Duration> {
    since(exchange, exchange.notes().silent_since.get()?, now)
}

/// For how long the client has taken nothing.
fn stalled(exchange: &RequestContext, now: Instant) -> Option<Duration> {
    let connection = exchange.connection();
    match connection.protocol() {
        Some(Protocol::Http2) => since(exchange, exchange.notes().blocked_since.get()?, now),
        _ => connection.blocked_for(),
    }
}

fn since(exchange: &RequestContext, moment: Duration, now: Instant) -> Option<Duration> {
    now.checked_duration_since(exchange.received_at() + moment)
}

/// With three decimals.
pub(super) fn seconds(duration: Duration) -> Value {
    json!((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

pub(super) fn micros(duration: Option<Duration>) -> u64 {
    duration.map_or(0, |duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn shortened(path: &str) -> String {
    match path.char_indices().nth(PATH) {
        Some((end, _)) => format!("{}...", path.get(..end).unwrap_or_default()),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_cut_and_a_time_is_rounded() {
        assert_eq!(shortened("/a"), "/a");
        assert_eq!(shortened(&"é".repeat(1000)).chars().count(), PATH + 3);
        assert_eq!(seconds(Duration::from_micros(1_234_567)), json!(1.235));
    }
}
