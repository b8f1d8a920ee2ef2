//! The form a request has towards one endpoint: which host it names, and where.

use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme, Uri};
use http::{HeaderMap, HeaderValue, Version};
use http_body::Body as _;

use super::settings::{Address, HostPolicy, Scheme};
use super::tls::ClientError;
use crate::context::Request;
use crate::error::{ProxyError, Reason};

/// Made once per endpoint, so that a request costs no formatting.
pub(super) struct Target {
    scheme: UriScheme,
    /// The host as the client asked for it; `authority` only where the client named none.
    keep: bool,
    authority: Authority,
    header: HeaderValue,
}

impl Target {
    pub(super) fn new(address: &Address, policy: &HostPolicy) -> Result<Self, ClientError> {
        let (scheme, own) = match address {
            Address::Tcp { authority, scheme: Scheme::Https } => (UriScheme::HTTPS, authority.clone()),
            Address::Tcp { authority, .. } => (UriScheme::HTTP, authority.clone()),
            Address::Unix(_) => (UriScheme::HTTP, Authority::from_static("localhost")),
        };
        let authority = if let HostPolicy::Fixed(fixed) = policy { fixed.clone() } else { own };
        let header = HeaderValue::from_str(without_user(authority.as_str()))
            .map_err(|_| ClientError::Address(authority.to_string()))?;
        Ok(Self { scheme, keep: *policy == HostPolicy::Keep, authority, header })
    }

    /// HTTP/1.1: the path alone, and `Host`. A request that has this form already is left as it is.
    pub(super) fn origin_form(&self, request: &mut Request) -> Result<(), ProxyError> {
        *request.version_mut() = Version::HTTP_11;
        join_cookies(request.headers_mut());
        // Of its own accord hyper sends the body of a GET only when its length is known.
        let unknown = !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
        if unknown && !request.headers().contains_key(CONTENT_LENGTH) {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let host = if !self.keep {
            Some(self.header.clone())
        } else if let Some(authority) = request.uri().authority() {
            // The request target outranks the field: RFC 9112, section 3.2.2.
            let value = HeaderValue::from_str(without_user(authority.as_str()));
            Some(value.map_err(|error| ProxyError::new(Reason::BadRequest, error))?)
        } else if request.headers().contains_key(HOST) {
            None
        } else {
            Some(self.header.clone())
        };
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
        if request.uri().authority().is_some() {
            let uri = std::mem::take(request.uri_mut());
            *request.uri_mut() = uri.into_parts().path_and_query.map(Uri::from).unwrap_or_default();
        }
        Ok(())
    }

    /// h2: scheme, authority and path in the URI, and no `Host`.
    pub(super) fn absolute_form(&self, request: &mut Request) -> Result<(), ProxyError> {
        *request.version_mut() = Version::HTTP_2;
        let field = request.headers_mut().remove(HOST);
        request.headers_mut().remove(TRANSFER_ENCODING);
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        parts.authority = match (parts.authority, field) {
            _ if !self.keep => Some(self.authority.clone()),
            (Some(asked), _) => Some(asked),
            (None, Some(field)) => Some(
                Authority::try_from(field.as_bytes()).map_err(|error| ProxyError::new(Reason::BadRequest, error))?,
            ),
            (None, None) => Some(self.authority.clone()),
        };
        *request.uri_mut() = Uri::from_parts(parts).map_err(|error| ProxyError::new(Reason::BadRequest, error))?;
        Ok(())
    }
}

/// h2 may split cookies over several fields; elsewhere they are one (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    if lines.next().is_none() || lines.next().is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(b"; ".as_slice())) {
        headers.insert(COOKIE, joined);
    }
}

/// `Host` carries no user information.
fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    fn target(policy: &HostPolicy) -> Target {
        let address = Address::Tcp { authority: Authority::from_static("10.0.0.1:8000"), scheme: Scheme::Http };
        Target::new(&address, policy).expect("a host")
    }

    fn request(uri: &str, host: Option<&str>) -> Request {
        let mut request = http::Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        request.body(Body::empty()).expect("a request")
    }

    /// The URI and the `Host` field in both forms, each also reached through the other.
    fn forms(policy: &HostPolicy, uri: &str, host: Option<&str>) -> [(String, Option<String>); 2] {
        let target = target(policy);
        let read = |request: &Request| {
            let host = request.headers().get(HOST).map(|host| host.to_str().expect("text").to_owned());
            (request.uri().to_string(), host)
        };
        let (mut one, mut two) = (request(uri, host), request(uri, host));
        target.origin_form(&mut one).expect("h1");
        target.absolute_form(&mut two).expect("h2");
        let forms = [read(&one), read(&two)];
        target.origin_form(&mut two).expect("h1 again");
        target.absolute_form(&mut one).expect("h2 again");
        assert_eq!([read(&two), read(&one)], forms, "a form depends on the way to it");
        forms
    }

    #[test]
    fn the_clients_host_is_kept_wherever_it_was_named() {
        let expected = [("/a?b".to_owned(), Some("x.test".to_owned())), ("http://x.test/a?b".to_owned(), None)];
        assert_eq!(forms(&HostPolicy::Keep, "/a?b", Some("x.test")), expected);
        assert_eq!(forms(&HostPolicy::Keep, "https://x.test/a?b", None), expected);
        assert_eq!(forms(&HostPolicy::Keep, "http://x.test/a?b", Some("other.test")), expected);
    }

    #[test]
    fn without_a_host_the_endpoint_is_named() {
        let expected = [("/".to_owned(), Some("10.0.0.1:8000".to_owned())), ("http://10.0.0.1:8000/".to_owned(), None)];
        assert_eq!(forms(&HostPolicy::Keep, "/", None), expected);
        assert_eq!(forms(&HostPolicy::Endpoint, "/", Some("x.test")), expected);
    }

    #[test]
    fn a_fixed_host_replaces_every_other() {
        let policy = HostPolicy::Fixed(Authority::from_static("api.test"));
        let expected = [("/".to_owned(), Some("api.test".to_owned())), ("http://api.test/".to_owned(), None)];
        assert_eq!(forms(&policy, "/", Some("x.test")), expected);
        assert_eq!(forms(&policy, "https://x.test/", None), expected);
    }

    #[test]
    fn a_host_that_is_no_authority_is_refused_on_h2() {
        let mut bad = request("/", Some("a b"));
        let error = target(&HostPolicy::Keep).absolute_form(&mut bad).expect_err("not an authority");
        assert_eq!(error.reason, Reason::BadRequest);
    }
}
