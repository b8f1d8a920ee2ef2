//! One file per layer, in the order of the way down.
//!
//! | layer | does | refuses with | stands |
//! |---|---|---|---|
//! | [`record`] | counts, times and logs every exchange, refusals too | - | at the top: sees all |
//! | [`trace`] | passes on or begins the W3C trace | - | below the record, which logs it |
//! | [`render`] | turns an error into a whole answer | - | below the record; above it nothing fails |
//! | [`pressure`] | says how much the upstream has to do | - | above whatever refuses |
//! | [`fault`] | does wrong on purpose | `fault_injected` (any status), `fault_reset` | below the rendering of errors, above all that is real |
//! | [`priority`] | says how much a request matters | - | above all that may refuse by class |
//! | [`shed`] | turns away what matters least while the proxy itself is overloaded | `proxy_busy`, `memory_exhausted` (503) | below the priority, above all that costs something |
//! | [`success_rate`] | does not try all of what would fail anyway | `low_success_rate` (503) | above the deadline, whose end is a failure |
//! | [`deadline`] | one clock over the whole exchange, the route's or the client's | `total_timeout`, `deadline_passed`, `deadline_exceeded` (504) | above everything that waits |
//! | [`rate_limit`] | holds a rate per key, in requests or bytes | `rate_limited` (429) | above admission: a refusal takes no credit |
//! | [`upload`] | holds request bodies to a size and clients to a pace | `body_too_large` (413), `upload_stalled`, `upload_slow` (408) | above admission, which a body too large never sees |
//! | [`forward`] | does the duties of an intermediary | `upgrade_refused` (501) | before edits, which may override what it adds |
//! | [`headers`] | edits fields of the request and the response | - | below what is decided by the client's own fields |
//! | [`rewrite`] | strips or replaces a prefix of the path | - | beside the edits |
//! | [`respond`] | answers by itself | - | at the bottom, in an upstream's place |

pub mod deadline;
pub mod fault;
pub mod forward;
pub mod headers;
pub mod pressure;
pub mod priority;
pub mod rate_limit;
pub mod record;
pub mod render;
pub mod respond;
pub mod rewrite;
pub mod shed;
pub mod success_rate;
pub mod trace;
pub mod upload;
