//! Strips or replaces a prefix of the path before the request is forwarded.
//!
//! ```toml
//! strip_prefix = "/api"     # /api/users -> /users
//! replace_prefix = "/v2"    # with it:     /v2/users
//! ```

use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::PathAndQuery;
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{Request, Response, strip_path};
use crate::error::ProxyError;

/// What goes and what comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The prefix that goes, without a trailing slash; only whole segments match.
    pub strip: Box<str>,
    /// What comes in its place, without a trailing slash; empty: nothing.
    pub replace: Box<str>,
}

impl Settings {
    /// The new path and query; none when the prefix does not match.
    fn apply(&self, old: &PathAndQuery) -> Option<PathAndQuery> {
        let rest = strip_path(old.as_str(), &self.strip)?;
        if !(rest.is_empty() || rest.starts_with(['/', '?'])) {
            return None;
        }
        let slash = if rest.starts_with('/') || (rest.is_empty() && !self.replace.is_empty()) { "" } else { "/" };
        let slash = if !self.replace.is_empty() && rest.starts_with('?') { "" } else { slash };
        PathAndQuery::try_from(format!("{}{slash}{rest}", self.replace)).ok()
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct RewriteLayer {
    settings: Arc<Settings>,
}

impl RewriteLayer {
    /// A layer that rewrites so.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self { settings: Arc::new(settings.clone()) }
    }
}

impl<S> Layer<S> for RewriteLayer {
    type Service = Rewrite<S>;

    fn layer(&self, inner: S) -> Rewrite<S> {
        Rewrite { inner, settings: Arc::clone(&self.settings) }
    }
}

/// The service of [`RewriteLayer`].
#[derive(Clone, Debug)]
pub struct Rewrite<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> Service<Request> for Rewrite<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = S::Future;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        if let Some(new) = request.uri().path_and_query().and_then(|old| self.settings.apply(old)) {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            parts.path_and_query = Some(new);
            // The parts come from a valid URI and the path stays one, so they fit together again.
            *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(strip: &str, replace: &str, path: &'static str) -> Option<String> {
        let settings = Settings { strip: strip.into(), replace: replace.into() };
        settings.apply(&PathAndQuery::from_static(path)).map(|path| path.to_string())
    }

    #[test]
    fn whole_segments_are_stripped_or_replaced() {
        let cases = [
            ("/api", "", "/api/users?q=1", Some("/users?q=1")),
            ("/api", "", "/api", Some("/")),
            ("/api", "", "/api?q=1", Some("/?q=1")),
            ("/api", "", "/apiary", None),
            ("/api", "/v2", "/api/users", Some("/v2/users")),
            ("/api", "/v2", "/api", Some("/v2")),
            ("/api", "/v2", "/api?q=1", Some("/v2?q=1")),
            ("/api", "/v2", "/%61pi/%61", Some("/v2/%61")),
            ("", "/base", "/users", Some("/base/users")),
            ("/api", "", "/other", None),
        ];
        for (strip, replace, path, expected) in cases {
            assert_eq!(rewrite(strip, replace, path).as_deref(), expected, "{strip} -> {replace} on {path}");
        }
    }
}
