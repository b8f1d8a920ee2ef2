//! What is needed to send a request once more, after its first copy has gone to hyper, which keeps what it is given.

use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use http_body::Body as _;

use super::policy::RETRY_COUNT;
use super::replay::Replay;
use crate::body::Body;
use crate::context::{Request, RequestContext};
use crate::control::allowance::Allowance;

/// See the module's text. Drop it as soon as an answer is committed: from there on nothing is kept of the body.
#[derive(Debug)]
pub(in crate::upstream) struct Spare {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    body: Option<Replay>,
    /// What the client said of its time, with the context that knows what was spent of it.
    allowance: Option<(Allowance, RequestContext)>,
}

impl Spare {
    /// Copies the head of a request and begins to keep its body, of which `max_body` bytes are kept at most. None when
    /// the body is known to be longer.
    pub(in crate::upstream) fn of(
        request: &mut Request,
        max_body: usize,
        context: Option<&RequestContext>,
    ) -> Option<Self> {
        let mut kept = None;
        if !request.body().is_end_stream() {
            let least = usize::try_from(request.body().size_hint().lower()).ok()?;
            if least > max_body || max_body == 0 {
                return None;
            }
            let body = std::mem::take(request.body_mut());
            let (replay, first) = Replay::of(body, max_body, context.cloned());
            *request.body_mut() = first;
            kept = Some(replay);
        }
        Some(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            body: kept,
            allowance: request.extensions().get::<Allowance>().cloned().zip(context.cloned()),
        })
    }

    /// The fields of the request.
    pub(in crate::upstream) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The method of the request.
    pub(in crate::upstream) fn method(&self) -> &Method {
        &self.method
    }

    /// Whether it had a body.
    pub(in crate::upstream) fn has_body(&self) -> bool {
        self.body.is_some()
    }

    /// Whether the request can be sent once more: all of its body that was sent is kept.
    pub(in crate::upstream) fn is_whole(&self) -> bool {
        self.body.as_ref().is_none_or(Replay::is_whole)
    }

    /// The request once more. None when its body was too long to keep.
    pub(in crate::upstream) fn request(&self) -> Option<Request> {
        let body = match &self.body {
            Some(replay) => replay.again()?,
            None => Body::empty(),
        };
        let mut request = http::Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        if let Some((allowance, context)) = self.allowance.clone() {
            request.extensions_mut().insert(allowance);
            request.extensions_mut().insert(context);
        }
        Some(request)
    }
}

/// Tells the service how often this request was tried before.
pub(in crate::upstream) fn count(request: &mut Request, tried: u32) {
    request.headers_mut().insert(&RETRY_COUNT, HeaderValue::from(tried));
}

#[cfg(test)]
mod tests {
    use super::super::policy::tried_before;
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn a_request_is_sent_again_as_it_was() {
        let mut request = http::Request::put("/x?y")
            .header("host", "x.test")
            .header("x-retry-count", "1")
            .body(Body::full("body"))
            .expect("a request");
        let spare = Spare::of(&mut request, 64, None).expect("short enough");
        let read = |request: Request| async { request.into_body().collect().await.expect("whole").to_bytes() };
        assert_eq!(read(request).await, "body");
        for made in 1..3 {
            let mut again = spare.request().expect("all was kept");
            count(&mut again, tried_before(spare.headers()) + made);
            assert_eq!((again.method().as_str(), again.uri().to_string().as_str()), ("PUT", "/x?y"));
            assert_eq!(again.headers()["x-retry-count"], (made + 1).to_string());
            assert_eq!(again.headers().len(), 2);
            assert_eq!(read(again).await, "body");
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_left_as_it_is() {
        let request = || http::Request::new(Body::full("four"));
        assert!(Spare::of(&mut request(), 3, None).is_none());
        assert!(Spare::of(&mut request(), 0, None).is_none());
        assert!(Spare::of(&mut request(), 4, None).is_some());
        let mut without = http::Request::new(Body::empty());
        assert!(Spare::of(&mut without, 0, None).is_some_and(|spare| !spare.has_body()));
    }
}
