use super::*;

const BOUNDS: Bounds = Bounds { bytes: 1024, fields: 8 };

fn whole(text: &str) -> Head {
    let head = read(text.as_bytes(), BOUNDS).unwrap_or_else(|refused| panic!("{text:?}: {refused:?}"));
    head.unwrap_or_else(|| panic!("not whole: {text:?}"))
}

fn refused(bytes: impl AsRef<[u8]>) -> Refused {
    let bytes = bytes.as_ref();
    match read(bytes, BOUNDS) {
        Err(refused) => refused,
        Ok(head) => panic!("{:?} passes as {head:?}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn what_is_plain_passes() {
    let plain = "GET /a?b=c|d HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t a \x09b\r\n\r\n";
    let expected = Head { length: plain.len(), framing: Framing::Length(0), upgrade: false };
    assert_eq!(whole(plain), expected);
    assert_eq!(whole(&format!("{plain}GET")).length, plain.len(), "what follows is not looked at");
    assert_eq!(whole(&format!("\r\n{plain}")).length, plain.len() + 2, "one empty line before");
    assert_eq!(whole("POST / HTTP/1.1\r\nContent-Length: 12 \r\n\r\n").framing, Framing::Length(12));
    assert_eq!(whole("POST / HTTP/1.1\r\ntransfer-encoding:\tCHUNKED\r\n\r\n").framing, Framing::Chunked);
    assert!(whole("GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n").upgrade);
    assert!(!whole("GET / HTTP/1.0\r\nUpgrade: x\r\n\r\n").upgrade, "HTTP/1.0 switches nothing");
    for line in ["OPTIONS * HTTP/1.1", "GET http://a:80/b HTTP/1.1", "GET HTTPS://a HTTP/1.0", "get-it! // HTTP/1.1"] {
        whole(&format!("{line}\r\n\r\n"));
    }
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\ny: \u{fc}\r\n\r\n", "long ".repeat(100));
    assert_eq!(whole(&long).length, long.len());
}

#[test]
fn a_head_is_whole_with_its_last_byte_and_not_before() {
    let text = "GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(read(&text.as_bytes()[..end], BOUNDS), Ok(None), "{:?}", &text[..end]);
    }
    whole(text);
}

#[test]
fn request_lines_of_another_kind_are_refused() {
    for line in [
        " GET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /",
        "GET / ",
        "GET  HTTP/1.1",
        "G\0T / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /\u{e4} HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a?b#c HTTP/1.1",
        "GET /\\.. HTTP/1.1",
        "GET /a<b HTTP/1.1",
        "GET /a?b\" HTTP/1.1",
        "GET * HTTP/1.1",
        "GET *a HTTP/1.1",
        "GET a HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET http://a/#b HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.1x",
        "GET / HTTP/11",
        "GET / HTTP/1.",
        "GET / XTTP/1.1",
        "\r\n\r\nGET / HTTP/1.1",
        "\nGET / HTTP/1.1",
    ] {
        let refused = refused(format!("{line}\r\nhost: a\r\n\r\n"));
        assert_eq!(refused.violation.reason, Reason::BadRequest, "{line:?}: {refused:?}");
    }
    for (line, reason) in [
        ("CONNECT a:80 HTTP/1.1", Reason::MethodRefused),
        ("GET / HTTP/2.0", Reason::VersionRefused),
        ("GET / HTTP/1.2", Reason::VersionRefused),
        ("GET / HTTP/0.9", Reason::VersionRefused),
    ] {
        assert_eq!(refused(format!("{line}\r\n\r\n")).violation.reason, reason, "{line:?}");
    }
}

#[test]
fn fields_of_another_kind_are_refused() {
    for field in [
        " folded: a",
        "a: b\r\n folded",
        "a: b\r\n\tfolded",
        "a : b",
        "a\t: b",
        ": b",
        "a",
        "a b: c",
        "a\0: b",
        "a: \0",
        "a: b\x7f",
        "a: b\x0bc",
        "a: b\nc: d",
        "a: b\rc: d",
        "a: b\r\rc",
        "a: b\n",
        "\u{e4}: b",
        "a(b): c",
        "content-length: ",
        "content-length: +1",
        "content-length: -1",
        "content-length: 1,1",
        "content-length: 1 1",
        "content-length: 0x1",
        "content-length: 01",
        "content-length: 1e3",
        "content-length: 1234567890123456789",
        "content-length: 1\r\ncontent-length: 1",
        "content-length: 1\r\nContent-Length: 2",
        "content_length: 1",
        "content-length: 1\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 1",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: chunked,",
        "transfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \x0bchunked",
        "transfer-encoding:",
        "transfer_encoding: chunked",
    ] {
        let head = format!("POST /a HTTP/1.1\r\n{field}\r\n\r\n");
        let refused = refused(&head);
        assert_eq!(refused.violation.reason, Reason::BadRequest, "{field:?}: {refused:?}");
        assert_eq!((&head[refused.method], &head[refused.target]), ("POST", "/a"), "its request line is known");
    }
    refused("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n");
}

#[test]
fn a_head_is_bounded_in_bytes_and_fields() {
    let with = |bytes: usize| format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(bytes - 23));
    assert_eq!(whole(&with(BOUNDS.bytes)).length, BOUNDS.bytes);
    assert_eq!(refused(with(BOUNDS.bytes + 1)).violation.reason, Reason::HeaderTooLarge);
    assert_eq!(refused("a".repeat(BOUNDS.bytes)).violation.reason, Reason::HeaderTooLarge, "whole or not");
    assert_eq!(read("a".repeat(BOUNDS.bytes - 1).as_bytes(), BOUNDS), Ok(None));
    let with = |fields| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(fields));
    whole(&with(BOUNDS.fields));
    assert_eq!(refused(with(BOUNDS.fields + 1)).violation.reason, Reason::HeaderTooLarge);
}
