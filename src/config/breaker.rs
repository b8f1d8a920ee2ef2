//! How breakers are written down.

use std::time::Duration;

use serde_json::{Value, json};

use super::decode::Scalar;
use super::error::{Problem, quote};
use super::units;

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
