//! What is written about rate limits: rates, amounts, and when they are raised.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Context, Decode, Node, Scalar, wrong_type};
use super::error::{Problem, quote};
use super::units;
use super::values::{Number, Wait, words};
pub(super) use crate::layers::rate_limit::Cost;

words!(Cost, "\"requests\", \"request_bytes\" or \"response_bytes\"", {
    "requests" => Self::Requests,
    "request_bytes" => Self::RequestBytes,
    "response_bytes" => Self::ResponseBytes,
});

/// Requests or bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Amount {
    Requests(NonZeroU32),
    Bytes(NonZeroU64),
}

impl Decode for Amount {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        if node.get_ref().is_str() {
            let text = cx.text(node, "a size such as \"20MiB\"", |_| None)?;
            return cx.parse::<Bytes>(&text).map(|bytes| Self::Bytes(bytes.0));
        }
        let number = Number::<1, { u32::MAX }>::decode(node, cx)?;
        NonZeroU32::new(number.0).map(Self::Requests)
    }

    fn schema() -> Value {
        json!({ "anyOf": [Number::<1, { u32::MAX }>::schema(), Bytes::schema()] })
    }
}

/// A size with its unit.
struct Bytes(NonZeroU64);

impl Scalar for Bytes {
    const WHAT: &'static str = "a size such as \"20MiB\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = |why| Problem::new(format!("{} is no size: {why}", quote(text)));
        let bytes = units::size(text).map_err(problem)?;
        // One that is larger could not be refilled within a lifetime.
        NonZeroU64::new(bytes.min(1 << 60)).map(Self).ok_or_else(|| "a burst of 0 lets nothing through".into())
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^[0-9]+ *(B|[KMG]i?B)?$" })
    }
}

/// `60/min` or `10MiB/s`
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) amount: Amount,
    pub(super) period: Duration,
}

impl Scalar for Rate {
    const WHAT: &'static str = "a rate such as \"60/min\" or \"10MiB/s\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = |why| Problem::new(format!("{} is no rate: {why}", quote(text)));
        let amount = text.split('/').next().unwrap_or_default();
        if amount.contains('B') {
            let (amount, period) = units::byte_rate(text).map_err(problem)?;
            return Ok(Self { amount: Amount::Bytes(amount), period });
        }
        let (amount, period) = units::rate(text).map_err(problem)?;
        Ok(Self { amount: Amount::Requests(amount), period })
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^[0-9]+ *(B|[KMG]i?B)? */ *(s|sec|second|min|minute|h|hour)$" })
    }
}

/// Days of the week; bit 0 is Monday.
#[derive(Clone, Copy, Debug)]
pub(super) struct Days(pub(super) u8);

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Scalar for Days {
    const WHAT: &'static str = "days such as \"mon-fri\" or \"sat,sun\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let day = |name: &str| {
            let found = DAYS.iter().position(|day| *day == name.trim());
            let problem = || Problem::new(format!("{} is no day of the week", quote(name.trim())));
            found.ok_or_else(|| {
                problem().did_you_mean(name.trim(), DAYS).or_hint(|| Some(format!("they are {}", DAYS.join(", "))))
            })
        };
        let mut days = 0;
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            // "fri-mon" passes the end of the week.
            let count = (last + 7 - first) % 7 + 1;
            (first..first + count).for_each(|day| days |= 1 << (day % 7));
        }
        Ok(Self(days))
    }
}

/// `08:30`, from the beginning of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeOfDay(pub(super) Duration);

impl Scalar for TimeOfDay {
    const WHAT: &'static str = "a time such as \"08:30\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let part = |text: &str, most: u64| {
            let fits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|number| fits && *number <= most)
        };
        let minutes = text.split_once(':').and_then(|(hours, minutes)| {
            let (hours, minutes) = (part(hours, 24)?, part(minutes, 59)?);
            (hours < 24 || minutes == 0).then_some(hours * 60 + minutes)
        });
        let problem = || Problem::new(format!("{} is no time of day", quote(text))).hint("write it as \"08:30\"");
        minutes.map(|minutes| Self(Duration::from_secs(minutes * 60))).ok_or_else(problem)
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$" })
    }
}

/// How many times higher, in thousandths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor(pub(super) u32);

impl Decode for Factor {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let read = match node.get_ref() {
            DeValue::Integer(number) => units::factor(number.as_str()),
            DeValue::Float(number) => units::factor(number.as_str()),
            other => {
                cx.found.error(&node.span(), wrong_type("a factor such as 2 or 1.5", other));
                return None;
            }
        };
        read.map(Self).map_err(|why| cx.found.error(&node.span(), why)).ok()
    }

    fn schema() -> Value {
        json!({ "type": "number", "minimum": 1, "maximum": 100 })
    }
}

/// How long a raise takes to come down: a day at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ramp(pub(super) Duration);

impl Scalar for Ramp {
    const WHAT: &'static str = Wait::WHAT;

    fn parse(text: &str) -> Result<Self, Problem> {
        match Wait::parse(text)?.0 {
            ramp if ramp > Duration::from_secs(24 * 3600) => Err("it is longer than a day".into()),
            ramp => Ok(Self(ramp)),
        }
    }

