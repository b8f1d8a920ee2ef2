//! The layers of a route in the order of [`stack`](crate::stack), with the values that are in force: what
//! `headworks explain` prints, and `/stack` on the admin port.

use std::fmt::{Display, Write as _};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderValue;

use crate::config::{
    AccessLog, Action, Config, HostPattern, Match, PathPattern, Route, nearest, show_duration, show_factor, show_rate,
    show_size,
};
use crate::context::Key;
use crate::control::allowance::{Field, Fields};
use crate::control::choice::Policy;
use crate::control::limit;
use crate::control::queue::{Order, Tenancy};
use crate::control::surge::Window;
use crate::layers::fault;
use crate::layers::headers::Edit;
use crate::layers::rate_limit::{Cost, TopTalkers};
use crate::upstream::{self, Hedge, HostPolicy};

/// What stands for a text that came from the environment or from a file.
const HIDDEN: &str = "(hidden)";

/// All routes, as one text.
#[must_use]
pub fn all(config: &Config) -> String {
    let mut text = Vec::new();
    // Writing to memory does not fail.
    let _ = write(config, None, &mut text, &mut io::sink());
    String::from_utf8_lossy(&text).into_owned()
}

/// Explains one route, or all. The exit code is 0, or 2 when there is no such route.
pub fn write(config: &Config, route: Option<&str>, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let chosen: Vec<&Route> =
        config.routes.iter().filter(|known| route.is_none_or(|name| *known.name == *name)).collect();
    if let (Some(name), true) = (route, chosen.is_empty()) {
        let known = || config.routes.iter().map(|route| &*route.name).filter(|name| !config.secrets.hides(name));
        writeln!(err, "error: there is no route `{}`", name.escape_debug())?;
        match nearest(name, known()) {
            Some(near) => writeln!(err, "help: did you mean `{near}`?")?,
            None => writeln!(err, "help: there is {}", known().collect::<Vec<_>>().join(", "))?,
        }
        return Ok(2);
    }
    for (number, route) in chosen.into_iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        explain(config, route).write(out)?;
    }
    Ok(0)
}

/// The rows of one route, in the order in which a request meets the layers.
fn explain(config: &Config, route: &Route) -> Page {
    let show = |text: &str| if config.secrets.hides(text) { HIDDEN.to_owned() } else { text.to_owned() };
    let mut page = Page { title: format!("route {}", show(&route.name)), rows: Vec::new() };
    page.layer("match", [("", matched(&route.matcher, &show))]);
    let access = match config.log.access {
        AccessLog::Off => "off",
        AccessLog::Json => "json",
        AccessLog::Text => "text",
    };
    page.layer("record", [("access log", access.to_owned())]);
    page.layer("trace", [("", "traceparent passed on or begun".to_owned())]);
    page.layer("errors", [("", "every refusal and failure is a whole answer with its reason".to_owned())]);
    page.layer("fault", route.fault.iter().flat_map(fault));
    match (&route.action, route.upstream(&config.upstreams)) {
        (Action::Respond { status, content_type, body }, _) => {
            limits(&mut page, route, &show);
            page.layer("headers", all_edits(route));
            let body = format!("{} of {}", show_size(body.len() as u64), shown(content_type));
            page.layer("respond", [("status", status.as_u16().to_string()), ("body", body)]);
        }
        (Action::Redirect { status, to }, _) => {
            limits(&mut page, route, &show);
            page.layer("headers", all_edits(route));
            page.layer("redirect", [("status", status.as_u16().to_string()), ("to", show(to))]);
        }
        (Action::Forward(_), Some(upstream)) => {
            if route.publish_pressure {
                page.layer("pressure", [("", "answers say how much the upstream has to do".to_owned())]);
            }
            classes(&mut page, config, route, &show);
            deadline(&mut page, route);
            limits(&mut page, route, &show);
            forward(&mut page, route, upstream, &show);
        }
        (Action::Forward(_), None) => {}
    }
    let stall = show_duration(route.stall_timeout);
    page.layer("stream", [("buffer", show_size(config.server.stream.buffer as u64)), ("stall_timeout", stall)]);
    page
}

