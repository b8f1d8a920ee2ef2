//! A head is whole with its last byte and not before, and what follows it changes nothing.
#![no_main]

use headworks::server::http1::Bounds;
use headworks::server::http1::head::read;
use libfuzzer_sys::fuzz_target;

const BOUNDS: Bounds = Bounds { bytes: 4096, fields: 16 };

fuzz_target!(|data: &[u8]| {
    match read(data, BOUNDS) {
        Ok(Some(head)) => {
            assert!(head.length <= data.len().min(BOUNDS.bytes));
            let (own, _) = data.split_at(head.length);
            assert!(own.ends_with(b"\r\n\r\n"));
            assert_eq!(read(own, BOUNDS), Ok(Some(head)));
            for end in 0..own.len() {
                assert_eq!(read(&own[..end], BOUNDS), Ok(None));
            }
        }
        Ok(None) => assert!(data.len() < BOUNDS.bytes),
        Err(refused) => {
            assert!(refused.method.end <= data.len() && refused.target.end <= data.len());
            let more = [data, b"\r\n\r\n"].concat();
            assert!(read(&more, BOUNDS).is_err(), "more bytes make no head of it");
        }
    }
});
