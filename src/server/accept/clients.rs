//! How many connections each client has open, so that no one takes all the places.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections by client. It has no more entries than there are connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients(Arc<Mutex<HashMap<Client, usize>>>);

/// A client as far as it can be told from others: whoever has one IPv6 address mostly has its whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// One connection of a client, until it is dropped.
#[derive(Debug)]
pub(super) struct ClientPlace {
    clients: Clients,
    client: Client,
}

impl Clients {
    /// A place for one more connection from there; none when it has `cap` already.
    pub(super) fn take(&self, address: IpAddr, cap: usize) -> Option<ClientPlace> {
        let client = address.into();
        match self.lock().entry(client) {
            Entry::Occupied(open) if *open.get() >= cap => return None,
            Entry::Occupied(mut open) => *open.get_mut() += 1,
            Entry::Vacant(none) => _ = none.insert(1),
        }
        Some(ClientPlace { clients: self.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.clients.lock().entry(self.client) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_places_and_leaves_nothing_behind() {
        let clients = Clients::default();
        let take = |address: &str| clients.take(address.parse().unwrap(), 2);
        let held = [take("192.0.2.1"), take("::ffff:192.0.2.1"), take("2001:db8::1"), take("2001:db8::ffff:1")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("192.0.2.1").is_none() && take("2001:db8:0:0:9::").is_none(), "two each");
        assert!(take("192.0.2.2").is_some() && take("2001:db8:0:1::1").is_some(), "others");
        assert_eq!(clients.lock().len(), 2);
        let [first, rest @ ..] = held;
        drop(first);
        assert!(take("192.0.2.1").is_some());
        drop(rest);
        assert_eq!(clients.lock().len(), 0);
    }
}
