//! The front door: from an accepted socket to a request in the hands of a route.
//!
//! | file | does |
//! |---|---|
//! | [`accept`] | opens listeners, and lets clients in |
//! | `connection/` | one client's connection: handshake, protocol, clocks, floods, goodbye |
//! | `tls.rs` | certificates by SNI, ALPN, whose certificates clients show |
//! | [`http1`] | reads HTTP/1.1 strictly, before hyper does |
//! | `plain.rs` | which requests can be read in one way only, whichever version brought them |
//! | `entry.rs` | makes a request's context, finds its route |
//! | `switch.rs` | starts the tunnel after 101 |
//! | `memory.rs` | how much memory there is |
//! | [`overload`] | how late the proxy's own tasks run |
//! | `drain.rs` | the end: grace, and a word for each that is cut |
//! | `shutdown.rs` | when connections must end |

pub mod accept;
mod connection;
mod drain;
mod entry;
pub mod http1;
mod memory;
pub mod overload;
pub mod plain;
mod shutdown;
mod switch;
mod tls;

pub(crate) use accept::Listening;
pub use accept::{BindError, Inherited, Listeners, Prepared, Server};
pub(crate) use connection::socket::Socket;
pub use drain::{Cut, Grace};
pub use entry::Entry;
pub use shutdown::Shutdown;
pub use tls::{certificate_warnings, doors};
