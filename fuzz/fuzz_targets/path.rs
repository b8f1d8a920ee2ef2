//! A path that is let through cannot be resolved to another one, and a needless escape changes no prefix.
#![no_main]

use headworks::context::strip_path;
use headworks::server::plain::is_plain_path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    assert_eq!(strip_path(text, ""), Some(text));
    // The path of a URI: others never come here.
    let Ok(uri) = text.parse::<http::uri::PathAndQuery>() else { return };
    let text = uri.path();
    if !is_plain_path(text.as_bytes()) {
        return;
    }
    let decoded = decode(text.as_bytes());
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        assert!(!matches!(name, b"." | b".."), "{text:?} has a dot segment");
    }
    assert!(!decoded.contains(&0));
    if let Some(rest) = strip_path(text, "/admin") {
        assert!(decode(text.as_bytes()).starts_with(b"/admin") && text.ends_with(rest));
    }
});

fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = bytes;
    while let [byte, next @ ..] = rest {
        rest = next;
        let digits = next.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *byte == b'%') {
            Some(byte) => {
                decoded.push(byte);
                rest = &next[2..];
            }
            None => decoded.push(*byte),
        }
    }
    decoded
}
