//! Where the shared store is.

use std::path::PathBuf;

use http::uri::Authority;
use serde_json::{Value, json};

use super::decode::{Context, Decode, Node, Scalar, or_source};
use super::error::{Problem, quote};
use super::{Secrets, effective};
use crate::store::{Address, Password};

/// `redis://HOST:PORT/NUMBER`
#[derive(Clone, Debug)]
pub(super) struct StoreUrl {
    pub(super) address: Address,
    pub(super) database: u32,
}

const WHAT: &str = "where a store is, such as \"redis://127.0.0.1:6379\"";
const PORT: u16 = 6379;

impl Decode for StoreUrl {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let text = cx.text(node, WHAT, |_| None)?;
        let mut url: Self = cx.parse::<Plain>(&text)?.0;
        if let Address::Unix(path) = &mut url.address {
            *path = cx.base_dir.join(&*path);
        }
        Some(url)
    }

    fn schema() -> Value {
        or_source(&Plain::string())
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        effective::written(node, secrets)
    }
}

struct Plain(StoreUrl);

impl Scalar for Plain {
    const WHAT: &'static str = WHAT;

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = || Problem::new(format!("{} is not {WHAT}", quote(text)));
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty() && !path.contains('\0')) {
            return Ok(Self(StoreUrl { address: Address::Unix(PathBuf::from(path)), database: 0 }));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(problem)?;
        let tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(problem().hint("it begins with `redis://`, `rediss://` or `unix:`")),
        };
        if rest.contains('@') {
            // Without a word of the text itself.
            return Err(Problem::new("a password does not stand in an address")
                .hint("write `password = { env = \"NAME\" }`, and `username` where there is one"));
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let authority: Authority = authority.parse().map_err(|_| problem())?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = match authority.port_u16() {
            None if authority.as_str() == authority.host() => PORT,
            port => port.filter(|port| *port > 0).ok_or_else(problem)?,
        };
        if host.is_empty() {
            return Err(problem());
        }
        let database = if database.is_empty() { 0 } else { database.parse().map_err(|_| problem())? };
        Ok(Self(StoreUrl { address: Address::Tcp { host: host.into(), port, tls }, database }))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^(rediss?://[^@]+|unix:.+)$" })
    }
}

/// A text that is never shown.
#[derive(Clone, Debug)]
pub(super) struct Hidden(pub(super) Password);

impl Scalar for Hidden {
    const IS_SECRET: bool = true;
    const WHAT: &'static str = "a text that is not empty";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() { Err(Problem::new("this text is empty")) } else { Ok(Self(Password::new(text))) }
    }

    fn string() -> Value {
        json!({ "type": "string", "minLength": 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, printed, database) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379", 0),
            ("redis://cache.example:7000/3", "redis://cache.example:7000", 3),
            ("rediss://[::1]:6380/", "rediss://[::1]:6380", 0),
            ("unix:/run/redis.sock", "unix:/run/redis.sock", 0),
        ] {
            let Plain(url) = Plain::parse(text).unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((url.address.to_string().as_str(), url.database), (printed, database), "{text}");
        }
        for wrong in
            ["", "127.0.0.1:6379", "http://a", "redis://", "redis://a/b", "redis://u:p@a", "redis://a:x", "unix:"]
        {
            assert!(Plain::parse(wrong).is_err(), "{wrong}");
        }
    }
}
