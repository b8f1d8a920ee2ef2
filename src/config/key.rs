//! `by`: what is counted, queued or steered apart.

use http::HeaderName;
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Context, Decode, Node, Scalar};
use super::error::{Problem, quote};
use super::values::not_a_word;
use crate::context::{Key, Part};

const WORDS: [&str; 9] =
    ["client", "client_cert", "header:NAME", "cookie:NAME", "query:NAME", "host", "method", "path", "all"];

/// A word of a key; none is "all".
struct Word(Option<Part>);

impl Scalar for Word {
    const WHAT: &'static str = "\"client\", \"client_cert\", \"header:NAME\", \"cookie:NAME\", \"query:NAME\", \"host\", \
                                \"method\", \"path\" or \"all\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let part = match text.split_once(':') {
            Some(("header", name)) => Part::Header(HeaderName::parse(name)?),
            Some(("cookie", name)) => Part::Cookie(cookie(name)?),
            Some(("query", "")) => return Err("the name of the parameter is missing".into()),
            Some(("query", name)) => Part::Query(name.into()),
            None if text == "client" => Part::Client,
            None if text == "client_cert" => Part::ClientCert,
            None if text == "host" => Part::Host,
            None if text == "method" => Part::Method,
            None if text == "path" => Part::Path,
            None if text == "all" => return Ok(Self(None)),
            _ => return Err(not_a_word(text, Self::WHAT, &WORDS)),
        };
        Ok(Self(Some(part)))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^(client|client_cert|host|method|path|all|(header|cookie|query):.+)$" })
    }
}

/// A token (RFC 6265, section 4.1.1).
fn cookie(name: &str) -> Result<Box<str>, Problem> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
    if name.is_empty() || !name.bytes().all(fits) {
        return Err(Problem::new(format!("{} is no name of a cookie", quote(name))));
    }
    Ok(name.into())
}

impl Decode for Key {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let DeValue::Array(nodes) = node.get_ref() else {
            return Word::decode(node, cx).map(|word| Self::new(word.0.into_iter().collect::<Vec<_>>()));
        };
        if nodes.is_empty() {
            cx.found.error(&node.span(), Problem::new("the list is empty").hint("\"all\" counts all together"));
            return None;
        }
        let mut parts = Vec::with_capacity(nodes.len());
        let mut whole = true;
        for node in nodes {
            match Word::decode(node, cx) {
                Some(Word(Some(part))) if parts.contains(&part) => {
                    cx.found.error(&node.span(), format!("{} stands here twice", cx.show(&part.to_string())));
                }
                Some(Word(Some(part))) => parts.push(part),
                Some(Word(None)) if nodes.len() > 1 => {
                    cx.found.error(&node.span(), "\"all\" counts all together and stands alone");
                }
                Some(Word(None)) => {}
                None => whole = false,
            }
        }
        whole.then(|| Self::new(parts))
    }

    fn schema() -> Value {
        let word = Word::schema();
        json!({ "anyOf": [word, { "type": "array", "items": word, "minItems": 1, "uniqueItems": true }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(by: &str) -> Result<Key, String> {
        let text = format!("[[route]]\nrespond = {{}}\nrate_limit = {{ rate = '1/s', by = {by} }}\n");
        let config = super::super::parse(&text, "x.toml", Path::new("")).map_err(|error| error.to_string())?;
        Ok(config.routes[0].rate_limits[0].by.clone())
    }

    #[test]
    fn a_word_is_a_list_of_one() {
        assert_eq!(read("'host'"), Ok(Part::Host.into()));
        assert_eq!(read("['cookie:sid']"), Ok(Part::Cookie("sid".into()).into()));
        assert_eq!(read("'all'"), Ok(Key::default()));
        assert_eq!(read("['all']"), Ok(Key::default()));
        let several = vec![Part::Header("x-key".parse().unwrap()), Part::Query("a b".into()), Part::Method];
        assert_eq!(read("['header:X-Key', 'query:a b', 'method']"), Ok(Key::new(several)));
    }

    #[test]
    fn what_says_nothing_is_an_error() {
        for (by, told) in [
            ("[]", "the list is empty"),
            ("['path', 'path']", "`path` stands here twice"),
            ("['all', 'path']", "\"all\" counts all together and stands alone"),
            ("'cookie:'", "`` is no name of a cookie"),
            ("'cookie:a b'", "`a b` is no name of a cookie"),
            ("'query:'", "the name of the parameter is missing"),
            ("'header:a b'", "`a b` is no name of a field"),
            ("'hots'", "did you mean `host`?"),
            ("['path', 1]", "found an integer"),
        ] {
            let error = read(by).expect_err(by);
            assert!(error.contains(told), "{by}: {error}");
        }
    }
}
