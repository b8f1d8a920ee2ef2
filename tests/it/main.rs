//! The promises of headworks, kept by tests that drive the real program over real sockets.
//!
//! One file per topic; `support` holds the proxy under test, the scripted upstream and the clients. Every test waits
//! for conditions and bounds its traffic; none depends on another, on the network or on a fixed port.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails loudly, where it stands"
)]
#![allow(clippy::disallowed_methods, reason = "these tasks belong to a test, whose runtime ends them")]
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    clippy::large_futures,
    reason = "a story is told in one piece, and its numbers are small"
)]

mod admin;
mod admission;
mod balance;
mod breaker;
mod cli;
mod connection_life;
mod connections;
mod corpus;
mod deadlines;
mod docs;
mod doors;
mod drain;
mod dry_run;
mod duties;
mod expectations;
mod faults;
mod floods;
mod floods_beside;
mod floors;
mod forwarding;
mod grpc;
mod health;
mod isolation;
mod memory;
mod metrics;
mod open;
mod overload;
mod published;
mod queue;
mod rate_limits;
mod reload;
mod retry;
mod scenarios;
mod sdk;
mod secrets;
mod self_test;
mod serving;
mod shared_limits;
mod shedding;
mod stall;
mod streaming;
mod strict;
mod support;
mod takeover;
mod timeouts;
mod tls_front;
mod tls_upstream;
mod uploads;
mod vanished;
mod websocket;
mod websocket_h2;
mod window;
