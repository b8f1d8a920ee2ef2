//! What a page says, and the two forms it has: text for people, JSON for programs that ask for it by `Accept` or by
//! `?format=json`.

use std::fmt::Write as _;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use super::operator::Denied;
use crate::body::Body;
use crate::context::Response;

pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
pub(super) const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a page or a verb says.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A text, in one form only.
    Text(String),
    /// Names and values.
    Facts(Vec<(&'static str, Value)>),
    /// Rows of the same shape.
    Rows(Rows),
    /// The same in two forms of its own.
    Both {
        /// For people.
        text: String,
        /// For programs.
        json: Value,
    },
}

/// Rows of the same shape, and how many there are that are not shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// What the rows are, as the key of the JSON form.
    pub name: &'static str,
    /// The names of the columns.
    pub columns: &'static [&'static str],
    /// The values, as many in each row as there are columns; null where nothing is known.
    pub cells: Vec<Vec<Value>>,
    /// How many there are, shown or not.
    pub total: usize,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Json,
}

impl Reply {
    fn render(self, form: Form) -> (HeaderValue, String) {
        match (self, form) {
            (Self::Text(text), _) | (Self::Both { text, .. }, Form::Text) => (TEXT, text),
            (Self::Both { json, .. }, Form::Json) => (JSON, format!("{json}\n")),
            (Self::Facts(facts), Form::Text) => (TEXT, lines(&facts)),
            (Self::Facts(facts), Form::Json) => (JSON, format!("{}\n", object(facts.iter().map(|(k, v)| (*k, v))))),
            (Self::Rows(rows), Form::Text) => (TEXT, rows.table()),
            (Self::Rows(rows), Form::Json) => (JSON, rows.json()),
        }
    }
}

/// The answer to one who asked.
pub(super) fn response(reply: Result<Reply, Denied>, form: Form) -> Response {
    let (status, (kind, text)) = match reply {
        Ok(reply) => (StatusCode::OK, reply.render(form)),
        Err(Denied { status, why }) => {
            let reply = match form {
                Form::Text => Reply::Text(format!("{why}\n")),
                Form::Json => Reply::Facts(vec![("error", why.into())]),
            };
            (status, reply.render(form))
        }
    };
    text_response(status, kind, text)
}

pub(super) fn text_response(status: StatusCode, kind: HeaderValue, text: String) -> Response {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Keys in the order given, which a map would not keep.
fn object<'a>(entries: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let entries: Vec<_> = entries.map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{}}}", entries.join(","))
}

fn lines(facts: &[(&'static str, Value)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().fold(String::new(), |mut out, (name, value)| {
        let value = cell(value);
        // A value of several lines, such as a report, begins on its own.
        let _ = if value.contains('\n') {
            writeln!(out, "{name}:\n{}", value.trim_end())
        } else {
            writeln!(out, "{name:width$}  {value}")
        };
        out
    })
}

/// A value as text. What a client wrote may hold control characters, which a terminal would obey.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect(),
        other => other.to_string(),
    }
}

impl Rows {
    fn table(&self) -> String {
        let text = |row: &Vec<Value>| row.iter().map(|value| cell(value).replace('\n', "\u{fffd}")).collect();
        let texts: Vec<Vec<String>> = self.cells.iter().map(text).collect();
        let width = |at: usize, name: &str| {
            let widths = texts.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            widths.max().unwrap_or(0).max(name.chars().count())
        };
        let widths: Vec<_> = self.columns.iter().enumerate().map(|(at, name)| width(at, name)).collect();
        let line = |out: &mut String, cells: &mut dyn Iterator<Item = &str>| {
            let start = out.len();
            for (cell, width) in cells.zip(&widths) {
                let gap = if out.len() == start { "" } else { "  " };
                let _ = write!(out, "{gap}{cell:width$}");
            }
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        };
        let mut out = String::new();
        line(&mut out, &mut self.columns.iter().copied());
        for row in &texts {
            line(&mut out, &mut row.iter().map(String::as_str));
        }
        if self.is_truncated() {
            let _ = writeln!(out, "... {} of {} {}; ?limit= shows more", self.cells.len(), self.total, self.name);
        }
        out
    }

    /// One object a line.
    fn json(&self) -> String {
        let mut out = format!("{{\"{}\":[", self.name);
        for (at, row) in self.cells.iter().enumerate() {
            out.push_str(if at == 0 { "\n" } else { ",\n" });
            out.push_str(&object(self.columns.iter().copied().zip(row)));
        }
        let _ = writeln!(out, "\n],\"total\":{},\"truncated\":{}}}", self.total, self.is_truncated());
        out
    }

    fn is_truncated(&self) -> bool {
        self.cells.len() < self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows() -> Rows {
        let cells =
            vec![vec![json!(7), json!("/a"), Value::Null], vec![json!(12), json!("/b\u{1b}[2J\n"), json!(true)]];
        Rows { name: "streams", columns: &["id", "path", "tunnel"], cells, total: 3 }
    }

    #[test]
    fn a_table_for_people() {
        assert_eq!(
            rows().table(),
            "id  path     tunnel\n7   /a       -\n12  /b\u{fffd}[2J\u{fffd}  true\n... 2 of 3 streams; ?limit= shows more\n"
        );
    }

    #[test]
    fn one_object_a_line_for_programs() {
        let text = rows().json();
        assert_eq!(text.lines().count(), 4);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["streams"][1], json!({ "id": 12, "path": "/b\u{1b}[2J\n", "tunnel": true }));
        assert_eq!((&value["total"], &value["truncated"]), (&json!(3), &json!(true)));
        assert_eq!(Rows { name: "x", ..Rows::default() }.json(), "{\"x\":[\n],\"total\":0,\"truncated\":false}\n");
    }

    #[test]
    fn facts_keep_their_order() {
        let facts = vec![("result", json!("ok")), ("generation", json!(2)), ("report", json!("a\nb\n"))];
        assert_eq!(lines(&facts), "result      ok\ngeneration  2\nreport:\na\nb\n");
        let (_, text) = Reply::Facts(facts).render(Form::Json);
        assert_eq!(text, "{\"result\":\"ok\",\"generation\":2,\"report\":\"a\\nb\\n\"}\n");
    }
}
