//! `/connections`: every connection of a client that is open.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use super::operator::Denied;
use super::reply::{Reply, Rows};
use super::select::{Largest, Selection};
use super::streams::{micros, seconds};
use crate::context::{Connection, Connections, Protocol, RequestContext};
use crate::error::Reason;

const COLUMNS: &[&str] = &[
    "id",
    "listener",
    "peer",
    "protocol",
    "tls",
    "age_s",
    "requests",
    "active",
    "bytes_in",
    "bytes_out",
    "idle_s",
    "stalled_s",
    "tunnel",
];

/// The connections, the oldest first or by `?sort=`.
pub(super) fn list(connections: &Connections, selection: &Selection) -> Result<Reply, Denied> {
    let key: fn(&Connection) -> u64 = match selection.sort.as_deref() {
        None | Some("age") => |connection| micros(Some(connection.opened_at().elapsed())),
        Some("requests") => Connection::requests,
        Some("active") => |connection| connection.active() as u64,
        Some("idle") => |connection| idle_since(connection).map_or(0, |since| micros(Some(since.elapsed()))),
        Some(_) => {
            return Err(Denied::new(StatusCode::BAD_REQUEST, "sort is one of age, requests, active and idle"));
        }
    };
    let mut largest = Largest::new(selection.limit);
    connections.each(|connection| largest.show(key(connection), Arc::clone(connection)));
    let (shown, total) = largest.finish();
    let cells = shown.map(|connection| row(&connection)).collect();
    Ok(Reply::Rows(Rows { name: "connections", columns: COLUMNS, cells, total }))
}

/// Ends the connection with this number, and all that is under way on it.
pub(super) fn end(connections: &Connections, id: &str) -> Result<Reply, Denied> {
    let connection = id.parse().ok().and_then(|id| connections.get(id));
    let connection =
        connection.ok_or_else(|| Denied::not_found("there is no such connection; /connections lists them"))?;
    let exchanges = connection.exchanges();
    tracing::info!(connection = connection.id(), cut = exchanges.len(), "ended by an operator");
    connection.end(Reason::Cancelled);
    // A tunnel is driven by a task of its own.
    exchanges.iter().for_each(RequestContext::cut);
    Ok(Reply::Facts(vec![("ended", connection.id().into()), ("cut", exchanges.len().into())]))
}

fn row(connection: &Connection) -> Vec<Value> {
    let text = |text: Option<&str>| text.map_or(Value::Null, Value::from);
    vec![
        connection.id().into(),
        (*connection.listener).into(),
        connection.peer.map_or(Value::Null, |peer| peer.to_string().into()),
        text(connection.protocol().map(Protocol::label)),
        text(connection.tls_version()),
        seconds(connection.opened_at().elapsed()),
        connection.requests().into(),
        connection.active().into(),
        connection.bytes_in().into(),
        connection.bytes_out().into(),
        idle_since(connection).map_or(Value::Null, |since| seconds(since.elapsed())),
        connection.blocked_for().map_or(Value::Null, seconds),
        connection.is_tunnel().into(),
    ]
}

fn idle_since(connection: &Connection) -> Option<Instant> {
    (connection.active() == 0).then(|| connection.idle_since())
}
