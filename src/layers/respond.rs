//! Answers of the proxy itself: a fixed response, or a redirect. They stand where the upstream would.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, StatusCode};
use tower_service::Service;

use crate::body::Body;
use crate::context::{ExtendedConnect, Request, Response, asked_authority, without_port};
use crate::error::{ProxyError, Reason};

/// Gives every request the same answer.
#[derive(Clone, Debug)]
pub struct Respond {
    status: StatusCode,
    content_type: HeaderValue,
    body: Arc<str>,
}

impl Respond {
    /// A service that answers so.
    #[must_use]
    pub fn new(status: StatusCode, content_type: HeaderValue, body: Arc<str>) -> Self {
        Self { status, content_type, body }
    }
}

impl Service<Request> for Respond {
    type Response = Response;
    type Error = ProxyError;
    type Future = Ready<Result<Response, ProxyError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Success would tell the client that the tunnel which it asked for stands.
        if self.status.is_success() && request.extensions().get::<ExtendedConnect>().is_some() {
            return ready(Err(Reason::UpgradeRefused.into()));
        }
        let mut response = Response::new(Body::full(bytes::Bytes::copy_from_slice(self.body.as_bytes())));
        *response.status_mut() = self.status;
        if !self.body.is_empty() {
            response.headers_mut().insert(CONTENT_TYPE, self.content_type.clone());
        }
        ready(Ok(response))
    }
}

/// Sends the client elsewhere; `{host}`, `{path}` and `{query}` in the target stand for the request's own, the query
/// with its question mark.
#[derive(Clone, Debug)]
pub struct Redirect {
    status: StatusCode,
    to: Arc<str>,
}

impl Redirect {
    /// A service that redirects to `to`.
    #[must_use]
    pub fn new(status: StatusCode, to: Arc<str>) -> Self {
        Self { status, to }
    }

    fn location(&self, request: &Request) -> Option<HeaderValue> {
        let uri = request.uri();
        let host = without_port(asked_authority(uri, request.headers()));
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let target = self.to.replace("{host}", host).replace("{path}", uri.path()).replace("{query}", &query);
        // A path may begin with two slashes, and a target that begins so names another host. Browsers read `\` alike.
        let leads_away = !self.to.starts_with("//") && target.starts_with(['/', '\\']);
        let target = if leads_away { format!("/{}", target.trim_start_matches(['/', '\\'])) } else { target };
        HeaderValue::try_from(target).ok()
    }
}

impl Service<Request> for Redirect {
    type Response = Response;
    type Error = ProxyError;
    type Future = Ready<Result<Response, ProxyError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some(location) = self.location(&request) else { return ready(Err(Reason::BadRequest.into())) };
        let mut response = Response::default();
        *response.status_mut() = self.status;
        response.headers_mut().insert(LOCATION, location);
        ready(Ok(response))
    }
}

/// Refuses every request: what stands behind no route. The reason may travel with the request, among its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Refuse(pub Reason);

impl Service<Request> for Refuse {
    type Response = Response;
    type Error = ProxyError;
    type Future = Ready<Result<Response, ProxyError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let reason = request.extensions().get().copied().unwrap_or(self.0);
        let error = ProxyError::from(reason);
        // Room comes back as requests end, and one does at any time.
        let soon = reason == Reason::MemoryExhausted;
        ready(Err(if soon { error.retry_soon() } else { error }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_redirect_fills_in_what_was_asked_for() {
        let mut redirect = Redirect::new(StatusCode::PERMANENT_REDIRECT, "https://{host}{path}{query}".into());
        let request = http::Request::get("/a/b?c=d").header("host", "example.com:8080");
        let response = redirect.call(request.body(Body::empty()).expect("valid")).await.expect("a response");
        assert_eq!(response.status(), 308);
        assert_eq!(response.headers()[LOCATION], "https://example.com/a/b?c=d");
    }

    #[tokio::test]
    async fn who_finds_no_room_is_not_told_to_come_back_with_all_others() {
        let mut waits = Vec::new();
        for _ in 0..20 {
            let error = Refuse(Reason::MemoryExhausted).call(Request::default()).await.expect_err("a refusal");
            waits.push(error.retry_after.expect("a time to come back"));
        }
        let second = Duration::from_secs(1);
        assert!(waits.iter().all(|wait| (second..3 * second).contains(wait)), "{waits:?}");
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 15, "{waits:?}");
        let error = Refuse(Reason::NoRoute).call(Request::default()).await.expect_err("a refusal");
        assert_eq!(error.retry_after, None);
    }

    #[test]
    fn a_path_does_not_lead_to_another_host() {
        let location = |to: &str, path: &str| {
            let redirect = Redirect::new(StatusCode::FOUND, to.into());
            let request = http::Request::get(path).header("host", "example.com").body(Body::empty());
            redirect.location(&request.expect("valid")).expect("a location")
        };
        for path in ["//evil.test/a", "///evil.test/a", "/\\evil.test/a", "/evil.test/a"] {
            assert_eq!(location("{path}/{query}", path), "/evil.test/a/");
        }
        assert_eq!(location("//cdn.test{path}", "//a"), "//cdn.test//a");
        assert_eq!(location("https://{host}{path}", "//a"), "https://example.com//a");
    }
}
