//! The fields in which clients say how long they wait, each with its grammar.
//!
//! What cannot be read is nobody's word: the request goes on without a deadline, and the field as it came. So do Envoy
//! and the gRPC core; a time that is only there to be shortened is no reason to refuse.

use std::time::Duration;

use http::HeaderValue;

/// Beyond this nobody waits, and arithmetic with clocks would overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A field in which a client says how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `grpc-timeout`: up to eight digits and a unit, for the whole call.
    Grpc,
    /// `connect-timeout-ms` of the Connect protocol, for the whole call.
    Connect,
    /// `x-request-timeout`: seconds, or a number with its unit, for the whole exchange.
    XRequest,
    /// `request-timeout`, likewise.
    Request,
    /// `x-envoy-expected-rq-timeout-ms`: what an Envoy in front allows, for the whole exchange.
    Envoy,
    /// `x-stainless-timeout` of the SDKs that Stainless generates: seconds from the call to the head.
    Stainless,
    /// `x-stainless-read-timeout` of the same: seconds of silence, from the last byte that was sent to the head.
    StainlessRead,
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 7] =
        [Self::Grpc, Self::Connect, Self::XRequest, Self::Request, Self::Envoy, Self::Stainless, Self::StainlessRead];

    /// Its name, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc-timeout",
            Self::Connect => "connect-timeout-ms",
            Self::XRequest => "x-request-timeout",
            Self::Request => "request-timeout",
            Self::Envoy => "x-envoy-expected-rq-timeout-ms",
            Self::Stainless => "x-stainless-timeout",
            Self::StainlessRead => "x-stainless-read-timeout",
        }
    }

    /// The field with this name, in lower case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        // Most names have a length that none of these has.
        let field = match name.len() {
            12 => Self::Grpc,
            15 => Self::Request,
            17 => Self::XRequest,
            18 => Self::Connect,
            19 => Self::Stainless,
            24 => Self::StainlessRead,
            30 => Self::Envoy,
            _ => return None,
        };
        (field.name() == name).then_some(field)
    }

    /// Whether the time ends with the head of the answer, however long the body takes.
    #[must_use]
    pub const fn ends_with_head(self) -> bool {
        matches!(self, Self::Stainless | Self::StainlessRead)
    }

    /// The form in which it is written where the client did not say it.
    pub(super) const fn usual(self) -> Form {
        match self {
            Self::Grpc => Form::Grpc,
            Self::Connect | Self::Envoy => Form::Millis,
            Self::XRequest | Self::Request | Self::Stainless | Self::StainlessRead => Form::Decimal,
        }
    }

    /// Reads a value; none when it is not what the field's grammar allows, or no time that anybody waits. Only gRPC
    /// has a time that is over when it arrives.
    pub(super) fn read(self, value: &[u8]) -> Option<(Duration, Form)> {
        let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
        let (time, form) = match self {
            Self::Grpc => return grpc(text).map(|time| (time, Form::Grpc)),
            Self::Connect => (Duration::from_millis(digits(text, 10)?), Form::Millis),
            Self::Envoy => (Duration::from_millis(digits(text, 12)?), Form::Millis),
            Self::Stainless | Self::StainlessRead => seconds(text)?,
            Self::XRequest | Self::Request => with_unit(text)?,
        };
        (Duration::ZERO < time && time <= LONGEST).then_some((time, form))
    }
}

/// How a time is written, so that whoever could read the client's value can read ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Digits and a unit of gRPC.
    Grpc,
    /// Milliseconds.
    Millis,
    /// Whole seconds.
    Seconds,
    /// Seconds with a point.
    Decimal,
    /// Milliseconds with `ms` behind.
    Unit,
}

