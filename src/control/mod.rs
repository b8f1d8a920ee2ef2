//! Decisions, and nothing else: no io, no task, no clock (`now` is an argument), so that every rule can be tested by
//! plain calls.
//!
//! | file | decides |
//! |---|---|
//! | [`allowance`] | how long a client says that it waits, and what of it is left for the service |
//! | [`ask`] | nothing: it is what a request wants of admission |
//! | [`byte_bucket`] | whether a key that is limited in bytes is in credit, and when it will be |
//! | [`cancel_budget`] | how much begun work a client may throw away |
//! | [`frame_budget`] | how many frames a client may send that carry nothing |
//! | [`credits`] | who gets a credit of which endpoint now, who waits, who is refused |
//! | [`choice`] | which endpoint that has a free credit gets the next request |
//! | [`queue`] | who waits, who is next, who is sent away and when to come back |
//! | [`gcra`] | whether a rate-limited key has room, and when it will |
//! | [`key_store`] | which of many rate-limited keys are remembered in bounded memory |
//! | [`surge`] | how much faster a rate limit is refilled for a while |
//! | [`sketch`] | how often each of any number of keys was seen, about |
//! | [`talkers`] | which keys those are that are seen most |
//! | [`lease`] | what an instance may let through of a limit that several share |
//! | [`limit`] | how many credits an endpoint should have: fixed, or found by measuring |
//! | [`published`] | what an upstream says of its load, and how many credits that leaves |
//! | [`overload`] | how much is turned away because the proxy itself is busy |
//! | [`success_rate`] | how much of what would fail anyway is not tried |
//! | [`windows`] | the same for all endpoints of an upstream, and who else has a say |
//! | [`breaker`] | which endpoints are left out for a while, and when a whole upstream is |
//! | [`health`] | whether an endpoint is up, by what its checks find |
//! | [`report`] | nothing: it is what an attempt tells about its endpoint |
//! | [`retry_budget`] | whether an upstream may be asked for one retry more |
//! | [`recent`] | how long requests have taken of late |

pub mod allowance;
pub mod ask;
pub mod breaker;
pub mod byte_bucket;
pub mod cancel_budget;
pub mod choice;
pub mod credits;
pub mod frame_budget;
pub mod gcra;
pub mod health;
pub mod key_store;
pub mod lease;
pub mod limit;
pub mod overload;
pub mod published;
pub mod queue;
pub mod recent;
pub mod report;
pub mod retry_budget;
pub mod sketch;
pub mod success_rate;
pub mod surge;
pub mod talkers;
pub mod windows;
