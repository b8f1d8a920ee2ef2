//! The tables of the file, each declared once.
//!
//! One line of a [`section!`] is all that a new key needs: it is decoded, checked for, suggested, described in the JSON
//! Schema, and missed by a test until `config.example.toml` shows it.

use serde_json::{Map, Value, json};
use toml::de::DeValue;

use super::decode::{Context, Decode, Node, entries, wrong_type};
use super::error::{Problem, Span, quote};

/// Declares tables: `/// why`, `key: Type, required;` or `optional;` or `default = "as in the file";`.
///
/// A required key is an `Option` in the struct too: when it is missing, that has been said, and the checks go on.
macro_rules! section {
    ($($(#[doc = $doc:literal])* $name:ident $title:literal { $(
        $(#[doc = $line:literal])* $key:ident: $type:ty, $kind:ident $(= $default:tt)?;
    )* })*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub(super) struct $name {
            /// Where the table stands.
            #[allow(dead_code, reason = "not every table is the place of an error")]
            pub(super) at: $crate::config::error::Span,
            $( $(#[doc = $line])* pub(super) $key: section!(@type $kind $type), )*
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: $crate::config::decode::Node<'_>,
                cx: &mut $crate::config::decode::Context<'_>,
            ) -> Option<Self> {
                let table = $crate::config::section::Table::read(node, $title, &[$(stringify!($key)),*], cx)?;
                Some(Self {
                    $( $key: section!(@read $kind table, cx, stringify!($key), $($default)?), )*
                    at: node.span(),
                })
            }

            fn schema() -> serde_json::Value {
                $crate::config::section::object(concat!($($doc),*), [$( (
                    stringify!($key),
                    concat!($($line),*),
                    <$type as $crate::config::decode::Decode>::schema(),
                    section!(@kind $kind $($default)?),
                ) ),*])
            }

            fn effective(node: $crate::config::decode::Node<'_>, secrets: &$crate::config::Secrets) -> serde_json::Value {
                let mut keys = serde_json::Map::new();
                $( $crate::config::effective::key::<$type>(
                    node, stringify!($key), section!(@kind $kind $($default)?), secrets, &mut keys,
                ); )*
                serde_json::Value::Object(keys)
            }

            fn keys(path: &str, keys: &mut Vec<String>) {
                $( $crate::config::section::key::<$type>(path, stringify!($key), keys); )*
            }
        }
    )* };
    (@type default $type:ty) => { $type };
    (@type $kind:ident $type:ty) => { Option<$type> };
    (@read required $table:ident, $cx:ident, $key:expr,) => { $table.required($key, $cx) };
    (@read optional $table:ident, $cx:ident, $key:expr,) => { $table.optional($key, $cx) };
    (@read default $table:ident, $cx:ident, $key:expr, $default:tt) => {
        $table.or_default($key, stringify!($default), $cx)?
    };
    (@kind required) => { $crate::config::section::Kind::Required };
    (@kind optional) => { $crate::config::section::Kind::Optional };
    (@kind default $default:tt) => { $crate::config::section::Kind::Default(stringify!($default)) };
}
pub(super) use section;

/// Whether a key must be there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Required,
    Optional,
    /// The value that stands for an absent one, as TOML and, alike, as JSON.
    Default(&'static str),
}

/// A table of the file whose keys are all known.
pub(super) struct Table<'a> {
    at: Span,
    title: &'static str,
    entries: Vec<(&'a str, Node<'a>)>,
}

impl<'a> Table<'a> {
    /// Opens a table; unknown keys are said and left out.
    pub(super) fn read(
        node: Node<'a>,
        title: &'static str,
        known: &[&'static str],
        cx: &mut Context<'_>,
    ) -> Option<Self> {
        let Some(pairs) = entries(node) else {
            let hint = match node.get_ref() {
                DeValue::Array(_) => format!("{title} is one table: write single brackets"),
                _ => format!("its keys are {}", list(known)),
            };
            cx.found.error(&node.span(), wrong_type(&format!("the table {title}"), node.get_ref()).hint(hint));
            return None;
        };
        let mut entries = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let name = key.get_ref().as_ref();
            if known.iter().any(|known| plain(known) == name) {
                entries.push((name, value));
            } else {
                let problem = Problem::new(format!("unknown key {} in {title}", quote(name)));
                let problem = problem.did_you_mean(name, known.iter().map(|known| plain(known)));
                cx.found.error(&key.span(), problem.or_hint(|| Some(format!("its keys are {}", list(known)))));
            }
        }
        Some(Self { at: node.span(), title, entries })
    }

    fn get(&self, key: &str) -> Option<Node<'a>> {
        self.entries.iter().find(|(name, _)| *name == plain(key)).map(|(_, node)| *node)
    }

    /// A key that may be absent.
    pub(super) fn optional<T: Decode>(&self, key: &str, cx: &mut Context<'_>) -> Option<T> {
        T::decode(self.get(key)?, cx)
    }

    /// A key whose absence is an error.
    pub(super) fn required<T: Decode>(&self, key: &str, cx: &mut Context<'_>) -> Option<T> {
        if let Some(node) = self.get(key) {
            return T::decode(node, cx);
        }
        cx.found.error(&self.at, format!("missing key {} in {}", quote(plain(key)), self.title));
        None
    }

    /// A key with a default, which also stands in for a wrong value so that the checks can go on.
    pub(super) fn or_default<T: Decode>(&self, key: &str, default: &str, cx: &mut Context<'_>) -> Option<T> {
        if let Some(value) = self.optional(key, cx) {
            return Some(value);
        }
        T::decode(&DeValue::parse(default).ok()?, cx)
    }
}

/// Adds a key and those below it.
pub(super) fn key<T: Decode>(path: &str, key: &str, keys: &mut Vec<String>) {
    let dot = if path.is_empty() { "" } else { "." };
    let path = format!("{path}{dot}{}", plain(key));
    T::keys(&path, keys);
    keys.push(path);
}

/// The schema of a table.
pub(super) fn object<const N: usize>(doc: &str, keys: [(&str, &str, Value, Kind); N]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (key, doc, mut schema, kind) in keys {
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("description".into(), doc.trim().into());
            if let Kind::Default(default) = kind {
                schema.insert("default".into(), serde_json::from_str(default).unwrap_or_default());
            }
        }
        if matches!(kind, Kind::Required) {
            required.push(plain(key));
        }
        properties.insert(plain(key).into(), schema);
    }
    json!({
        "type": "object",
        "description": doc.trim(),
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// `match` is a word of the language and is declared as `r#match`.
pub(super) fn plain(key: &str) -> &str {
    key.strip_prefix("r#").unwrap_or(key)
}

fn list(keys: &[&str]) -> String {
    keys.iter().map(|key| quote(plain(key))).collect::<Vec<_>>().join(", ")
}
