//! `rate_limit` of a route

use std::num::NonZeroU64;
use std::time::Duration;

use super::{Unique, count};
use crate::config::decode::Context;
use crate::config::error::{Problem, Span};
use crate::config::file;
use crate::config::limiter::Amount;
use crate::config::values::{Located, Many, Name};
use crate::control::surge::Window;
use crate::layers::rate_limit::{Cost, Settings, TopTalkers};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// All limits of a route, those that are wrong left out.
pub(super) fn rate_limits(tables: Many<file::RateLimit>, has_store: bool, cx: &mut Context<'_>) -> Vec<Settings> {
    let mut unique = Unique::default();
    let mut limits = Vec::with_capacity(tables.items.len());
    for (number, table) in tables.items.into_iter().enumerate() {
        let name = match table.name.clone() {
            Some(name) => name,
            None => Located { value: Name(format!("limit-{}", number + 1).into()), at: table.at.clone() },
        };
        unique.name("rate limit of this route", &name.value.0, &name.at, cx);
        let shared = table.shared.clone();
        let limit = limit(name.value, table, cx);
        if let (true, Some(limit)) = (shared.value.0, &limit) {
            for problem in not_to_be_shared(limit, has_store) {
                cx.found.error(&shared.at, problem);
            }
        }
        limits.extend(limit);
    }
    limits
}

fn limit(name: Name, table: file::RateLimit, cx: &mut Context<'_>) -> Option<Settings> {
    let cost = table.cost;
    let surge = table.surge.items.into_iter().filter_map(|table| window(table, cx)).collect();
    let rate = table.rate?;
    let amount = amount("rate", &rate.at, rate.value.amount, cost, cx);
    let burst = match table.burst {
        Some(burst) => self::amount("burst", &burst.at, burst.value, cost, cx),
        None => amount,
    };
    Some(Settings {
        name: name.0,
        by: table.by,
        cost,
        amount: amount?,
        period: rate.value.period,
        burst: burst?,
        max_keys: count(table.max_keys.0).get(),
        dry_run: table.dry_run.0,
        shared: table.shared.value.0,
        surge,
        top_talkers: table.top_talkers.map(|table| TopTalkers {
            by: table.by,
            count: count(table.count.0).get(),
            percent: table.share.0,
        }),
    })
}

/// What keeps a limit from being shared.
fn not_to_be_shared(limit: &Settings, has_store: bool) -> impl Iterator<Item = Problem> {
    let store = || {
        let problem = Problem::new("there is no store that the limit could be shared through");
        problem.hint("write `[store]` with `url = \"redis://127.0.0.1:6379\"`")
    };
    let amount = u32::try_from(limit.amount.get()).unwrap_or(u32::MAX).max(1);
    [
        (!has_store).then(store),
        (limit.cost != Cost::Requests).then(|| Problem::new("a limit that is shared counts requests, not bytes")),
        (!limit.surge.is_empty()).then(|| Problem::new("a limit that is shared has no `surge`")),
        limit.top_talkers.as_ref().map(|_| Problem::new("a limit that is shared has no `top_talkers`")),
        // The store counts in microseconds.
        (limit.cost == Cost::Requests && limit.period / amount < Duration::from_micros(1))
            .then(|| Problem::new("a limit that is shared has a million requests a second at most")),
    ]
    .into_iter()
    .flatten()
}

/// An amount in the unit that is counted.
fn amount(what: &str, at: &Span, amount: Amount, cost: Cost, cx: &mut Context<'_>) -> Option<NonZeroU64> {
    let (unit, counted, hint) = match (amount, cost) {
        (Amount::Requests(amount), Cost::Requests) => return Some(amount.into()),
        (Amount::Bytes(amount), Cost::RequestBytes | Cost::ResponseBytes) => return Some(amount),
        (Amount::Requests(_), _) => ("requests", "bytes", "write a unit, as in \"10MiB\""),
        (Amount::Bytes(_), _) => ("bytes", "requests", "add `cost = \"response_bytes\"` or `cost = \"request_bytes\"`"),
    };
    cx.found.error(at, Problem::new(format!("the {what} is in {unit} and the cost in {counted}")).hint(hint));
    None
}

fn window(table: file::Surge, cx: &mut Context<'_>) -> Option<Window> {
    let (from, to) = (table.from?, table.to?.0);
    let begins = from.value.0;
    if begins == to || begins >= DAY {
        let problem = if begins == to { "it ends when it begins" } else { "no day has this time at its beginning" };
        cx.found.error(&from.at, Problem::new(problem).hint("a whole day is from \"00:00\" to \"24:00\""));
        return None;
    }
    let ends = if to > begins { to } else { to + DAY };
    let length = ends.saturating_sub(begins);
    Some(Window { days: table.days.0, from: begins, length, factor: table.factor?.0, ramp: table.ramp.0 })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn what_cannot_be_shared_is_told_at_once() {
        let limit =
            |limit: &str| format!("[[route]]\nrespond.status = 204\nrate_limit = {{ shared = true, {limit} }}\n");
        let store = "[store]\nurl = \"redis://127.0.0.1\"\n";
        let parse = |text: &str| crate::config::parse(text, "x.toml", Path::new(""));
        assert!(parse(&format!("{store}{}", limit("rate = \"1000000/s\""))).is_ok());
        for (text, told) in [
            (limit("rate = \"1/s\""), "there is no store"),
            (format!("{store}{}", limit("rate = \"2000000/s\"")), "a million requests a second at most"),
            (format!("{store}{}", limit("rate = \"1MiB/s\", cost = \"response_bytes\"")), "counts requests, not bytes"),
            (format!("{store}{}", limit("rate = \"1/s\", top_talkers = {}")), "has no `top_talkers`"),
        ] {
            let error = parse(&text).expect_err(told).to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