/// What is done wrong on purpose.
#[must_use]
pub fn fault(settings: &fault::Settings) -> Vec<(&'static str, String)> {
    let fault::Settings { share, delay, abort, slow_body, stall } = settings;
    let abort = abort.map(|abort| match abort {
        fault::Abort::Status(status) => status.as_u16().to_string(),
        fault::Abort::Reset => "reset".to_owned(),
    });
    let rows = [
        ("share", Some(fault::show_share(*share))),
        ("delay", delay.map(show_duration)),
        ("abort", abort),
        ("slow_body", slow_body.map(|pace| format!("{}/s", show_size(pace.get().into())))),
        ("stall", stall.map(show_duration)),
    ];
    rows.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn classes(page: &mut Page, config: &Config, route: &Route, show: &impl Fn(&str) -> String) {
    let settings = &route.priority;
    let mut rows = vec![("class", settings.class.name().to_owned())];
    if let Some(header) = &settings.header {
        let trusted = &settings.trusted;
        let nets = trusted.nets.iter().map(|net| show(&net.to_string()));
        let unix = trusted.unix.then(|| "unix sockets".to_owned());
        let fields = trusted.fields.iter().map(|(name, value)| format!("{name}: {}", shown(value)));
        let who: Vec<_> = nets.chain(unix).chain(fields).collect();
        rows.push(("header", show(header.as_str())));
        rows.push(("may raise", if who.is_empty() { "nobody".to_owned() } else { who.join(", ") }));
    }
    page.layer("priority", rows);
    let overload = &config.server.overload;
    let memory = overload.memory.and_then(NonZeroU32::new).map_or_else(|| "off".to_owned(), fault::show_share);
    page.layer("shed", [("delay", clock(overload.delay)), ("memory", memory)]);
    let least = route.success_rate.map(|least| ("at least", fault::show_share(least)));
    page.layer("success", least);
}

fn deadline(page: &mut Page, route: &Route) {
    let names = |fields: Fields| match fields {
        fields if fields.is_empty() => "none".to_owned(),
        fields if fields == Fields::all() => "all known fields".to_owned(),
        fields => fields.iter().map(Field::name).collect::<Vec<_>>().join(", "),
    };
    let settings = &route.deadline;
    let mut rows = vec![("total", clock(route.timeout.total)), ("believed", names(settings.believed))];
    rows.extend(settings.max.map(|max| ("max", show_duration(max))));
    if !settings.send.is_empty() {
        rows.push(("send", names(settings.send)));
    }
    page.layer("deadline", rows);
}

fn limits(page: &mut Page, route: &Route, show: &impl Fn(&str) -> String) {
    let by = |key: &Key| match key.parts() {
        [] => "all together".to_owned(),
        parts => parts.iter().map(|part| show(&part.to_string())).collect::<Vec<_>>().join(" and "),
    };
    let rows = route.rate_limits.iter().map(|limit| {
        let amount = |amount: u64| if limit.cost == Cost::Requests { amount.to_string() } else { show_size(amount) };
        let rate = show_rate(amount(limit.amount.get()), limit.period);
        let of = match limit.cost {
            Cost::Requests => "",
            Cost::RequestBytes => " of request bytes",
            Cost::ResponseBytes => " of response bytes",
        };
        let burst = amount(limit.burst.get());
        let mut parts = vec![
            format!("{rate}{of} by {}", by(&limit.by)),
            format!("burst {burst}"),
            format!("{} keys at most", limit.max_keys),
        ];
        let surge = |window: &Window| format!("{} times that by schedule", show_factor(window.factor));
        parts.extend(limit.surge.iter().map(surge));
        let top = |top: &TopTalkers| format!("{}% for the top {} by {}", top.percent, top.count, by(&top.by));
        parts.extend(limit.top_talkers.as_ref().map(top));
        parts.extend(limit.shared.then(|| "shared by all instances".to_owned()));
        parts.extend(limit.dry_run.then(|| "refuses nothing (dry_run)".to_owned()));
        (show(&limit.name), parts.join(", "))
    });
    page.layer("rate_limit", rows);
}

fn forward(page: &mut Page, route: &Route, upstream: &upstream::Settings, show: &impl Fn(&str) -> String) {
    let upgrade = match &*route.forward.upgrade {
        [] => "none".to_owned(),
        allowed => allowed.iter().map(|protocol| show(protocol)).collect::<Vec<_>>().join(", "),
    };
    let size = |size: Option<u64>| size.map_or_else(|| "off".to_owned(), show_size);
    let rate = size(route.upload.rate.map(|rate| rate.get().into()));
    page.layer(
        "upload",
        [
            ("max_body_size", size(route.upload.max_size)),
            ("upload_timeout", clock(route.upload.silence)),
            ("upload_rate", if route.upload.rate.is_some() { format!("{rate} a second") } else { rate }),
        ],
    );
    page.layer(
        "forward",
        [
            ("fields", "those of one hop removed; X-Forwarded-*, Forwarded and Via added".to_owned()),
            ("upgrade", upgrade),
        ],
    );
    page.layer("headers", all_edits(route));
    if let Some(rewrite) = &route.rewrite {
        let slash = |path: &str| if path.is_empty() { "/".to_owned() } else { show(path) };
        page.layer("rewrite", [("path", format!("{} becomes {}", slash(&rewrite.strip), slash(&rewrite.replace)))]);
    }
    page.layer("retry", retry(&route.retry));
    admission(page, upstream, show);

    let mut rows = vec![("upstream", show(&upstream.name))];
    rows.extend(upstream.endpoints.iter().map(|endpoint| ("endpoint", listed(endpoint, show))));
    let host = match &upstream.host {
        HostPolicy::Keep => "as the client asked".to_owned(),
        HostPolicy::Endpoint => "the endpoint's".to_owned(),
        HostPolicy::Fixed(host) => show(host.as_str()),
    };
    rows.extend([("host", host), ("protocol", upstream.protocol.to_string())]);
    rows.push(("connect", show_duration(route.timeout.connect)));
    rows.push(("first_byte", clock(route.timeout.first_byte)));
    rows.push(("idle", clock(route.timeout.idle)));
    let pool = &upstream.pool;
    rows.push((
        "connections",
        match pool.max_connections {
            Some(most) => format!("{most} for each endpoint, {} streams on each", pool.max_streams),
            None => format!("one for each credit, {} streams on each", pool.max_streams),
        },
    ));
    let receive = pool.receive_buffer.map_or_else(|| "grown by the kernel".to_owned(), |size| show_size(size as u64));
    rows.push(("receive buffer", receive));
    rows.push(("kept idle", format!("{}, {} each", pool.max_idle, show_duration(pool.idle_timeout))));
    if uses_tls(upstream) {
        rows.push(("tls", tls(&upstream.tls, show)));
    }
    page.layer("client", rows);
}

fn retry(retry: &upstream::Retry) -> Vec<(&'static str, String)> {
    if retry.attempts == 0 && retry.hedge == Hedge::Off {
        return vec![("attempts", "one only".to_owned())];
    }
    let upstream::On { connect, reset, timeout, unavailable, statuses } = &retry.on;
    let words =
        [(connect, "connect"), (reset, "reset"), (timeout, "timeout"), (unavailable, "grpc_unavailable")].into_iter();
    let words = words.filter(|(is_on, _)| **is_on).map(|(_, word)| word.to_owned());
    let on: Vec<_> = words.chain(statuses.iter().map(|status| status.as_u16().to_string())).collect();
    let share = f64::from(retry.budget.share) / 1e4;
    let hedge = match retry.hedge {
        Hedge::Off => "off".to_owned(),
        Hedge::Slowest => "after what 95% of answers do not need".to_owned(),
        Hedge::After(time) => format!("after {}", show_duration(time)),
    };
    vec![
        (
            "attempts",
            format!("{} beyond the first, after a pause of {} at most", retry.attempts, show_duration(retry.backoff)),
        ),
        ("on", if on.is_empty() { "nothing".to_owned() } else { on.join(", ") }),
        ("budget", format!("{share}% of first attempts, or {} a second", retry.budget.floor)),
        ("body", format!("kept up to {}", show_size(retry.max_body as u64))),
        ("hedge", hedge),
    ]
}

fn admission(page: &mut Page, upstream: &upstream::Settings, show: &impl Fn(&str) -> String) {
    let streams = match upstream.limit.streams {
        Some(streams) => format!("{streams} for each endpoint, apart"),
        None => "count as requests in flight".to_owned(),
    };
    let queue = match upstream.queue.rules.max {
        0 => "none, refused at once".to_owned(),
        max => {
            let rules = &upstream.queue.rules;
            let order = match rules.order {
                Order::Fifo => "first come, first served",
                Order::Lifo => "the newest first",
                Order::Priority => "by priority",
                Order::Deadline => "by deadline",
                Order::Fair => "fair among keys",
            };
            let apart = if matches!(rules.tenancy, Tenancy::Partitions(_)) { ", in partitions" } else { "" };
            format!("{max} at most, {} each, {order}{apart}", show_duration(rules.timeout))
        }
    };
    let in_flight = match upstream.limit.in_flight {
        limit::Settings::Fixed(number) => format!("{number} for each endpoint"),
        limit::Settings::Adaptive(bounds) => {
            let limit::Bounds { min, max, initial } = bounds;
            format!("found by measuring for each endpoint: {initial} at first, {min} to {max}")
        }
    };
    let mut rows = vec![("in flight", in_flight), ("streams", streams)];
    if upstream.limit.dry_run {
        rows.push(("dry_run", "nobody waits or is refused for want of credit".to_owned()));
    }
    if !upstream.published.is_heard {
        rows.push(("reports", "not heard".to_owned()));
    }
    if let Some(agent) = &upstream.published.agent {
        let (count, interval) = (agent.polls.len(), show_duration(agent.interval));
        rows.push(("agents", format!("{count}, each asked every {interval}")));
    }
    rows.extend([("queue", queue), ("balance", balance(upstream, show))]);
    page.layer("admission", rows);
}

fn balance(upstream: &upstream::Settings, show: &impl Fn(&str) -> String) -> String {
    let upstream::Balance { choice, by } = &upstream.balance;
    let mut text = match (choice.policy, by) {
        (Policy::LeastLoaded, _) => "where answers come soonest".to_owned(),
        (Policy::RoundRobin, _) => "in turns".to_owned(),
        (Policy::Weighted, _) => "in turns, by weight".to_owned(),
        (Policy::Hash, Some(by)) => {
            let parts = by.parts().iter().map(|part| show(&part.to_string()));
            format!("the same for the same {}", parts.collect::<Vec<_>>().join(" and "))
        }
        (Policy::Hash, None) => "the same for the same key".to_owned(),
    };
    if let Some(zone) = &upstream.zone {
        let _ = write!(text, ", first in zone {}", show(zone));
    }
    match choice.slow_start {
        Some(time) => text + &format!(", slow start over {}", show_duration(time)),
        None => text,
    }
}

fn listed(endpoint: &upstream::EndpointSettings, show: &impl Fn(&str) -> String) -> String {
    let mut text = show(&endpoint.label);
    if endpoint.weight != 1 {
        let _ = write!(text, ", weight {}", endpoint.weight);
    }
    if let Some(zone) = &endpoint.zone {
        let _ = write!(text, ", zone {}", show(zone));
    }
    text
}

fn uses_tls(upstream: &upstream::Settings) -> bool {
    let https =
        |address: &upstream::Address| matches!(address, upstream::Address::Tcp { scheme: upstream::Scheme::Https, .. });
    upstream.endpoints.iter().any(|endpoint| https(&endpoint.address))
}

fn tls(tls: &upstream::Tls, show: &impl Fn(&str) -> String) -> String {
    let authorities = if tls.ca.is_some() { "own authorities" } else { "the system's authorities" };
    let client = if tls.client.is_some() { ", with a client certificate" } else { "" };
    let name = tls.server_name.as_deref().map(|name| format!(", server name {}", show(name))).unwrap_or_default();
    format!("{authorities}{client}{name}")
}

fn matched(matcher: &Match, show: &impl Fn(&str) -> String) -> String {
    let mut parts = Vec::new();
    if let Some(listener) = &matcher.listener {
        parts.push(format!("listener {}", show(listener)));
    }
    if let Some(host) = &matcher.host {
        parts.push(match host {
            HostPattern::Exact(name) => format!("host {}", show(name)),
            HostPattern::Suffix(name) => format!("host {}", show(&format!("*.{name}"))),
        });
    }
    if let Some(path) = &matcher.path {
        parts.push(match path {
            PathPattern::Exact(path) => format!("path {}", show(path)),
            PathPattern::Prefix(path) => format!("path {}", show(&format!("{path}/*"))),
        });
    }
    if !matcher.methods.is_empty() {
        let methods: Vec<_> = matcher.methods.iter().map(|method| show(method.as_str())).collect();
        parts.push(format!("method {}", methods.join(" or ")));
    }
    for field in &matcher.headers {
        let value = field.value.as_ref().map_or_else(|| "any".to_owned(), shown);
        parts.push(format!("{}: {value}", field.name));
    }
    if parts.is_empty() { "everything".to_owned() } else { parts.join(", ") }
}

fn all_edits(route: &Route) -> impl Iterator<Item = (&'static str, String)> {
    edits("request", &route.headers.request).chain(edits("response", &route.headers.response))
}

fn edits<'a>(side: &'static str, edit: &'a Edit) -> impl Iterator<Item = (&'static str, String)> + 'a {
    let remove = edit.remove.iter().map(move |name| (side, format!("remove {name}")));
    let set = edit.set.iter().map(move |(name, value)| (side, format!("set {name}: {}", shown(value))));
    let add = edit.add.iter().map(move |(name, value)| (side, format!("add {name}: {}", shown(value))));
    remove.chain(set).chain(add)
}

