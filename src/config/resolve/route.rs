//! `[[route]]`

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::rate_limit::rate_limits;
use super::{Unique, bytes_a_second};
use crate::body::UploadBounds;
use crate::config::decode::Context;
use crate::config::error::{Problem, Span, quote};
use crate::config::file;
use crate::config::priority::PriorityOf;
use crate::config::retry::RouteRetry;
use crate::config::values::{Located, Many, Name, Off, Size, Tried};
use crate::config::web::{FieldValue, Fields, not_editable};
use crate::config::{Action, HeaderMatch, Listener, Match, Route, Stream};
use crate::layers::{deadline, fault, forward, headers, priority, rewrite};
use crate::upstream::{Retry, Settings, Timeouts};

/// What a route can refer to.
pub(super) struct Known<'a> {
    pub(super) listeners: &'a [Listener],
    /// The names of all upstreams, also of those whose table is wrong.
    pub(super) names: &'a [Located<Name>],
    /// Whether these are all names that were written.
    pub(super) whole: bool,
    pub(super) upstreams: &'a [Settings],
    pub(super) stream: Stream,
    pub(super) has_store: bool,
}

/// All routes; with one upstream and none written, the one that leads everything there.
pub(super) fn routes(tables: Many<file::Route>, known: &Known<'_>, cx: &mut Context<'_>) -> Vec<Route> {
    if tables.items.is_empty() {
        return if tables.whole { implied(known, cx).into_iter().collect() } else { Vec::new() };
    }
    let mut unique = Unique::default();
    let mut routes = Vec::with_capacity(tables.items.len());
    for (number, table) in tables.items.into_iter().enumerate() {
        let name = match &table.name {
            Some(name) => name.clone(),
            None => Located { value: Name(format!("route-{}", number + 1).into()), at: table.at.clone() },
        };
        unique.name("route", &name.value.0, &name.at, cx);
        routes.extend(route(name.value, table, known, cx));
    }
    routes
}

fn implied(known: &Known<'_>, cx: &mut Context<'_>) -> Option<Route> {
    if let ([_], [upstream]) = (known.names, known.upstreams) {
        return Some(Route {
            name: "default".into(),
            matcher: Match::default(),
            action: Action::Forward(0),
            forward: forward::Settings { upgrade: vec!["websocket".into()], methods: Vec::new() },
            rewrite: None,
            headers: headers::Settings::default(),
            fault: None,
            rate_limits: Vec::new(),
            timeout: upstream.timeout,
            priority: priority::Settings::default(),
            success_rate: None,
            deadline: deadline::Settings::default(),
            retry: upstream.retry.clone(),
            stall_timeout: known.stream.stall_timeout,
            upload: known.stream.upload,
            allow_half_close: false,
            publish_pressure: false,
        });
    }
    // An upstream that could not be read has been told about; that it is missing is only the consequence.
    if known.whole && known.names.len() != 1 {
        let problem = match known.names.get(1) {
            Some(_) => Problem::new("there are several upstreams and no route leads to them")
                .hint("write a `[[route]]` with `upstream` for each"),
            None => Problem::new("there is neither an upstream nor a route")
                .hint("write `[upstream.NAME]` with `endpoints = [\"http://...\"]`"),
        };
        cx.found.whole(problem);
    }
    None
}

