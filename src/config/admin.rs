//! What is written about the admin port.

use std::fmt;

use serde_json::{Value, json};

use super::decode::Scalar;
use super::error::Problem;
use super::values::words;

/// A page that answers without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenPage {
    /// `/live`
    Live,
    /// `/ready`
    Ready,
    /// `/metrics`
    Metrics,
}

words!(OpenPage, "\"/live\", \"/ready\" or \"/metrics\"", {
    "/live" => Self::Live,
    "/ready" => Self::Ready,
    "/metrics" => Self::Metrics,
});

/// What an operator shows as `Authorization: Bearer`. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<str>);

/// A shorter one could be found by trying.
const SHORTEST: usize = 16;

impl Token {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Scalar for Token {
    const IS_SECRET: bool = true;
    const WHAT: &'static str = "a token of at least 16 visible ASCII characters";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.len() >= SHORTEST && text.len() <= 1024 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text.into()));
        }
        // Without a word of the text itself.
        Err(Problem::new("this is no token")
            .hint("16 to 1024 visible ASCII characters, as `openssl rand -hex 32` prints"))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^[!-~]{16,1024}$" })
    }
}
