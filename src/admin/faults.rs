//! Faults that an operator orders, and those that are in force.

use http::{Request, StatusCode};

use super::operator::{Denied, Operator};
use super::reply::Reply;
use super::verbs::decoded;
use crate::config::read_fault;

/// Orders what the query says, for the time that it says.
pub(super) fn order<B>(operator: &dyn Operator, route: &str, request: &Request<B>) -> Result<Reply, Denied> {
    let query = request.uri().query().unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs: Vec<_> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    let pairs: Vec<(&str, String)> = pairs.into_iter().map(|(key, value)| (key, decoded(value))).collect();
    let read = read_fault(pairs.iter().map(|(key, value)| (*key, value.as_str())));
    operator.fault(route, Some(read.map_err(|why| Denied::new(StatusCode::BAD_REQUEST, why))?))
}
