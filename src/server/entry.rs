//! Where a request begins: its context is made, its route found, and after an answer of 101 its tunnel started.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode, Version};
use hyper::body::Incoming;

use super::shutdown::Shutdown;
use super::switch::{self, Client};
use super::writer;
use crate::body::Body;
use crate::context::{Connection, Connections, Request, RequestContext, RequestId, Response};
use crate::entropy;
use crate::snapshot::{Current, Leaf};
use crate::tasks::Group;

/// Shared by all connections.
#[derive(Debug)]
pub struct Entry {
    /// What serves requests now.
    pub current: Current,
    /// All that are open.
    pub connections: Arc<Connections>,
    /// Connections, streams and tunnels.
    pub tasks: Group,
    /// When they must end.
    pub shutdown: Shutdown,
}

impl Entry {
    /// A new request's context.
    pub(super) fn begin(&self, connection: &Arc<Connection>, request: &http::Request<Incoming>) -> RequestContext {
        let id = RequestId::new(SystemTime::now(), entropy::random_u128());
        RequestContext::new(id, Arc::clone(connection), self.client(connection, request))
    }

    /// Answers a request. Dropping the future leaves the queue or cancels the upstream's call.
    pub(super) async fn answer(
        self: Arc<Self>,
        context: RequestContext,
        mut request: http::Request<Incoming>,
    ) -> Response {
        let is_head = request.method() == Method::HEAD;
        let client = Client::of(&mut request);
        writer::as_get(&mut request);
        let (parts, body) = request.into_parts();
        let leaf = {
            let snapshot = self.current.load();
            if parts.method == Method::CONNECT {
                Arc::clone(&snapshot.connect)
            } else if is_unambiguous(&parts) {
                let found = snapshot.router.find(&context.connection().listener, &parts);
                Arc::clone(found.unwrap_or(&snapshot.no_route))
            } else {
                Arc::clone(&snapshot.malformed)
            }
        };
        prepare(&context, &leaf);
        let connection = Arc::clone(context.connection());
        if parts.version == Version::HTTP_10 {
            connection.expect_close();
        }
        let mut request = Request::from_parts(parts, Body::from(body));
        request.extensions_mut().insert(context.clone());
        let Ok(mut response) = leaf.service.call(request).await;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            switch::start(client, context, &mut response, &leaf, self.shutdown.clone(), &self.tasks);
        }
        if is_head {
            without_body(&mut response);
        }
        response
    }

    /// The address that limits and logs use: the peer's, or behind trusted proxies the nearest address in
    /// `X-Forwarded-For` that is not one of theirs.
    fn client(&self, connection: &Connection, request: &http::Request<Incoming>) -> Option<IpAddr> {
        let peer = connection.peer.map(|peer| peer.ip().to_canonical());
        if !connection.trusted {
            return peer;
        }
        let snapshot = self.current.load();
        let mut client = peer;
        // From the right, as far as it can be read: what stands left of something unreadable is anybody's word.
        let lines = request.headers().get_all("x-forwarded-for").iter().rev();
        for hop in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
            let Some(address) = address(hop) else { break };
            client = Some(address.to_canonical());
            if !snapshot.trusts(client) {
                break;
            }
        }
        client
    }
}

/// An address in `X-Forwarded-For`; some proxies add the port.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).or_else(bare)
}

/// Whether the request says once and well-formed what it is for (RFC 9112, section 3.2; RFC 9113, section 8.3.1) and
/// how its body is coded: what can be read in two ways could mean one thing here and another to the upstream.
fn is_unambiguous(request: &Parts) -> bool {
    let mut hosts = request.headers.get_all(HOST).iter();
    let target = request.uri.authority().map(Authority::as_str);
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let authority = Authority::try_from(host.as_bytes());
            let same = request.version != Version::HTTP_2
                || target.is_none_or(|target| host.as_bytes().eq_ignore_ascii_case(target.as_bytes()));
            (host.is_empty() || authority.is_ok_and(|authority| !authority.as_str().contains('@'))) && same
        }
        (None, _) => request.version != Version::HTTP_11,
        (Some(_), Some(_)) => false,
    };
    let mut codings = request.headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    host && target.is_none_or(|target| !target.contains('@')) && coding && codings.next().is_none()
}

/// An answer to HEAD says how long the body would be and has none; hyper sees to it on HTTP/1 only.
fn without_body(response: &mut Response) {
    let length = http_body::Body::size_hint(response.body()).exact();
    if let Some(length) = length.filter(|length| *length > 0) {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    *response.body_mut() = Body::empty();
}

/// Tells the connection what this route allows its client.
fn prepare(context: &RequestContext, leaf: &Leaf) {
    let _ = context.notes().route.set(Arc::clone(&leaf.name));
    context.notes().stall.set(leaf.stall_timeout);
    context.connection().allow_stall(leaf.stall_timeout);
}