    fn string() -> Value {
        Wait::string()
    }

    fn instead_of(found: &DeValue<'_>) -> Option<String> {
        Wait::instead_of(found)
    }
}

/// `10%`, from 1 to 99.
#[derive(Clone, Copy, Debug)]
pub(super) struct Percent(pub(super) u8);

impl Scalar for Percent {
    const WHAT: &'static str = "a share such as \"10%\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
        let problem = || Problem::new(format!("{} is no share", quote(text))).hint("it is from \"1%\" to \"99%\"");
        percent.filter(|percent| (1..=99).contains(percent)).map(Self).ok_or_else(problem)
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^[1-9][0-9]? *%$" })
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use crate::control::surge::Window;
    use crate::layers::rate_limit::{Cost, Settings};
    use std::path::Path;
    use std::time::Duration;

    fn read(limit: &str) -> Result<Settings, String> {
        let text = format!("[[route]]\nrespond = {{}}\nrate_limit = {{ {limit} }}\n");
        let config = parse(&text, "x.toml", Path::new("")).map_err(|error| error.to_string())?;
        Ok(config.routes[0].rate_limits[0].clone())
    }

    #[test]
    fn a_limit_in_bytes_has_a_rate_in_bytes() {
        let limit = read("rate = '10MiB/s', cost = 'response_bytes', burst = '1GiB'").unwrap();
        assert_eq!((limit.cost, limit.amount.get(), limit.burst.get()), (Cost::ResponseBytes, 10 << 20, 1 << 30));
        let limit = read("rate = '500KB/min', cost = 'request_bytes'").unwrap();
        assert_eq!((limit.cost, limit.amount, limit.burst.get()), (Cost::RequestBytes, limit.burst, 500_000));
        for (wrong, told) in [
            ("rate = '10MiB/s'", "the rate is in bytes and the cost in requests"),
            ("rate = '10/s', cost = 'response_bytes'", "the rate is in requests and the cost in bytes"),
            ("rate = '1B/s', cost = 'response_bytes', burst = 7", "the burst is in requests and the cost in bytes"),
            ("rate = '1/s', burst = '7B'", "the burst is in bytes and the cost in requests"),
            ("rate = '1B/s', cost = 'response_bytes', burst = '0B'", "a burst of 0 lets nothing through"),
            ("rate = '1B/day', cost = 'request_bytes'", "a rate's period is"),
            ("rate = '1/s', cost = 'request_byte'", "did you mean `request_bytes`?"),
        ] {
            let error = read(wrong).expect_err(wrong);
            assert!(error.contains(told), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_schedule_is_read() {
        let limit = read(
            "rate = '1/s', surge = [{ from = '08:00', to = '10:30', factor = 3 }, \
                          { days = 'fri-sun,tue', from = '22:00', to = '02:00', factor = 1.5, ramp = '0s' }]",
        );
        let hours = |hours: f64| Duration::from_secs_f64(hours * 3600.0);
        let first =
            Window { days: 127, from: hours(8.0), length: hours(2.5), factor: 3000, ramp: Duration::from_secs(60) };
        let second =
            Window { days: 0b111_0010, from: hours(22.0), length: hours(4.0), factor: 1500, ramp: Duration::ZERO };
        assert_eq!(limit.unwrap().surge, [first, second]);
        let whole = read("rate = '1/s', surge = { from = '00:00', to = '24:00', factor = 2 }").unwrap();
        assert_eq!(whole.surge[0].length, hours(24.0));
        for (wrong, told) in [
            ("days = 'mon-fri', from = '8:00', to = '10:00', factor = 3", "`8:00` is no time of day"),
            ("from = '08:00', to = '24:01', factor = 3", "`24:01` is no time of day"),
            ("from = '08:00', to = '08:00', factor = 3", "it ends when it begins"),
            ("from = '08:00', to = '09:00', factor = 0.5", "a factor is from 1 to 100"),
            ("from = '08:00', to = '09:00', factor = '2'", "expected a factor such as 2 or 1.5, found a string"),
            ("from = '08:00', to = '09:00', factor = 2, days = 'mon-fry'", "`fry` is no day of the week"),
            ("from = '08:00', to = '09:00', factor = 2, ramp = '25h'", "it is longer than a day"),
            ("from = '08:00', factor = 2", "missing key `to`"),
        ] {
            let error = read(&format!("rate = '1/s', surge = {{ {wrong} }}")).expect_err(wrong);
            assert!(error.contains(told), "{wrong}: {error}");
        }
    }

    #[test]
    fn top_talkers_have_a_share() {
        let top = read("rate = '1/s', top_talkers = {}").unwrap().top_talkers.unwrap();
        assert_eq!((top.count, top.percent, top.by.parts().len()), (10, 10, 1));
        for wrong in ["0%", "100%", "10", "x%"] {
            let error = read(&format!("rate = '1/s', top_talkers = {{ share = '{wrong}' }}")).expect_err(wrong);
            assert!(error.contains("is no share"), "{error}");
        }
    }
}
