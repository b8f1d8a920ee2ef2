//! headworks: a backpressure-aware HTTP reverse proxy, and the layers it is made of.
//!
//! # The map
//!
//! Imports go down only; a test holds the floors apart.
//!
//! | floor | modules |
//! |---|---|
//! | the program | [`cli`] |
//! | the owner of everything | [`app`] |
//! | doors | [`server`] for clients, [`admin`] for operators |
//! | what serves now | [`snapshot`] |
//! | the order of layers, the choice of a route | **[`stack`]: read it first**, [`router`], [`explain`] |
//! | the file | [`config`] |
//! | parts that do not know each other | [`layers`], [`upstream`], [`stream`], [`store`], [`access_log`] |
//! | pure decisions, numbers, tasks | [`control`], [`metrics`], [`tasks`] |
//! | what all speak of | [`body`], [`context`], [`error`], [`entropy`], [`tls`] |
//!
//! # Life of a request
//!
//! ```text
//! listener -> TLS -> connection -> entry: context, route
//!   route:    record -> trace -> render errors -> priority -> shed -> deadline -> rate limits -> forward -> headers
//!             -> rewrite
//!             -> admission (queue, credit)
//!   attempt:  pool -> first byte -> upstream
//!   body:     head classified (unary | stream | upgrade) -> credit moves to its class -> relay -> client;
//!             the credit comes back when the body ends, fails or is dropped
//! ```
//!
//! # As a library
//!
//! Every layer is a Tower layer over [`context::Request`] and [`context::Response`] and is always ready: what waits,
//! waits inside `call`, where it is bounded in count and time.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod body;
pub mod cli;
pub mod config;
pub mod context;
pub mod control;
pub mod entropy;
pub mod error;
pub mod explain;
pub mod layers;
pub mod live;
pub mod metrics;
pub mod reload;
pub mod router;
pub mod server;
pub mod snapshot;
pub mod stack;
pub mod store;
pub mod stream;
pub mod tasks;
pub mod tls;
pub mod upstream;
