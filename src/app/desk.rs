//! What the operator can ask of the app.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::faults;
use crate::admin::{Denied, Later, Operator, Reply, Rows, is_endpoint};
use crate::explain;
use crate::layers::fault;
use crate::layers::rate_limit::Limiter;
use crate::reload::{Handle, Report, Trigger};
use crate::snapshot::Current;
use crate::upstream::{EndpointState, Upstream};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) ready: Arc<AtomicBool>,
    pub(super) current: Current,
    pub(super) reload: Handle,
}

impl Operator for Desk {
    fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    fn stack(&self) -> String {
        let snapshot = self.current.load();
        let mut text = explain::all(&snapshot.config);
        for (route, fault) in faults::in_force(&snapshot) {
            if let Some(ends_in) = fault.ends_in {
                // Writing to a string does not fail.
                let _ = writeln!(text, "\nordered on route {route}, for another {} s", ends_in.as_secs());
                for (key, value) in explain::fault(&fault.settings) {
                    let _ = writeln!(text, "  fault  {key}  {value}");
                }
            }
        }
        text
    }

    fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.current.load().upstreams.clone()
    }

    fn limiters(&self) -> Vec<Arc<Limiter>> {
        self.current.load().limiters.clone()
    }

    fn config(&self) -> serde_json::Value {
        self.current.load().config.effective.clone()
    }

    fn reload(&self) -> Later<'_> {
        Box::pin(async {
            if !self.is_ready() {
                return Err(Denied::new(StatusCode::CONFLICT, "the proxy drains"));
            }
            let report = self.reload.reload(Trigger::Admin).await;
            match &report.result {
                Ok(_) => Ok(facts(&report)),
                Err(why) => Err(Denied::new(StatusCode::UNPROCESSABLE_ENTITY, why.clone())),
            }
        })
    }

    fn last_reload(&self) -> Result<Reply, Denied> {
        match self.reload.last() {
            Some(report) => Ok(facts(&report)),
            None => Ok(Reply::Facts(vec![
                ("result", "none yet".into()),
                ("generation", self.current.load().generation.into()),
            ])),
        }
    }

    fn faults(&self) -> Result<Reply, Denied> {
        Ok(faults::list(&self.current.load()))
    }

    fn fault(&self, route: &str, order: Option<(fault::Settings, Duration)>) -> Result<Reply, Denied> {
        faults::order(&self.current.load(), route, order)
    }

    fn drains(&self) -> Result<Reply, Denied> {
        let snapshot = self.current.load();
        let draining = snapshot.upstreams.iter().flat_map(|upstream| {
            let states = upstream.endpoints().into_iter().filter(|state| state.is_draining);
            states.map(|state| row(upstream, &state))
        });
        let cells: Vec<_> = draining.collect();
        Ok(Reply::Rows(Rows {
            name: "drains",
            columns: &["upstream", "endpoint", "in_flight", "connections"],
            total: cells.len(),
            cells,
        }))
    }

    fn drain(&self, upstream: &str, endpoint: &str, out: bool) -> Result<Reply, Denied> {
        let snapshot = self.current.load();
        let known = snapshot.upstreams.iter().find(|known| **known.name() == *upstream);
        let known = known.ok_or_else(|| Denied::not_found(format!("there is no upstream {upstream}")))?;
        let asked = |state: &EndpointState, place| is_endpoint(endpoint, place, state.endpoint.label());
        let find = || known.endpoints().into_iter().enumerate().find(|(place, state)| asked(state, *place));
        let nobody = || Denied::not_found(format!("the upstream {upstream} has no endpoint {endpoint}"));
        let (_, found) = find().ok_or_else(nobody)?;
        if !known.set_draining(&found.endpoint, out) {
            return Err(nobody());
        }
        tracing::info!(%upstream, endpoint = %found.endpoint.label(), draining = out, "an operator drains an endpoint");
        let (_, state) = find().ok_or_else(nobody)?;
        Ok(Reply::Facts(vec![
            ("upstream", upstream.into()),
            ("endpoint", (**state.endpoint.label()).into()),
            ("draining", state.is_draining.into()),
            ("in_flight", state.in_flight.into()),
            ("connections", state.endpoint.client().stats().connections.into()),
        ]))
    }
}

fn row(upstream: &Upstream, state: &EndpointState) -> Vec<serde_json::Value> {
    let connections = state.endpoint.client().stats().connections;
    vec![(**upstream.name()).into(), (**state.endpoint.label()).into(), state.in_flight.into(), connections.into()]
}

fn facts(report: &Report) -> Reply {
    let at = report.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut facts = vec![
        ("result", if report.result.is_ok() { "applied" } else { "refused" }.into()),
        ("generation", report.generation.into()),
        ("trigger", report.trigger.to_string().into()),
        ("unix_time", at.into()),
    ];
    match &report.result {
        Ok(warnings) if warnings.is_empty() => {}
        Ok(warnings) => facts.push(("warnings", warnings.join("\n").into())),
        Err(why) => facts.push(("why", why.as_str().into())),
    }
    Reply::Facts(facts)
}
