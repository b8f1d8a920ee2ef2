//! Base64 (RFC 4648, padded or not) and the wire format of protobuf, as far as a load report needs them.

use super::Fault;

const BROKEN: Fault = Fault("bytes that are no protobuf");

/// The bytes that a text stands for.
pub(super) fn base64(text: &str) -> Result<Vec<u8>, Fault> {
    const FAULT: Fault = Fault("a text that is no base64");
    let digits = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    let has_whole_padding = digits.len() == text.len() || text.len().is_multiple_of(4);
    if !has_whole_padding || digits.len() % 4 == 1 {
        return Err(FAULT);
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        bits = bits << 6 | u32::from(value(digit).ok_or(FAULT)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Ok(bytes)
}

fn value(digit: u8) -> Option<u8> {
    Some(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

/// The text that stands for bytes, without padding, as gRPC has it.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len() * 4 / 3 + 2);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let digits = (0..=group.len()).filter_map(|at| DIGITS.get((bits >> (18 - 6 * at) & 63) as usize));
        text.extend(digits.map(|digit| char::from(*digit)));
    }
    text
}

/// Adds a field of a message, whose number is below 16.
pub(super) fn put_double(message: &mut Vec<u8>, number: u8, value: f64) {
    message.push(number << 3 | 1);
    message.extend(value.to_le_bytes());
}

/// The same for bytes, 127 at most.
pub(super) fn put_bytes(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    let Ok(length @ 0..=127) = u8::try_from(bytes.len()) else { return };
    message.extend([number << 3 | 2, length]);
    message.extend(bytes);
}

/// A value on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::control) enum Value<'a> {
    Varint(u64),
    Double(f64),
    Bytes(&'a [u8]),
    /// Of 32 bits, which a load report has nowhere.
    Other,
}

/// The next field of a message: its number, its value, and what follows.
pub(in crate::control) fn field(bytes: &[u8]) -> Result<(u64, Value<'_>, &[u8]), Fault> {
    let (key, rest) = varint(bytes)?;
    let (value, rest) = match key & 7 {
        0 => {
            let (value, rest) = varint(rest)?;
            (Value::Varint(value), rest)
        }
        1 => {
            let (bytes, rest) = rest.split_first_chunk().ok_or(BROKEN)?;
            (Value::Double(f64::from_le_bytes(*bytes)), rest)
        }
        2 => {
            let (length, rest) = varint(rest)?;
            let length = usize::try_from(length).map_err(|_| BROKEN)?;
            let (bytes, rest) = rest.split_at_checked(length).ok_or(BROKEN)?;
            (Value::Bytes(bytes), rest)
        }
        5 => (Value::Other, rest.get(4..).ok_or(BROKEN)?),
        // Groups are gone from the language.
        _ => return Err(BROKEN),
    };
    match key >> 3 {
        0 => Err(BROKEN),
        number => Ok((number, value, rest)),
    }
}

fn varint(bytes: &[u8]) -> Result<(u64, &[u8]), Fault> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        if at == 9 && part > 1 {
            return Err(BROKEN);
        }
        value |= part << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((value, bytes.get(at + 1..).unwrap_or_default()));
        }
    }
    Err(BROKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_with_and_without_its_padding() {
        for (text, bytes) in
            [("", &b""[..]), ("TQ==", b"M"), ("TQ", b"M"), ("TWE=", b"Ma"), ("TWE", b"Ma"), ("TWFu", b"Man")]
        {
            assert_eq!(base64(text).as_deref(), Ok(bytes), "{text}");
            assert_eq!(to_base64(bytes), text.trim_end_matches('='));
        }
        for text in ["T", "TQ=", "TWFuT", "T Q=", "TQ==,TQ==", "=", "==", "TW-u", "TWFu===="] {
            assert!(base64(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fields_of_every_kind_and_broken_ones() {
        assert_eq!(field(&[0x18, 0xac, 0x02, 9]), Ok((3, Value::Varint(300), &[9][..])));
        let mut double = vec![0x09];
        double.extend(0.5_f64.to_le_bytes());
        assert_eq!(field(&double), Ok((1, Value::Double(0.5), &[][..])));
        assert_eq!(field(&[0x42, 2, 7, 8]), Ok((8, Value::Bytes(&[7, 8]), &[][..])));
        assert_eq!(field(&[0x45, 1, 2, 3, 4]), Ok((8, Value::Other, &[][..])));
        let longest = [0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(field(&longest), Ok((3, Value::Varint(u64::MAX), &[][..])));
        for broken in [
            &[][..],
            &[0x18],
            &[0x18, 0x80],
            &[0x09, 1, 2],
            &[0x42, 3, 7],
            &[0x45, 1],
            &[0x43],
            &[0x02, 0],
            &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            &[0x42, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        ] {
            assert!(field(broken).is_err(), "{broken:?}");
        }
    }
}