fn route(name: Name, table: file::Route, known: &Known<'_>, cx: &mut Context<'_>) -> Option<Route> {
    let matcher = matcher(table.r#match, known, cx);
    let headers =
        headers::Settings { request: edit(table.headers.request, cx), response: edit(table.headers.response, cx) };
    let rate_limits = rate_limits(table.rate_limit, known.has_store, cx);
    let fault = table.fault.as_ref().map(|table| fault(table, cx));
    let rewrite_at = table.strip_prefix.as_ref().or(table.replace_prefix.as_ref()).map(|prefix| prefix.at.clone());
    let rewrite = rewrite_at.is_some().then(|| rewrite::Settings {
        strip: table.strip_prefix.map(|prefix| prefix.value.0).unwrap_or_default(),
        replace: table.replace_prefix.map(|prefix| prefix.value.0).unwrap_or_default(),
    });
    let timeout_at = table.timeout.as_ref().map(|timeout| timeout.at.clone());
    let answers = table.upstream.is_none() && (table.respond.is_some() || table.redirect.is_some());
    let action = action(&table.at, table.upstream, table.respond, table.redirect, known, cx);
    if answers {
        let retry_at = table.retry.as_ref().map(|retry| retry.at.clone());
        let deadline_at = table.deadline.as_ref().map(|deadline| deadline.at.clone());
        let priority_at = table.priority.as_ref().map(|priority| priority.at.clone());
        let shed_at = table.shed.as_ref().map(|shed| shed.at.clone());
        for (key, at) in [
            ("the path is rewritten", rewrite_at),
            ("`timeout` is set", timeout_at),
            ("`priority` is set", priority_at),
            ("`shed` is set", shed_at),
            ("`deadline` is set", deadline_at),
            ("`retry` is set", retry_at),
        ] {
            if let Some(at) = at {
                cx.found.error(&at, format!("{key}, but the route forwards to no upstream"));
            }
        }
    }
    let action = action?;
    let (timeout, retry) = calls(&action, table.timeout, table.retry, known)?;
    Some(Route {
        name: name.0,
        forward: forward::Settings {
            upgrade: table.upgrade.items.into_iter().map(|switch| switch.0).collect(),
            methods: matcher.methods.clone(),
        },
        matcher,
        rewrite,
        headers,
        fault,
        rate_limits,
        timeout,
        priority: priority(table.priority),
        success_rate: table.shed.and_then(|shed| shed.success_rate.0).map(|share| share.0),
        deadline: deadline(table.deadline),
        retry,
        allow_half_close: table.allow_half_close.0,
        publish_pressure: table.publish_pressure.0,
        upload: upload(table.max_body_size, &table.stream, known.stream.upload),
        stall_timeout: table.stream.stall_timeout.map_or(known.stream.stall_timeout, |time| time.0),
        action,
    })
}

/// How an upstream is called: its own settings, and what the route has in their place.
fn calls(
    action: &Action,
    timeout: Option<file::RouteTimeout>,
    retry: Option<RouteRetry>,
    known: &Known<'_>,
) -> Option<(Timeouts, Retry)> {
    let &Action::Forward(index) = action else { return Some((Timeouts::default(), Retry::default())) };
    let upstream = known.upstreams.get(index)?;
    let attempts = retry.and_then(|retry| retry.attempts).map_or(upstream.retry.attempts, |number| number.0);
    Some((timeouts(timeout, upstream.timeout), Retry { attempts, ..upstream.retry.clone() }))
}

fn timeouts(table: Option<file::RouteTimeout>, base: Timeouts) -> Timeouts {
    let Some(table) = table else { return base };
    Timeouts {
        connect: base.connect,
        first_byte: table.first_byte.map_or(base.first_byte, |time| time.0),
        idle: table.idle.map_or(base.idle, |time| time.0),
        total: table.total.map_or(base.total, |time| time.0),
    }
}

fn priority(table: Option<Located<PriorityOf>>) -> priority::Settings {
    match table.map(|table| table.value) {
        None => priority::Settings::default(),
        Some(PriorityOf::Class(class)) => priority::Settings { class, ..priority::Settings::default() },
        Some(PriorityOf::Table(table)) => priority::Settings {
            class: table.class,
            header: table.header,
            trusted: priority::Trusted {
                nets: table.trusted.nets,
                unix: table.trusted.unix,
                fields: table.trusted_fields.0.into_iter().map(|(name, value)| (name.value, value.0)).collect(),
            },
        },
    }
}

fn deadline(table: Option<file::Deadline>) -> deadline::Settings {
    let Some(table) = table else { return deadline::Settings::default() };
    deadline::Settings {
        believed: table.from.items.into_iter().collect(),
        max: table.max.map(|time| time.0),
        send: table.send.items.into_iter().collect(),
    }
}

fn upload<const MAX: u64>(
    max_size: Option<Off<Size<1, MAX>>>,
    table: &file::RouteStream,
    base: UploadBounds,
) -> UploadBounds {
    UploadBounds {
        max_size: max_size.map_or(base.max_size, |size| size.0.map(|size| size.0 as u64)),
        silence: table.upload_timeout.map_or(base.silence, |time| time.0),
        rate: table.upload_rate.map_or(base.rate, |rate| rate.0.and_then(bytes_a_second)),
    }
}

fn matcher(table: file::Match, known: &Known<'_>, cx: &mut Context<'_>) -> Match {
    let listener = table.listener.map(|listener| {
        let names = || known.listeners.iter().map(|listener| &*listener.name);
        unknown("listener", &listener, names, cx);
        listener.value.0
    });
    let mut fields = Vec::with_capacity(table.headers.0.len());
    for (name, test) in table.headers.0 {
        if name.value == header::HOST {
            cx.found.error(
                &name.at,
                Problem::new("a route does not find `host` among the fields").hint("write `match.host`"),
            );
        }
        fields.push(HeaderMatch { name: name.value, value: test.0 });
    }
    Match { listener, host: table.host, path: table.path, methods: table.methods.items, headers: fields }
}

/// Says that a name refers to nothing; whether it does.
fn unknown<'a, I: Iterator<Item = &'a str>>(
    what: &str,
    name: &Located<Name>,
    names: impl Fn() -> I,
    cx: &mut Context<'_>,
) -> bool {
    let wanted = &*name.value.0;
    if names().any(|known| known == wanted) {
        return false;
    }
    let names: Vec<_> = names().filter(|name| !cx.secrets.iter().any(|secret| secret == name)).collect();
    let mut problem = Problem::new(format!("there is no {what} {}", cx.show(wanted)));
    // What is near a secret, or its distance from the known names, would tell about it.
    if !cx.secrets.iter().any(|secret| secret == wanted) {
        problem = problem.did_you_mean(wanted, names.iter().copied());
    }
    let list = || names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
    let problem = problem.or_hint(|| names.first().map(|_| format!("there is {}", list())));
    cx.found.error(&name.at, problem);
    true
}

fn action(
    at: &Span,
    upstream: Option<Tried<Located<Name>>>,
    respond: Option<Tried<file::Respond>>,
    redirect: Option<Tried<file::Redirect>>,
    known: &Known<'_>,
    cx: &mut Context<'_>,
) -> Option<Action> {
    match (upstream, respond, redirect) {
        (Some(name), None, None) => {
            let name = name.0?;
            if unknown("upstream", &name, || known.names.iter().map(|name| &*name.value.0), cx) {
                return None;
            }
            known.upstreams.iter().position(|upstream| upstream.name == name.value.0).map(Action::Forward)
        }
        (None, Some(respond), None) => fixed(respond.0?, cx),
        (None, None, Some(redirect)) => redirection(redirect.0?, cx),
        (None, None, None) => {
            let problem = Problem::new("the route does nothing");
            cx.found.error(at, problem.hint("add one of `upstream`, `respond` and `redirect`"));
            None
        }
        _ => {
            let problem = Problem::new("the route does several things at once");
            cx.found.error(at, problem.hint("leave one of `upstream`, `respond` and `redirect`"));
            None
        }
    }
}

fn fixed(respond: file::Respond, cx: &mut Context<'_>) -> Option<Action> {
    let number = respond.status.value.0;
    let status = u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok())?;
    if matches!(number, 204 | 205 | 304) && !respond.body.0.is_empty() {
        cx.found.error(&respond.status.at, format!("an answer with the status {number} has no body"));
    }
    Some(Action::Respond { status, content_type: respond.content_type.0, body: respond.body.0 })
}

