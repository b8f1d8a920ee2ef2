//! RESP 2, as far as it is spoken here: commands are arrays of strings, replies are read within a bound.

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A short text.
    Simple(String),
    /// Something went wrong: the first word says what.
    Error(String),
    Integer(i64),
    /// A text, or none.
    Bulk(Option<String>),
    Array(Vec<Reply>),
}

/// What cannot be a reply, or not one to what is asked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The longest line or text of a reply, and the most parts of one.
const LONGEST: usize = 4096;
const PARTS: usize = 16;

/// Appends a command.
pub(super) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    header(out, b'*', words.len());
    for word in words {
        header(out, b'$', word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn header(out: &mut Vec<u8>, sign: u8, number: usize) {
    out.push(sign);
    out.extend_from_slice(number.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Reads the reply at the beginning of `bytes` and says how long it is; none when it is not whole yet.
pub(super) fn reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Malformed> {
    let mut reader = Reader { bytes, at: 0 };
    Ok(reader.reply(true)?.map(|reply| (reply, reader.at)))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn reply(&mut self, may_nest: bool) -> Result<Option<Reply>, Malformed> {
        let Some(line) = self.line()? else { return Ok(None) };
        let (sign, text) = line.split_at_checked(1).ok_or(Malformed)?;
        Ok(Some(match sign {
            "+" => Reply::Simple(text.to_owned()),
            "-" => Reply::Error(text.to_owned()),
            ":" => Reply::Integer(text.parse().map_err(|_| Malformed)?),
            "$" if text == "-1" => Reply::Bulk(None),
            "$" => {
                let length = text.parse().ok().filter(|length| *length <= LONGEST).ok_or(Malformed)?;
                let Some(text) = self.text(length)? else { return Ok(None) };
                Reply::Bulk(Some(text))
            }
            "*" if may_nest => {
                let count: usize = text.parse().ok().filter(|count| *count <= PARTS).ok_or(Malformed)?;
                let mut parts = Vec::with_capacity(count);
                for _ in 0..count {
                    let Some(part) = self.reply(false)? else { return Ok(None) };
                    parts.push(part);
                }
                Reply::Array(parts)
            }
            _ => return Err(Malformed),
        }))
    }

    /// Up to the end of the line, which is passed.
    fn line(&mut self) -> Result<Option<String>, Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.iter().take(LONGEST).position(|byte| *byte == b'\n') {
            None if rest.len() >= LONGEST => Err(Malformed),
            None => Ok(None),
            Some(end) => {
                self.at += end + 1;
                let line = rest.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Malformed)?;
                String::from_utf8(line.to_vec()).map(Some).map_err(|_| Malformed)
            }
        }
    }

    fn text(&mut self, length: usize) -> Result<Option<String>, Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(text) = rest.get(..length + 2) else { return Ok(None) };
        self.at += length + 2;
        let text = text.strip_suffix(b"\r\n").ok_or(Malformed)?;
        String::from_utf8(text.to_vec()).map(Some).map_err(|_| Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_written() {
        let mut out = Vec::new();
        command(&mut out, &[b"GET", b"a\r\nb"]);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn replies_are_read_and_what_follows_is_left() {
        let text = "+OK\r\n:-7\r\n-NOSCRIPT no\r\n$4\r\na\r\nb\r\n$-1\r\n*3\r\n:1\r\n:2\r\n$1\r\nx\r\n+rest";
        let (mut rest, mut read) = (text.as_bytes(), Vec::new());
        while let Some((reply, length)) = reply(rest).expect("well-formed") {
            // Nothing of it is read before it is whole.
            assert!((0..length).all(|cut| super::reply(&rest[..cut]) == Ok(None)));
            read.push(reply);
            rest = &rest[length..];
        }
        let array = vec![Reply::Integer(1), Reply::Integer(2), Reply::Bulk(Some("x".into()))];
        let expected = [
            Reply::Simple("OK".into()),
            Reply::Integer(-7),
            Reply::Error("NOSCRIPT no".into()),
            Reply::Bulk(Some("a\r\nb".into())),
            Reply::Bulk(None),
            Reply::Array(array),
        ];
        assert_eq!((read.as_slice(), rest), (expected.as_slice(), &b"+rest"[..]));
    }

    #[test]
    fn what_is_no_reply_is_told() {
        let long = "+".repeat(LONGEST);
        for wrong in
            ["x\r\n", "\r\n", "+a\n", ":x\r\n", "$9999\r\n", "$-2\r\n", "$1\r\nabc", "*99\r\n", "*1\r\n*0\r\n", &long]
        {
            assert_eq!(reply(wrong.as_bytes()), Err(Malformed), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = reply(&bytes);
        }
    }
}
