//! `/limits`, `/surge` and `/talkers`: rate limits as they stand, raised for a while, and who asks most; and their
//! metric, read when asked for.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use serde_json::Value;

use super::operator::Denied;
use super::reply::{Reply, Rows};
use crate::config::{read_duration, read_factor, show_factor, show_rate, show_size};
use crate::control::surge::{Permille, Raise, USUAL};
use crate::control::talkers::Talker;
use crate::layers::rate_limit::{Cost, Limiter, Settings};
use crate::metrics::{Kind, write_head, write_labels};

const COLUMNS: &[&str] = &[
    "route", "limit", "rate", "burst", "factor", "rate_now", "stays_s", "falls_s", "keys", "max_keys", "allowed",
    "refused", "dry_run",
];

/// A raise that is longer belongs in the configuration.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
const LONGEST_RAMP: Duration = Duration::from_secs(24 * 3600);
const USUAL_RAMP: Duration = Duration::from_secs(60);

/// One row for each limit.
pub(super) fn list(limiters: &[Arc<Limiter>]) -> Reply {
    let cells: Vec<_> = limiters.iter().map(|limiter| row(limiter)).collect();
    Reply::Rows(Rows { name: "limits", columns: COLUMNS, total: cells.len(), cells })
}

fn row(limiter: &Limiter) -> Vec<Value> {
    let (settings, view) = (limiter.settings(), limiter.view());
    let seconds = |time: Option<Duration>| time.map_or(Value::Null, |time| time.as_secs().into());
    vec![
        (**limiter.route()).into(),
        (*settings.name).into(),
        rate(settings, USUAL).into(),
        amount(settings, settings.burst.get()).into(),
        show_factor(view.factor).into(),
        rate(settings, view.factor).into(),
        seconds(view.raised_for.map(|(stays, _)| stays)),
        seconds(view.raised_for.map(|(_, ends)| ends)),
        view.keys.into(),
        settings.max_keys.into(),
        view.allowed.into(),
        view.refused.into(),
        settings.dry_run.into(),
    ]
}

fn rate(settings: &Settings, factor: Permille) -> String {
    let raised = u128::from(settings.amount.get()) * u128::from(factor) / u128::from(USUAL);
    show_rate(amount(settings, u64::try_from(raised).unwrap_or(u64::MAX)), settings.period)
}

fn amount(settings: &Settings, amount: u64) -> String {
    if settings.cost == Cost::Requests { amount.to_string() } else { show_size(amount) }
}

/// Raises a limit as the query says, for the time that it says.
pub(super) fn raise<B>(limiters: &[Arc<Limiter>], words: &[String], request: &Request<B>) -> Result<Reply, Denied> {
    let limiter = find(limiters, words)?;
    if limiter.settings().shared {
        return Err(Denied::new(StatusCode::CONFLICT, "a limit that is shared is not raised: others would not know"));
    }
    let raise =
        read(request.uri().query().unwrap_or_default()).map_err(|why| Denied::new(StatusCode::BAD_REQUEST, why))?;
    let (route, limit) = (limiter.route(), &limiter.settings().name);
    tracing::info!(%route, %limit, factor = %show_factor(raise.factor), lasts = ?raise.length, "an operator raises a rate");
    limiter.raise(raise);
    Ok(list(std::slice::from_ref(limiter)))
}

/// Lets what was raised by hand come down.
pub(super) fn lower(limiters: &[Arc<Limiter>], words: &[String]) -> Result<Reply, Denied> {
    let limiter = find(limiters, words)?;
    if limiter.lower() {
        let (route, limit) = (limiter.route(), &limiter.settings().name);
        tracing::info!(%route, %limit, "an operator lets a rate come down");
    }
    Ok(list(std::slice::from_ref(limiter)))
}

fn find<'a>(limiters: &'a [Arc<Limiter>], words: &[String]) -> Result<&'a Arc<Limiter>, Denied> {
    let [route, limit] = words else { return Err(Denied::not_found("no such page; / lists them")) };
    let is_asked = |known: &&Arc<Limiter>| **known.route() == **route && *known.settings().name == **limit;
    let unknown = || Denied::not_found(format!("the route {route} has no rate limit {limit}; /limits lists them"));
    limiters.iter().find(is_asked).ok_or_else(unknown)
}

