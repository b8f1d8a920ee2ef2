//! What the tests stand on.
//!
//! | file | holds |
//! |---|---|
//! | `proxy.rs` | [`Proxy`]: the real program, its addresses, its metrics, its logs |
//! | `origin.rs` | [`Origin`]: a scripted upstream that counts what it sees |
//! | `flood.rs` | [`Flood`]: a raw upstream that sends as fast as it can and knows what was taken |
//! | `wire.rs` | [`Wire`]: an upstream that does by hand what a test says |
//! | `workers.rs` | [`Workers`]: a service that can work on so many requests at once |
//! | `switch.rs` | [`Switch`]: a service that can be killed and started again |
//! | `transcript.rs` | [`transcript::Transcript`]: an upstream that reads strictly, byte for byte |
//! | `tunnel.rs` | [`Streams`]: an HTTP/2 client whose streams become tunnels |
//! | `client.rs` | [`Raw`], [`h1`], [`h2`], [`get`]: clients that do exactly what a test says |
//! | `h2_raw.rs` | [`h2_raw::H2Raw`]: HTTP/2 frame by frame, and the functions that make frames |
//! | `certs.rs` | [`Certs`]: an authority, a server, a client |
//! | `load.rs` | [`load`]: clients that come at a rate of their own |
//! | `luck.rs` | [`Luck`]: chance that is the same in every run |
//! | `metrics.rs` | [`Metrics`]: the Prometheus text, parsed |
//! | `redis.rs` | [`Redis`]: a store that instances share, which comes and goes |
//! | `python.rs` | the interpreter with the client libraries of other people |
//! | `wait.rs` | [`eventually`] |

mod certs;
mod client;
mod flood;
pub(crate) mod h2_raw;
mod load;
mod luck;
mod metrics;
mod origin;
mod proxy;
mod python;
mod redis;
mod switch;
pub(crate) mod transcript;
mod tunnel;
mod wait;
mod wire;
mod workers;

pub(crate) use certs::Certs;
pub(crate) use client::{Answer, Payload, Raw, channel, empty, get, h1, h2, h2_over, h2_tls, request};
pub(crate) use flood::Flood;
pub(crate) use load::load;
pub(crate) use luck::Luck;
pub(crate) use metrics::Metrics;
pub(crate) use origin::{Origin, Record, Scene, ScriptFuture};
pub(crate) use proxy::{Proxy, run};
pub(crate) use python::python;
pub(crate) use redis::Redis;
pub(crate) use switch::Switch;
pub(crate) use tunnel::Streams;
pub(crate) use wait::{eventually, raise_file_limit};
pub(crate) use wire::Wire;
pub(crate) use workers::Workers;
