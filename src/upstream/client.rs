//! Sends one request to one endpoint.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::UPGRADE;
use http::{Method, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;

use super::answer;
use super::connect::{Connector, Version};
use super::failure::{self, Upload, UploadFailed};
use super::first_byte::FirstByte;
use super::hold::Hold;
use super::pool::{Lease, Pool, PoolStats, Unanswered, UntilEnd, UpgradeGuard, Wants};
use super::settings::{EndpointSettings, Settings};
use super::target::Target;
use super::tls::ClientError;
use crate::body::Body;
use crate::context::{Request, RequestContext, Response};
use crate::control::allowance::Allowance;
use crate::error::{ProxyError, Reason};

#[cfg(test)]
mod tests;

/// Stale connections that one request may meet before all idle ones are closed.
const MOST_STALE: usize = 3;

/// One endpoint's connections.
pub struct Client {
    pub(super) pool: Arc<Pool>,
    target: Target,
    /// None while TLS has the choice.
    version: Option<Version>,
}

/// Keeps an upgraded connection counted against its endpoint. In the extensions of a 101 response; whoever tunnels
/// holds it as long as the tunnel stands.
#[derive(Clone)]
pub struct UpgradeLease {
    /// Held for its drop.
    _guard: Arc<UpgradeGuard>,
}

/// Why an exchange ended without a response head.
enum Failure {
    /// The upstream has not seen the request, which is back in its place.
    Unsent(hyper::Error),
    Failed(ProxyError),
}

impl Client {
    /// A client of one endpoint. Reads the files that TLS needs; opens no connection.
    pub fn new(settings: &Settings, endpoint: &EndpointSettings) -> Result<Arc<Self>, ClientError> {
        let target = Target::new(&endpoint.address, &settings.host)?;
        let connector = Connector::new(settings, endpoint)?;
        let version = connector.version();
        Ok(Arc::new(Self { pool: Pool::new(connector, settings), target, version }))
    }

    /// Sends a request and waits for the response's head; `first_byte` bounds that wait, from the last byte of the
    /// request that was sent. The response's body gives the connection back when it ends.
    ///
    /// The request is taken out of its place when it is sent, and not earlier: passed on by value, each future on the
    /// way would have room for one of its own.
    ///
    /// The request must be free of hop-by-hop fields, other than `Upgrade` and its `Connection`. Dropping this future,
    /// or the body of the response, cancels the call upstream.
    pub async fn send(&self, request: &mut Request, first_byte: Option<Duration>) -> Result<Response, ProxyError> {
        let upgrade = request.headers().contains_key(UPGRADE);
        if upgrade && self.version == Some(Version::Http2) {
            return Err(ProxyError::new(Reason::UpgradeFailed, "h2 cannot switch protocols"));
        }
        // Where TLS has the choice, such a request gets a connection that can.
        let http1 = upgrade && self.version.is_none();
        let is_head = request.method() == Method::HEAD;
        let hold = Hold::of(request);
        for stale in 0..=MOST_STALE {
            if stale == MOST_STALE {
                self.pool.close_idle();
            }
            let wants = Wants { http1, window: !request.body().is_end_stream() };
            let mut lease = self.pool.checkout(wants).await?;
            match self.exchange(&mut lease, request, first_byte, hold.as_ref()).await {
                Ok(response) => return answer(lease, response, upgrade, is_head),
                // Going stale while idle is nobody's fault, and a refusal is the peer's word that it is safe.
                Err(Failure::Unsent(error))
                    if stale < MOST_STALE && (lease.is_reused() || failure::is_unprocessed(&error)) => {}
                // A new connection that takes no request is as good as none.
                Err(Failure::Unsent(error)) => return Err(ProxyError::new(Reason::ConnectFailed, error)),
                Err(Failure::Failed(error)) => return Err(error),
            }
        }
        Err(Reason::Internal.into())
    }

    /// Whether a connection may turn out to be one of HTTP/2.
    pub(super) fn may_speak_http2(&self) -> bool {
        self.version != Some(Version::Http1)
    }

    /// Whether connections are closed as soon as nobody uses them, those that idle at once.
    pub fn set_closing(&self, is_closing: bool) {
        self.pool.set_closing(is_closing);
    }

    /// The connections' state and counts.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    async fn exchange(
        &self,
        lease: &mut Lease,
        request: &mut Request,
        first_byte: Option<Duration>,
        hold: Option<&Hold>,
    ) -> Result<http::Response<Incoming>, Failure> {
        let mut upload = None;
        let mut spare = None;
        tell_time_left(request);
        if let Some(stream) = lease.stream().map(Arc::clone) {
            self.target.absolute_form(request).map_err(Failure::Failed)?;
            // A stream can be reset at any time, and hyper does not tell what an h2 upstream says beforehand.
            if let Some(hold) = hold {
                hold.ask();
            }
            if request.body().is_end_stream() {
                spare = Some(Box::new(without_body(request)));
            } else {
                let failed = UploadFailed::default();
                upload = Some(failed.clone());
                request.body_mut().watch_in_place(Box::new(Upload { failed, _guard: stream }));
            }
        } else {
            self.target.origin_form(request).map_err(Failure::Failed)?;
        }
        let first_byte = FirstByte::watch(first_byte, request);
        if let Some(stream) = lease.stream() {
            stream.uploads().add(&first_byte);
        }
        let sent = lease.send(request, &first_byte).await;
        let is_held = || hold.is_some_and(Hold::is_awaited);
        let late = || {
            if first_byte.awaits_client() && !is_held() { Reason::RequestIncomplete } else { Reason::FirstByteTimeout }
        };
        let sent = sent.ok_or_else(|| Failure::Failed(late().into()))?;
        let mut response = sent.map_err(|Unanswered { error, is_unsent }| {
            if is_unsent {
                return Failure::Unsent(error);
            }
            if let Some(spare) = spare.filter(|_| failure::is_unprocessed(&error)) {
                *request = *spare;
                return Failure::Unsent(error);
            }
            let reason = upload.and_then(|upload| upload.get()).unwrap_or_else(|| failure::reason(&error));
            Failure::Failed(ProxyError::new(reason, error))
        })?;
        if hold.is_some_and(Hold::decline) {
            lease.spend();
        }
        if let Some(pulse) = first_byte.pulse() {
            response.extensions_mut().insert(pulse);
        }
        if let Some(asked) = first_byte.asked_late() {
            response.extensions_mut().insert(asked);
        }
        Ok(response)
    }
}

