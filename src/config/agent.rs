//! `limit.agent`: who is asked for the credits of endpoints.

use http::Uri;
use http::uri::PathAndQuery;
use serde_json::{Value, json};

use super::decode::Scalar;
use super::error::{Problem, quote};
use crate::upstream::{Address, Scheme};

/// What stands for the host and port of an endpoint.
const ENDPOINT: &str = "{endpoint}";

/// Where an agent answers.
#[derive(Clone, Debug)]
pub(super) struct AgentUrl(String);

impl AgentUrl {
    /// Whether each endpoint has an agent of its own.
    pub(super) fn is_for_each(&self) -> bool {
        self.0.contains(ENDPOINT)
    }

    /// Where to ask about an endpoint with this host and port; none when the two do not fit together.
    pub(super) fn of(&self, endpoint: &str) -> Option<(Address, PathAndQuery)> {
        let uri: Uri = self.0.replace(ENDPOINT, endpoint).parse().ok()?;
        let parts = uri.into_parts();
        let scheme = match parts.scheme?.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority = parts.authority.filter(|authority| !authority.as_str().contains('@'))?;
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Some((Address::Tcp { authority, scheme }, path))
    }
}

impl Scalar for AgentUrl {
    const WHAT: &'static str = "a URL such as \"http://{endpoint}/capacity\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let url = Self(text.to_owned());
        if url.of("endpoint:1").is_some() && !text.contains('#') {
            return Ok(url);
        }
        let shown = quote(text.rsplit('@').next().unwrap_or_default());
        let problem = Problem::new(format!("{shown} is not {}", Self::WHAT));
        Err(problem.hint("it begins with `http://` or `https://` and has neither user nor fragment"))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^https?://[^/]+" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_put_in_its_place() {
        let url = AgentUrl::parse("http://{endpoint}/capacity?of={endpoint}").expect("a URL");
        let (address, path) = url.of("10.0.0.1:8000").expect("it fits");
        let Address::Tcp { authority, scheme: Scheme::Http } = address else { panic!("{address:?}") };
        assert_eq!((authority.as_str(), path.as_str()), ("10.0.0.1:8000", "/capacity?of=10.0.0.1:8000"));
        let one = AgentUrl::parse("https://agent.example.com").expect("a URL");
        assert!(!one.is_for_each() && url.is_for_each());
        assert_eq!(one.of("a:1").expect("it fits").1.as_str(), "/");
        for wrong in ["", "agent", "/capacity", "tcp://{endpoint}/", "http://", "http://me@host/", "http://host/#part"]
        {
            assert!(AgentUrl::parse(wrong).is_err(), "{wrong}");
        }
    }
}
