//! `traceparent`: any bytes are one or none, and one that is passed on is one.
#![no_main]

use headworks::layers::trace::TraceParent;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(parent) = TraceParent::parse(data) {
        let _ = parent.child();
        assert!(data.len() >= 55 && data.is_ascii() || data.len() > 55);
    }
});
