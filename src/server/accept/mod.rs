//! From the listening sockets to a connection: which are open, who may come in, how many.
//!
//! | file | does |
//! |---|---|
//! | `bind.rs` | opens listening sockets, TCP or unix |
//! | `inherited.rs` | sockets of systemd, or of the program before this one |
//! | `listeners.rs` | opens and closes listeners as the configuration wants them |
//! | `listener.rs` | accepts within the bound on connections |
//! | `places.rs` | the cap on connections, which may change |
//! | `shortage.rs` | what is done when nothing can be accepted |
//! | `arrivals.rs` | who a client is, and whether it may come in |
//! | `proxy_protocol.rs` | what a balancer says of its client, parsed |
//! | `clients.rs` | how many connections each client has |

mod arrivals;
mod bind;
mod clients;
mod inherited;
mod listener;
mod listeners;
mod places;
pub mod proxy_protocol;
mod shortage;

pub(crate) use bind::Listening;
pub use inherited::Inherited;
pub use listener::Server;
pub use listeners::{BindError, Listeners, Prepared};
