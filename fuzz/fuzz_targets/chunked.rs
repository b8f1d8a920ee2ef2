//! A body in chunks is the same in whatever pieces it comes.
#![no_main]

use headworks::server::http1::Bounds;
use headworks::server::http1::chunked::Chunked;
use libfuzzer_sys::fuzz_target;

const BOUNDS: Bounds = Bounds { bytes: 512, fields: 8 };

fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else { return };
    let mut whole = Chunked::new(BOUNDS);
    let at_once = whole.advance(data);
    let mut pieces = Chunked::new(BOUNDS);
    let mut at = 0;
    let mut result = Ok(());
    for piece in data.chunks(usize::from(*size).max(1)) {
        match pieces.advance(piece) {
            Ok(step) => at += step,
            Err((step, violation)) => {
                at += step;
                result = Err(violation);
                break;
            }
        }
    }
    assert_eq!(result.map(|()| at).map_err(|violation| (at, violation)), at_once);
    if at_once.is_ok() {
        assert_eq!(whole, pieces);
        assert!(whole.is_done() || at == data.len());
    }
});
