//! The shapes of values that are not about HTTP: lists, numbers, sizes, durations, words, names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Context, Decode, Node, Scalar, entries, or_source, wrong_type};
use super::error::{Problem, Span, quote};
use super::{Secrets, effective, units};

/// A value that remembers its place, for checks against other parts of the file.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: Span,
}

impl<T: Decode> Decode for Located<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        Some(Self { value: T::decode(node, cx)?, at: node.span() })
    }

    fn schema() -> Value {
        T::schema()
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        T::effective(node, secrets)
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        T::keys(path, keys);
    }
}

/// A value that may be there and wrong, which is something else than absent.
#[derive(Clone, Debug)]
pub(super) struct Tried<T>(pub(super) Option<T>);

impl<T: Decode> Decode for Tried<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        Some(Self(T::decode(node, cx)))
    }

    fn schema() -> Value {
        T::schema()
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        T::effective(node, secrets)
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        T::keys(path, keys);
    }
}

/// A list; a single value stands for a list of one.
#[derive(Clone, Debug)]
pub(super) struct Many<T> {
    pub(super) items: Vec<T>,
    /// Whether none was left out because it is wrong. If one was, nothing is concluded from how many there are.
    pub(super) whole: bool,
}

impl<T: Decode> Decode for Many<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        match node.get_ref() {
            DeValue::Array(nodes) => Some(Self::of(nodes.iter(), cx)),
            _ => Some(Self::of(std::iter::once(node), cx)),
        }
    }

    fn schema() -> Value {
        let item = T::schema();
        json!({ "anyOf": [item, { "type": "array", "items": item }] })
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        match node.get_ref() {
            DeValue::Array(nodes) => nodes.iter().map(|node| T::effective(node, secrets)).collect(),
            _ => Value::Array(vec![T::effective(node, secrets)]),
        }
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        T::keys(path, keys);
    }
}

impl<T: Decode> Many<T> {
    fn of<'a>(nodes: impl ExactSizeIterator<Item = Node<'a>>, cx: &mut Context<'_>) -> Self {
        let count = nodes.len();
        let items: Vec<T> = nodes.filter_map(|node| T::decode(node, cx)).collect();
        Self { whole: items.len() == count, items }
    }
}

/// `[[NAME]]`
#[derive(Clone, Debug)]
pub(super) struct Tables<T>(pub(super) Many<T>);

impl<T: Decode> Decode for Tables<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let Some(nodes) = node.get_ref().as_array() else {
            let problem = wrong_type("an array of tables", node.get_ref());
            cx.found.error(&node.span(), problem.hint("write the name between double brackets, as `[[route]]`"));
            return Some(Self(Many { items: Vec::new(), whole: false }));
        };
        Some(Self(Many::of(nodes.iter(), cx)))
    }

    fn schema() -> Value {
        json!({ "type": "array", "items": T::schema() })
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        Many::<T>::effective(node, secrets)
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        T::keys(path, keys);
    }
}

/// `[table.NAME]`, in the order of the file. A name whose table is wrong stays known, with nothing behind it.
#[derive(Clone, Debug)]
pub(super) struct Named<T> {
    pub(super) items: Vec<(Located<Name>, Option<T>)>,
    /// Whether every name could be read.
    pub(super) whole: bool,
}

impl<T: Decode> Decode for Named<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let Some(pairs) = entries(node) else {
            let problem = wrong_type("named tables", node.get_ref());
            cx.found.error(&node.span(), problem.hint("write `[upstream.NAME]`"));
            return Some(Self { items: Vec::new(), whole: false });
        };
        let mut named = Self { items: Vec::with_capacity(pairs.len()), whole: true };
        for (key, value) in pairs {
            match Name::parse(key.get_ref()) {
                Ok(name) => named.items.push((Located { value: name, at: key.span() }, T::decode(value, cx))),
                Err(problem) => {
                    cx.found.error(&key.span(), problem);
                    named.whole = false;
                }
            }
        }
        Some(named)
    }

    fn schema() -> Value {
        json!({ "type": "object", "additionalProperties": T::schema() })
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        let pairs = entries(node).unwrap_or_default().into_iter();
        Value::Object(pairs.map(|(key, value)| (key.get_ref().to_string(), T::effective(value, secrets))).collect())
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        let path = format!("{path}.NAME");
        T::keys(&path, keys);
        keys.push(path);
    }
}

