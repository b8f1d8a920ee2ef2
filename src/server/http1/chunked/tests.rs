use super::*;

const BOUNDS: Bounds = Bounds { bytes: 256, fields: 4 };

/// The bytes that belong to the body, read at once; the same must come of it in pieces of any size.
fn follow(text: &[u8]) -> Result<usize, (usize, Violation)> {
    let mut chunked = Chunked::new(BOUNDS);
    let at_once = chunked.advance(text);
    for piece in 1..4 {
        let mut chunked = Chunked::new(BOUNDS);
        let mut at = 0;
        let mut result = Ok(());
        for part in text.chunks(piece) {
            match chunked.advance(part) {
                Ok(step) => at += step,
                Err((step, violation)) => {
                    at += step;
                    result = Err(violation);
                    break;
                }
            }
        }
        assert_eq!(result.map(|()| at).map_err(|violation| (at, violation)), at_once, "in pieces of {piece}");
    }
    if let Ok(at) = at_once {
        assert!(chunked.is_done() || at == text.len());
    }
    at_once
}

#[test]
fn a_body_ends_with_its_trailers() {
    for body in [
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "A\r\n0123456789\r\n00\r\n\r\n",
        "1;a\r\nx\r\n1;a=b;c=\"d \\\" e\";f\r\ny\r\n0;z\r\n\r\n",
        "0\r\nx-checksum: abc\r\ny:\r\n\r\n",
    ] {
        assert_eq!(follow(format!("{body}GET /").as_bytes()), Ok(body.len()), "{body:?}");
    }
    assert_eq!(follow(b"5\r\nhel"), Ok(6), "not yet over");
}

#[test]
fn what_is_malformed_is_found_where_it_stands() {
    for (body, at) in [
        ("\r\n", 0),
        (";a\r\n", 0),
        ("+1\r\n", 0),
        ("-1\r\n", 0),
        (" 1\r\n", 0),
        ("0x1\r\n", 1),
        ("1 \r\n", 1),
        ("1\t;a\r\n", 1),
        ("1_0\r\n", 1),
        ("1\n", 1),
        ("1\rx", 2),
        ("1000000000000000\r\n", 15),
        ("0000000000000000\r\n", 15),
        ("1; a\r\n", 2),
        ("1;\r\n", 2),
        ("1;a=\r\n", 4),
        ("1;a b\r\n", 3),
        ("1;a\nx", 3),
        ("1;a=\"b\n\"", 6),
        ("1;a=\"b\r\n", 6),
        ("1;a=\"b\"c\r\n", 7),
        ("1;a\rx", 4),
        ("1\r\nxy", 4),
        ("1\r\nx\n", 4),
        ("1\r\nx\r\r", 5),
        ("0\r\n\n", 3),
        ("0\r\n\r\r", 4),
        ("0\r\n a: b\r\n", 3),
        ("0\r\na : b\r\n", 4),
        ("0\r\n: b\r\n", 3),
        ("0\r\na\r\n", 4),
        ("0\r\na: b\n", 7),
        ("0\r\na: \0\r\n", 6),
        ("0\r\nhost: a\r\n", 7),
        ("0\r\nContent-Length: 1\r\n", 17),
        ("0\r\nTransfer-Encoding: chunked\r\n", 20),
    ] {
        let found = follow(body.as_bytes());
        assert!(matches!(found, Err((place, _)) if place == at), "{body:?}: {found:?}");
    }
}

#[test]
fn what_is_no_data_is_bounded() {
    let fits = format!("1;{}\r\nx\r\n", "a".repeat(MOST_EXTENSION as usize));
    assert_eq!(follow(fits.as_bytes()), Ok(fits.len()));
    follow(format!("1;{}\r\n", "a".repeat(MOST_EXTENSION as usize + 1)).as_bytes()).unwrap_err();
    follow("1;a=bcdefghi\r\nx\r\n".repeat(MOST_EXTENSIONS as usize / 8).as_bytes()).unwrap_err();
    follow(format!("0\r\na: {}\r\n\r\n", "b".repeat(BOUNDS.bytes)).as_bytes()).unwrap_err();
    let trailers = |count| format!("0\r\n{}\r\n", "a: b\r\n".repeat(count));
    follow(trailers(BOUNDS.fields).as_bytes()).unwrap();
    follow(trailers(BOUNDS.fields + 1).as_bytes()).unwrap_err();
}
