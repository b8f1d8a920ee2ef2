//! What stands behind the proxy: endpoints, their credits, and the connections to them.
//!
//! | file | does |
//! |---|---|
//! | `settings.rs` | what is set for one upstream |
//! | `service.rs` | [`Upstream`]: the endpoints that serve the same thing |
//! | `call.rs` | [`Calls`]: a credit, and the attempt that it is good for |
//! | `admission.rs` | [`Admission`]: credits, and the one queue in front of all endpoints |
//! | `books.rs` | what the lock of admission guards: credits, and who stands behind them |
//! | `news.rs` | what breakers do, told to operators |
//! | `dry_run.rs` | what a dry run of admission lets through, told to operators |
//! | `retry/` | [`Retry`]: what is tried again, after which pause, and what is kept for it |
//! | `retries.rs` | whether one more attempt may be made now |
//! | `credit.rs` | [`Credit`]: leave to use one endpoint once, and what its use tells |
//! | `agent.rs` | asks agents for the credits of endpoints |
//! | `published.rs` | what endpoints report of their load, and what is said of it to those in front |
//! | `endpoint.rs` | [`Endpoint`]: its connections, and what they depend on |
//! | `client.rs` | [`Client`]: sends one request to one endpoint |
//! | `target.rs` | the form a request has on each version of HTTP |
//! | `first_byte.rs` | the clock of an answer's beginning |
//! | `answer.rs` | which answers can be read in one way only |
//! | `hold.rs` | holds a body back until the upstream asks for it |
//! | `failure.rs` | which [`Reason`](crate::error::Reason) a failed exchange has |
//! | `health.rs` | asks endpoints whether they are well |
//! | `pool/` | the endpoint's connections: idle, shared, waited for |
//! | `handshake.rs` | starts HTTP on a stream, with bounded buffers |
//! | `connect.rs`, `tls.rs`, `io.rs` | open the stream |

mod admission;
mod agent;
mod answer;
mod books;
mod call;
mod client;
mod connect;
mod credit;
mod dry_run;
mod endpoint;
mod failure;
mod first_byte;
mod handshake;
mod health;
mod hold;
mod io;
mod news;
mod pool;
mod published;
mod retries;
mod retry;
mod service;
mod settings;
mod target;
#[cfg(test)]
mod testing;
mod tls;

pub use admission::{Admission, EndpointState};
pub use call::Calls;
pub use client::{Client, UpgradeLease};
pub use credit::Credit;
pub use endpoint::Endpoint;
pub use pool::PoolStats;
pub use retry::{Hedge, On, Retry};
pub use service::{Change, Upstream};
pub use settings::{
    Address, Agent, Balance, CheckKind, EndpointSettings, HealthCheck, HostPolicy, Limit, Poll, Pool, Protocol,
    Published, Queue, Scheme, Settings, Timeouts, Tls,
};
pub use tls::ClientError;
