//! Where to listen, and which peers are meant: addresses, networks, and `unix`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::decode::{Context, Decode, Node, Scalar, or_source};
use super::error::{Problem, quote};
use super::values::Many;

/// What the kernel takes for the path of a unix socket, without its closing NUL.
const LONGEST_PATH: usize = 107;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether the system is to choose the port: then each opening is another address.
    #[must_use]
    pub fn is_any_port(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

const ADDRESS: &str = "an address such as \"127.0.0.1:8080\" or \"unix:/run/headworks.sock\"";

impl Decode for ListenAddress {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let text = cx.text(node, ADDRESS, |_| None)?;
        let Some(path) = text.value.strip_prefix("unix:") else { return cx.parse(&text).map(Self::Tcp) };
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.contains('\0') {
            let problem = Problem::new("the path of the unix socket is missing");
            cx.found.error(&text.at, problem.hint("write \"unix:/run/headworks.sock\""));
            return None;
        }
        let path = cx.base_dir.join(path);
        if path.as_os_str().len() > LONGEST_PATH {
            let problem = Problem::new("the path of the unix socket is too long");
            cx.found.error(&text.at, problem.hint(format!("the system takes {LONGEST_PATH} bytes")));
            return None;
        }
        Some(Self::Unix(path))
    }

    fn schema() -> Value {
        or_source(&json!({ "type": "string", "pattern": "^(unix:.+|.+:[0-9]+)$" }))
    }
}

/// Peers by where they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Those with an address in one of these.
    pub nets: Vec<IpNet>,
    /// Those on unix sockets, which have none.
    pub unix: bool,
}

impl Peers {
    /// Whether the peer is one of them; a peer without an address came over a unix socket.
    #[must_use]
    pub fn contain(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            Some(peer) if !self.nets.is_empty() => {
                let peer = peer.to_canonical();
                self.nets.iter().any(|net| net.contains(&peer))
            }
            Some(_) => false,
            None => self.unix,
        }
    }

    /// Whether nobody is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nets.is_empty() && !self.unix
    }
}

impl Decode for Peers {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let many = Many::<Peer>::decode(node, cx)?;
        if !many.whole {
            return None;
        }
        let mut peers = Self::default();
        for peer in many.items {
            match peer {
                Peer::Net(net) => peers.nets.push(net),
                Peer::Unix => peers.unix = true,
            }
        }
        Some(peers)
    }

    fn schema() -> Value {
        Many::<Peer>::schema()
    }
}

enum Peer {
    Net(IpNet),
    Unix,
}

impl Scalar for Peer {
    const WHAT: &'static str = "an IP address, a network such as \"10.0.0.0/8\", or \"unix\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self::Net).map_err(|_| {
            Problem::new(format!("{} is neither an IP address nor a network", quote(text)))
                .or_hint(|| text.starts_with("unix:").then(|| "write \"unix\" for all unix sockets".into()))
        })
    }
}

/// The permissions of a unix socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode(pub(super) u32);

impl Scalar for Mode {
    const WHAT: &'static str = "permissions such as \"0660\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let fits = matches!(text.len(), 3 | 4) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| fits && *mode <= 0o777);
        let wrong = || Problem::new(format!("{} is no set of permissions", quote(text)));
        mode.map(Self).ok_or_else(|| wrong().hint("three octal digits, as \"0660\""))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^0?[0-7]{3}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_known_by_their_network_or_by_having_none() {
        let peers = Peers { nets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], unix: true };
        for (peer, known) in [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("fd00::1", true), ("11.0.0.1", false)] {
            assert_eq!(peers.contain(peer.parse().ok()), known, "{peer}");
        }
        assert!(peers.contain(None) && !Peers::default().contain(None));
        assert!(Peers::default().is_empty() && !peers.is_empty());
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(Mode::parse("0660").map(|mode| mode.0).ok(), Some(0o660));
        assert_eq!(Mode::parse("600").map(|mode| mode.0).ok(), Some(0o600));
        for wrong in ["", "66", "0680", "1777", "+660", "rw"] {
            assert!(Mode::parse(wrong).is_err(), "{wrong}");
        }
    }
}
