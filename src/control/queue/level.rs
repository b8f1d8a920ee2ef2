//! Those of one level who wait, tenant by tenant.
//!
//! The tenant that has used the least is next. Used are slot-seconds: what a request is likely to take is charged when
//! it is let through, and made right when its credit comes back. One that comes, or comes back, begins where the last
//! one was served, so that nothing is saved up (start-time fair queueing). Only those who wait or have a credit are
//! remembered.

use std::collections::{BTreeMap, BTreeSet};

use super::{Ticket, Waiter};

/// Where one waits among those of its tenant: the lowest is first in line.
pub(super) type Seat = (u64, Ticket);

#[derive(Debug)]
struct Tenant<W> {
    /// Nanoseconds of credits that it has used.
    used: u64,
    /// Credits that are out.
    out: usize,
    waiting: BTreeMap<Seat, Waiter<W>>,
}

impl<W> Tenant<W> {
    /// By what those with somebody who waits are ordered: what it has used, who is first in line, and how many wait.
    fn standing(&self) -> Option<(u64, Seat, usize)> {
        let (first, _) = self.waiting.first_key_value()?;
        Some((self.used, *first, self.waiting.len()))
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Level<W> {
    tenants: BTreeMap<u64, Tenant<W>>,
    /// Tenants with somebody who waits, by what they have used; of equals, as most are of whom one request comes, whoever
    /// is first in line. By their keys the same would be the last each time.
    by_use: BTreeSet<(u64, Seat, u64)>,
    /// The same, by how many wait.
    by_length: BTreeSet<(usize, u64)>,
    /// What the tenant had used that was served last.
    floor: u64,
    len: usize,
}

impl<W> Level<W> {
    pub(super) fn new() -> Self {
        let (by_use, by_length) = (BTreeSet::new(), BTreeSet::new());
        Self { tenants: BTreeMap::new(), by_use, by_length, floor: 0, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many tenants are remembered.
    #[cfg(test)]
    pub(super) fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// How many wait of a tenant.
    pub(super) fn len_of(&self, tenant: u64) -> usize {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.waiting.len())
    }

    /// Credits that a tenant has.
    pub(super) fn out_of(&self, tenant: u64) -> usize {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.out)
    }

    /// What a tenant has used, as far as it counts.
    pub(super) fn used_by(&self, tenant: u64) -> u64 {
        self.tenants.get(&tenant).map_or(self.floor, |tenant| tenant.used)
    }

    pub(super) fn push(&mut self, tenant: u64, seat: Seat, waiter: Waiter<W>) {
        self.change(tenant, |tenant, floor| {
            if tenant.waiting.is_empty() {
                tenant.used = tenant.used.max(floor);
            }
            tenant.waiting.insert(seat, waiter)
        });
        self.len += 1;
    }

    pub(super) fn remove(&mut self, tenant: u64, seat: Seat) -> Option<Waiter<W>> {
        let waiter = self.change(tenant, |tenant, _| tenant.waiting.remove(&seat))?;
        self.len -= 1;
        Some(waiter)
    }

    /// A credit goes to a tenant, of which `cost` nanoseconds are likely to be used.
    pub(super) fn charge(&mut self, tenant: u64, cost: u64) {
        self.floor = self.change(tenant, |tenant, floor| {
            if tenant.out == 0 && tenant.waiting.is_empty() {
                tenant.used = tenant.used.max(floor);
            }
            let began = tenant.used;
            tenant.used = began.saturating_add(cost);
            tenant.out += 1;
            floor.max(began)
        });
    }

    /// A credit comes back of which `cost` was charged and `used` was used.
    pub(super) fn settle(&mut self, tenant: u64, cost: u64, used: u64) {
        if self.tenants.contains_key(&tenant) {
            self.change(tenant, |tenant, _| {
                tenant.used = tenant.used.saturating_sub(cost).saturating_add(used);
                tenant.out = tenant.out.saturating_sub(1);
            });
        }
    }

    /// Who is next: the tenant that has used the least, of those that may have one more credit.
    pub(super) fn next(&self, is_newest_first: bool, may: impl Fn(usize) -> bool) -> Option<(u64, Seat)> {
        let mut tenants = self.by_use.iter().filter_map(|(_, _, key)| Some((*key, self.tenants.get(key)?)));
        let (key, tenant) = tenants.find(|(_, tenant)| may(tenant.out))?;
        let seats = &tenant.waiting;
        let (seat, _) = if is_newest_first { seats.last_key_value() } else { seats.first_key_value() }?;
        Some((key, *seat))
    }

    pub(super) fn get(&self, tenant: u64, seat: Seat) -> Option<&Waiter<W>> {
        self.tenants.get(&tenant)?.waiting.get(&seat)
    }

    /// The tenant of whom most wait; that of the newcomer when none has more.
    pub(super) fn longest(&self, newcomer: Option<u64>) -> Option<u64> {
        let (length, longest) = *self.by_length.last()?;
        Some(newcomer.filter(|tenant| self.len_of(*tenant) == length).unwrap_or(longest))
    }

    /// The first in line of a tenant.
    pub(super) fn first_of(&self, tenant: u64) -> Option<Seat> {
        Some(*self.tenants.get(&tenant)?.waiting.first_key_value()?.0)
    }

    /// The last in line of a tenant.
    pub(super) fn last_of(&self, tenant: u64) -> Option<Seat> {
        Some(*self.tenants.get(&tenant)?.waiting.last_key_value()?.0)
    }

    /// Takes out all who wait. Who has a credit is remembered: it will be settled.
    pub(super) fn take_all(&mut self) -> Vec<Waiter<W>> {
        self.by_use.clear();
        self.by_length.clear();
        self.len = 0;
        let waiting = self.tenants.values_mut().map(|tenant| std::mem::take(&mut tenant.waiting));
        let all = waiting.flat_map(BTreeMap::into_values).collect();
        self.tenants.retain(|_, tenant| tenant.out > 0);
        all
    }

    /// Changes a tenant, and keeps the two orders.
    fn change<R>(&mut self, key: u64, work: impl FnOnce(&mut Tenant<W>, u64) -> R) -> R {
        let Self { tenants, by_use, by_length, floor, .. } = self;
        let tenant = tenants.entry(key).or_insert_with(|| Tenant { used: *floor, out: 0, waiting: BTreeMap::new() });
        let before = tenant.standing();
        let result = work(tenant, *floor);
        let after = tenant.standing();
        if before != after {
            if let Some((used, first, len)) = before {
                by_use.remove(&(used, first, key));
                by_length.remove(&(len, key));
            }
            if let Some((used, first, len)) = after {
                by_use.insert((used, first, key));
                by_length.insert((len, key));
            }
        }
        if after.is_none() && tenant.out == 0 {
            tenants.remove(&key);
        }
        result
    }
}
