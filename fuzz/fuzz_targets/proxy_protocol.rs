//! The PROXY protocol: a header is whole with its last byte, and what follows changes nothing.
#![no_main]

use headworks::server::accept::proxy_protocol::{LONGEST, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(header)) = parse(data) {
        let own = data.get(..header.length).expect("a header is a part of what was read");
        assert!(header.length <= LONGEST);
        assert!(matches!(parse(own), Ok(Some(again)) if format!("{again:?}") == format!("{header:?}")));
        let short = &own[..own.len() - 1];
        assert!(!matches!(parse(short), Ok(Some(_))), "whole before its end");
    }
});
