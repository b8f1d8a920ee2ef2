//! From the parsed TOML to values, without stopping at an error.
//!
//! A decoder that finds something wrong says so to the [`Context`] and returns `None`; whoever called it goes on with
//! what is left, so that one run finds everything. A configuration is only used when nothing was said.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::Secrets;
use super::effective;
use super::error::{Diagnostics, Problem, Span, quote};

/// A value and its place in the file.
pub(super) type Node<'a> = &'a Spanned<DeValue<'a>>;

/// Bytes read from a `{ file = ... }` at most.
const LONGEST_FILE: u64 = 1 << 20;

/// What the text of a configuration may refer to, and what was found so far.
pub(super) struct Context<'a> {
    /// What is wrong.
    pub(super) found: Diagnostics,
    /// Values that came from the environment or from files.
    pub(super) secrets: Vec<String>,
    /// The files that the text names.
    pub(super) files: Vec<PathBuf>,
    /// Where a text stands that must not be repeated in a report, although it is written plainly.
    pub(super) private: Vec<Span>,
    /// Whether the field that is being read is likely to carry one.
    pub(super) is_private: bool,
    /// Relative paths start here.
    pub(super) base_dir: &'a Path,
    /// Whether a file that is named must be there.
    pub(super) looks: bool,
    env: &'a dyn Fn(&str) -> Option<String>,
}

/// What can be read from a value of the file.
pub(super) trait Decode: Sized {
    /// The value; none when it is wrong, which has then been said.
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self>;

    /// What a JSON Schema says about the value.
    fn schema() -> Value;

    /// The value in force, for people to see: see [`effective`].
    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        effective::written(node, secrets)
    }

    /// The keys below, each with its full path.
    fn keys(_path: &str, _keys: &mut Vec<String>) {}
}

/// What is written as a string.
pub(super) trait Scalar: Sized {
    /// Whether it is never shown.
    const IS_SECRET: bool = false;

    /// With its article, for "expected ...".
    const WHAT: &'static str;

    /// The value. The problem may quote the text: it is replaced by a discreet one when the text is a secret.
    fn parse(text: &str) -> Result<Self, Problem>;

    /// What a JSON Schema says about the string.
    fn string() -> Value {
        json!({ "type": "string" })
    }

    /// What to do when something else than a string stands there.
    fn instead_of(_found: &DeValue<'_>) -> Option<String> {
        None
    }
}

impl<T: Scalar> Decode for T {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        if T::IS_SECRET && node.get_ref().is_str() {
            cx.private.push(node.span());
        }
        let text = cx.text(node, T::WHAT, T::instead_of)?;
        cx.parse(&text)
    }

    fn schema() -> Value {
        or_source(&T::string())
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        if T::IS_SECRET { effective::hidden(node, secrets) } else { effective::written(node, secrets) }
    }
}

/// A string of the file, or what it stands for.
pub(super) struct Text {
    /// The text itself.
    pub(super) value: String,
    /// Where it came from when it is a secret, as `env:NAME`.
    pub(super) from: Option<String>,
    /// Where it, or what stands for it, is written.
    pub(super) at: Span,
}

impl<'a> Context<'a> {
    /// Nothing found yet.
    pub(super) fn new(base_dir: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            found: Diagnostics::default(),
            secrets: Vec::new(),
            private: Vec::new(),
            is_private: false,
            files: Vec::new(),
            looks: false,
            base_dir,
            env,
        }
    }

    /// The string that is written here, or that `{ env = ... }` or `{ file = ... }` stand for.
    pub(super) fn text(
        &mut self,
        node: Node<'_>,
        what: &str,
        instead_of: impl FnOnce(&DeValue<'_>) -> Option<String>,
    ) -> Option<Text> {
        match node.get_ref() {
            DeValue::String(value) => Some(Text { value: value.to_string(), from: None, at: node.span() }),
            DeValue::Table(_) => self.referred(node, what),
            other => {
                self.found.error(&node.span(), wrong_type(what, other).or_hint(|| instead_of(other)));
                None
            }
        }
    }

    /// Parses a text that has been read.
    pub(super) fn parse<T: Scalar>(&mut self, text: &Text) -> Option<T> {
        match (T::parse(&text.value), &text.from) {
            (Ok(value), _) => return Some(value),
            (Err(problem), None) => self.found.error(&text.at, problem),
            (Err(_), Some(from)) => self.found.error(&text.at, format!("the value of {from} is not {}", T::WHAT)),
        }
        None
    }

    /// A text for a message: between backticks, or hidden when it is a secret.
    pub(super) fn show(&self, text: &str) -> String {
        if self.secrets.iter().any(|secret| secret.eq_ignore_ascii_case(text)) {
            "(hidden)".into()
        } else {
            quote(text)
        }
    }

    fn referred(&mut self, node: Node<'_>, what: &str) -> Option<Text> {
        let entries = entries(node)?;
        let [(key, value)] = entries.as_slice() else {
            let problem = Problem::new(format!("expected {what}, found a table"));
            self.found.error(
                &node.span(),
                problem.hint("only `{ env = \"NAME\" }` and `{ file = \"PATH\" }` stand for a string"),
            );
            return None;
        };
        let name = key.get_ref().as_ref();
        if name != "env" && name != "file" {
            let problem = Problem::new(format!("expected {what}, found a table with the key {}", quote(name)));
            self.found.error(&key.span(), problem.did_you_mean(name, ["env", "file"]));
            return None;
        }
        let DeValue::String(target) = value.get_ref() else {
            self.found.error(&value.span(), wrong_type("a string", value.get_ref()));
            return None;
        };
        let content = if name == "env" {
            (self.env)(target).ok_or_else(|| format!("the environment variable {} is not set", quote(target)))
        } else {
            let path = self.base_dir.join(&**target);
            self.files.push(path.clone());
            read(&path).map_err(|error| format!("cannot read {}: {error}", quote(target)))
        };
        match content {
            Ok(value) => {
                self.secrets.push(value.clone());
                Some(Text { value, from: Some(format!("{name}:{target}")), at: node.span() })
            }
            Err(message) => {
                self.found.error(&value.span(), message);
                None
            }
        }
    }
}

/// A file's text without the newline that editors and `echo` leave at the end.
fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(LONGEST_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > LONGEST_FILE {
        return Err("it is larger than 1MiB".into());
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The pairs of a table in the order of the file; none when it is no table.
pub(super) fn entries(node: Node<'_>) -> Option<Vec<(&Spanned<DeString<'_>>, Node<'_>)>> {
    let mut entries: Vec<_> = node.get_ref().as_table()?.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    Some(entries)
}

/// "expected a size, found a boolean"
pub(super) fn wrong_type(what: &str, found: &DeValue<'_>) -> Problem {
    let found = match found {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Problem::new(format!("expected {what}, found {found}"))
}

/// The schema of a string, or of what may stand for it.
pub(super) fn or_source(string: &Value) -> Value {
    json!({ "anyOf": [string, { "$ref": "#/$defs/source" }] })
}
