//! The front door: from an accepted socket to a request in the hands of a route.
//!
//! | file | does |
//! |---|---|
//! | `bind.rs` | opens listening sockets, TCP or unix |
//! | `listener.rs` | accepts within the bound on connections |
//! | `arrivals.rs` | who a client is, and whether it may come in |
//! | `proxy_protocol.rs` | what a balancer says of its client, parsed |
//! | `socket.rs` | a client's socket, TCP or unix, and its options |
//! | `inherited.rs` | sockets of systemd, or of the program before this one |
//! | `listeners.rs` | opens and closes listeners as the configuration wants them |
//! | `clients.rs` | how many connections each client has |
//! | `shortage.rs` | what is done when nothing can be accepted |
//! | `places.rs` | the cap on connections, which may change |
//! | `tls.rs` | certificates by SNI, ALPN, whose certificates clients show |
//! | `handshake.rs` | the TLS handshake, and how it fails |
//! | `connection.rs` | finds the protocol, and sets hyper up for it |
//! | `drive.rs` | drives hyper, watches for the client's end, says goodbye |
//! | `frames.rs` | what HTTP/2 frames tell before h2 reads them: floods, and work that is thrown away |
//! | `endings.rs` | how connections end, counted |
//! | `deadlines.rs` | when a connection has taken too long |
//! | `memory.rs` | how much memory there is |
//! | `io.rs` | the socket that cuts a stalled client |
//! | [`http1`] | reads HTTP/1.1 strictly, before hyper does |
//! | `stream_task.rs` | h2 streams that are cut one by one |
//! | `drain.rs` | the end: grace, and a word for each that is cut |
//! | `shutdown.rs` | when connections must end |
//! | `plain.rs` | which requests can be read in one way only, whichever version brought them |
//! | `entry.rs` | makes a request's context, finds its route |
//! | `switch.rs` | starts the tunnel after 101 |
//! | `writer.rs` | h2 streams that become tunnels |

mod arrivals;
mod bind;
mod clients;
mod connection;
mod deadlines;
mod drain;
mod drive;
mod endings;
mod entry;
mod frames;
mod handshake;
pub mod http1;
mod inherited;
mod io;
mod listener;
mod listeners;
mod memory;
mod places;
pub mod plain;
pub mod proxy_protocol;
mod shortage;
mod shutdown;
mod socket;
mod stream_task;
mod switch;
mod tls;
mod writer;

pub(crate) use bind::Listening;
pub use drain::{Cut, Grace};
pub use entry::Entry;
pub use inherited::Inherited;
pub use listener::Server;
pub use listeners::{BindError, Listeners, Prepared};
pub use shutdown::Shutdown;
pub(crate) use socket::Socket;
pub use tls::{certificate_warnings, doors};
