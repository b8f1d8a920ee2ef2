//! Durations, sizes and rates as the file writes them, and back.
//!
//! A duration always has its unit: `timeout = 30` could mean seconds or milliseconds, and a wrong guess is an outage.

use std::fmt::Display;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

/// Longer times are typing errors, and would overflow when they are added to a clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What is more cannot be told from no limit.
const MOST_BYTES: u64 = 1 << 50;

/// In falling order: the parser relies on it, and so does the printer.
const TIME_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// In falling order within each family.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("B", 1),
];

/// The first word of each period is the one printed.
const PERIODS: [(&[&str], u64); 3] = [(&["s", "sec", "second"], 1), (&["min", "minute"], 60), (&["h", "hour"], 3600)];

/// Reads `250ms`, `2s`, `1m30s` or `1h`: whole numbers, each unit at most once, larger units first.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut millis: u64 = 0;
    let mut units = TIME_UNITS.iter();
    if text.is_empty() {
        return Err("the duration is empty".into());
    }
    while !rest.is_empty() {
        let (amount, tail) = number(rest).ok_or("a duration is whole numbers, each with its unit")?;
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        if unit.is_empty() {
            return Err("the duration has a number without a unit".into());
        }
        if !TIME_UNITS.iter().any(|(name, _)| *name == unit) {
            return Err("a duration's units are `h`, `m`, `s` and `ms`".into());
        }
        let (_, factor) = units.find(|(name, _)| *name == unit).ok_or("larger units come first, each at most once")?;
        let part = amount.checked_mul(*factor);
        millis = part.and_then(|part| millis.checked_add(part)).ok_or("the duration is too long")?;
        rest = tail;
    }
    let duration = Duration::from_millis(millis);
    if duration > LONGEST { Err("the duration is longer than a year".into()) } else { Ok(duration) }
}

/// Prints a duration as the file writes it.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".into();
    }
    let units = TIME_UNITS.iter().filter_map(|(unit, factor)| {
        let amount = millis / factor;
        millis %= factor;
        (amount > 0).then(|| format!("{amount}{unit}"))
    });
    units.collect()
}

/// Reads `64KiB`, `1MB` or a plain number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let (amount, unit) = number(text).ok_or("a size is a whole number and a unit")?;
    let factor = match unit.trim_start() {
        "" => 1,
        unit => {
            let found = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
            found.ok_or("a size's units are `B`, `KiB`, `MiB`, `GiB`, `KB`, `MB` and `GB`")?.1
        }
    };
    amount.checked_mul(factor).ok_or_else(|| "the size is too large".into())
}

/// Prints a size as the file writes it, in the largest unit that divides it.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    let (unit, factor) = unit.copied().unwrap_or(("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Reads `60/min`: an amount that is not zero, and a period.
pub fn rate(text: &str) -> Result<(NonZeroU32, Duration), String> {
    let (amount, period) = text.split_once('/').ok_or("a rate is an amount, `/` and a period")?;
    let (amount, rest) = number(amount.trim()).ok_or("a rate's amount is a whole number")?;
    if !rest.is_empty() {
        return Err("a rate's amount is a whole number".into());
    }
    let amount = u32::try_from(amount).map_err(|_| "the rate's amount is too large")?;
    let amount = NonZeroU32::new(amount).ok_or("a rate of 0 lets nothing through")?;
    Ok((amount, self::period(period)?))
}

/// Reads `10MiB/s`: a size with its unit, which is not zero, and a period.
pub(super) fn byte_rate(text: &str) -> Result<(NonZeroU64, Duration), String> {
    let (amount, period) = text.split_once('/').ok_or("a rate is a size, `/` and a period")?;
    let amount = NonZeroU64::new(size(amount.trim())?).ok_or("a rate of 0 lets nothing through")?;
    if amount.get() > MOST_BYTES {
        return Err("the rate's size is too large".into());
    }
    Ok((amount, self::period(period)?))
}

fn period(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let found = PERIODS.iter().find(|(words, _)| words.contains(&text));
    let (_, seconds) = found.ok_or("a rate's period is `s`, `min` or `hour`")?;
    Ok(Duration::from_secs(*seconds))
}

