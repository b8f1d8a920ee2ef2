//! What a line says. Values that are not known are left out.
//!
//! | JSON key | says |
//! |---|---|
//! | `time` | when the request was received, RFC 3339 in UTC |
//! | `id`, `trace` | the request's id and its W3C trace id |
//! | `client`, `listener` | the client's address (seen through trusted proxies) or `unix`, the listener's name |
//! | `method`, `host`, `path`, `protocol` | the request line; the path without its query, which may hold secrets |
//! | `status` | as sent, or the reason's when none was sent (499 for a client that left) |
//! | `reason` | why it did not simply succeed |
//! | `priority` | how much it matters, when that is not `default` |
//! | `fault` | what was done wrong to it on purpose |
//! | `would_refuse` | why it would have been refused but for a `dry_run` |
//! | `would_wait` | `true`: it would have waited for a credit but for a `dry_run` |
//! | `route`, `upstream`, `endpoint` | who served it |
//! | `attempts`, `tried` | where there were several: how many, and the endpoint of each |
//! | `queue_ms`, `first_byte_ms`, `total_ms` | the wait for a credit; from receipt to the upstream's head; to the end |
//! | `bytes_in`, `bytes_out` | of the bodies, as far as they came |
//! | `user_agent` | the one field that is logged |

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode, Version};

use crate::context::{Notes, Priority, RequestContext};

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// One readable line.
    Text,
}

/// An exchange that is over.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// When the request was received.
    pub time: SystemTime,
    /// Who sent it, and what the layers noted.
    pub context: &'a RequestContext,
    /// Its method.
    pub method: &'a Method,
    /// Its path, without the query.
    pub path: &'a str,
    /// Its host, as the client wrote it.
    pub host: &'a str,
    /// Its version of HTTP.
    pub protocol: Version,
    /// The answer's status.
    pub status: StatusCode,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// From receipt to the end of the answer.
    pub total: Duration,
    /// Its `User-Agent`.
    pub user_agent: Option<&'a str>,
}

impl Line<'_> {
    /// The line, with its end.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        let mut out = String::with_capacity(640);
        // Writing to a string does not fail.
        let _ = match format {
            Format::Json => self.json(&mut out),
            Format::Text => self.text(&mut out),
        };
        out
    }

    fn json(&self, out: &mut String) -> fmt::Result {
        let (context, notes) = (self.context, self.context.notes());
        write!(out, "{{\"time\":\"{}\",\"id\":\"{}\"", Utc(self.time), context.id())?;
        json(out, "trace", notes.trace.get())?;
        json(out, "client", Some(context.client_name()))?;
        json(out, "listener", Some(&context.connection().listener))?;
        json(out, "method", Some(self.method))?;
        json(out, "host", Some(self.host))?;
        json(out, "path", Some(self.path))?;
        json(out, "protocol", Some(format_args!("{:?}", self.protocol)))?;
        write!(out, ",\"status\":{}", self.status.as_u16())?;
        json(out, "reason", notes.reason())?;
        json(out, "priority", self.priority())?;
        json(out, "fault", notes.faults.names())?;
        json(out, "would_refuse", notes.would_refuse.get())?;
        if notes.would_wait.get().is_some() {
            out.write_str(",\"would_wait\":true")?;
        }
        json(out, "route", notes.route.get())?;
        json(out, "upstream", notes.upstream.get())?;
        json(out, "endpoint", notes.endpoint.get())?;
        if let Some(attempts) = several(notes) {
            write!(out, ",\"attempts\":{attempts},\"tried\":[")?;
            for (number, endpoint) in notes.endpoint.iter().enumerate() {
                write!(out, "{}\"{}\"", if number > 0 { "," } else { "" }, Escaped(endpoint))?;
            }
            out.push(']');
        }
        for (key, elapsed) in self.clocks() {
            if let Some(elapsed) = elapsed {
                write!(out, ",\"{key}_ms\":{}", Millis(elapsed))?;
            }
        }
        write!(out, ",\"bytes_in\":{},\"bytes_out\":{}", self.bytes_in, self.bytes_out)?;
        json(out, "user_agent", self.user_agent)?;
        out.write_str("}\n")
    }

    fn text(&self, out: &mut String) -> fmt::Result {
        let (context, notes) = (self.context, self.context.notes());
        let (host, path) = (Escaped(self.host), Escaped(self.path));
        write!(out, "{} {} {} {host}{path}", Utc(self.time), self.status.as_u16(), self.method)?;
        for (key, elapsed) in self.clocks() {
            if let Some(elapsed) = elapsed {
                write!(out, " {key}={}ms", Millis(elapsed))?;
            }
        }
        text(out, "reason", notes.reason())?;
        text(out, "priority", self.priority())?;
        text(out, "fault", notes.faults.names())?;
        text(out, "would_refuse", notes.would_refuse.get())?;
        text(out, "would_wait", notes.would_wait.get().map(|()| true))?;
        text(out, "route", notes.route.get())?;
        text(out, "upstream", notes.upstream.get())?;
        text(out, "endpoint", notes.endpoint.get())?;
        if let Some(attempts) = several(notes) {
            write!(out, " attempts={attempts} tried=")?;
            for (number, endpoint) in notes.endpoint.iter().enumerate() {
                write!(out, "{}{}", if number > 0 { "," } else { "" }, Escaped(endpoint))?;
            }
        }
        text(out, "client", Some(context.client_name()))?;
        text(out, "listener", Some(&context.connection().listener))?;
        text(out, "protocol", Some(format_args!("{:?}", self.protocol)))?;
        write!(out, " in={} out={} id={}", self.bytes_in, self.bytes_out, context.id())?;
        text(out, "trace", notes.trace.get())?;
        if let Some(agent) = self.user_agent {
            write!(out, " agent=\"{}\"", Escaped(agent))?;
        }
        out.write_str("\n")
    }

    fn priority(&self) -> Option<&'static str> {
        Some(self.context.priority()).filter(|priority| *priority != Priority::default()).map(Priority::name)
    }

    fn clocks(&self) -> [(&'static str, Option<Duration>); 3] {
        let notes = self.context.notes();
        [("queue", notes.queued.get()), ("first_byte", notes.first_byte.get()), ("total", Some(self.total))]
    }
}

/// How many attempts there were; none unless more than one.
fn several(notes: &Notes) -> Option<usize> {
    Some(notes.endpoint.iter().count()).filter(|attempts| *attempts > 1)
}

fn json(out: &mut String, key: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(out, ",\"{key}\":\"{}\"", Escaped(value)))
}

fn text(out: &mut String, key: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(out, " {key}={}", Escaped(value)))
}

/// Milliseconds with three decimals.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

/// As inside a JSON string. Text lines use it as well, so that no client can begin a line of its own.
struct Escaped<T>(T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c.is_control() || matches!(c, '"' | '\\')) {
            let (plain, from) = rest.split_at(at);
            let mut from = from.chars();
            self.0.write_str(plain)?;
            match from.next() {
                Some(c @ ('"' | '\\')) => write!(self.0, "\\{c}")?,
                Some(c) => write!(self.0, "\\u{:04x}", u32::from(c))?,
                None => {}
            }
            rest = from.as_str();
        }
        self.0.write_str(rest)
    }
}

/// RFC 3339 in UTC, with milliseconds.
struct Utc(SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elapsed = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = elapsed.as_secs();
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let millis = elapsed.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// Year, month and day of a day since 1970-01-01, after Howard Hinnant's `civil_from_days`: years begin in March, so
/// that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}
