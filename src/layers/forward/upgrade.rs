//! The switch to another protocol (RFC 9110, section 7.8), as far as the route allows it.
//!
//! A client of HTTP/1.1 offers protocols in `Upgrade`; those that are not allowed are taken off. A client of HTTP/2
//! asks for one by extended CONNECT (RFC 8441), which the entry has made a GET that bears [`ExtendedConnect`]: towards
//! the upstream it becomes the handshake of WebSocket, key and proof included.

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use http_body::Body as _;

use super::{names, tokens, websocket};
use crate::context::{ExtendedConnect, Request, Response};
use crate::error::{ProxyError, Reason};

/// The protocols that an upstream is asked to switch to.
#[derive(Debug)]
pub(super) struct Wanted {
    offered: HeaderValue,
    /// What proves that the upstream has read our key; none when the key is the client's own.
    accept: Option<String>,
    key: Option<HeaderValue>,
}

impl Wanted {
    /// What this request offers and the route allows.
    pub(super) fn of(request: &Request, allowed: &[Box<str>]) -> Result<Option<Box<Self>>, ProxyError> {
        let is_allowed = |token: &&str| allowed.iter().any(|allowed| token.eq_ignore_ascii_case(allowed));
        if let Some(asked) = request.extensions().get::<ExtendedConnect>() {
            if !(asked.is_websocket() && is_allowed(&"websocket")) {
                return Err(Reason::UpgradeRefused.into());
            }
            let key = websocket::key();
            return Ok(Some(Box::new(Self {
                offered: HeaderValue::from_static("websocket"),
                accept: Some(websocket::accept(&key)),
                key: HeaderValue::try_from(key).ok(),
            })));
        }
        let headers = request.headers();
        // A body before the switch would be bytes that the two sides may take for the other protocol's.
        let is_asked = request.version() == Version::HTTP_11
            && names(headers, &CONNECTION, "upgrade")
            && request.body().is_end_stream()
            && !headers.contains_key(TRANSFER_ENCODING);
        let offered: Vec<_> = tokens(headers, &UPGRADE).filter(is_allowed).collect();
        if !is_asked || offered.is_empty() {
            return Ok(None);
        }
        let offered =
            HeaderValue::try_from(offered.join(", ")).map_err(|error| ProxyError::new(Reason::BadRequest, error))?;
        Ok(Some(Box::new(Self { offered, accept: None, key: None })))
    }

    /// Writes the wish into a head that is free of fields of one hop.
    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.offered.clone());
        if let Some(key) = &self.key {
            headers.insert(SEC_WEBSOCKET_KEY, key.clone());
            headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        }
    }

    /// The protocol that the upstream has switched to; none when it answers as to any other request.
    pub(super) fn check(&self, response: &Response) -> Result<Option<HeaderValue>, ProxyError> {
        let failed = |why: &str| Err(ProxyError::new(Reason::UpgradeFailed, why));
        let headers = response.headers();
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // To a client of HTTP/2 success means that the tunnel stands.
            let misleads = self.accept.is_some() && response.status().is_success();
            return if misleads { failed("the upstream answered instead of switching") } else { Ok(None) };
        }
        let mut chosen = tokens(headers, &UPGRADE);
        let offered = self.offered.to_str().unwrap_or_default();
        let fits = |chosen: &str| offered.split(", ").any(|offered| offered.eq_ignore_ascii_case(chosen));
        match (chosen.next(), chosen.next()) {
            (Some(only), None) if fits(only) => {}
            _ => return failed("the upstream switched to what was not asked for"),
        }
        let proof = headers.get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if self.accept.as_ref().is_some_and(|accept| proof != Some(accept.as_bytes())) {
            return failed("the upstream has not read the key of the handshake");
        }
        Ok(headers.get(UPGRADE).cloned())
    }
}
