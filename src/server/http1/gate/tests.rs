use super::*;
use crate::error::Reason;

const BOUNDS: Bounds = Bounds { bytes: 1024, fields: 8 };
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn messages_follow_each_other() {
    let mut gate = Gate::new(BOUNDS);
    let length = "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nGET /";
    let chunks = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\nx: y\r\n\r\n";
    let text = [GET, length, GET, chunks, "\r\n", GET].concat();
    assert_eq!(gate.advance(text.as_bytes()), Step::Pass);
    assert_eq!(gate.passed(), 5);
    // The same in pieces, where what is held comes again.
    for size in 1..20 {
        let mut gate = Gate::new(BOUNDS);
        let mut held = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            held.extend_from_slice(piece);
            match gate.advance(&held) {
                Step::Pass => held.clear(),
                Step::Hold { at } => drop(held.drain(..at)),
                step => panic!("{step:?} in pieces of {size}"),
            }
        }
        assert_eq!((held.len(), gate.passed()), (0, 5), "in pieces of {size}");
    }
}

#[test]
fn a_refused_message_is_replaced_and_the_last() {
    let mut gate = Gate::new(BOUNDS);
    let bad = "HEAD /x HTTP/1.1\r\nhost: a\r\nhost : b\r\n\r\n";
    let step = gate.advance([GET, bad, GET].concat().as_bytes());
    let Step::Refuse { at, violation, canonical } = step else { panic!("{step:?}") };
    assert_eq!((at, violation.reason, gate.passed()), (GET.len(), Reason::BadRequest, 1));
    assert_eq!(canonical, b"HEAD /x HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n");
    assert_eq!(Gate::new(BOUNDS).advance(&canonical), Step::Pass, "it is what it should have been");
    assert_eq!(gate.advance(GET.as_bytes()), Step::Park { at: 0 }, "nothing passes behind it");
    assert!(matches!(
        Gate::new(BOUNDS).advance(b"\x16\x03\x01\x02\x00\x01"),
        Step::Refuse { at: 0, canonical, .. } if canonical.starts_with(b"- * HTTP/1.1\r\n")
    ));
}

#[test]
fn a_malformed_body_is_broken_off_where_it_is_malformed() {
    let mut gate = Gate::new(BOUNDS);
    let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
    let step = gate.advance(format!("{head}zz\r\n").as_bytes());
    assert!(matches!(step, Step::Break { at, .. } if at == head.len()), "{step:?}");
    assert_eq!(gate.advance(GET.as_bytes()), Step::Park { at: 0 });
}

#[test]
fn behind_an_upgrade_nothing_is_read_before_its_answer() {
    let mut gate = Gate::new(BOUNDS);
    let ask = "POST / HTTP/1.1\r\nupgrade: x\r\ncontent-length: 1\r\n\r\nb";
    assert_eq!(gate.advance(format!("{ask}\0\0").as_bytes()), Step::Park { at: ask.len() });
    assert!(gate.is_parked());
    gate.resume();
    assert_eq!(gate.advance(GET.as_bytes()), Step::Pass);
}
