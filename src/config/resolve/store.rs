//! `[store]`

use crate::config::decode::Context;
use crate::config::error::Problem;
use crate::config::file;
use crate::store::{Address, Settings};

pub(super) fn settings(table: file::Store, cx: &mut Context<'_>) -> Option<Settings> {
    let url = table.url?.0?;
    let over_tls = matches!(url.address, Address::Tcp { tls: true, .. });
    if table.ca.is_some() && !over_tls {
        let problem = Problem::new("`ca` is set, but the store is not asked over TLS");
        cx.found.error(&table.at, problem.hint("write `rediss://`"));
    }
    if table.username.is_some() && table.password.is_none() {
        cx.found.error(&table.at, "`username` is set, but no `password`");
    }
    Some(Settings {
        address: url.address,
        database: url.database,
        username: table.username.map(|name| name.0),
        password: table.password.map(|password| password.0),
        ca: table.ca.and_then(|ca| ca.0).map(|ca| ca.0),
        prefix: table.prefix.0,
        secret: table.secret.map(|secret| secret.0),
        wait: table.wait.0,
        instances: table.instances.0,
    })
}
