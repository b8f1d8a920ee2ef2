//! `limit.in_flight`: found by measuring, or a number.

use serde_json::{Value, json};
use toml::de::DeValue;

use super::Secrets;
use super::decode::{Context, Decode, Node, Scalar, wrong_type};
use super::error::{Problem, quote};
use super::file::Count;
use super::section::section;
use super::values::Located;

section! {
    /// How the limit is found.
    Window "`in_flight`" {
        /// "knee" is where more requests would only wait inside the service.
        algorithm: Algorithm, default = "knee";
        /// Never fewer.
        min: Count, default = 2;
        /// Never more.
        max: Located<Count>, default = 10000;
        /// Before anything is known.
        initial: Count, default = 8;
    }
}

const WHAT: &str = "\"adaptive\", a number, or a table with `min` and `max`";

/// How many requests may be in flight to an endpoint.
#[derive(Clone, Debug)]
pub(super) enum InFlight {
    /// Found by measuring, within the usual bounds.
    Adaptive,
    /// Found by measuring, as the table says.
    Window(Box<Window>),
    /// Always as many.
    Fixed(Count),
}

impl Decode for InFlight {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        match node.get_ref() {
            DeValue::String(text) if text == "adaptive" => Some(Self::Adaptive),
            DeValue::String(text) => {
                let problem = Problem::new(format!("expected {WHAT}, found {}", quote(text)));
                cx.found.error(&node.span(), problem.did_you_mean(text, ["adaptive"]));
                None
            }
            DeValue::Table(_) => Window::decode(node, cx).map(|window| Self::Window(Box::new(window))),
            DeValue::Integer(_) => Count::decode(node, cx).map(Self::Fixed),
            other => {
                cx.found.error(&node.span(), wrong_type(WHAT, other));
                None
            }
        }
    }

    fn schema() -> Value {
        json!({ "anyOf": [Window::schema(), Count::schema(), { "const": "adaptive" }] })
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        match node.get_ref() {
            DeValue::Table(_) => Window::effective(node, secrets),
            DeValue::String(_) => DeValue::parse("{}").map_or(Value::Null, |usual| Window::effective(&usual, secrets)),
            _ => Count::effective(node, secrets),
        }
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        Window::keys(path, keys);
    }
}

/// How a limit is found by measuring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Algorithm;

impl Scalar for Algorithm {
    const WHAT: &'static str = "\"knee\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "knee" {
            return Ok(Self);
        }
        Err(Problem::new(format!("{} is no way to find a limit", quote(text))).hint("there is \"knee\""))
    }

    fn string() -> Value {
        json!({ "const": "knee" })
    }
}
