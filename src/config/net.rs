//! Addresses: where to listen, whom to trust, where to forward to.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use http::uri::Authority;
use serde_json::{Value, json};

use super::decode::{Context, Decode, Node, Scalar, or_source};
use super::error::{Problem, quote};
use super::values::words;
use crate::upstream::{Address, EndpointSettings, HostPolicy, Protocol, Scheme};

words!(Protocol, "\"auto\", \"h1\" or \"h2\"", { "auto" => Self::Auto, "h1" => Self::Http1, "h2" => Self::Http2 });

impl Scalar for SocketAddr {
    const WHAT: &'static str = "an address such as \"127.0.0.1:8080\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        text.parse().map_err(|_| {
            let problem = Problem::new(format!("{} is no address with a port", quote(text)));
            let port = text.rsplit(':').next().filter(|port| port.parse::<u16>().is_ok());
            match (text.parse::<IpAddr>(), port) {
                (Ok(IpAddr::V4(ip)), _) => problem.hint(format!("add a port, as \"{ip}:8080\"")),
                (Ok(IpAddr::V6(ip)), _) => problem.hint(format!("add brackets and a port, as \"[{ip}]:8080\"")),
                (_, Some(port)) if text.starts_with("localhost:") => {
                    problem.hint(format!("write \"127.0.0.1:{port}\""))
                }
                (_, Some(port)) => problem.hint(format!(
                    "write \"0.0.0.0:{port}\" for every interface, \"127.0.0.1:{port}\" for this machine only"
                )),
                _ => problem.hint("write an IP address and a port, as \"127.0.0.1:8080\""),
            }
        })
    }
}

impl Scalar for HostPolicy {
    const WHAT: &'static str = "\"keep\", \"endpoint\" or a host name";

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "keep" => Ok(Self::Keep),
            "endpoint" => Ok(Self::Endpoint),
            _ => authority(text).map(Self::Fixed),
        }
    }
}

impl Decode for EndpointSettings {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let text = cx.text(node, Address::WHAT, |_| None)?;
        let mut address: Address = cx.parse(&text)?;
        if let Address::Unix(path) = &mut address {
            *path = cx.base_dir.join(&*path);
        }
        Some(Self::new(text.from.unwrap_or(text.value), address))
    }

    fn schema() -> Value {
        or_source(&json!({ "type": "string", "pattern": "^((https?|h2c)://[^/]+/?|unix:.+)$" }))
    }
}

impl Scalar for Address {
    const WHAT: &'static str = "an endpoint such as \"http://10.0.0.1:8000\" or \"unix:/run/app.sock\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.contains('\0') {
                return Err(Problem::new("the path of the unix socket is missing").hint("write \"unix:/run/app.sock\""));
            }
            return Ok(Self::Unix(Path::new(path).into()));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            let problem = Problem::new(format!("the endpoint {} has no scheme", discreet(text)));
            return Err(problem.hint("write `http://`, `https://`, `h2c://` or `unix:` before it"));
        };
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "h2c" => Scheme::H2c,
            _ => {
                let problem = Problem::new(format!("an endpoint cannot have the scheme {}", quote(scheme)));
                return Err(problem.did_you_mean(scheme, ["http", "https", "h2c", "unix"]));
            }
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        if !path.is_empty() && path != "/" {
            let problem = Problem::new("an endpoint is a host and a port, without a path");
            return Err(problem.hint("the route can add one: `replace_prefix = \"/base\"`"));
        }
        authority(host).map(|authority| Self::Tcp { authority, scheme })
    }
}

/// A host, with a port or without.
fn authority(text: &str) -> Result<Authority, Problem> {
    if text.contains('@') {
        let problem = Problem::new("an address cannot carry a user name and password");
        return Err(problem.hint("let the route set `authorization` under `headers.request.set`"));
    }
    let wrong = || Problem::new(format!("{} is no host with an optional port", quote(text)));
    let authority: Authority = text.parse().map_err(|_| wrong())?;
    let (host, port) = (authority.host(), authority.port());
    let written_port = text.strip_prefix(host).is_some_and(|rest| !rest.is_empty());
    let ip = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match ip {
        Some(ip) => ip.parse::<IpAddr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')),
    };
    let port_fits = match port.map(|port| port.as_str().parse::<u16>()) {
        Some(number) => number.is_ok_and(|number| number > 0),
        None => !written_port,
    };
    if host_fits && port_fits { Ok(authority) } else { Err(wrong()) }
}

/// A word of the file, without what may be a password.
fn discreet(text: &str) -> String {
    quote(text.rsplit('@').next().unwrap_or_default())
}
