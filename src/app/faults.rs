//! What is done wrong on purpose, as an operator sees and orders it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::admin::{Denied, Reply, Rows};
use crate::explain;
use crate::layers::fault::{InForce, Order, Settings};
use crate::snapshot::Snapshot;

/// The routes on which something is done wrong, in the order of the configuration.
pub(super) fn in_force(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<str>, InForce)> {
    let names = snapshot.config.routes.iter().map(|route| &route.name);
    names.filter_map(|name| Some((name, snapshot.faults.get(name)?.in_force()?)))
}

/// All that is in force.
pub(super) fn list(snapshot: &Snapshot) -> Reply {
    let cells: Vec<_> = in_force(snapshot).map(|(route, fault)| row(route, &fault)).collect();
    Reply::Rows(Rows { name: "faults", columns: COLUMNS, total: cells.len(), cells })
}

/// Does wrong on a route for so long, or ends what was ordered. Says what is in force then.
pub(super) fn order(snapshot: &Snapshot, route: &str, order: Option<(Settings, Duration)>) -> Result<Reply, Denied> {
    let unknown = || Denied::not_found(format!("there is no route {route}"));
    let faults = snapshot.faults.get(route).ok_or_else(unknown)?;
    if let Some((settings, lasts)) = &order {
        tracing::warn!(%route, ?settings, ?lasts, "an operator orders a fault");
    } else {
        tracing::info!(%route, "an operator ends a fault");
    }
    faults.order(order.map(|(settings, lasts)| Order { settings, until: Instant::now() + lasts }));
    let cells: Vec<_> = faults.in_force().iter().map(|fault| row(route, fault)).collect();
    Ok(Reply::Rows(Rows { name: "faults", columns: COLUMNS, total: cells.len(), cells }))
}

const COLUMNS: &[&str] = &["route", "share", "delay", "abort", "slow_body", "stall", "by", "ends_in_s"];

fn row(route: &str, fault: &InForce) -> Vec<Value> {
    let told = explain::fault(&fault.settings);
    let value = |key: &&str| told.iter().find(|(known, _)| known == key).map(|(_, value)| Value::from(value.as_str()));
    let mut row = vec![route.into()];
    row.extend(["share", "delay", "abort", "slow_body", "stall"].iter().map(|key| value(key).unwrap_or_default()));
    row.push(if fault.ends_in.is_some() { "order" } else { "configuration" }.into());
    row.push(fault.ends_in.map_or(Value::Null, |time| time.as_secs().into()));
    row
}
