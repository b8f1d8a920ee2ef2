//! The Prometheus text format 0.0.4, and the rules for names.

use std::fmt::{self, Write as _};

use super::Labels;

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations by size.
    Histogram,
}

impl Kind {
    /// As the text form names it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What is wrong with a family's name or help, if anything. Help may be empty for all but the first to register.
#[must_use]
pub fn name_fault(name: &str, help: &str, kind: Kind) -> Option<&'static str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.starts_with("headworks_") {
        Some("the name lacks the prefix headworks_")
    } else if !name.bytes().all(plain) {
        Some("the name has characters other than a-z, 0-9 and _")
    } else if (kind == Kind::Counter) != name.ends_with("_total") {
        Some("_total marks counters, and only them")
    } else if kind == Kind::Histogram && !name.ends_with("_seconds") {
        Some("a histogram counts durations and is named _seconds")
    } else if ["_ms", "_millis", "_milliseconds", "_minutes", "_kib", "_kilobytes"]
        .iter()
        .any(|unit| name.contains(unit))
    {
        Some("units are seconds and bytes")
    } else if !help.is_empty() && !help.ends_with('.') {
        Some("the help is not a sentence")
    } else {
        None
    }
}

/// Writes the two comment lines of a family.
pub fn write_head(out: &mut String, name: &str, help: &str, kind: Kind) {
    let _ = write!(out, "# HELP {name} ");
    escape(out, help, false);
    let _ = writeln!(out, "\n# TYPE {name} {}", kind.label());
}

/// Writes one sample; `labels` are without braces.
pub(super) fn sample(out: &mut String, name: &str, suffix: &str, labels: &str, value: impl fmt::Display) {
    let _ = if labels.is_empty() {
        writeln!(out, "{name}{suffix} {value}")
    } else {
        writeln!(out, "{name}{suffix}{{{labels}}} {value}")
    };
}

/// Labels as they are printed, without braces.
#[must_use]
pub fn labels(labels: Labels<'_>) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"");
        escape(&mut out, value, true);
        out.push('"');
    }
    out
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_break_a_rule_are_told() {
        let fault = |name, kind| name_fault(name, "Help.", kind).is_some();
        assert!(!fault("headworks_requests_total", Kind::Counter));
        assert!(!fault("headworks_queue_bytes", Kind::Gauge));
        assert!(!fault("headworks_wait_seconds", Kind::Histogram));
        assert!(fault("requests_total", Kind::Counter));
        assert!(fault("headworks_requests", Kind::Counter));
        assert!(fault("headworks_streams_total", Kind::Gauge));
        assert!(fault("headworks_wait_ms", Kind::Gauge));
        assert!(fault("headworks_wait", Kind::Histogram));
        assert!(fault("headworks_Wait_seconds", Kind::Histogram));
        assert!(name_fault("headworks_streams", "no full stop", Kind::Gauge).is_some());
    }
}
