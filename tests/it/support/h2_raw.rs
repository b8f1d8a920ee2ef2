//! HTTP/2 frame by frame: a client that sends exactly the bytes that a test says, and reads what comes.
//!
//! Frames are made by [`frame`] and the functions below it, field blocks by [`block`], which neither indexes nor
//! compresses, so that every byte is where the test wants it. [`H2Raw`] asks the peer not to use its dynamic table;
//! so each field block that comes can be read alone.

#![allow(dead_code, reason = "a vocabulary: topics take the words that they need")]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// No step takes longer, or the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113, section 6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

/// Error codes (RFC 9113, section 7).
pub(crate) mod code {
    pub(crate) const NO_ERROR: u32 = 0;
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const CANCEL: u32 = 8;
    pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn is_ack(&self) -> bool {
        self.flags & flag::ACK != 0
    }

    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & flag::END_STREAM != 0
    }

    /// The error code of `RST_STREAM` and GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The fields of HEADERS without padding, in their order.
    pub(crate) fn fields(&self) -> Vec<(String, String)> {
        read_block(&self.payload)
    }
}

/// Any frame, well formed or not.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// SETTINGS with these parameters.
pub(crate) fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        parameters.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(kind::SETTINGS, 0, 0, &payload)
}

pub(crate) fn settings_ack() -> Vec<u8> {
    frame(kind::SETTINGS, flag::ACK, 0, &[])
}

/// A whole field block in one HEADERS frame; with `end`, a request without a body.
pub(crate) fn headers(stream: u32, end: bool, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | if end { flag::END_STREAM } else { 0 }, stream, block)
}

pub(crate) fn data(stream: u32, end: bool, bytes: &[u8]) -> Vec<u8> {
    frame(kind::DATA, if end { flag::END_STREAM } else { 0 }, stream, bytes)
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(crate) fn ping(payload: [u8; 8]) -> Vec<u8> {
    frame(kind::PING, 0, 0, &payload)
}

pub(crate) fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(crate) fn priority(stream: u32, dependency: u32) -> Vec<u8> {
    frame(kind::PRIORITY, 0, stream, &[&dependency.to_be_bytes()[..], &[15]].concat())
}

/// A field block of these fields in this order, literal and without indexing.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            write_integer(&mut bytes, 7, 0, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The field block of a request for `path` of the host `test.local`, with more fields after the pseudo-fields.
pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "test.local"), (":path", path)];
    block(&[&pseudo[..], fields].concat())
}

/// An integer of HPACK with a prefix of `bits` bits (RFC 7541, section 5.1).
pub(crate) fn write_integer(bytes: &mut Vec<u8>, bits: u8, first: u8, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        bytes.push(first | value as u8);
        return;
    }
    bytes.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(rest as u8 | 128);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

/// A connection whose frames are read one by one.
#[derive(Debug)]
pub(crate) struct H2Raw {
    stream: TcpStream,
}

impl H2Raw {
    /// Connects and says nothing.
    pub(crate) async fn silent(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Connects with a small receive buffer and says nothing.
    pub(crate) async fn small(addr: SocketAddr, receive_buffer: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(receive_buffer).unwrap();
        Self { stream: socket.connect(addr).await.unwrap() }
    }

    /// Connects and sends preface and settings.
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::with_settings(addr, &[]).await
    }

    /// The same with settings beside the one that switches the peer's dynamic table off.
    pub(crate) async fn with_settings(addr: SocketAddr, parameters: &[(u16, u32)]) -> Self {
        let mut client = Self::silent(addr).await;
        client.send(PREFACE).await;
        client.send(settings(&[&[(1, 0)], parameters].concat())).await;
        client
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.unwrap();
    }

    /// Sends what the peer takes; an error when it has closed.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("the peer takes the bytes")
    }

    /// The next frame as it is; none at the end of the connection, also at a reset.
    pub(crate) async fn next_raw(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = timeout(PATIENCE, self.stream.read_exact(&mut head)).await.expect("the peer says something");
        read.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        timeout(PATIENCE, self.stream.read_exact(&mut payload)).await.expect("a whole frame").ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame that is not about the connection's housekeeping: settings and pings are answered.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next_raw().await?;
            match frame.kind {
                kind::SETTINGS if !frame.is_ack() => drop(self.try_send(settings_ack()).await),
                kind::PING if !frame.is_ack() => {
                    drop(self.try_send(self::frame(kind::PING, flag::ACK, 0, &frame.payload)).await);
                }
                kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE => {}
                _ => return Some(frame),
            }
        }
    }

    /// The frames of one stream up to its end or reset, or up to the end of the connection. Those of others are lost.
    pub(crate) async fn stream(&mut self, stream: u32) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            if frame.stream != stream {
                continue;
            }
            let last = frame.ends_stream() || frame.kind == kind::RST_STREAM;
            frames.push(frame);
            if last {
                break;
            }
        }
        frames
    }

    /// The status of a stream's answer, once it is complete.
    pub(crate) async fn status(&mut self, stream: u32) -> u16 {
        let frames = self.stream(stream).await;
        let head = frames.iter().find(|frame| frame.kind == kind::HEADERS);
        let head = head.unwrap_or_else(|| panic!("stream {stream} has no answer: {frames:?}"));
        head.fields().iter().find(|(name, _)| name == ":status").expect("a status").1.parse().unwrap()
    }

    /// Everything that comes up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Reads to the end of the connection and gives the error code of the last GOAWAY; none when there was none.
    pub(crate) async fn goodbye(&mut self) -> Option<u32> {
        self.rest().await.iter().rev().find(|frame| frame.kind == kind::GOAWAY).map(Frame::code)
    }

    pub(crate) fn into_inner(self) -> TcpStream {
        self.stream
    }
}

