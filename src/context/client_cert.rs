//! Who the client is by its certificate.

use std::fmt::Write as _;

use http::HeaderValue;

/// The certificate that a client has shown, and whose key it has proved to have.
#[derive(Debug)]
pub struct ClientCert {
    fingerprint: [u8; 32],
    field: HeaderValue,
    fingerprint_field: HeaderValue,
}

impl ClientCert {
    /// From the certificate in DER, and the SHA-256 of that; none when no field can hold it.
    #[must_use]
    pub fn new(der: &[u8], fingerprint: [u8; 32]) -> Option<Self> {
        let mut hex = String::with_capacity(64);
        for byte in fingerprint {
            let _ = write!(hex, "{byte:02x}");
        }
        let field = HeaderValue::from_maybe_shared(bytes::Bytes::from(byte_sequence(der))).ok()?;
        let fingerprint_field = HeaderValue::from_maybe_shared(bytes::Bytes::from(hex)).ok()?;
        Some(Self { fingerprint, field, fingerprint_field })
    }

    /// SHA-256 of the certificate.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The same in hexadecimal digits.
    #[must_use]
    pub fn fingerprint_field(&self) -> &HeaderValue {
        &self.fingerprint_field
    }

    /// The value of `Client-Cert` (RFC 9440).
    #[must_use]
    pub fn field(&self) -> &HeaderValue {
        &self.field
    }
}

/// Base64 between colons (RFC 8941, section 3.3.5).
fn byte_sequence(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4 + 2);
    out.push(b':');
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let letter = LETTERS.get((bits >> (18 - 6 * place)) as usize & 63).copied().unwrap_or(b'=');
            out.push(if place > chunk.len() { b'=' } else { letter });
        }
    }
    out.push(b':');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_base64() {
        for (bytes, text) in
            [("", "::"), ("f", ":Zg==:"), ("fo", ":Zm8=:"), ("foo", ":Zm9v:"), ("foobar", ":Zm9vYmFy:")]
        {
            assert_eq!(String::from_utf8(byte_sequence(bytes.as_bytes())).unwrap(), text);
        }
        assert_eq!(byte_sequence(&[0xfb, 0xff]), b":+/8=:");
    }
}