/// A whole number within bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<const MIN: u32, const MAX: u32>(pub(super) u32);

impl<const MIN: u32, const MAX: u32> Decode for Number<MIN, MAX> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let what = format!("a number from {MIN} to {MAX}");
        match number(node.get_ref()) {
            Some(number) if (u64::from(MIN)..=u64::from(MAX)).contains(&number) => {
                return u32::try_from(number).ok().map(Self);
            }
            Some(_) => cx.found.error(&node.span(), format!("expected {what}")),
            None => cx.found.error(&node.span(), wrong_type(&what, node.get_ref())),
        }
        None
    }

    fn schema() -> Value {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// `true` or `false`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag(pub(super) bool);

impl Decode for Flag {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        if let DeValue::Boolean(flag) = node.get_ref() {
            return Some(Self(*flag));
        }
        cx.found.error(&node.span(), wrong_type("`true` or `false`", node.get_ref()));
        None
    }

    fn schema() -> Value {
        json!({ "type": "boolean" })
    }
}

/// Bytes, within bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size<const MIN: u64, const MAX: u64>(pub(super) usize);

impl<const MIN: u64, const MAX: u64> Decode for Size<MIN, MAX> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let bytes = if let Some(bytes) = number(node.get_ref()) {
            bytes
        } else {
            let text = cx.text(node, Bytes::WHAT, |_| None)?;
            cx.parse::<Bytes>(&text)?.0
        };
        if (MIN..=MAX).contains(&bytes) {
            return usize::try_from(bytes).ok().map(Self);
        }
        let (min, max) = (units::show_size(MIN), units::show_size(MAX));
        cx.found.error(&node.span(), format!("expected a size from {min} to {max}"));
        None
    }

    fn schema() -> Value {
        json!({ "anyOf": [
            { "type": "string", "pattern": "^[0-9]+ *(B|[KMG]i?B)?$" },
            { "type": "integer", "minimum": MIN, "maximum": MAX },
            { "$ref": "#/$defs/source" },
        ] })
    }
}

/// Any number of bytes.
struct Bytes(u64);

impl Scalar for Bytes {
    const WHAT: &'static str = "a size such as \"64KiB\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = |why| Problem::new(format!("{} is no size: {why}", quote(text)));
        units::size(text).map(Self).map_err(problem)
    }
}

/// An integer of the file. One that is negative or too long is beyond all bounds, and so is the largest number.
fn number(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    Some(u64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(u64::MAX))
}

/// A duration that may be zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait(pub(super) Duration);

/// A duration that is not zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) Duration);

impl Scalar for Wait {
    const WHAT: &'static str = "a duration such as \"250ms\" or \"1m30s\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = |why| Problem::new(format!("{} is no duration: {why}", quote(text)));
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        units::duration(text).map(Self).map_err(|why| problem(why).or_hint(|| digits.then(|| write_a_unit(text))))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", "minLength": 2 })
    }

    fn instead_of(found: &DeValue<'_>) -> Option<String> {
        found.as_integer().map(|integer| write_a_unit(integer.as_str()))
    }
}

fn write_a_unit(digits: &str) -> String {
    format!("write a unit: `\"{digits}s\"` or `\"{digits}ms\"`")
}

impl Scalar for Time {
    const WHAT: &'static str = Wait::WHAT;

    fn parse(text: &str) -> Result<Self, Problem> {
        match Wait::parse(text)? {
            Wait(Duration::ZERO) => Err(Problem::new("this duration cannot be zero")),
            Wait(duration) => Ok(Self(duration)),
        }
    }

    fn string() -> Value {
        Wait::string()
    }

    fn instead_of(found: &DeValue<'_>) -> Option<String> {
        Wait::instead_of(found)
    }
}

/// A duration, or `"off"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct OrOff(pub(super) Option<Duration>);

impl Scalar for OrOff {
    const WHAT: &'static str = "\"off\" or a duration such as \"60s\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "off" {
            return Ok(Self(None));
        }
        let hint = || text.bytes().all(|byte| byte == b'0').then(|| "write \"off\" to switch the clock off".into());
        Time::parse(text).map(|time| Self(Some(time.0))).map_err(|problem| problem.or_hint(hint))
    }

    fn string() -> Value {
        json!({ "anyOf": [{ "const": "off" }, Wait::string()] })
    }

    fn instead_of(found: &DeValue<'_>) -> Option<String> {
        Wait::instead_of(found)
    }
}

