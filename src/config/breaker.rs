//! How breakers and health checks are written down.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;
use serde_json::{Value, json};

use super::decode::Scalar;
use super::error::{Problem, quote};
use super::units;
use super::values::words;

/// `1s..60s`: from the first time to the longest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growing {
    pub(super) from: Duration,
    pub(super) to: Duration,
}

impl Scalar for Growing {
    const WHAT: &'static str = "two durations such as \"1s..60s\", or one";

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = |why: String| Problem::new(format!("{} is no growing time: {why}", quote(text)));
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let time = |text: &str| units::duration(text.trim()).map_err(problem);
        let (from, to) = (time(from)?, time(to)?);
        match from {
            Duration::ZERO => Err(problem("it cannot begin with zero".into())),
            _ if to < from => Err(problem("it ends before it begins".into())),
            _ => Ok(Self { from, to }),
        }
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^([0-9]+(h|m|s|ms))+( *\\.\\. *([0-9]+(h|m|s|ms))+)?$" })
    }
}

/// What a health check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Tcp,
    Grpc,
}

words!(Kind, "\"http\", \"tcp\" or \"grpc\"", { "http" => Self::Http, "tcp" => Self::Tcp, "grpc" => Self::Grpc });

/// What a health check asks for.
#[derive(Clone, Debug)]
pub(super) struct CheckPath(pub(super) PathAndQuery);

impl Scalar for CheckPath {
    const WHAT: &'static str = "a path such as \"/healthz\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let path = text.parse().ok().filter(|_| text.starts_with('/') && !text.contains('#'));
        path.map(Self).ok_or_else(|| Problem::new(format!("{} is not {}", quote(text), Self::WHAT)))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^/[^#]*$" })
    }
}

/// `200-299, 404`
#[derive(Clone, Debug)]
pub(super) struct Statuses(pub(super) Vec<RangeInclusive<u16>>);

impl Scalar for Statuses {
    const WHAT: &'static str = "statuses such as \"200-299\" or \"200, 204\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let status = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
        let range = |text: &str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            Some(status(from)?..=status(to)?).filter(|range| !range.is_empty())
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self).ok_or_else(|| Problem::new(format!("{} are not {}", quote(text), Self::WHAT)))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^ *[1-5][0-9]{2}( *- *[1-5][0-9]{2})?( *, *[1-5][0-9]{2}( *- *[1-5][0-9]{2})?)* *$" })
    }
}
