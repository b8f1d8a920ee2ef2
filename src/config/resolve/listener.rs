//! The listeners: both forms together, each with a name and an address of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::{Unique, count};
use crate::config::decode::Context;
use crate::config::error::Problem;
use crate::config::file;
use crate::config::values::{Located, Many};
use crate::config::{Certificate, ClientAuth, ListenAddress, Listener, Peers};

/// Owner and group of the socket may connect.
const MODE: u32 = 0o660;

/// All listeners. The admin port's address is taken as well.
pub(super) fn listeners(
    short: Option<Many<Located<ListenAddress>>>,
    long: Many<file::Listener>,
    admin: Option<&Located<ListenAddress>>,
    cx: &mut Context<'_>,
) -> Vec<Listener> {
    let nothing_said = short.is_none() && long.items.is_empty() && long.whole;
    let all_refused = !long.whole || !long.items.is_empty() || short.as_ref().is_some_and(|short| !short.whole);
    let mut unique = Unique::default();
    let mut listeners = Vec::new();
    for (number, address) in short.into_iter().flat_map(|short| short.items).enumerate() {
        unique.address(&address.value, &address.at, cx);
        let name = format!("listen-{}", number + 1);
        unique.name("listener", &name, &address.at, cx);
        listeners.push(plain(name.into(), address.value));
    }
    for listener in long.items {
        listeners.extend(one(listener, &mut unique, cx));
    }
    if let Some(admin) = admin {
        unique.address(&admin.value, &admin.at, cx);
    }
    if nothing_said {
        listeners.push(plain("listen-1".into(), SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)).into()));
    } else if listeners.is_empty() && !all_refused {
        cx.found.whole(Problem::new("there is no listener").hint("leave `listen` away to listen on 127.0.0.1:8080"));
    }
    listeners
}

/// A listener of the short form, with all that the long form's keys would say by default.
fn plain(name: Arc<str>, address: ListenAddress) -> Listener {
    Listener {
        name,
        address,
        mode: MODE,
        reuse_port: false,
        proxy_protocol: Peers::default(),
        max_connections: None,
        tls: Vec::new(),
        client_auth: None,
    }
}

fn one(listener: file::Listener, unique: &mut Unique, cx: &mut Context<'_>) -> Option<Listener> {
    let (name, address) = (listener.name?, listener.address?);
    unique.name("listener", &name.value.0, &name.at, cx);
    unique.address(&address.value, &address.at, cx);
    if let (Some(mode), ListenAddress::Tcp(_)) = (&listener.mode, &address.value) {
        cx.found.error(&mode.at, "only a unix socket has permissions");
    }
    if let (Some(reuse), ListenAddress::Unix(_)) = (&listener.reuse_port, &address.value) {
        cx.found.error(&reuse.at, "a unix socket has no port to share");
    }
    if let Some(Located { value, at }) = &listener.proxy_protocol
        && value.is_empty()
    {
        let problem = Problem::new("nobody could connect here");
        cx.found.error(at, problem.hint("name the balancers, or leave the key away"));
    }
    if let Some(auth) = &listener.client_auth
        && listener.tls.whole
        && listener.tls.items.is_empty()
    {
        cx.found.error(&auth.at, "a listener without `tls` cannot ask for certificates");
    }
    let pair = |pair: file::Certificate| Some(Certificate { cert: pair.cert?.0, key: pair.key?.0 });
    Some(Listener {
        mode: listener.mode.map_or(MODE, |mode| mode.value.0),
        reuse_port: listener.reuse_port.is_some_and(|reuse| reuse.value.0),
        proxy_protocol: listener.proxy_protocol.map_or_else(Peers::default, |peers| peers.value),
        max_connections: listener.max_connections.map(|most| count(most.0).get()),
        client_auth: listener.client_auth.and_then(client_auth),
        tls: listener.tls.items.into_iter().filter_map(pair).collect(),
        ..plain(name.value.0, address.value)
    })
}

fn client_auth(auth: file::ClientAuth) -> Option<ClientAuth> {
    let crl = auth.crl.items.into_iter().map(|file| file.0).collect();
    Some(ClientAuth { ca: auth.ca?.0, crl, required: auth.required.0 })
}
