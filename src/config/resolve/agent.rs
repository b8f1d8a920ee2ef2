//! `limit.published` and `limit.agent`

use std::time::Duration;

use crate::config::decode::Context;
use crate::config::error::Problem;
use crate::config::file;
use crate::config::values::Located;
use crate::upstream::{Address, Agent, EndpointSettings, Poll, Published};

/// What is made of reports of load, and who is asked beside.
pub(super) fn published(table: &mut file::Limit, endpoints: &[EndpointSettings], cx: &mut Context<'_>) -> Published {
    let agent = table.agent.take().and_then(|agent| self::agent(agent, endpoints, cx));
    Published { is_heard: table.published.0, is_passed: table.pass_reports.0, agent }
}

fn agent(table: file::Agent, endpoints: &[EndpointSettings], cx: &mut Context<'_>) -> Option<Agent> {
    let Located { value: interval, at } = table.interval;
    if !(Duration::from_millis(100)..=Duration::from_secs(5)).contains(&interval.0) {
        cx.found.error(&at, "expected an interval from 100ms to 5s");
    }
    let Located { value: url, at } = table.url?;
    let mut polls: Vec<Poll> = Vec::new();
    for endpoint in endpoints {
        let asked = match &endpoint.address {
            Address::Tcp { authority, .. } => url.of(authority.as_str()),
            Address::Unix(_) if !url.is_for_each() => url.of(""),
            Address::Unix(_) => None,
        };
        let Some((address, path)) = asked else {
            let problem = Problem::new(format!("the endpoint {} does not fit into this URL", cx.show(&endpoint.label)));
            cx.found.error(&at, problem.hint("write one without `{endpoint}`, which is asked for all of them"));
            continue;
        };
        match polls.iter_mut().find(|poll| (&poll.address, &poll.path) == (&address, &path)) {
            Some(poll) => poll.about.push(endpoint.address.clone()),
            None => polls.push(Poll { address, path, about: vec![endpoint.address.clone()] }),
        }
    }
    Some(Agent { interval: interval.0, polls })
}