impl Form {
    /// Rounded up: a service that gives up a moment too late has lost less than one that gives up too early, and zero
    /// means no bound to some.
    pub(super) fn write(self, time: Duration) -> Option<HeaderValue> {
        let rounded = |unit: Duration| time.as_nanos().div_ceil(unit.as_nanos()).max(1);
        let millis = || rounded(Duration::from_millis(1));
        let text = match self {
            Self::Grpc => {
                let units = [(1, "n"), (1_000, "u"), (1_000_000, "m"), (1_000_000_000, "S"), (60_000_000_000, "M")];
                let fitting = units.into_iter().map(|(nanos, unit)| (rounded(Duration::from_nanos(nanos)), unit));
                let (amount, unit) = fitting.into_iter().find(|(amount, _)| *amount <= 99_999_999)?;
                format!("{amount}{unit}")
            }
            Self::Millis => millis().to_string(),
            Self::Seconds => rounded(Duration::from_secs(1)).to_string(),
            Self::Decimal => format!("{}.{:03}", millis() / 1000, millis() % 1000),
            Self::Unit => format!("{}ms", millis()),
        };
        HeaderValue::try_from(text).ok()
    }
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol over HTTP/2.
fn grpc(text: &str) -> Option<Duration> {
    let amount = digits(text.get(..text.len().checked_sub(1)?)?, 8)?;
    let time = match text.as_bytes().last()? {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(time.min(LONGEST))
}

/// `30`, `30.5`, and with a unit `500ms`, `30s`, `2m`, `1h`.
fn with_unit(text: &str) -> Option<(Duration, Form)> {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (time, form) = seconds(number.trim_end())?;
    let times = |factor| time.checked_mul(factor).map(|time| (time, Form::Unit));
    match unit {
        "" => Some((time, form)),
        "ms" => Some((time / 1000, Form::Unit)),
        "s" => times(1),
        "m" => times(60),
        "h" => times(3600),
        _ => None,
    }
}

/// Whole seconds, or with up to nine digits behind a point.
fn seconds(text: &str) -> Option<(Duration, Form)> {
    let Some((whole, part)) = text.split_once('.') else {
        return Some((Duration::from_secs(digits(text, 10)?), Form::Seconds));
    };
    let power = 9 - u32::try_from(part.len()).ok().filter(|length| *length <= 9)?;
    let nanos = u32::try_from(digits(part, 9)?).ok()?.checked_mul(10_u32.pow(power))?;
    Some((Duration::new(digits(whole, 10)?, nanos), Form::Decimal))
}

/// From one to `most` digits and nothing else.
fn digits(text: &str, most: usize) -> Option<u64> {
    let fits = (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn millis(field: Field, value: &str) -> Option<u128> {
        field.read(value.as_bytes()).map(|(time, _)| time.as_millis())
    }

    #[test]
    fn every_name_is_found_again() {
        for field in Field::ALL {
            assert_eq!(Field::named(field.name()), Some(field));
        }
        assert_eq!((Field::named("user-agentxx"), Field::named("")), (None, None));
    }

    #[test]
    fn grpc_has_eight_digits_and_a_unit() {
        for (value, expected) in [
            ("1H", 3_600_000),
            ("2M", 120_000),
            ("3S", 3000),
            ("250m", 250),
            ("5000u", 5),
            ("7000000n", 7),
            ("0n", 0),
            ("99999999H", 31_536_000_000),
        ] {
            assert_eq!(millis(Field::Grpc, value), Some(expected), "{value}");
        }
        for wrong in ["", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", "1 S", "123456789n", "1SS", "1\u{b5}", "S1"] {
            assert_eq!(millis(Field::Grpc, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn other_fields_have_seconds_or_milliseconds() {
        for (field, value, expected) in [
            (Field::XRequest, "30", Some(30_000)),
            (Field::XRequest, " 2.5 ", Some(2500)),
            (Field::Request, "0.250", Some(250)),
            (Field::XRequest, "500ms", Some(500)),
            (Field::XRequest, "1.5s", Some(1500)),
            (Field::Request, "2m", Some(120_000)),
            (Field::Request, "1 h", Some(3_600_000)),
            (Field::XRequest, "0", None),
            (Field::XRequest, "0ms", None),
            (Field::XRequest, "1d", None),
            (Field::XRequest, "1e3", None),
            (Field::XRequest, "s", None),
            (Field::XRequest, "-1", None),
            (Field::XRequest, "99999999999", None),
            (Field::XRequest, "999999999h", None),
            (Field::Envoy, "15000", Some(15_000)),
            (Field::Envoy, "15s", None),
            (Field::Envoy, "0", None),
            (Field::Connect, "1234567890", Some(1_234_567_890)),
            (Field::Connect, "12345678901", None),
            (Field::Stainless, "600", Some(600_000)),
            (Field::StainlessRead, "600.0", Some(600_000)),
            (Field::StainlessRead, "0.05", Some(50)),
            (Field::StainlessRead, "600ms", None),
            (Field::StainlessRead, "NOT_GIVEN", None),
            (Field::StainlessRead, "1.", None),
            (Field::StainlessRead, ".5", None),
        ] {
            assert_eq!(millis(field, value), expected, "{}: {value}", field.name());
        }
    }

    #[test]
    fn what_is_left_is_written_in_the_clients_form() {
        let left = Duration::from_micros(1_234_567);
        for (field, value, expected) in [
            (Field::Grpc, "5S", "1234567u"),
            (Field::Connect, "5000", "1235"),
            (Field::XRequest, "5", "2"),
            (Field::XRequest, "5.0", "1.235"),
            (Field::XRequest, "5s", "1235ms"),
            (Field::StainlessRead, "600", "2"),
        ] {
            let (_, form) = field.read(value.as_bytes()).unwrap();
            assert_eq!(form.write(left).unwrap(), expected, "{}: {value}", field.name());
        }
        for (time, expected) in
            [(Duration::ZERO, "1n"), (Duration::from_secs(3600), "3600000m"), (LONGEST, "31536000S")]
        {
            assert_eq!(Form::Grpc.write(time).unwrap(), expected);
        }
        assert_eq!(Form::Seconds.write(Duration::ZERO).unwrap(), "1", "zero may mean no bound");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_no_shorter(millis in 1_u64..=9_999_999_999, which in 0_usize..7) {
            let (field, time) = (Field::ALL[which], Duration::from_millis(millis));
            let written = field.usual().write(time).unwrap();
            let (read, _) = field.read(written.as_bytes()).unwrap();
            prop_assert!(read >= time && read <= time + Duration::from_millis(1) + time / 50_000, "{written:?}");
        }

        #[test]
        fn no_value_panics(value: Vec<u8>, which in 0_usize..7) {
            let _ = Field::ALL[which].read(&value);
        }
    }
}
