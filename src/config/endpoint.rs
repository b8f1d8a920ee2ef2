//! `endpoints`: each an address, or a table with its address, its weight and its zone.

use serde_json::{Value, json};
use toml::de::DeValue;

use super::Secrets;
use super::decode::{Context, Decode, Node, entries};
use super::effective;
use super::error::Span;
use super::file;
use super::suggest::nearest;
use super::values::{Located, Name, words};
use crate::control::choice::Policy;
use crate::upstream::EndpointSettings;

words!(Policy, "\"least_loaded\", \"round_robin\", \"weighted\" or \"hash\"", {
    "least_loaded" => Self::LeastLoaded,
    "round_robin" => Self::RoundRobin,
    "weighted" => Self::Weighted,
    "hash" => Self::Hash,
});

/// An endpoint in either form.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) endpoint: EndpointSettings,
    /// Where its weight is written, if one is that makes a difference.
    pub(super) weighed_at: Option<Span>,
}

impl Decode for Listed {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        if !is_long(node) {
            return Some(Self { endpoint: EndpointSettings::decode(node, cx)?, weighed_at: None });
        }
        let file::Endpoint { url, weight: Located { value: weight, at }, zone, .. } = file::Endpoint::decode(node, cx)?;
        let endpoint = EndpointSettings { weight: weight.0, zone: zone.map(|Name(zone)| zone), ..url? };
        Some(Self { endpoint, weighed_at: (weight.0 != 1).then_some(at) })
    }

    fn schema() -> Value {
        json!({ "anyOf": [file::Endpoint::schema(), EndpointSettings::schema()] })
    }

    /// Always in the long form.
    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        if is_long(node) {
            return file::Endpoint::effective(node, secrets);
        }
        let mut usual = DeValue::parse("{}").map_or(Value::Null, |usual| file::Endpoint::effective(&usual, secrets));
        if let Some(usual) = usual.as_object_mut() {
            usual.insert("url".into(), effective::written(node, secrets));
        }
        usual
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        file::Endpoint::keys(path, keys);
    }
}

/// A table with one key may also stand for the address, as `{ env = "NAME" }`, or be meant to.
fn is_long(node: Node<'_>) -> bool {
    let words = ["env", "file", "url", "weight", "zone"];
    match entries(node).as_deref() {
        None | Some([]) => false,
        Some([(key, _)]) => matches!(nearest(key.get_ref(), words), Some("url" | "weight" | "zone")),
        Some(_) => true,
    }
}
