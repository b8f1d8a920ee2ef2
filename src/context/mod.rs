//! What is known of a request while it travels: identity, clocks, and the notes that layers leave for the record.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`RequestContext`], and which host a request asks for |
//! | `client_cert.rs` | [`ClientCert`]: who the client is by its certificate |
//! | `connection.rs` | [`Connection`]: the client's connection, as far as layers may know it |
//! | `connection/oversight.rs` | what an operator sees of it, and how it is ended from outside |
//! | `connections.rs` | [`Connections`]: all that are open |
//! | `cancel.rs` | an exchange that an operator cancels |
//! | `fault.rs` | what was done wrong to it on purpose |
//! | `id.rs` | [`RequestId`] and [`TraceId`] |
//! | `key.rs` | [`Key`]: what is counted, queued or steered apart |
//! | `memory.rs` | [`Memory`]: the budget of bytes over all that is buffered |
//! | `notes.rs` | [`Notes`] for the access log and the metrics |
//! | `priority.rs` | [`Priority`]: what goes first when not all can be served |

mod cancel;
mod client_cert;
mod connection;
mod connections;
mod fault;
mod id;
mod key;
mod memory;
mod notes;
mod priority;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Uri};
use tokio::time::Instant;

use cancel::Fate;
pub use client_cert::ClientCert;
pub use connection::{Connection, Protocol};
pub use connections::Connections;
pub use fault::{Done, Fault};
pub use id::{NoId, RequestId, TraceId};
pub use key::{Key, Part, Steady};
pub use memory::{Memory, Reserved, Shares};
pub use notes::{Asked, Elapsed, Notes, Tried};
pub use priority::Priority;

/// A request as it travels through the layers.
pub type Request = http::Request<crate::body::Body>;
/// A response as it travels back.
pub type Response = http::Response<crate::body::Body>;

/// One request's context: cheap to clone, shared by the request, its response body and its record.
#[derive(Clone, Debug)]
pub struct RequestContext(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: RequestId,
    connection: Arc<Connection>,
    client: Option<IpAddr>,
    received_at: Instant,
    /// Nanoseconds from the receipt; [`NONE`] where nobody has set one.
    deadline: AtomicU64,
    /// The place in [`Priority::ALL`].
    priority: AtomicU8,
    notes: Notes,
    fate: Fate,
    /// Bytes of the connection's [`Memory`].
    reserved: AtomicU64,
}

/// No deadline.
const NONE: u64 = u64::MAX;

impl Drop for Inner {
    fn drop(&mut self) {
        let reserved = *self.reserved.get_mut();
        if let Some(memory) = self.connection.memory().filter(|_| reserved > 0) {
            memory.release(reserved);
        }
        self.connection.strike(self);
        self.connection.request_ends();
    }
}

impl RequestContext {
    /// Begins a request that was received now. `client` is the address that limits and logs use. The request counts
    /// as active on its connection until the last clone is dropped.
    #[must_use]
    pub fn new(id: RequestId, connection: Arc<Connection>, client: Option<IpAddr>) -> Self {
        connection.request_begins();
        let (received_at, notes, fate) = (Instant::now(), Notes::default(), Fate::default());
        let (deadline, priority) = (AtomicU64::new(NONE), AtomicU8::new(Priority::default() as u8));
        let reserved = AtomicU64::new(0);
        let inner = Inner { id, connection, client, received_at, deadline, priority, notes, fate, reserved };
        let inner = Arc::new(inner);
        inner.connection.enlist(Arc::downgrade(&inner));
        Self(inner)
    }

    /// Reserves what the request may hold, until its last clone is dropped; false when there is no room.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> bool {
        let taken = self.0.connection.memory().is_none_or(|memory| memory.reserve(bytes));
        if taken && self.0.connection.memory().is_some() {
            self.0.reserved.fetch_add(bytes, Relaxed);
        }
        taken
    }

    /// Whether more than so many millionths of the memory budget are reserved, with what this request has reserved.
    #[must_use]
    pub fn is_crowded(&self, millionths: u32) -> bool {
        self.0.connection.memory().is_some_and(|memory| memory.is_above(millionths))
    }

    /// Gives a part of what was reserved back before the end.
    pub fn give_back(&self, bytes: u64) {
        if let Some(memory) = self.0.connection.memory() {
            self.0.reserved.fetch_sub(bytes, Relaxed);
            memory.release(bytes);
        }
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.0.id
    }

    /// The connection it came on.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.0.connection
    }

    /// The client's address, seen through trusted proxies; none on unix sockets.
    #[must_use]
    pub fn client(&self) -> Option<IpAddr> {
        self.0.client
    }

    /// What logs call the client: its address, or `unix`.
    #[must_use]
    pub fn client_name(&self) -> ClientName {
        ClientName(self.0.client)
    }

    /// When its head was complete.
    #[must_use]
    pub fn received_at(&self) -> Instant {
        self.0.received_at
    }

    /// By when the head of the answer must be there: the earliest that anybody has set, whether client or route. None
    /// when the request may take any time.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let nanos = Some(self.0.deadline.load(Relaxed)).filter(|nanos| *nanos != NONE)?;
        self.0.received_at.checked_add(Duration::from_nanos(nanos))
    }

    /// Sets a deadline; an earlier one stands.
    pub fn set_deadline(&self, at: Instant) {
        let after = at.saturating_duration_since(self.0.received_at).as_nanos();
        self.0.deadline.fetch_min(u64::try_from(after).unwrap_or(NONE), Relaxed);
    }

    /// How much it matters when not all can be served.
    #[must_use]
    pub fn priority(&self) -> Priority {
        let place = usize::from(self.0.priority.load(Relaxed));
        Priority::ALL.get(place).copied().unwrap_or_default()
    }

    /// Sets the priority; the last word stands.
    pub fn set_priority(&self, priority: Priority) {
        self.0.priority.store(priority as u8, Relaxed);
    }

    /// The notes that layers leave for the record.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.0.notes
    }
}

