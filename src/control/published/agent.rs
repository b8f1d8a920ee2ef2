//! The answer of an agent that is polled: words as the `agent-check` of `HAProxy` has them, or JSON.
//!
//! | word | means |
//! |---|---|
//! | `30`, `maxconn:30` | so many credits |
//! | `75%` | this part of what the endpoint has otherwise |
//! | `drain`, `maint`, `down`, `fail`, `failed`, `stopped` | no credit |
//! | `ready`, `up` | all credits, unless a number says how many |
//!
//! Words are parted by white space or commas, and end with the first line or with `#`. JSON is an object with `state` (one
//! of these words), `credit`, `share` (0.75) and whatever an ORCA report may have.

use serde_json::Value as Json;

use super::{Fault, LoadReport, MOST_BYTES, credits, millis, not_negative, number, orca};

/// What an agent says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Advice {
    /// The endpoint is to get no request.
    pub is_closed: bool,
    /// The part of its credits that it is to have, from 0 to 1.
    pub share: Option<f64>,
    /// Its load.
    pub report: LoadReport,
}

impl Advice {
    /// How many credits it leaves of those that there are otherwise; none when it has nothing against them.
    #[must_use]
    pub fn cap(&self, otherwise: usize) -> Option<usize> {
        if self.is_closed {
            return Some(0);
        }
        let part = self.share.map(|share| super::part(otherwise, share));
        [part, self.report.credit].into_iter().flatten().min()
    }
}

/// Reads the body of an answer.
pub fn read(text: &str) -> Result<Advice, Fault> {
    if text.len() > MOST_BYTES {
        return Err(Fault("an answer that is too long"));
    }
    if text.trim_start().starts_with('{') { json(text) } else { words(text) }
}

fn words(text: &str) -> Result<Advice, Fault> {
    let line = text.trim_start().lines().next().unwrap_or_default();
    let line = line.split('#').next().unwrap_or_default();
    let mut advice = Advice::default();
    let mut is_empty = true;
    for word in line.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()) {
        is_empty = false;
        if let Some(percent) = word.strip_suffix('%') {
            advice.share = Some(share(number(percent)? / 100.0)?);
        } else if word.starts_with(|c: char| c.is_ascii_digit()) || word.starts_with("maxconn:") {
            let digits = word.strip_prefix("maxconn:").unwrap_or(word);
            let is_whole = !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit());
            if !is_whole {
                return Err(Fault("a credit that is no whole number"));
            }
            advice.report.credit = Some(credits(number(digits)?)?);
        } else {
            advice.is_closed = is_closed(word)?;
        }
    }
    if is_empty { Err(Fault("an answer without a word")) } else { Ok(advice) }
}

fn is_closed(word: &str) -> Result<bool, Fault> {
    match word {
        "drain" | "maint" | "down" | "fail" | "failed" | "stopped" => Ok(true),
        "ready" | "up" => Ok(false),
        _ => Err(Fault("a word that means nothing")),
    }
}

fn share(part: f64) -> Result<f64, Fault> {
    Ok(not_negative(part)?.min(1.0))
}

fn json(text: &str) -> Result<Advice, Fault> {
    let json: Json = serde_json::from_str(text).map_err(|_| Fault("a text that is no JSON"))?;
    let mut advice = Advice { report: orca::object(&json)?, ..Advice::default() };
    if let Some(state) = json.get("state") {
        advice.is_closed = is_closed(state.as_str().ok_or(Fault("a state that is no word"))?)?;
    }
    if let Some(part) = json.get("share") {
        advice.share = Some(share(orca::json_number(part)?)?);
    }
    if let Some(credit) = json.get("credit") {
        advice.report.credit = Some(credits(orca::json_number(credit)?)?);
    }
    if let Some(delay) = json.get(orca::QUEUE_DELAY) {
        advice.report.queue_delay = Some(millis(orca::json_number(delay)?)?);
    }
    Ok(advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn cap(text: &str) -> Option<usize> {
        read(text).unwrap_or_else(|fault| panic!("{text}: {fault}")).cap(40)
    }

    #[test]
    fn words_as_haproxy_has_them() {
        for (text, credits) in [
            ("75%\n", Some(30)),
            ("0%", Some(0)),
            ("1%", Some(1)),
            ("250%", Some(40)),
            ("30", Some(30)),
            ("maxconn:30", Some(30)),
            ("up 50% maxconn:30\n", Some(20)),
            ("ready,up", None),
            ("  up\r\n", None),
            ("drain", Some(0)),
            ("maint", Some(0)),
            ("down#the disk is full 100%\n", Some(0)),
            ("stopped 30", Some(0)),
            ("up 7\nup 9\n", Some(7)),
        ] {
            assert_eq!(cap(text), credits, "{text}");
        }
        for wrong in ["", "\n", "# nothing", "yes", "-3", "3.5", "%", "NaN%", "-1%", "maxconn:", "30x", "1234567890"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read(&"up ".repeat(MOST_BYTES)).is_err());
    }

    #[test]
    fn json_says_the_same_and_more() {
        assert_eq!(cap(r#"{"state": "drain", "credit": 3}"#), Some(0));
        assert_eq!(cap(r#"{"state": "up"}"#), None);
        assert_eq!(cap(r#"{"share": 0.75, "credit": 35}"#), Some(30));
        let advice = read(r#" {"queue_delay_ms": 12, "cpu_utilization": 0.5, "other": null}"#).expect("an answer");
        assert_eq!(advice.report.queue_delay, Some(Duration::from_millis(12)));
        assert_eq!((advice.report.utilization, advice.cap(40)), (Some(0.5), None));
        for wrong in ["{", "{\"state\": 3}", "{\"state\": \"so so\"}", "{\"share\": \"x\"}", "{\"credit\": -1}"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
