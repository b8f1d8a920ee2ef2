//! An address in `X-Forwarded-For` is the same again when it is printed, with and without a port.
#![no_main]

use headworks::context::hop_address;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(address) = hop_address(data) {
        assert_eq!(hop_address(address.to_string().as_bytes()), Some(address));
        let socket = std::net::SocketAddr::new(address, 80);
        assert_eq!(hop_address(socket.to_string().as_bytes()), Some(address));
    }
});