/// A value, or `"off"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Off<T>(pub(super) Option<T>);

impl<T: Decode> Decode for Off<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        match node.get_ref() {
            DeValue::String(text) if text == "off" => Some(Self(None)),
            _ => or_word(node, cx, "off").map(|value| Self(Some(value))),
        }
    }

    fn schema() -> Value {
        json!({ "anyOf": [T::schema(), { "const": "off" }] })
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        match node.get_ref() {
            DeValue::String(text) if text == "off" => effective::written(node, secrets),
            _ => T::effective(node, secrets),
        }
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        T::keys(path, keys);
    }
}

/// A value in whose place a word may stand, which is told to who wrote neither.
fn or_word<T: Decode>(node: Node<'_>, cx: &mut Context<'_>, word: &str) -> Option<T> {
    let value = T::decode(node, cx);
    if value.is_none() {
        cx.found.hint_last(|| format!("or write {word:?}"));
    }
    value
}

/// A number, or `"auto"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct OrAuto<T>(pub(super) Option<T>);

impl<T: Decode> Decode for OrAuto<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        match node.get_ref() {
            DeValue::String(text) if text == "auto" => Some(Self(None)),
            _ => or_word(node, cx, "auto").map(|value| Self(Some(value))),
        }
    }

    fn schema() -> Value {
        json!({ "anyOf": [{ "const": "auto" }, T::schema()] })
    }
}

/// Any text.
#[derive(Clone, Debug)]
pub(super) struct Free(pub(super) Arc<str>);

impl Scalar for Free {
    const WHAT: &'static str = "a string";

    fn parse(text: &str) -> Result<Self, Problem> {
        Ok(Self(text.into()))
    }
}

/// What something is called in logs and metrics.
#[derive(Clone, Debug)]
pub(super) struct Name(pub(super) Arc<str>);

impl Scalar for Name {
    const WHAT: &'static str = "a name of letters, digits, `-`, `_` and `.`";

    fn parse(text: &str) -> Result<Self, Problem> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !text.is_empty() && text.len() <= 64 && text.chars().all(fits) {
            return Ok(Self(text.into()));
        }
        Err(Problem::new(format!("{} is no name", quote(text))).hint("letters, digits, `-`, `_` and `.`, 64 at most"))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" })
    }
}

/// A file, relative to the folder of the configuration.
#[derive(Clone, Debug)]
pub(super) struct File(pub(super) PathBuf);

impl Decode for File {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let text = cx.text(node, "the path of a file", |_| None)?;
        if text.value.is_empty() || text.value.contains('\0') {
            cx.found.error(&text.at, "the path is empty or has a NUL in it");
            return None;
        }
        let path = cx.base_dir.join(&text.value);
        cx.files.push(path.clone());
        if cx.looks
            && let Err(error) = std::fs::metadata(&path)
        {
            let name = quote(text.from.as_deref().unwrap_or(&text.value));
            cx.found.error(&text.at, format!("cannot read {name}: {error}"));
        }
        Some(Self(path))
    }

    fn schema() -> Value {
        or_source(&json!({ "type": "string", "minLength": 1 }))
    }
}

/// Declares the words that stand for the variants of an enum.
macro_rules! words {
    ($type:ty, $what:literal, { $($word:literal => $value:expr),* $(,)? }) => {
        impl $crate::config::decode::Scalar for $type {
            const WHAT: &'static str = $what;

            fn parse(text: &str) -> Result<Self, $crate::config::error::Problem> {
                match text {
                    $($word => Ok($value),)*
                    _ => Err($crate::config::values::not_a_word(text, $what, &[$($word),*])),
                }
            }

            fn string() -> serde_json::Value {
                serde_json::json!({ "enum": [$($word),*] })
            }
        }
    };
}
pub(super) use words;

/// The problem of a word that is none of the known ones.
pub(super) fn not_a_word(text: &str, what: &str, words: &[&str]) -> Problem {
    let problem = Problem::new(format!("expected {what}, found {}", quote(text)));
    problem.did_you_mean(text, words.iter().copied())
}
