//! `retry`: after what, and how many.

use http::StatusCode;
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Context, Decode, Node, Scalar, wrong_type};
use super::error::{Problem, quote};
use super::faults::Share;
use super::section::section;
use super::values::{Many, Number, Size, Time, Wait, not_a_word};
use crate::upstream::Hedge;

/// What a request is tried again after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Connect,
    Reset,
    Timeout,
    Unavailable,
    Status(StatusCode),
}

const MIB: u64 = 1 << 20;

/// Attempts beyond the first.
type Retries = Number<0, 5>;

const WHAT: &str = "what a request is tried again after";
const WORDS: [(&str, Event); 4] = [
    ("connect", Event::Connect),
    ("reset", Event::Reset),
    ("timeout", Event::Timeout),
    ("grpc_unavailable", Event::Unavailable),
];
const STATUSES: &str = "of the statuses, 408, 425, 429 and those from 500 to 599";

impl Decode for Event {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        match node.get_ref() {
            DeValue::String(text) => {
                if let Some((_, event)) = WORDS.iter().find(|(word, _)| word == text) {
                    return Some(*event);
                }
                let is_number = text.parse::<u16>().is_ok();
                let problem = not_a_word(text, WHAT, &WORDS.map(|(word, _)| word));
                cx.found
                    .error(&node.span(), problem.or_hint(|| is_number.then(|| format!("write {text} without quotes"))));
            }
            DeValue::Integer(_) => {
                let number = Number::<100, 999>::decode(node, cx)?.0;
                if matches!(number, 408 | 425 | 429 | 500..=599) {
                    return u16::try_from(number)
                        .ok()
                        .and_then(|number| StatusCode::from_u16(number).ok())
                        .map(Self::Status);
                }
                let problem = Problem::new(format!("an answer with the status {number} is not tried again"));
                cx.found.error(&node.span(), problem.hint(STATUSES));
            }
            other => {
                let hint = format!("a status, or one of {}", WORDS.map(|(word, _)| quote(word)).join(", "));
                cx.found.error(&node.span(), wrong_type(WHAT, other).hint(hint));
            }
        }
        None
    }

    fn schema() -> Value {
        json!({ "anyOf": [
            { "enum": WORDS.map(|(word, _)| word) },
            { "enum": [408, 425, 429] },
            { "type": "integer", "minimum": 500, "maximum": 599 },
        ] })
    }
}

section! {
    /// When a request is tried again.
    Retry "`retry`" {
        /// Attempts beyond the first, each with a credit of its own; 0 for none.
        attempts: Retries, default = 1;
        /// After what: "connect" when it reached no service, "reset" when the connection broke before the answer,
        /// "timeout" when `timeout.first_byte` passed, `"grpc_unavailable"` when a gRPC service says so and its calls
        /// can be repeated; and statuses.
        on: Many<Event>, default = ["connect", "reset", 502, 503];
        /// How many, as a share of all first attempts of the last 10 s; hedges included.
        budget: Share, default = "10%";
        /// How many a second, even if that is more.
        floor: Number<0, 1000>, default = 2;
        /// Bytes of a request's body that are kept until its answer begins; what is longer is not sent twice.
        max_body: Size<0, { 16 * MIB }>, default = "64KiB";
        /// The longest pause before the first retry, which is drawn by lot; each further one may be twice as long.
        backoff: Wait, default = "25ms";
        /// When a second attempt of a GET, HEAD or OPTIONS is made beside the first: after this time, or after that
        /// which 95 % of the last minute did not need, "p95"; or "off".
        hedge: When, default = "off";
    }

    /// When a request is tried again, where it differs from the upstream's.
    RouteRetry "`retry` of a route" {
        /// Attempts beyond the first; 0 for none.
        attempts: Retries, optional;
    }
}

/// When a second attempt is made beside the first.
#[derive(Clone, Copy, Debug)]
pub(super) struct When(pub(super) Hedge);

impl Scalar for When {
    const WHAT: &'static str = "\"off\", \"p95\" or a duration such as \"200ms\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let hint = || "or \"off\", or \"p95\"".to_owned();
        match text {
            "off" => Ok(Self(Hedge::Off)),
            "p95" => Ok(Self(Hedge::Slowest)),
            _ => Time::parse(text)
                .map(|Time(time)| Self(Hedge::After(time)))
                .map_err(|problem| problem.or_hint(|| Some(hint()))),
        }
    }

    fn string() -> Value {
        json!({ "anyOf": [{ "enum": ["off", "p95"] }, Wait::string()] })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;
    use crate::upstream::{Hedge, On, Retry};
    use http::StatusCode;
    use std::path::Path;
    use std::time::Duration;

    fn read(retry: &str, route: &str) -> Result<Retry, String> {
        let text = format!(
            "[upstream.a]\nendpoints = \"http://127.0.0.1:1\"\nretry = {{ {retry} }}\n\
             [[route]]\nupstream = \"a\"\n{route}\n"
        );
        let config = parse(&text, "x.toml", Path::new("")).map_err(|error| error.to_string())?;
        Ok(config.routes[0].retry.clone())
    }

    #[test]
    fn nothing_is_the_default_and_everything_can_be_set() {
        assert_eq!(read("", ""), Ok(Retry::default()));
        let set = read(
            "attempts = 2, on = [\"timeout\", 429, 599, \"grpc_unavailable\"], budget = \"2.5%\", floor = 7, \
             max_body = 0, backoff = \"1s\", hedge = \"p95\"",
            "retry.attempts = 0",
        )
        .expect("valid");
        let statuses = [429, 599].map(|status| StatusCode::from_u16(status).expect("a status"));
        let on = On { connect: false, reset: false, timeout: true, unavailable: true, statuses: statuses.into() };
        let budget = crate::control::retry_budget::Settings { share: 25_000, floor: 7 };
        let backoff = Duration::from_secs(1);
        assert_eq!(set, Retry { attempts: 0, on, budget, max_body: 0, backoff, hedge: Hedge::Slowest });
        assert_eq!(read("hedge = \"200ms\"", "").expect("valid").hedge, Hedge::After(Duration::from_millis(200)));
        assert!(read("on = []", "").is_ok_and(|retry| !retry.on.connect && retry.on.statuses.is_empty()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (retry, said) in [
            ("on = [\"conect\"]", "did you mean `connect`"),
            ("on = 404", "an answer with the status 404 is not tried again"),
            ("on = \"503\"", "write 503 without quotes"),
            ("on = true", "a status, or one of"),
            ("hedge = \"p99\"", "\"p95\""),
            ("budget = 10", "write `\"10%\"`"),
            ("attempts = 99", "a number from 0 to 5"),
        ] {
            let report = read(retry, "").expect_err(retry);
            assert!(report.contains(said), "{report}");
        }
    }
}