/// What the client said of its time, less what was spent until here: an upstream that works on after its client has
/// given up works for nobody.
fn tell_time_left(request: &mut Request) {
    let Some(mut said) = request.extensions_mut().get_mut::<Allowance>().map(std::mem::take) else { return };
    if let Some(spent) = request.extensions().get::<RequestContext>().map(|context| context.received_at().elapsed()) {
        said.spend(request.headers_mut(), spent);
    }
    request.extensions_mut().insert(said);
}

/// hyper keeps what it is given, and a refused stream does not return it: so h2 requests without a body are copied.
fn without_body(request: &Request) -> Request {
    let mut copy = http::Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    if request.extensions().get::<Allowance>().is_some() {
        *copy.extensions_mut() = request.extensions().clone();
    }
    copy
}

/// Ties the connection to what is still to come of the response.
fn answer(
    lease: Lease,
    response: http::Response<Incoming>,
    upgrade: bool,
    is_head: bool,
) -> Result<Response, ProxyError> {
    let (mut parts, body) = response.into_parts();
    // The lease is dropped with its connection: whatever follows such a head is nobody's answer.
    if let Some(fault) = answer::fault(&parts) {
        return Err(ProxyError::new(Reason::UpstreamProtocol, fault));
    }
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let guard = if upgrade { lease.upgrade() } else { None };
        let guard = guard.ok_or_else(|| ProxyError::new(Reason::UpstreamProtocol, "101 was not asked for"))?;
        parts.extensions.insert(UpgradeLease { _guard: Arc::new(guard) });
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    // Nothing more to read: the next request need not wait until the client has read this head. The length in an
    // answer to HEAD is no promise of bytes, and on h2 hyper would miss them. Nor does it drop there what comes with a
    // status that has no body.
    let has_none = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if is_head || has_none || body.is_end_stream() {
        lease.finish();
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    let body = Body::from(body).watch(Box::new(UntilEnd::new(lease)));
    Ok(Response::from_parts(parts, body))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl fmt::Debug for UpgradeLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradeLease").finish_non_exhaustive()
    }
}
