//! `[admin]`: open to other machines only for those who show a token.

use std::net::SocketAddr;

use crate::config::decode::Context;
use crate::config::error::Problem;
use crate::config::file;
use crate::config::values::Tried;
use crate::config::{Admin, ListenAddress};

/// The port, once it is known who may ask.
pub(super) fn admin(table: file::Admin, cx: &mut Context<'_>) -> Admin {
    let listen = &table.listen;
    if let (Some(mode), ListenAddress::Tcp(_)) = (&table.mode, &listen.value) {
        cx.found.error(&mode.at, "only a unix socket has permissions");
    }
    if let ListenAddress::Tcp(address) = &listen.value
        && table.token.is_none()
        && !is_of_this_machine(*address)
    {
        let problem = Problem::new("other machines could use the admin port without a token");
        let hint =
            "set `token = { env = \"NAME\" }`, or listen on \"127.0.0.1:9901\" or \"unix:/run/headworks-admin.sock\"";
        cx.found.error(&listen.at, problem.hint(hint));
    }
    Admin {
        listen: table.listen.value,
        mode: table.mode.map_or(0o600, |mode| mode.value.0),
        token: table.token.and_then(|Tried(token)| token),
        open: table.open.items,
    }
}

fn is_of_this_machine(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
