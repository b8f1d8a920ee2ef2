//! What an operator can ask of the running program. The pages know only this; the app answers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::reply::Reply;
use crate::layers::fault;
use crate::layers::rate_limit::Limiter;
use crate::upstream::Upstream;

/// An answer that takes its time. What it does must survive being dropped half-way: the operator may leave.
pub type Later<'a> = Pin<Box<dyn Future<Output = Result<Reply, Denied>> + Send + 'a>>;

/// What stands behind the pages and the verbs.
///
/// The verbs have a default that says no, for a program that has nothing to do it with.
pub trait Operator: Send + Sync {
    /// Whether requests are taken.
    fn is_ready(&self) -> bool;

    /// The layers of every route, in order.
    fn stack(&self) -> String;

    /// The upstreams in force.
    fn upstreams(&self) -> Vec<Arc<Upstream>>;

    /// The rate limits in force, in the order of the configuration.
    fn limiters(&self) -> Vec<Arc<Limiter>> {
        Vec::new()
    }

    /// Every key of the configuration in force with its value, secrets hidden.
    fn config(&self) -> Value;

    /// Reads the configuration anew; completes when it is in force, or when it is known that it will not be.
    fn reload(&self) -> Later<'_> {
        Box::pin(std::future::ready(Err(Denied::not_here())))
    }

    /// What came of the last reload.
    fn last_reload(&self) -> Result<Reply, Denied> {
        Err(Denied::not_here())
    }

    /// The endpoints that take no requests by order, and how many each still has.
    fn drains(&self) -> Result<Reply, Denied> {
        Err(Denied::not_here())
    }

    /// What is done wrong on purpose, on which routes.
    fn faults(&self) -> Result<Reply, Denied> {
        Err(Denied::not_here())
    }

    /// Does wrong on a route for so long, or ends what was ordered.
    fn fault(&self, _route: &str, _order: Option<(fault::Settings, Duration)>) -> Result<Reply, Denied> {
        Err(Denied::not_here())
    }

    /// Takes an endpoint out of service, or lets it back; says how many requests it still has. `endpoint` is what
    /// [`is_endpoint`] understands.
    fn drain(&self, _upstream: &str, _endpoint: &str, _out: bool) -> Result<Reply, Denied> {
        Err(Denied::not_here())
    }
}

/// Whether an operator who wrote `asked` means the endpoint at this place of its upstream, which the configuration
/// writes as `label`: by its place, by its address, or by its address without the scheme.
#[must_use]
pub fn is_endpoint(asked: &str, place: usize, label: &str) -> bool {
    let bare = |text: &str| text.split_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/').to_owned();
    asked.parse() == Ok(place) || asked == label || bare(asked) == bare(label)
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What it is in HTTP.
    pub status: StatusCode,
    /// For people, without a full stop.
    pub why: String,
}

impl Denied {
    /// A refusal with this status.
    #[must_use]
    pub fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    /// What was asked for does not exist.
    #[must_use]
    pub fn not_found(why: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, why)
    }

    fn not_here() -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "this program cannot do that")
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_several_names() {
        let label = "http://10.0.0.1:8000";
        for asked in ["1", label, "10.0.0.1:8000", "http://10.0.0.1:8000/"] {
            assert!(is_endpoint(asked, 1, label), "{asked}");
        }
        for asked in ["0", "10.0.0.1", "10.0.0.1:80", "", "01x"] {
            assert!(!is_endpoint(asked, 1, label), "{asked}");
        }
        assert!(is_endpoint("unix:/run/app.sock", 0, "unix:/run/app.sock"));
        assert!(is_endpoint("env:LLM_URL", 0, "env:LLM_URL"));
    }
}
