//! Which answers can be read in one way only. hyper and h2 refuse much by themselves; what they let through is judged
//! here, before anything of it reaches a client.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};

/// What is wrong with the head of an answer; nothing, mostly.
pub(super) fn fault(head: &Parts) -> Option<&'static str> {
    if head.status.as_u16() > 599 {
        return Some("a status that no answer has");
    }
    let (lengths, codings) = (all(&head.headers, &CONTENT_LENGTH), all(&head.headers, &TRANSFER_ENCODING));
    match (lengths, codings) {
        (Found::None, Found::None) => None,
        (Found::One(length), Found::None) if is_plain_number(length) => {
            let empty = head.status == StatusCode::NO_CONTENT && length != "0";
            empty.then_some("a length where there is no body")
        }
        (Found::None, Found::One(coding)) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            (head.status == StatusCode::NO_CONTENT).then_some("chunks where there is no body")
        }
        (Found::None, _) => Some("a transfer coding that is not one final chunked"),
        (_, Found::None) => Some("more than one length, or none that is a plain number"),
        _ => Some("a length beside chunks"),
    }
}

enum Found<'a> {
    None,
    One(&'a HeaderValue),
    Many,
}

fn all<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Found<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Found::None,
        (Some(value), None) => Found::One(value),
        (Some(_), Some(_)) => Found::Many,
    }
}

fn is_plain_number(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    let canonical = digits.len() == 1 || digits.first() != Some(&b'0');
    canonical && !digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, fields: &[(&str, &str)]) -> bool {
        let response = http::Response::builder().status(status);
        let response = fields.iter().fold(response, |response, (name, value)| response.header(*name, *value));
        fault(&response.body(()).expect("a response").into_parts().0).is_none()
    }

    #[test]
    fn an_answer_has_a_status_and_at_most_one_end() {
        for (status, fields) in [
            (200, &[][..]),
            (599, &[("content-length", "0")]),
            (200, &[("content-length", "123456789012345678")]),
            (200, &[("transfer-encoding", "Chunked")]),
            (204, &[("content-length", "0")]),
            (304, &[("content-length", "10")]),
        ] {
            assert!(answer(status, fields), "{status} {fields:?}");
        }
        for (status, fields) in [
            (600, &[][..]),
            (999, &[]),
            (200, &[("content-length", "1"), ("content-length", "1")]),
            (200, &[("content-length", "1"), ("transfer-encoding", "chunked")]),
            (200, &[("content-length", "01")]),
            (200, &[("content-length", "1,1")]),
            (200, &[("content-length", "1234567890123456789")]),
            (200, &[("content-length", "")]),
            (200, &[("transfer-encoding", "gzip, chunked")]),
            (200, &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]),
            (204, &[("content-length", "1")]),
            (204, &[("transfer-encoding", "chunked")]),
        ] {
            assert!(!answer(status, fields), "{status} {fields:?}");
        }
    }
}
