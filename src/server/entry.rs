//! Where a request begins: its context is made, its route found, and after an answer of 101 its tunnel started.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode, Version};
use hyper::body::Incoming;

use super::connection::writer;
use super::plain::is_unambiguous;
use super::shutdown::Shutdown;
use super::switch::{self, Client};
use crate::body::Body;
use crate::context::{Connection, Connections, Request, RequestContext, RequestId, Response, Shares, hop_address};
use crate::entropy;
use crate::error::Reason;
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
    ///
    /// The request goes to its route at once, and not when the future is polled: the future then has no room for it.
    pub(super) fn answer(
        self: Arc<Self>,
        context: RequestContext,
        mut request: http::Request<Incoming>,
        refused: Option<Reason>,
    ) -> impl Future<Output = Response> + Send {
        let is_head = request.method() == Method::HEAD;
        let client = Client::of(&mut request);
        writer::as_get(&mut request);
        let (parts, body) = request.into_parts();
        let is_h2 = parts.version == Version::HTTP_2;
        let mut refused = refused;
        let leaf = {
            let snapshot = self.current.load();
            if refused.is_none() && !context.reserve(share(&snapshot.limits.shares, is_h2, &body)) {
                refused = Some(Reason::MemoryExhausted);
            }
            if refused.is_some() {
                Arc::clone(&snapshot.malformed)
            } else if parts.method == Method::CONNECT {
                Arc::clone(&snapshot.connect)
            } else if is_unambiguous(&parts) {
                let found = snapshot.router.find(&context.connection().listener, &parts);
                Arc::clone(found.unwrap_or(&snapshot.no_route))
            } else {
                let what = "its host, its path, or fields that HTTP/2 has no place for";
                tracing::debug!(request = %context.id(), reason = %Reason::BadRequest.label(), what, "a request is refused");
                Arc::clone(&snapshot.malformed)
            }
        };
        prepare(&context, &leaf);
        let connection = Arc::clone(context.connection());
        if parts.version != Version::HTTP_2 {
            connection.allow_half_close(leaf.allow_half_close);
        }
        if parts.version == Version::HTTP_10 {
            connection.expect_close();
        }
        let mut request = Request::from_parts(parts, Body::from(body));
        request.extensions_mut().insert(context.clone());
        if let Some(reason) = refused {
            request.extensions_mut().insert(reason);
        }
        let asked = client.is_some() && request.version() == Version::HTTP_11;
        let answer = leaf.service.call(request);
        async move {
            let Ok(mut response) = answer.await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                switch::start(client, context, &mut response, &leaf, self.shutdown.clone(), &self.tasks);
            } else if asked {
                connection.refuse_switch();
            }
            if is_head {
                without_body(&mut response);
            }
            response
        }
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
            let Some(address) = hop_address(hop) else { break };
            client = Some(address.to_canonical());
            if !snapshot.trusts(client) {
                break;
            }
        }
        client
    }
}

/// What a request may hold.
fn share(shares: &Shares, is_h2: bool, body: &Incoming) -> u64 {
    let upload = match is_h2 {
        _ if http_body::Body::is_end_stream(body) => 0,
        true => shares.upload_h2,
        false => shares.upload,
    };
    shares.request + upload
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
