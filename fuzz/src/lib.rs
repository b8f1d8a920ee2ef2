//! What the targets share: a strict reading of HTTP/1.1 that has no code in common with the proxy or with hyper.

use std::collections::BTreeMap;

/// A request as it stands in the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub method: String,
    pub target: String,
    /// Values by lower-case name, in their order.
    pub fields: BTreeMap<String, Vec<Vec<u8>>>,
    pub body: Vec<u8>,
    pub is_http_11: bool,
    /// Whether the body is whole.
    pub whole: bool,
}

/// Reads messages up to the first that is not whole. Panics where the bytes are not what RFC 9112 says.
#[must_use]
pub fn messages(bytes: &[u8]) -> Vec<Message> {
    let mut rest = bytes;
    let mut messages = Vec::new();
    loop {
        // One empty line is tolerated before each.
        let begin = rest.strip_prefix(b"\r\n").unwrap_or(rest);
        let Some(end) = begin.windows(4).position(|window| window == b"\r\n\r\n") else {
            assert!(begin.is_empty(), "half a head passed: {:?}", String::from_utf8_lossy(begin));
            return messages;
        };
        let mut message = head(&begin[..end]);
        let (body, length) = body(&message, &begin[end + 4..]);
        message.body = body;
        message.whole = length.is_some();
        messages.push(message);
        let Some(length) = length else { return messages };
        rest = &begin[end + 4 + length..];
    }
}

fn head(bytes: &[u8]) -> Message {
    let mut lines = split(bytes).into_iter();
    let line = lines.next().expect("a request line");
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { panic!("a request line of {} parts", parts.len()) };
    assert!(!method.is_empty() && method.iter().all(|byte| is_token(*byte)), "method {method:?}");
    assert!(!target.is_empty() && target.iter().all(u8::is_ascii_graphic), "target {target:?}");
    assert!(matches!(version, b"HTTP/1.1" | b"HTTP/1.0"), "version {version:?}");
    let mut fields: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        assert!(!name.is_empty() && name.iter().all(|byte| is_token(*byte)), "name {name:?}");
        assert!(value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)), "value {value:?}");
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        fields.entry(name).or_default().push(value.trim_ascii().to_vec());
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("ASCII");
    let is_http_11 = version == b"HTTP/1.1";
    Message { method: text(method), target: text(target), fields, body: Vec::new(), is_http_11, whole: false }
}

fn body(message: &Message, bytes: &[u8]) -> (Vec<u8>, Option<usize>) {
    let all = |name: &str| message.fields.get(name).map_or(&[][..], Vec::as_slice);
    match (all("content-length"), all("transfer-encoding")) {
        ([], []) => (Vec::new(), Some(0)),
        ([length], []) => {
            assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "length {length:?}");
            let length: u64 = String::from_utf8_lossy(length).parse().expect("a length that can be counted");
            let there = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            (bytes[..there].to_vec(), (there as u64 == length).then_some(there))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && message.is_http_11 => chunks(bytes),
        (lengths, codings) => panic!("a body of {lengths:?} and {codings:?}"),
    }
}

fn chunks(bytes: &[u8]) -> (Vec<u8>, Option<usize>) {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { return (body, None) };
        let line = &rest[..end];
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
        assert!(line.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)), "chunk line {line:?}");
        assert!(!size.is_empty() && size.iter().all(u8::is_ascii_hexdigit), "chunk size {size:?}");
        let size = u64::from_str_radix(&String::from_utf8_lossy(size), 16).expect("a size that can be counted");
        at += end + 2;
        if size == 0 {
            break;
        }
        let rest = &bytes[at..];
        let there = rest.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        body.extend_from_slice(&rest[..there]);
        match rest.get(there..there + 2) {
            Some(end) if there as u64 == size => assert_eq!(end, b"\r\n", "behind a chunk"),
            _ => return (body, None),
        }
        at += there + 2;
    }
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { return (body, None) };
        at += end + 2;
        if end == 0 {
            return (body, Some(at));
        }
        assert!(rest[..end].contains(&b':'), "a trailer without a colon");
    }
}

/// Lines that end with CRLF, and have neither CR nor LF in them.
fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap_or(rest.len());
        let line = &rest[..end];
        assert!(!line.contains(&b'\r') && !line.contains(&b'\n'), "a bare line end in {line:?}");
        lines.push(line);
        let Some(next) = rest.get(end + 2..) else { return lines };
        rest = next;
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