fn redirection(redirect: file::Redirect, cx: &mut Context<'_>) -> Option<Action> {
    let number = redirect.status.value.0;
    if !matches!(number, 301 | 302 | 303 | 307 | 308) {
        let problem = Problem::new(format!("{number} is no status of a redirect"));
        cx.found.error(&redirect.status.at, problem.hint("it is 301, 302, 303, 307 or 308"));
    }
    let status = u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok())?;
    Some(Action::Redirect { status, to: redirect.to?.0 })
}

fn edit(table: file::Edit, cx: &mut Context<'_>) -> headers::Edit {
    let mut check = |name: &Located<HeaderName>| {
        if let Some(problem) = not_editable(&name.value) {
            cx.found.error(&name.at, problem);
        }
    };
    let mut pairs = |fields: Fields<FieldValue>| -> Vec<(HeaderName, HeaderValue)> {
        fields.0.iter().for_each(|(name, _)| check(name));
        fields.0.into_iter().map(|(name, value)| (name.value, value.0)).collect()
    };
    let (set, add) = (pairs(table.set), pairs(table.add));
    table.remove.items.iter().for_each(check);
    headers::Edit { remove: table.remove.items.into_iter().map(|name| name.value).collect(), set, add }
}

fn fault(table: &file::Fault, cx: &mut Context<'_>) -> fault::Settings {
    let settings = fault::Settings {
        share: table.share.0,
        delay: table.delay.map(|delay| delay.0),
        abort: table.abort.map(|abort| abort.0),
        slow_body: table.slow_body.map(|pace| pace.0),
        stall: table.stall.map(|stall| stall.0),
    };
    if let Some(why) = settings.wrong() {
        cx.found.error(&table.at, why);
    }
    settings
}