/// A field's value. Those from the environment or a file are marked sensitive.
fn shown(value: &HeaderValue) -> String {
    if value.is_sensitive() { HIDDEN.to_owned() } else { String::from_utf8_lossy(value.as_bytes()).into_owned() }
}

fn clock(time: Option<Duration>) -> String {
    time.map_or_else(|| "off".to_owned(), show_duration)
}

/// Rows in three columns: layer, setting, value.
struct Page {
    title: String,
    rows: Vec<(&'static str, String, String)>,
}

impl Page {
    /// Adds a layer; one without settings is off and is left out.
    fn layer<K: Display>(&mut self, name: &'static str, settings: impl IntoIterator<Item = (K, String)>) {
        for (number, (key, value)) in settings.into_iter().enumerate() {
            self.rows.push((if number == 0 { name } else { "" }, key.to_string(), value));
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let width = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
        let layers = width(&mut self.rows.iter().map(|(layer, _, _)| layer.chars().count()));
        let keys = width(&mut self.rows.iter().map(|(_, key, _)| key.chars().count()));
        writeln!(out, "{}", self.title)?;
        for (layer, key, value) in &self.rows {
            if key.is_empty() {
                writeln!(out, "  {layer:layers$}  {value}")?;
            } else {
                writeln!(out, "  {layer:layers$}  {key:keys$}  {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const EXAMPLE: &str = include_str!("../config.example.toml");

    fn explained(text: &str, dir: &Path, route: Option<&str>) -> (u8, String, String) {
        let config = crate::config::parse(text, "x.toml", dir).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = write(&config, route, &mut out, &mut err).unwrap();
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn the_routes_of_the_example() {
        let (code, out, err) = explained(EXAMPLE, Path::new(""), None);
        assert_eq!((code, err.as_str()), (0, ""));
        insta::assert_snapshot!(out);
    }

    #[test]
    fn one_route_alone() {
        let (code, out, _) = explained(EXAMPLE, Path::new(""), Some("chat"));
        assert_eq!(code, 0);
        assert!(out.starts_with("route chat\n") && !out.contains("route app"), "{out}");
    }

    #[test]
    fn an_unknown_route_and_the_one_meant() {
        let (code, out, err) = explained(EXAMPLE, Path::new(""), Some("chatt"));
        assert_eq!((code, out.as_str()), (2, ""));
        assert_eq!(err, "error: there is no route `chatt`\nhelp: did you mean `chat`?\n");
        let (_, _, err) = explained(EXAMPLE, Path::new(""), Some("billing"));
        assert_eq!(err, "error: there is no route `billing`\nhelp: there is health, moved, chat, app\n");
    }

    #[test]
    fn secrets_stay_hidden() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("host"), "Secret.example.com").unwrap();
        std::fs::write(dir.path().join("url"), "http://secret.example.com").unwrap();
        std::fs::write(dir.path().join("path"), "/secret/").unwrap();
        let text = r#"
            [upstream.a]
            endpoints = { file = "url" }
            host = { file = "host" }
            [[route]]
            upstream = "a"
            match = { host = { file = "host" }, path = { file = "path" }, headers = { a = { file = "host" } } }
            strip_prefix = { file = "path" }
            headers.request = { set = { a = { file = "url" } }, add = { a = { file = "url" } } }
            rate_limit = { name = { file = "host" }, rate = "1/s" }
            [[route]]
            name = { file = "host" }
            redirect.to = { file = "url" }
            [[route]]
            respond = { body = { file = "url" }, content_type = { file = "url" } }
        "#;
        let (_, out, _) = explained(text, dir.path(), None);
        assert!(!out.to_lowercase().contains("secret"), "{out}");
        assert!(out.contains("file:url"), "{out}");
    }
}
