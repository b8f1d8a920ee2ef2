//! An upstream that reads with a mind of its own: byte for byte, strictly, and without any code of the proxy.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A message as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether it ended as it should.
    pub(crate) whole: bool,
}

/// What is known of all connections.
#[derive(Debug, Default)]
struct Seen {
    messages: Vec<Message>,
    /// Bytes that are no canonical message.
    faults: Vec<String>,
}

/// What is answered to a request for a path, and whether the connection is closed then.
pub(crate) type Answers = HashMap<String, (Vec<u8>, bool)>;

/// The upstream. It answers `200` with the body `ok`, where nothing else is said for the path.
#[derive(Debug)]
pub(crate) struct Transcript {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Transcript {
    pub(crate) async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (all, answers) = (Arc::clone(&seen), Arc::new(answers));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all), Arc::clone(&answers)));
            }
        });
        Self { address, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        self.seen.lock().unwrap().messages.clone()
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.seen.lock().unwrap().faults.clone()
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Seen>>, answers: Arc<Answers>) {
    let mut bytes = Vec::new();
    // An answer that is no good must be the last of its connection.
    let mut spoilt = None;
    loop {
        match parse(&bytes) {
            Err(fault) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                seen.lock().unwrap().faults.push(format!("{fault} in {text:?}"));
                return;
            }
            Ok((Some(message), length)) if message.whole => {
                bytes.drain(..length);
                if let Some(path) = &spoilt {
                    let fault = format!("{} came behind the answer to {path}", message.target);
                    seen.lock().unwrap().faults.push(fault);
                }
                let path = message.target.clone();
                seen.lock().unwrap().messages.push(message);
                let ok = (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(), false);
                let special = answers.get(&path);
                let (answer, close) = special.unwrap_or(&ok);
                if stream.write_all(answer).await.is_err() || *close {
                    return;
                }
                spoilt = special.map(|_| path);
            }
            Ok((partial, _)) => {
                if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                    seen.lock().unwrap().messages.extend(partial);
                    return;
                }
            }
        }
    }
}

/// Reads one message: its length when it is whole, what there is of it when its head is.
fn parse(bytes: &[u8]) -> Result<(Option<Message>, usize), String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        let plain = bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n' | b'\t' | 0x20..=0x7e | 0x80..));
        return if plain { Ok((None, 0)) } else { Err("a control byte in a head".to_owned()) };
    };
    let head: String = bytes[..end].iter().copied().map(char::from).collect();
    let mut lines = head.split("\r\n");
    if lines.clone().any(|line| line.contains(['\r', '\n'])) {
        return Err("a line that does not end with CRLF".to_owned());
    }
    if let Some(byte) = head.chars().find(|char| char.is_ascii_control() && !['\r', '\n', '\t'].contains(char)) {
        return Err(format!("a byte like {byte:?}"));
    }
    let first = lines.next().unwrap_or_default();
    let parts: Vec<&str> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(format!("a request line like {first:?}")) };
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("a method like {method:?}"));
    }
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(format!("a target like {target:?}"));
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or(format!("a field like {line:?}"))?;
        let token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("a name like {name:?}"));
        }
        if value != value.trim_matches([' ', '\t']) {
            return Err(format!("a padded value in {line:?}"));
        }
        fields.push((name.to_owned(), value.to_owned()));
    }
    let all = |wanted: &str| fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.clone()).collect();
    let (hosts, lengths, codings): (Vec<String>, Vec<String>, Vec<String>) =
        (all("host"), all("content-length"), all("transfer-encoding"));
    if hosts.len() != 1 {
        return Err(format!("hosts {hosts:?}"));
    }
    for name in
        ["connection", "keep-alive", "proxy-connection", "http2-settings", "content_length", "transfer_encoding"]
    {
        if fields.iter().any(|(known, _)| known == name) {
            return Err(format!("a field of one hop: {name}"));
        }
    }
    let head = end + 4;
    let (body, length) = match (&lengths[..], &codings[..]) {
        ([], []) => (Vec::new(), Some(0)),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| "a large length")?;
            let there = bytes[head..].len().min(length);
            (bytes[head..head + there].to_vec(), (there == length).then_some(length))
        }
        ([], [coding]) if coding == "chunked" => chunks(&bytes[head..])?,
        _ => return Err(format!("a body of {lengths:?} and {codings:?}")),
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let message = Message { method, target, fields, body, whole: length.is_some() };
    Ok((Some(message), head + length.unwrap_or(0)))
}

/// The data of a body in chunks, and its length when it is whole.
fn chunks(bytes: &[u8]) -> Result<(Vec<u8>, Option<usize>), String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return if rest.len() < 20 { Ok((body, None)) } else { Err("a chunk without a size".to_owned()) };
        };
        let size = text(&rest[..end])?;
        if size.is_empty() || size.len() > 8 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("a chunk of size {size:?}"));
        }
        let size = usize::from_str_radix(&size, 16).map_err(|error| error.to_string())?;
        at += end + 2;
        if size == 0 {
            let rest = &bytes[at..];
            // Trailers, or none: they end with an empty line.
            let end = if rest.starts_with(b"\r\n") {
                Some(2)
            } else {
                rest.windows(4).position(|window| window == b"\r\n\r\n").map(|end| end + 4)
            };
            return Ok((body, end.map(|end| at + end)));
        }
        let rest = &bytes[at..];
        body.extend_from_slice(&rest[..size.min(rest.len())]);
        match rest.get(size..size + 2) {
            None => return Ok((body, None)),
            Some(b"\r\n") => at += size + 2,
            Some(other) => return Err(format!("a chunk that ends with {other:?}")),
        }
    }
}

/// Text without control bytes; bytes beyond ASCII become what Latin-1 makes of them.
fn text(bytes: &[u8]) -> Result<String, String> {
    if bytes.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(format!("a control byte in {:?}", String::from_utf8_lossy(bytes)));
    }
    Ok(bytes.iter().copied().map(char::from).collect())
}

#[test]
fn it_reads_what_is_canonical_and_nothing_else() {
    let message =
        |text: &str| parse(text.as_bytes()).map(|(message, length)| (message.map(|m| (m.whole, m.body)), length));
    let get = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(message(&format!("{get}GET")), Ok((Some((true, Vec::new())), get.len())));
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n";
    assert_eq!(message(&format!("{post}o")).unwrap().0, Some((false, b"o".to_vec())));
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
    assert_eq!(message(&format!("{chunked}\r\nGET")), Ok((Some((true, b"ok".to_vec())), chunked.len() + 2)));
    assert_eq!(message(chunked).unwrap().0, Some((false, b"ok".to_vec())));
    for bad in [
        "GET  /a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a HTTP/1.0\r\nhost: a\r\n\r\n",
        "GET /a HTTP/1.1\nhost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost:  a\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a\r\n",
    ] {
        assert!(message(bad).is_err(), "{bad:?}");
    }
}
