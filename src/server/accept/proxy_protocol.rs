//! The PROXY protocol, versions 1 and 2: what a balancer says before the first byte of its client, about that client.
//!
//! Pure and incremental: bytes in, and out comes a header, a wish for more, or a refusal. What is read is bounded: a
//! header that is not whole within [`LONGEST`] bytes is none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a header at most. The addresses take 232; the rest is for what balancers add (TLS, authority, ids).
pub const LONGEST: usize = 4096;

/// Bytes of a header of version 1 at most, its line's end included.
const LONGEST_LINE: usize = 107;
const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family, and length.
const FIXED: usize = 16;
/// The type of the part that holds a checksum of the whole header.
const CHECKSUM: u8 = 3;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its bytes; what follows is the client's.
    pub length: usize,
    /// Both ends of the client's connection; none when the balancer speaks for itself, or of something that has no IP
    /// address. The connection's own addresses hold then.
    pub ends: Option<Ends>,
}

/// Both ends of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// Why the bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

/// Reads the header that `bytes` begin with; none when more bytes are needed to tell.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let begins = |known: &[u8]| bytes.starts_with(known) || known.starts_with(bytes);
    if begins(SIGNATURE) {
        binary(bytes)
    } else if begins(LINE) {
        line(bytes)
    } else {
        Err(Malformed("no header of the PROXY protocol"))
    }
}

/// Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443` and the end of a line.
fn line(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let seen = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if seen.len() == LONGEST_LINE { Err(Malformed("the line is too long")) } else { Ok(None) };
    };
    let text = seen.get(LINE.len()..end).and_then(|line| line.strip_suffix(b"\r"));
    let text = text.and_then(|text| std::str::from_utf8(text).ok()).ok_or(Malformed("the line is malformed"))?;
    let length = end + 1;
    // What follows is not said to be anything.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(Some(Header { length, ends: None }));
    }
    let ends = line_ends(text).ok_or(Malformed("the line is malformed"))?;
    Ok(Some(Header { length, ends: Some(ends) }))
}

fn line_ends(text: &str) -> Option<Ends> {
    let mut words = text.split(' ');
    let address: fn(&str) -> Option<IpAddr> = match words.next()? {
        "TCP4" => |word| word.parse().ok().map(IpAddr::V4),
        "TCP6" => |word| word.parse().ok().map(IpAddr::V6),
        _ => return None,
    };
    let (source, destination) = (address(words.next()?)?, address(words.next()?)?);
    let (from, to) = (port(words.next()?)?, port(words.next()?)?);
    let ends = Ends { source: SocketAddr::new(source, from), destination: SocketAddr::new(destination, to) };
    words.next().is_none().then_some(ends)
}

/// Digits without a leading zero.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| plain)
}

/// Version 2: the signature, four fixed bytes, addresses, and parts with a type and a length.
fn binary(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some((fixed, _)) = bytes.split_first_chunk::<FIXED>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    // LOCAL is the balancer's own connection, a health check: whatever stands in it is not to be looked at.
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("the version or the command is unknown")),
    };
    if length > LONGEST {
        return Err(Malformed("the header is too long"));
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    if local {
        return Ok(Some(Header { length, ends: None }));
    }
    let rest = header.get(FIXED..).unwrap_or_default();
    let (ends, addresses) = match family {
        0x11 => (ends4(rest), 12),
        0x21 => (ends6(rest), 36),
        // Datagrams: of a family that has addresses, but not those of a connection.
        0x12 => (None, 12),
        0x22 => (None, 36),
        0x31 | 0x32 => (None, 216),
        // Unspecified: the balancer does not say what the rest is.
        0x00 => return Ok(Some(Header { length, ends: None })),
        _ => return Err(Malformed("the family is unknown")),
    };
    let parts = rest.get(addresses..).ok_or(Malformed("the addresses are cut short"))?;
    check_parts(header, parts)?;
    Ok(Some(Header { length, ends }))
}

fn ends4(rest: &[u8]) -> Option<Ends> {
    let (source, rest) = rest.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    ends(Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), rest)
}

fn ends6(rest: &[u8]) -> Option<Ends> {
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    ends(Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), rest)
}

