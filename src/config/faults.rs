//! What is written about faults made on purpose: in the file, and in an order to the admin port.

use std::num::NonZeroU32;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Context, Decode, Node, Scalar, wrong_type};
use super::error::{Problem, quote};
use super::units;
use crate::layers::fault::{self, Settings, WHOLE};

/// `5%`: of a million, so many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share(pub(super) NonZeroU32);

/// `10KiB/s`
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace(pub(super) NonZeroU32);

/// A status, or `"reset"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abort(pub(super) fault::Abort);

impl Scalar for Share {
    const WHAT: &'static str = "a share such as \"5%\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = |why| Problem::new(format!("{} is no share: {why}", quote(text)));
        let number = text.strip_suffix('%').ok_or_else(|| problem("it has no `%`"))?;
        share(number).map(Self).map_err(problem)
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,4})?%$" })
    }

    fn instead_of(found: &DeValue<'_>) -> Option<String> {
        found.as_integer().map(|number| format!("write `\"{}%\"`", number.as_str()))
    }
}

impl Scalar for Pace {
    const WHAT: &'static str = "bytes a second such as \"10KiB/s\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        pace(text).map(Self).map_err(|why| Problem::new(format!("{} is no pace: {why}", quote(text))))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^[0-9]+ *(B|[KMG]i?B)?/s$" })
    }
}

impl Abort {
    const WHAT: &'static str = "a status from 400 to 599, or \"reset\"";
}

impl Decode for Abort {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let text = match node.get_ref() {
            DeValue::Integer(number) => number.as_str(),
            DeValue::String(text) => text,
            other => {
                cx.found.error(&node.span(), wrong_type(Self::WHAT, other));
                return None;
            }
        };
        let found = abort(text);
        if found.is_none() {
            cx.found.error(&node.span(), format!("expected {}, found {}", Self::WHAT, quote(text)));
        }
        found.map(Self)
    }

    fn schema() -> Value {
        json!({ "anyOf": [{ "type": "integer", "minimum": 400, "maximum": 599 }, { "const": "reset" }] })
    }
}

/// How long an order stands that does not say so, and the longest.
const USUAL: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// Reads an order: the keys of `fault` and `for`, each with its text. The error is for the operator.
pub fn order<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(Settings, Duration), String> {
    let mut settings = Settings { share: WHOLE, delay: None, abort: None, slow_body: None, stall: None };
    let mut lasts = USUAL;
    for (key, text) in pairs {
        let wrong = |why| format!("{key}: {why}");
        let time = || match units::duration(text).map_err(wrong)? {
            Duration::ZERO => Err(wrong("it cannot be zero".into())),
            time => Ok(time),
        };
        match key {
            "share" => settings.share = share(text.trim_end_matches('%')).map_err(|why| wrong(why.into()))?,
            "delay" => settings.delay = Some(time()?),
            "abort" => {
                settings.abort = Some(abort(text).ok_or_else(|| wrong(format!("expected {}", Abort::WHAT)))?);
            }
            "slow_body" => settings.slow_body = Some(pace(text).map_err(wrong)?),
            "stall" => settings.stall = Some(time()?),
            "for" => lasts = time()?,
            "format" => {}
            _ => return Err(format!("{key}: the keys are share, delay, abort, slow_body, stall and for")),
        }
    }
    if lasts > LONGEST {
        return Err("for: an hour at most".into());
    }
    settings.wrong().map_or(Ok((settings, lasts)), |why| Err(why.into()))
}

/// A number of percent with up to four decimals, above 0 and not above 100.
fn share(number: &str) -> Result<NonZeroU32, &'static str> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 4 {
        return Err("a share is a number of percent, with four decimals at most");
    }
    let millionths = || format!("{whole}{decimals:0<4}").parse().ok().and_then(NonZeroU32::new);
    millionths().filter(|share| *share <= WHOLE).ok_or("a share is above 0 % and not above 100 %")
}

fn pace(text: &str) -> Result<NonZeroU32, String> {
    let size = text.strip_suffix("/s").ok_or("it does not end with `/s`")?;
    let bytes = units::size(size.trim_end())?;
    u32::try_from(bytes).ok().and_then(NonZeroU32::new).ok_or_else(|| "it is above 0 and below 4GiB/s".into())
}

fn abort(text: &str) -> Option<fault::Abort> {
    if text == "reset" {
        return Some(fault::Abort::Reset);
    }
    let status = StatusCode::from_bytes(text.as_bytes()).ok()?;
    (status.is_client_error() || status.is_server_error()).then_some(fault::Abort::Status(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::fault::show_share;

    #[test]
    fn shares_are_read_and_printed() {
        for (text, millionths) in [("5", 50_000), ("100", 1_000_000), ("0.25", 2500), ("0.0001", 1), ("12.5", 125_000)]
        {
            let read = share(text).expect(text);
            assert_eq!(read.get(), millionths, "{text}");
            assert_eq!(show_share(read), format!("{text}%"));
        }
        for wrong in ["", "0", "101", "100.0001", ".5", "5.", "-1", "0.00001", "1e3", "99999999999"] {
            share(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn an_order_is_read() {
        let read = |text: &str| order(text.split('&').filter_map(|pair| pair.split_once('=')));
        let (settings, lasts) = read("abort=503&share=5&for=30s").expect("an order");
        assert_eq!(settings.abort, Some(fault::Abort::Status(StatusCode::SERVICE_UNAVAILABLE)));
        assert_eq!((settings.share.get(), lasts.as_secs()), (50_000, 30));
        let (settings, lasts) = read("delay=200ms&slow_body=10KiB/s&stall=2s").expect("an order");
        assert_eq!((settings.share, lasts), (WHOLE, USUAL));
        assert_eq!(settings.slow_body.map(NonZeroU32::get), Some(10_240));
        for wrong in [
            "",
            "share=5",
            "abort=200",
            "abort=503&stall=1s",
            "abrot=503",
            "delay=0s",
            "delay=1s&for=2h",
            "slow_body=1",
        ] {
            read(wrong).expect_err(wrong);
        }
    }
}
