//! How far OPTIONS and TRACE go (RFC 9110, sections 7.6.2, 9.3.7 and 9.3.8).
//!
//! `Max-Forwards` counts down; at 0 this is the last hop. It answers OPTIONS with what the route serves, and refuses
//! TRACE, whose answer would be the request itself. TRACE goes no further either unless the route names it among its
//! methods: what an upstream mirrors includes the fields that were added on the way, secrets of the configuration too.

use http::header::{ALLOW, MAX_FORWARDS};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Body as _;

use super::{Early, Settings};
use crate::context::{Request, Response};
use crate::error::{ProxyError, Reason};

/// Counts a request down, or says what it is told here.
pub(super) fn check(request: &mut Request, settings: &Settings, is_limited: bool) -> Result<(), Box<Early>> {
    let is_trace = *request.method() == Method::TRACE;
    if !is_trace && *request.method() != Method::OPTIONS {
        return Ok(());
    }
    if is_trace && !settings.methods.contains(&Method::TRACE) {
        return Err(Box::new(Err(refused(settings))));
    }
    if is_trace && !request.body().is_end_stream() {
        return Err(Box::new(Err(ProxyError::new(Reason::BadRequest, "TRACE has no body"))));
    }
    if !is_limited {
        return Ok(());
    }
    match forwards(request.headers()) {
        None => Err(Box::new(Err(ProxyError::new(Reason::BadRequest, "Max-Forwards is not one number")))),
        Some(0) if is_trace => Err(Box::new(Err(refused(settings)))),
        Some(0) => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(ALLOW, allow(settings));
            Err(Box::new(Ok(response)))
        }
        Some(left) => {
            request.headers_mut().insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            Ok(())
        }
    }
}

/// The number, and the largest one for any that is larger.
fn forwards(headers: &HeaderMap) -> Option<u64> {
    let mut lines = headers.get_all(MAX_FORWARDS).iter();
    let (Some(only), None) = (lines.next(), lines.next()) else { return None };
    let digits = std::str::from_utf8(only.as_bytes()).ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

fn refused(settings: &Settings) -> ProxyError {
    let mut error = ProxyError::from(Reason::MethodRefused);
    error.headers.push((ALLOW, allow(settings)));
    error
}

/// What the route serves, as far as it says so.
fn allow(settings: &Settings) -> HeaderValue {
    let methods: Vec<_> =
        settings.methods.iter().filter(|method| **method != Method::TRACE).map(Method::as_str).collect();
    let usual = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    if methods.is_empty() { usual } else { HeaderValue::try_from(methods.join(", ")).unwrap_or(usual) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    /// What is left, or the status that it is told.
    fn asked(method: &str, forwards: &[&str], methods: &[Method]) -> Result<Option<String>, u16> {
        let mut request = http::Request::builder().method(method).body(Body::empty()).expect("valid");
        for value in forwards {
            request.headers_mut().append(MAX_FORWARDS, HeaderValue::try_from(*value).expect("valid"));
        }
        let settings = Settings { methods: methods.to_vec(), ..Settings::default() };
        match check(&mut request, &settings, !forwards.is_empty()) {
            Ok(()) => Ok(request.headers().get(MAX_FORWARDS).map(|left| left.to_str().expect("text").to_owned())),
            Err(told) => Err(match *told {
                Ok(response) => response.status().as_u16(),
                Err(error) => error.reason.status().as_u16(),
            }),
        }
    }

    #[test]
    fn it_counts_down_to_the_last_hop() {
        assert_eq!(asked("OPTIONS", &[], &[]), Ok(None));
        assert_eq!(asked("OPTIONS", &["7"], &[]), Ok(Some("6".into())));
        assert_eq!(asked("OPTIONS", &["007"], &[]), Ok(Some("6".into())));
        assert_eq!(asked("OPTIONS", &["99999999999999999999999"], &[]), Ok(Some((u64::MAX - 1).to_string())));
        assert_eq!(asked("OPTIONS", &["0"], &[]), Err(204));
        for wrong in [&["-1"][..], &["1, 2"], &["1", "1"], &[""], &["0x1"], &["+1"]] {
            assert_eq!(asked("OPTIONS", wrong, &[]), Err(400), "{wrong:?}");
        }
        assert_eq!(asked("GET", &["0"], &[]), Ok(Some("0".into())), "it means nothing there");
    }

    #[test]
    fn trace_goes_where_it_is_named() {
        assert_eq!(asked("TRACE", &[], &[]), Err(405));
        let named = [Method::GET, Method::TRACE];
        assert_eq!(asked("TRACE", &["2"], &named), Ok(Some("1".into())));
        assert_eq!(asked("TRACE", &["0"], &named), Err(405));
        assert_eq!(allow(&Settings { methods: named.to_vec(), ..Settings::default() }), "GET");
    }
}