/// `factor=2&for=10m&ramp=1m`
fn read(query: &str) -> Result<Raise, String> {
    let (mut factor, mut length, mut ramp) = (None, None, USUAL_RAMP);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("factor", text) => factor = Some(read_factor(text)?),
            ("for", text) => length = Some(read_duration(text)?),
            ("ramp", text) => ramp = read_duration(text)?,
            ("format", _) => {}
            (other, _) => return Err(format!("there is no parameter {other}; there are factor, for and ramp")),
        }
    }
    let factor = factor.ok_or("how much higher is missing: factor=2")?;
    let length = length.ok_or("how long is missing: for=10m")?;
    if length.is_zero() || length > LONGEST {
        return Err("a raise by hand lasts a week at most; for longer write a `surge`".into());
    }
    if ramp > LONGEST_RAMP {
        return Err("it comes down within a day".into());
    }
    Ok(Raise { factor, length, ramp })
}

const TALKERS: &[&str] = &["route", "limit", "rank", "talker", "count", "share"];

/// Who asks most, under each limit that has top talkers.
pub(super) fn talkers(limiters: &[Arc<Limiter>]) -> Reply {
    let mut cells = Vec::new();
    for limiter in limiters {
        let (top, total) = limiter.talkers().unwrap_or_default();
        cells.extend(top.iter().enumerate().map(|(place, talker)| {
            vec![
                (**limiter.route()).into(),
                (*limiter.settings().name).into(),
                (place + 1).into(),
                (*talker.label).into(),
                talker.count.into(),
                format!("{:.1}%", share(talker, total) * 100.0).into(),
            ]
        }));
    }
    Reply::Rows(Rows { name: "talkers", columns: TALKERS, total: cells.len(), cells })
}

/// An estimate may be more than there was.
#[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
fn share(talker: &Talker, total: u64) -> f64 {
    (talker.count as f64 / total.max(1) as f64).min(1.0)
}

const SHARE: &str = "headworks_rate_limit_talker_share";

/// Adds the shares of those who ask most to a page, by rank: who they are is nothing for a label.
pub(super) fn encode(limiters: &[Arc<Limiter>], out: &mut String) {
    let known: Vec<_> = limiters.iter().filter_map(|limiter| Some((limiter, limiter.talkers()?))).collect();
    if known.is_empty() {
        return;
    }
    write_head(
        out,
        SHARE,
        "Of what a rate limit counted of late, the part of the one who asks most, by rank.",
        Kind::Gauge,
    );
    for (limiter, (top, total)) in known {
        for (place, talker) in top.iter().enumerate() {
            let rank = (place + 1).to_string();
            let labels = [("route", &**limiter.route()), ("limit", &*limiter.settings().name), ("rank", &rank)];
            let _ = writeln!(out, "{SHARE}{{{}}} {:.4}", write_labels(&labels), share(talker, total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::name_fault;

    #[test]
    fn a_raise_is_read_and_has_bounds() {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        let read_all = read("factor=1.5&for=10m&ramp=2m&format=json");
        assert_eq!(read_all, Ok(Raise { factor: 1500, length: minutes(10), ramp: minutes(2) }));
        assert_eq!(read("for=1m&factor=2"), Ok(Raise { factor: 2000, length: minutes(1), ramp: minutes(1) }));
        for (query, told) in [
            ("", "how much higher is missing"),
            ("factor=2", "how long is missing"),
            ("factor=0&for=1m", "from 1 to 100"),
            ("factor=2&for=10", "number without a unit"),
            ("factor=2&for=0s", "a week at most"),
            ("factor=2&for=169h", "a week at most"),
            ("factor=2&for=1m&ramp=25h", "within a day"),
            ("factor=2&for=1m&x=1", "no parameter x"),
        ] {
            let why = read(query).expect_err(query);
            assert!(why.contains(told), "{query}: {why}");
        }
    }

    #[test]
    fn the_metric_keeps_the_rules() {
        assert_eq!(name_fault(SHARE, "Of what a rate limit counted of late.", Kind::Gauge), None);
    }
}