fn ends(source: IpAddr, destination: IpAddr, ports: &[u8]) -> Option<Ends> {
    let (from, rest) = ports.split_first_chunk::<2>()?;
    let (to, _) = rest.split_first_chunk::<2>()?;
    let [from, to] = [from, to].map(|port| u16::from_be_bytes(*port));
    Some(Ends { source: SocketAddr::new(source, from), destination: SocketAddr::new(destination, to) })
}

/// Passes over the parts. Each must fit, and a checksum must be right.
fn check_parts(header: &[u8], mut parts: &[u8]) -> Result<(), Malformed> {
    const CUT: Malformed = Malformed("a part is cut short");
    while !parts.is_empty() {
        let ([kind, high, low], rest) = parts.split_first_chunk::<3>().ok_or(CUT)?;
        let size = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(size).ok_or(CUT)?;
        if *kind == CHECKSUM {
            let stands = header.len() - rest.len() - value.len();
            let stated = value.try_into().ok().map(u32::from_be_bytes);
            if stated != Some(checksum(header, stands)) {
                return Err(Malformed("the checksum is wrong"));
            }
        }
        parts = rest;
    }
    Ok(())
}

/// CRC-32C of the header, the four bytes of the checksum itself taken as zero.
fn checksum(header: &[u8], stands: usize) -> u32 {
    let itself = stands..stands + 4;
    let sum = header.iter().enumerate().fold(u32::MAX, |sum, (at, byte)| {
        let byte = if itself.contains(&at) { 0 } else { *byte };
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v1(text: &str) -> Result<Option<Header>, Malformed> {
        parse(text.as_bytes())
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short enough").to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    fn part(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind][..], &u16::try_from(value.len()).expect("short enough").to_be_bytes(), value].concat()
    }

    fn addresses(ends: &Ends) -> (u8, Vec<u8>) {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let ports = [ends.source.port().to_be_bytes(), ends.destination.port().to_be_bytes()].concat();
        let family = if ends.source.is_ipv4() { 0x11 } else { 0x21 };
        (family, [octets(ends.source.ip()), octets(ends.destination.ip()), ports].concat())
    }

    #[test]
    fn lines_of_version_1() {
        let header = v1("PROXY TCP4 192.0.2.1 198.51.100.9 56324 443\r\nGET /").unwrap().expect("whole");
        assert_eq!(header.length, 45);
        let ends = header.ends.expect("addresses");
        assert_eq!(
            (ends.source.to_string(), ends.destination.to_string()),
            ("192.0.2.1:56324".into(), "198.51.100.9:443".into())
        );
        let header = v1("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n").unwrap().expect("whole");
        assert_eq!(header.ends.expect("addresses").source, "[2001:db8::1]:1".parse().unwrap());
        for unknown in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff:f...f:ffff what ever 1\r\n"] {
            assert_eq!(v1(unknown).unwrap().expect("whole"), Header { length: unknown.len(), ends: None });
        }
    }

    #[test]
    fn what_is_no_line_of_version_1() {
        for wrong in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.9 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.9 1 2\n",
            "PROXY TCP4 192.0.2.1 198.51.100.9 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.9 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.9 01 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.9 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.9 +1 2\r\n",
            "PROXY TCP4 192.0.02.1 198.51.100.9 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 ::1 1 2\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.9 1 2\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.9 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            "\r\n\r\n\0\r\nQUIR\n",
        ] {
            assert!(v1(wrong).is_err(), "{wrong:?}");
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert!(v1(&long[..106]).unwrap().is_none(), "it may still end");
        assert!(v1(&long[..107]).is_err(), "it may not");
        let longest = format!("{}\r\n", &long[..105]);
        assert_eq!(v1(&longest).unwrap().expect("whole").length, 107);
    }

    #[test]
    fn version_2_by_its_bytes() {
        let rest = [192, 0, 2, 1, 198, 51, 100, 9, 0xdc, 0x04, 0x01, 0xbb];
        let header = parse(&v2(0x21, 0x11, &rest)).unwrap().expect("whole");
        let ends =
            Ends { source: "192.0.2.1:56324".parse().unwrap(), destination: "198.51.100.9:443".parse().unwrap() };
        assert_eq!(header, Header { length: 28, ends: Some(ends) });
        let none = |bytes: &[u8]| parse(bytes).unwrap().expect("whole").ends.is_none();
        assert!(none(&v2(0x20, 0x11, &rest)) && none(&v2(0x20, 0x99, b"x")), "LOCAL");
        assert!(none(&v2(0x20, 0x00, &[])) && none(&v2(0x21, 0x00, b"whatever")), "unspecified");
        assert!(none(&v2(0x21, 0x12, &rest)), "datagrams");
        assert!(none(&v2(0x21, 0x31, &[0; 216])), "unix");
    }

    #[test]
    fn what_is_not_version_2() {
        let rest = [0; 12];
        for (command, family, rest) in [
            (0x11, 0x11, &rest[..]),
            (0x22, 0x11, &rest),
            (0x21, 0x13, &rest),
            (0x21, 0x41, &rest),
            (0x21, 0x11, &rest[..11]),
            (0x21, 0x21, &rest),
            (0x21, 0x31, &[0; 215]),
        ] {
            assert!(parse(&v2(command, family, rest)).is_err(), "{command:x} {family:x} {}", rest.len());
        }
        let with = |parts: &[u8]| parse(&v2(0x21, 0x11, &[&rest, parts].concat()));
        assert!(with(&part(4, b"padding")).is_ok_and(|header| header.is_some()));
        assert!(with(&[4]).is_err() && with(&[4, 0, 2, 0]).is_err(), "cut short");
        assert!(with(&part(CHECKSUM, &[0; 4])).is_err() && with(&part(CHECKSUM, &[0; 3])).is_err());
        let room = LONGEST - FIXED - rest.len() - 3;
        assert!(with(&part(4, &vec![0; room])).is_ok_and(|header| header.is_some_and(|known| known.length == LONGEST)));
        let long = v2(0x21, 0x11, &[&rest[..], &part(4, &vec![0; room + 1])].concat());
        assert!(parse(&long[..FIXED]).is_err(), "its length alone is too much");
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        let text = b"123456789";
        assert_eq!(checksum(text, text.len()), 0xe306_9283);
    }

    fn any_ends() -> impl Strategy<Value = Ends> {
        let v4 = || any::<(Ipv4Addr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
        let v6 = || any::<(Ipv6Addr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
        let ends = |(source, destination)| Ends { source, destination };
        prop_oneof![(v4(), v4()).prop_map(ends), (v6(), v6()).prop_map(ends)]
    }

    /// Every shorter piece wants more, and what follows is not looked at.
    fn assert_incremental(header: &[u8], expected: Ends, tail: &[u8]) {
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Ok(None), "after {cut} bytes");
        }
        let whole = Ok(Some(Header { length: header.len(), ends: Some(expected) }));
        assert_eq!(parse(&[header, tail].concat()), whole);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ends in any_ends(), tail in any::<Vec<u8>>(), note in any::<Vec<u8>>()) {
            let family = if ends.source.is_ipv4() { "TCP4" } else { "TCP6" };
            let Ends { source, destination } = ends;
            let (from, to) = (source.port(), destination.port());
            let line = format!("PROXY {family} {} {} {from} {to}\r\n", source.ip(), destination.ip());
            assert_incremental(line.as_bytes(), ends, &tail);

            let (family, bytes) = addresses(&ends);
            let rest = [bytes, part(5, &note), part(CHECKSUM, &[0; 4])].concat();
            let mut header = v2(0x21, family, &rest);
            let stands = header.len() - 4;
            let sum = checksum(&header, stands).to_be_bytes();
            header[stands..].copy_from_slice(&sum);
            assert_incremental(&header, ends, &tail);
        }

        #[test]
        fn nothing_is_read_beyond_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..300), signed in any::<bool>()) {
            let bytes = if signed { [SIGNATURE, &bytes].concat() } else { [LINE, &bytes].concat() };
            if let Ok(Some(header)) = parse(&bytes) {
                prop_assert!(header.length <= bytes.len() && header.length <= LONGEST);
            }
        }
    }
}
