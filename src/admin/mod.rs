//! What the operator sees and does: the pages and verbs of the admin port.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Admin`]: from a request to an answer |
//! | `verbs.rs` | **the table of all pages and verbs** |
//! | `operator.rs` | [`Operator`]: what stands behind them; the app is one |
//! | `access.rs` | who may ask: tokens, and browsers that are led here |
//! | `reply.rs` | text for people and JSON for programs |
//! | `streams.rs` `connections.rs` | what is open, and how to end it |
//! | `faults.rs` | what is done wrong on purpose |
//! | `upstreams.rs` | credits, queue and connections of each endpoint |
//! | `limits.rs` | rate limits, raised for a while; who asks most |
//! | `select.rs` | how many rows are shown, and which |
//! | `process.rs` | memory, descriptors and processor time, read when asked for |
//! | `serve.rs` | the port |

mod access;
mod connections;
mod faults;
mod limits;
mod operator;
mod process;
mod reply;
mod select;
mod serve;
mod streams;
mod upstreams;
mod verbs;

use std::fmt;
use std::sync::Arc;

use http::header::{ACCEPT, ALLOW, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, StatusCode};

pub use operator::{Denied, Later, Operator, is_endpoint};
pub use reply::{Reply, Rows};
pub use serve::{Bound, bind};

use crate::body::Body;
use crate::config;
use crate::context::{Connections, Response};
use crate::metrics::Registry;
use access::Access;
use reply::{Form, METRICS, TEXT, response, text_response};
use select::Selection;
use verbs::{Unknown, Verb};

/// The pages and verbs.
pub struct Admin {
    registry: Registry,
    operator: Arc<dyn Operator>,
    connections: Arc<Connections>,
    access: Access,
}

impl Admin {
    /// Shows what `registry` counts and what `connections` are open, and does what `operator` can.
    #[must_use]
    pub fn new(
        settings: &config::Admin,
        registry: Registry,
        operator: Arc<dyn Operator>,
        connections: Arc<Connections>,
    ) -> Self {
        Self { registry, operator, connections, access: Access::new(settings) }
    }

    /// Answers a request. A body is refused unread: no verb takes one.
    pub async fn handle<B: http_body::Body>(&self, request: &Request<B>) -> Response {
        let mut answer = self.answer(request).await;
        if request.method() == Method::HEAD {
            *answer.body_mut() = Body::empty();
        }
        answer
    }

    async fn answer<B: http_body::Body>(&self, request: &Request<B>) -> Response {
        let form = form(request);
        let (verb, words) = match verbs::find(request.method(), request.uri().path()) {
            Ok(found) => found,
            Err(Unknown::Path) => return response(Err(Denied::not_found("no such page; / lists them")), form),
            Err(Unknown::Method(allowed)) => return refuse_method(&allowed, form),
        };
        let is_write = !matches!(*request.method(), Method::GET | Method::HEAD);
        let is_open = verb.page().is_some_and(|page| self.access.is_open(page));
        if let Err(denied) = if is_open { Ok(()) } else { self.access.check(request, is_write) } {
            return refuse(denied, form);
        }
        if !request.body().is_end_stream() {
            return response(Err(Denied::new(StatusCode::PAYLOAD_TOO_LARGE, "this takes no body")), form);
        }
        match verb {
            Verb::Metrics => text_response(StatusCode::OK, METRICS, self.metrics()),
            Verb::Ready if !self.operator.is_ready() => {
                text_response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n".into())
            }
            Verb::Connections => response(connections::list(&self.connections, &Selection::of(request)), form),
            Verb::Streams => response(streams::list(&self.connections, &Selection::of(request)), form),
            Verb::Raise => response(limits::raise(&self.operator.limiters(), &words, request), form),
            Verb::Fault => {
                let route = words.first().map_or("", String::as_str);
                response(faults::order(&*self.operator, route, request), form)
            }
            _ => response(self.reply(verb, &words).await, form),
        }
    }

    async fn reply(&self, verb: Verb, words: &[String]) -> Result<Reply, Denied> {
        let operator = &self.operator;
        let word = words.first().map_or("", String::as_str);
        let drain = |out| match words {
            [upstream, endpoint] => operator.drain(upstream, endpoint, out),
            _ => Err(Denied::not_found("no such page; / lists them")),
        };
        match verb {
            Verb::Index => Ok(Reply::Text(verbs::index())),
            Verb::Metrics => Ok(Reply::Text(self.metrics())),
            Verb::Live | Verb::Ready => Ok(Reply::Text("ok\n".into())),
            Verb::Stack => Ok(Reply::Text(operator.stack())),
            Verb::Config => config_page(operator.config()),
            Verb::Upstreams => Ok(upstreams::list(&operator.upstreams())),
            Verb::EndConnection => connections::end(&self.connections, word),
            Verb::CancelStream => streams::cancel(&self.connections, word),
            Verb::Connections | Verb::Streams | Verb::Fault | Verb::Raise => {
                Err(Denied::not_found("these are asked for with a query"))
            }
            Verb::Limits => Ok(limits::list(&operator.limiters())),
            Verb::Lower => limits::lower(&operator.limiters(), words),
            Verb::Talkers => Ok(limits::talkers(&operator.limiters())),
            Verb::Faults => operator.faults(),
            Verb::EndFault => operator.fault(word, None),
            Verb::LastReload => operator.last_reload(),
            Verb::Reload => operator.reload().await,
            Verb::Drains => operator.drains(),
            Verb::Drain => drain(true),
            Verb::Undrain => drain(false),
        }
    }

    fn metrics(&self) -> String {
        let mut page = self.registry.encode();
        upstreams::encode(&self.operator.upstreams(), &mut page);
        limits::encode(&self.operator.limiters(), &mut page);
        process::encode(&mut page, self.connections.memory());
        page
    }
}

/// As TOML for people. It has no null: what is absent is left out.
fn config_page(mut json: serde_json::Value) -> Result<Reply, Denied> {
    let whole = json.clone();
    without_nulls(&mut json);
    match toml::to_string_pretty(&json) {
        Ok(text) => Ok(Reply::Both { text, json: whole }),
        Err(error) => Err(Denied::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

fn without_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// Text, unless JSON is asked for: people at a terminal send `*/*`, programs say what they want.
fn form<B>(request: &Request<B>) -> Form {
    let wants = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("application/json"));
    match parameter(request, "format") {
        Some("json") => Form::Json,
        Some("text") => Form::Text,
        _ if request.headers().get_all(ACCEPT).iter().any(wants) => Form::Json,
        _ => Form::Text,
    }
}

/// A parameter of the query, as it is written.
fn parameter<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a str> {
    let pairs = request.uri().query()?.split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn refuse_method(allowed: &str, form: Form) -> Response {
    let why = format!("only {allowed} here");
    let mut answer = response(Err(Denied::new(StatusCode::METHOD_NOT_ALLOWED, why)), form);
    if let Ok(allowed) = HeaderValue::try_from(allowed) {
        answer.headers_mut().insert(ALLOW, allowed);
    }
    answer
}

fn refuse(denied: Denied, form: Form) -> Response {
    let is_unauthorized = denied.status == StatusCode::UNAUTHORIZED;
    let mut answer = response(Err(denied), form);
    if is_unauthorized {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