/// Reads `2` or `1.5` as thousandths, from one whole to a hundred.
pub fn factor(text: &str) -> Result<u32, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) {
        return Err("a factor is a number such as 2 or 1.5".into());
    }
    if part.len() > 3 {
        return Err("a factor has three decimals at most".into());
    }
    let whole = whole.parse::<u32>().ok().filter(|whole| *whole <= 100);
    let part = format!("{part:0<3}").parse::<u32>().ok();
    let factor = whole.zip(part).map(|(whole, part)| whole * 1000 + part);
    factor.filter(|factor| (1000..=100_000).contains(factor)).ok_or_else(|| "a factor is from 1 to 100".into())
}

/// Prints thousandths as a factor.
#[must_use]
pub fn show_factor(factor: u32) -> String {
    let text = format!("{}.{:03}", factor / 1000, factor % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Prints a rate as the file writes it; an amount may have its unit.
#[must_use]
pub fn show_rate(amount: impl Display, period: Duration) -> String {
    match PERIODS.iter().find(|(_, seconds)| period.as_secs() == *seconds) {
        Some(([word, ..], _)) => format!("{amount}/{word}"),
        _ => format!("{amount}/{}", show_duration(period)),
    }
}

/// Splits the leading digits off.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, millis) in [("250ms", 250), ("2s", 2000), ("1m30s", 90_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "2", "s", "1.5s", "-1s", " 1s", "1s1m", "1s1s", "1d", "9999999h", "99999999999999999999s"] {
            duration(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64KiB", 65_536), ("1MB", 1_000_000), ("17", 17), ("5 B", 5), ("1GiB", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "KiB", "1.5MB", "1kb", "1KiB ", "99999999999999999999", "18446744073709551615GiB"] {
            size(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn rates() {
        for (text, amount, seconds) in [("60/min", 60, 60), ("10/s", 10, 1), ("1000/hour", 1000, 3600), ("1/sec", 1, 1)]
        {
            let amount = NonZeroU32::new(amount).unwrap();
            assert_eq!(rate(text), Ok((amount, Duration::from_secs(seconds))), "{text}");
        }
        for wrong in ["", "60", "0/s", "60/day", "a/s", "1.5/s", "4294967296/s", "60 tokens/min"] {
            rate(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn rates_in_bytes() {
        for (text, amount, seconds) in
            [("10MiB/s", 10 << 20, 1), ("5 B / min", 5, 60), ("1GB/hour", 1_000_000_000, 3600)]
        {
            assert_eq!(byte_rate(text), Ok((NonZeroU64::new(amount).unwrap(), Duration::from_secs(seconds))), "{text}");
        }
        for wrong in ["", "10MiB", "0B/s", "10MiB/day", "x/s", "2000000GiB/s"] {
            byte_rate(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn factors() {
        for (text, thousandths) in
            [("1", 1000), ("2", 2000), ("1.5", 1500), ("2.05", 2050), ("100", 100_000), ("3.0", 3000)]
        {
            assert_eq!(factor(text), Ok(thousandths), "{text}");
        }
        for wrong in ["", "0", "0.9", "100.1", "1.", ".5", "-1", "1e3", "1.0001", "99999999999999", "x"] {
            factor(wrong).expect_err(wrong);
        }
        assert_eq!([1000, 1500, 2050, 100_000].map(show_factor), ["1", "1.5", "2.05", "100"]);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(millis in 0u64..=31_536_000_000, bytes: u64, amount in 1u32.., which in 0usize..3) {
            let time = Duration::from_millis(millis);
            prop_assert_eq!(duration(&show_duration(time)), Ok(time));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
            let (amount, period) = (NonZeroU32::new(amount).unwrap(), Duration::from_secs(PERIODS[which].1));
            prop_assert_eq!(rate(&show_rate(amount, period)), Ok((amount, period)));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (duration(&text), size(&text), rate(&text), byte_rate(&text), factor(&text));
        }
    }
}
