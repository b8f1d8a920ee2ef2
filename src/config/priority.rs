//! `priority`: a class, or a table that says who may name another.

use serde_json::{Value, json};
use toml::de::DeValue;

use super::Secrets;
use super::decode::{Context, Decode, Node};
use super::effective::written;
use super::file::PriorityTable;
use super::values::words;
use crate::context::Priority;

words!(Priority, "\"background\", \"default\", \"critical\" or \"protected\"", {
    "background" => Self::Background,
    "default" => Self::Default,
    "critical" => Self::Critical,
    "protected" => Self::Protected,
});

/// How much the requests of a route matter.
#[derive(Clone, Debug)]
pub(super) enum PriorityOf {
    /// All the same.
    Class(Priority),
    /// As they say, within what the table allows.
    Table(Box<PriorityTable>),
}

impl Decode for PriorityOf {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        match node.get_ref() {
            DeValue::Table(_) => PriorityTable::decode(node, cx).map(|table| Self::Table(Box::new(table))),
            _ => Priority::decode(node, cx).map(Self::Class),
        }
    }

    fn schema() -> Value {
        json!({ "anyOf": [PriorityTable::schema(), Priority::schema()] })
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        if node.get_ref().is_table() {
            return PriorityTable::effective(node, secrets);
        }
        let usual = DeValue::parse("{}").map(|usual| PriorityTable::effective(&usual, secrets));
        let mut tree = usual.unwrap_or_default();
        if let Some(tree) = tree.as_object_mut() {
            tree.insert("class".into(), written(node, secrets));
        }
        tree
    }

    fn keys(path: &str, keys: &mut Vec<String>) {
        PriorityTable::keys(path, keys);
    }
}
