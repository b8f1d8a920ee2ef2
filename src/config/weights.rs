//! `queue.weights`: how many shares a key gets.

use serde_json::Value;
use toml::de::DeValue;

use super::Secrets;
use super::decode::{Context, Decode, Node, wrong_type};
use super::values::{Located, Name, Named, Number};

/// Shares.
type Weight = Number<1, 1000>;

/// Keys with their weights.
#[derive(Clone, Debug)]
pub(super) struct Weights(pub(super) Vec<(Located<Name>, Option<Weight>)>);

impl Decode for Weights {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        if !matches!(node.get_ref(), DeValue::Table(_)) {
            let problem = wrong_type("a table of weights", node.get_ref());
            cx.found.error(&node.span(), problem.hint("write `weights = { gold = 4 }`"));
            return None;
        }
        Named::decode(node, cx).map(|named| Self(named.items))
    }

    fn schema() -> Value {
        Named::<Weight>::schema()
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        Named::<Weight>::effective(node, secrets)
    }
}