/// The fields of a block whose sender uses no dynamic table.
fn read_block(bytes: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    while let Some(first) = rest.first().copied() {
        if first & 0x80 != 0 {
            let (name, value) = STATIC[read_integer(&mut rest, 7) - 1];
            fields.push((name.to_owned(), value.to_owned()));
        } else if first & 0xe0 == 0x20 {
            read_integer(&mut rest, 5); // the size of the dynamic table
        } else {
            let name = match read_integer(&mut rest, if first & 0x40 != 0 { 6 } else { 4 }) {
                0 => read_string(&mut rest),
                index => STATIC[index - 1].0.to_owned(),
            };
            fields.push((name, read_string(&mut rest)));
        }
    }
    fields
}

fn read_integer(rest: &mut &[u8], bits: u8) -> usize {
    let most = (1 << bits) - 1;
    let mut value = usize::from(rest[0]) & most;
    *rest = &rest[1..];
    if value == most {
        for shift in (0..).step_by(7) {
            let byte = usize::from(rest[0]);
            *rest = &rest[1..];
            value += (byte & 127) << shift;
            if byte & 128 == 0 {
                break;
            }
        }
    }
    value
}

fn read_string(rest: &mut &[u8]) -> String {
    let coded = rest[0] & 0x80 != 0;
    let length = read_integer(rest, 7);
    let (text, after) = rest.split_at(length);
    *rest = after;
    if coded { uncode(text) } else { String::from_utf8_lossy(text).into_owned() }
}

/// Huffman coding, of the characters that fields are made of.
fn uncode(bytes: &[u8]) -> String {
    let mut text = String::new();
    let (mut code, mut length) = (0_u32, 0_u8);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
        (code, length) = (code << 1 | bit, length + 1);
        if let Some(at) = CODES.iter().position(|known| *known == (code, length)) {
            text.push(char::from(b' ' + u8::try_from(at).unwrap()));
            (code, length) = (0, 0);
        }
    }
    text
}

/// Code and length of the characters from the space to the tilde (RFC 7541, appendix B).
#[rustfmt::skip]
const CODES: [(u32, u8); 95] = [
    (0x14, 6), (0x3f8, 10), (0x3f9, 10), (0xffa, 12), (0x1ff9, 13), (0x15, 6), (0xf8, 8), (0x7fa, 11), (0x3fa, 10),
    (0x3fb, 10), (0xf9, 8), (0x7fb, 11), (0xfa, 8), (0x16, 6), (0x17, 6), (0x18, 6), (0x0, 5), (0x1, 5), (0x2, 5),
    (0x19, 6), (0x1a, 6), (0x1b, 6), (0x1c, 6), (0x1d, 6), (0x1e, 6), (0x1f, 6), (0x5c, 7), (0xfb, 8), (0x7ffc, 15),
    (0x20, 6), (0xffb, 12), (0x3fc, 10), (0x1ffa, 13), (0x21, 6), (0x5d, 7), (0x5e, 7), (0x5f, 7), (0x60, 7),
    (0x61, 7), (0x62, 7), (0x63, 7), (0x64, 7), (0x65, 7), (0x66, 7), (0x67, 7), (0x68, 7), (0x69, 7), (0x6a, 7),
    (0x6b, 7), (0x6c, 7), (0x6d, 7), (0x6e, 7), (0x6f, 7), (0x70, 7), (0x71, 7), (0x72, 7), (0xfc, 8), (0x73, 7),
    (0xfd, 8), (0x1ffb, 13), (0x7fff0, 19), (0x1ffc, 13), (0x3ffc, 14), (0x22, 6), (0x7ffd, 15), (0x3, 5), (0x23, 6),
    (0x4, 5), (0x24, 6), (0x5, 5), (0x25, 6), (0x26, 6), (0x27, 6), (0x6, 5), (0x74, 7), (0x75, 7), (0x28, 6),
    (0x29, 6), (0x2a, 6), (0x7, 5), (0x2b, 6), (0x76, 7), (0x2c, 6), (0x8, 5), (0x9, 5), (0x2d, 6), (0x77, 7),
    (0x78, 7), (0x79, 7), (0x7a, 7), (0x7b, 7), (0x7ffe, 15), (0x7fc, 11), (0x3ffd, 14), (0x1ffd, 13),
];

/// RFC 7541, appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[test]
fn fields_are_read_as_they_were_written() {
    let fields = [(":status", "200"), ("x-long", &"v".repeat(300)), ("via", "2 headworks")];
    let own: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(read_block(&block(&fields)), own);
    // RFC 7541, C.4.1: GET http://www.example.com/, with Huffman coding.
    let coded = [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    let last = read_block(&coded).pop().unwrap();
    assert_eq!(last, (":authority".to_owned(), "www.example.com".to_owned()));
}