/// See [`RequestContext::client_name`].
#[derive(Clone, Copy, Debug)]
pub struct ClientName(Option<IpAddr>);

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

/// A request that came as an extended CONNECT of HTTP/2 (RFC 8441) and travels as a GET of its path. In the extensions
/// of the request.
#[derive(Clone, Debug)]
pub struct ExtendedConnect {
    /// What the client wants the stream to become.
    pub protocol: Box<str>,
}

impl ExtendedConnect {
    /// Whether that is a WebSocket.
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        self.protocol.eq_ignore_ascii_case("websocket")
    }
}

/// What a request asks for: the target's authority, or else the `Host` field (RFC 9112, section 3.2.2). Everything
/// that looks at the host looks here, so that no two parts see two hosts.
#[must_use]
pub fn asked_authority<'a>(target: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    let field = || headers.get(HOST).and_then(|host| host.to_str().ok());
    target.authority().map(Authority::as_str).or_else(field).unwrap_or_default()
}

/// An address in `X-Forwarded-For`; some proxies add the port.
#[must_use]
pub fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).or_else(bare)
}

/// What follows `prefix` in a path; none when it begins otherwise. An escaped character that needed no escape is the
/// same as the character (RFC 3986, section 6.2.2.2).
#[must_use]
pub fn strip_path<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    if let Some(rest) = path.strip_prefix(prefix) {
        return Some(rest);
    }
    let mut rest = path;
    for wanted in prefix.bytes() {
        let (byte, length) = match rest.as_bytes() {
            [b'%', high, low, ..] => match unreserved(*high, *low) {
                Some(byte) => (byte, 3),
                None => (b'%', 1),
            },
            [byte, ..] => (*byte, 1),
            [] => return None,
        };
        if byte != wanted {
            return None;
        }
        rest = rest.get(length..)?;
    }
    Some(rest)
}

/// The character that two digits behind `%` stand for, when it means the same without them.
fn unreserved(high: u8, low: u8) -> Option<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
    (byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')).then_some(byte)
}

/// The host of an authority, its port cut off; an IPv6 address keeps its brackets.
#[must_use]
pub fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if !authority.get(at..).is_some_and(|rest| rest.contains(']')) => {
            authority.get(..at).unwrap_or(authority)
        }
        _ => authority,
    }
}

/// A host in lower case and without the root's dot, as names are compared.
#[must_use]
pub fn plain_host(host: &str) -> Cow<'_, str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[tokio::test(start_paused = true)]
    async fn the_earliest_deadline_and_the_last_priority_stand() {
        let connection = Arc::new(Connection::new("test".into(), None, None, false, Duration::ZERO));
        let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), connection, None);
        assert_eq!((context.deadline(), context.priority()), (None, Priority::Default));
        let at = |millis| context.received_at() + Duration::from_millis(millis);
        for (set, stands) in [(500, 500), (700, 500), (300, 300)] {
            context.set_deadline(at(set));
            assert_eq!(context.deadline(), Some(at(stands)));
        }
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(context.deadline(), Some(at(300)), "it may have passed");
        for priority in Priority::ALL {
            context.set_priority(priority);
            assert_eq!(context.priority(), priority);
        }
    }

    #[test]
    fn a_needless_escape_changes_no_path() {
        for (path, prefix, rest) in [
            ("/admin/x", "/admin", Some("/x")),
            ("/%61dmin/x", "/admin", Some("/x")),
            ("/%61dmi%6E", "/admin", Some("")),
            ("/admin%2Fx", "/admin", Some("%2Fx")),
            ("/a%2Db/%63?d", "/a-b", Some("/%63?d")),
            ("/a%2fb", "/a/b", None),
            ("/a%2fb", "/a%2fb", Some("")),
            ("/%", "/a", None),
            ("/%6", "/a", None),
            ("/%61", "/ab", None),
            ("/\u{e4}", "/a", None),
        ] {
            assert_eq!(strip_path(path, prefix), rest, "{path} and {prefix}");
        }
    }
}
