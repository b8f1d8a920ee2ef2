//! What the strict reading of a head costs before hyper reads it again: `cargo bench --bench gate`.

use divan::{Bencher, black_box};
use headworks::server::http1::Bounds;
use headworks::server::http1::gate::Gate;

fn main() {
    divan::main();
}

const BOUNDS: Bounds = Bounds { bytes: 16 * 1024, fields: 100 };

const PROGRAM: &str = "GET /v1/chat?x=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/8.5\r\nAccept: */*\r\n\r\n";

const BROWSER: &str = "GET /some/page.html?query=value HTTP/1.1\r\nHost: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; visitor=abcdefghijklmnopqrstuvwxyz\r\n\
    Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nPriority: u=0, i\r\n\r\n";

#[divan::bench(args = [PROGRAM, BROWSER])]
fn head(bencher: Bencher<'_, '_>, head: &str) {
    let mut gate = Gate::new(BOUNDS);
    bencher.bench_local(|| gate.advance(black_box(head.as_bytes())));
}

#[divan::bench]
fn body_of_16_kib(bencher: Bencher<'_, '_>) {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let message = format!("{head}4000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x4000));
    let mut gate = Gate::new(BOUNDS);
    bencher.bench_local(|| gate.advance(black_box(message.as_bytes())));
}
