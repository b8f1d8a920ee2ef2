//! What a scenario says.

use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use headworks::context::Priority;
use headworks::control::choice::{self, Policy};
use headworks::control::limit::{Bounds, Settings};
use headworks::control::queue::{Hands, Order, Rules, Tenancy};
use toml::{Table, Value};

use super::service::Law;

/// A whole scenario.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) service: Service,
    pub(super) clients: Clients,
    pub(super) proxy: Proxy,
    /// How long it runs.
    pub(super) time: f64,
    pub(super) seed: u64,
    pub(super) expect: Vec<Expect>,
}

#[derive(Clone, Debug)]
pub(super) struct Service {
    /// All alike, but for the odd ones.
    pub(super) endpoints: usize,
    /// Of each endpoint.
    pub(super) workers: f64,
    /// Mean time of one request that is alone, in seconds.
    pub(super) mean: f64,
    pub(super) law: Law,
    /// All requests share the workers evenly; otherwise they queue for one each.
    pub(super) is_sharing: bool,
    /// Slows down by this part for each request per worker beyond 1.5.
    pub(super) contention: f64,
    /// This part of the requests fails within a millisecond.
    pub(super) errors: f64,
    /// What it says of its load with each answer, and until when.
    pub(super) reports: Option<Reports>,
    pub(super) silent_from: f64,
    pub(super) changes: Vec<Change>,
    /// The first endpoints, one after another.
    pub(super) odd: Vec<Odd>,
    /// When the last endpoint comes, if it is not there from the beginning.
    pub(super) joins: Option<f64>,
}

impl Service {
    /// What is odd about an endpoint.
    pub(super) fn odd(&self, endpoint: usize) -> Odd {
        let mut first = 0;
        let found = self.odd.iter().find(|odd| {
            first += odd.count;
            endpoint < first
        });
        found.copied().unwrap_or(Odd { count: 1, workers: 1.0, slower: 1.0, errors: self.errors, after: 0.0 })
    }

    /// Requests a second that all endpoints can do that answer.
    pub(super) fn capacity(&self) -> f64 {
        let of = |odd: Odd| if odd.errors < 1.0 { self.workers * odd.workers / (self.mean * odd.slower) } else { 0.0 };
        (0..self.endpoints).map(|endpoint| of(self.odd(endpoint))).sum()
    }
}

/// Endpoints that are not like the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Odd {
    pub(super) count: usize,
    /// Part of the workers that the others have.
    pub(super) workers: f64,
    /// How many times longer each request takes.
    pub(super) slower: f64,
    /// This part of the requests fails within a millisecond, after that time.
    pub(super) errors: f64,
    pub(super) after: f64,
}

/// What a service says of its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reports {
    /// How long the request waited for a worker: nothing, if the workers are shared.
    Delay,
    /// Requests inside for each worker.
    Utilization,
    /// How many requests it wants: one for each worker, and a fifth more.
    Credit,
}

/// From `at` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) at: f64,
    /// Part of the workers that are there.
    pub(super) workers: f64,
    /// How many times longer each request takes.
    pub(super) slower: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Clients {
    /// From each moment on, the load as a multiple of the service's capacity at the beginning.
    pub(super) load: Vec<(f64, f64)>,
    /// How long a client waits for its answer.
    pub(super) patience: f64,
    /// How often a client tries, with a growing pause between.
    pub(super) tries: u32,
    /// This part of the clients loses interest at a random moment, after the mean service time on average.
    pub(super) fickle: f64,
    /// This part of the clients reads slowly, and keeps its credit for [`Clients::reading`].
    pub(super) slow: f64,
    pub(super) reading: f64,
    /// How many keys there are, the first of them asked for most; zero when there are none.
    pub(super) keys: f64,
    pub(super) groups: Vec<Group>,
    pub(super) bursts: Option<Bursts>,
    /// Crowds that come at once: when, and how many seconds they would keep the service busy.
    pub(super) crowds: Vec<(f64, f64)>,
    /// They try again when they are told to.
    pub(super) obey: bool,
}

/// Clients of one kind.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Of all of them together, as a part of the load.
    pub(super) share: f64,
    /// How many different keys they have.
    pub(super) keys: usize,
    pub(super) priority: Priority,
}

/// Arrivals come in heaps: for `length` of every `every` the load is `peak` times as high, and else so low that the
/// mean stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bursts {
    pub(super) peak: f64,
    pub(super) length: f64,
    pub(super) every: f64,
}

impl Bursts {
    /// By which the load is multiplied.
    pub(super) fn factor(self, now: f64) -> f64 {
        let part = self.length / self.every;
        if now % self.every < self.length { self.peak } else { (1.0 - self.peak * part) / (1.0 - part) }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pub(super) count: usize,
    pub(super) limit: Settings,
    pub(super) rules: Rules,
    pub(super) wait: f64,
    pub(super) balance: choice::Settings,
}

/// A range that must hold between two moments.
#[derive(Clone, Debug)]
pub(super) struct Expect {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) ranges: Vec<(String, RangeInclusive<f64>)>,
}

impl Script {
    pub(super) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self::parse(name, &text)
    }

    pub(super) fn parse(name: String, text: &str) -> Self {
        let mut root = Keys::new(&name, text.parse().unwrap_or_else(|error| panic!("{name}: {error}")));
        let script = Self {
            service: service(root.table("service")),
            clients: clients(root.table("clients")),
            proxy: proxy(root.table("proxy")),
            time: root.time("time", 30.0),
            seed: root.number("seed", 1.0) as u64,
            expect: root.tables("expect").into_iter().map(expect).collect(),
            name,
        };
        root.done();
        script
    }
}

fn service(mut keys: Keys) -> Service {
    let service = Service {
        endpoints: keys.number("endpoints", 1.0) as usize,
        workers: keys.number("workers", 16.0),
        mean: keys.time("mean", 0.1),
        law: match keys.text("law", "exponential").as_str() {
            "constant" => Law::Constant,
            "exponential" => Law::Exponential,
            "lognormal" => Law::Lognormal,
            "bimodal" => Law::Bimodal,
            other => panic!("unknown law {other}"),
        },
        is_sharing: keys.text("discipline", "queue") == "sharing",
        contention: keys.number("contention", 0.0),
        errors: keys.number("errors", 0.0),
        reports: match keys.text("reports", "").as_str() {
            "" => None,
            "delay" => Some(Reports::Delay),
            "utilization" => Some(Reports::Utilization),
            "credit" => Some(Reports::Credit),
            other => panic!("unknown report {other}"),
        },
        silent_from: keys.time("silent_from", f64::INFINITY),
        changes: keys.tables("change").into_iter().map(change).collect(),
        odd: keys.tables("odd").into_iter().map(odd).collect(),
        joins: keys.table.contains_key("joins").then(|| keys.time("joins", 0.0)),
    };
    keys.done();
    service
}

fn change(mut keys: Keys) -> Change {
    let change =
        Change { at: keys.time("at", 0.0), workers: keys.number("workers", 1.0), slower: keys.number("slower", 1.0) };
    keys.done();
    change
}

fn odd(mut keys: Keys) -> Odd {
    let odd = Odd {
        count: keys.number("count", 1.0) as usize,
        workers: keys.number("workers", 1.0),
        slower: keys.number("slower", 1.0),
        errors: keys.number("errors", 0.0),
        after: keys.time("after", 0.0),
    };
    keys.done();
    odd
}

fn clients(mut keys: Keys) -> Clients {
    let load = match keys.take("load") {
        None => vec![(0.0, 2.0)],
        Some(Value::Array(steps)) => steps
            .into_iter()
            .map(|step| {
                let mut step = Keys::new("a step of the load", step.as_table().unwrap().clone());
                (step.time("at", 0.0), step.number("load", 1.0))
            })
            .collect(),
        Some(load) => vec![(0.0, number(&load))],
    };
    let clients = Clients {
        load,
        patience: keys.time("patience", 1.0),
        tries: keys.number("tries", 1.0) as u32,
        fickle: keys.number("fickle", 0.0),
        slow: keys.number("slow", 0.0),
        reading: keys.time("reading", 0.0),
        keys: keys.number("keys", 0.0),
        groups: groups(&mut keys),
        bursts: keys.take("bursts").map(|bursts| {
            let mut bursts = Keys::new("bursts", bursts.as_table().unwrap().clone());
            let peak = bursts.number("peak", 3.0);
            Bursts { peak, length: bursts.time("length", 0.04), every: bursts.time("every", 0.2) }
        }),
        crowds: keys
            .tables("crowd")
            .into_iter()
            .map(|mut crowd| (crowd.time("at", 0.0), crowd.time("worth", 0.25)))
            .collect(),
        obey: keys.number("obey", 0.0) > 0.0,
    };
    keys.done();
    clients
}

fn groups(keys: &mut Keys) -> Vec<Group> {
    let mut groups: Vec<_> = keys
        .tables("group")
        .into_iter()
        .map(|mut group| Group {
            share: group.number("share", 1.0),
            keys: group.number("keys", 1.0) as usize,
            priority: Priority::named(group.text("priority", "default").as_bytes()).unwrap(),
        })
        .collect();
    if groups.is_empty() {
        groups.push(Group { share: 1.0, keys: 1, priority: Priority::Default });
    }
    groups
}

fn rules(keys: &mut Keys, wait: f64) -> Rules {
    let hands = |queues: f64, hand| Hands::new(NonZeroU16::new(queues as u16).unwrap(), hand);
    Rules {
        max: keys.number("queue", 1024.0) as usize,
        timeout: span(wait),
        order: match keys.text("order", "fifo").as_str() {
            "fifo" => Order::Fifo,
            "lifo" => Order::Lifo,
            "priority" => Order::Priority,
            "deadline" => Order::Deadline,
            "fair" => Order::Fair,
            other => panic!("unknown order {other}"),
        },
        tenancy: match keys.text("by", "").as_str() {
            "" => Tenancy::One,
            "keys" => Tenancy::Keys,
            "strangers" => Tenancy::Strangers(Hands::for_strangers()),
            "partitions" => Tenancy::Partitions(hands(keys.number("partitions", 64.0), 4)),
            other => panic!("unknown tenants {other}"),
        },
        sheds: keys.number("sheds", 1.0) > 0.0,
        ..Rules::default()
    }
}

fn proxy(mut keys: Keys) -> Proxy {
    let wait = keys.time("wait", 0.25);
    let limit = match keys.take("limit") {
        None => Settings::Adaptive(Bounds::default()),
        Some(limit) => Settings::Fixed(number(&limit) as usize),
    };
    let proxy = Proxy {
        count: keys.number("count", 1.0) as usize,
        limit,
        rules: rules(&mut keys, wait),
        wait,
        balance: choice::Settings {
            policy: match keys.text("policy", "least_loaded").as_str() {
                "least_loaded" => Policy::LeastLoaded,
                "round_robin" => Policy::RoundRobin,
                "hash" => Policy::Hash,
                other => panic!("unknown policy {other}"),
            },
            ..choice::Settings::default()
        },
    };
    keys.done();
    proxy
}

fn expect(mut keys: Keys) -> Expect {
    let (from, to) = (keys.time("from", 0.0), keys.time("to", f64::INFINITY));
    let ranges = std::mem::take(&mut keys.table).into_iter().map(|(key, value)| {
        let value = value.as_array().unwrap_or_else(|| panic!("{key} is no range")).clone();
        (key, number(&value[0])..=number(&value[1]))
    });
    Expect { from, to, ranges: ranges.collect() }
}

fn number(value: &Value) -> f64 {
    value.as_float().or_else(|| value.as_integer().map(|n| n as f64)).unwrap_or_else(|| panic!("{value} is no number"))
}

/// The keys of a table, taken out one by one so that a wrong one is noticed.
struct Keys {
    title: String,
    table: Table,
}

impl Keys {
    fn new(title: &str, table: Table) -> Self {
        Self { title: title.to_owned(), table }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    fn table(&mut self, key: &str) -> Keys {
        let table = self.take(key).map(|value| value.as_table().unwrap().clone()).unwrap_or_default();
        Keys::new(key, table)
    }

    fn tables(&mut self, key: &str) -> Vec<Keys> {
        let tables = self.take(key).map(|value| value.as_array().unwrap().clone()).unwrap_or_default();
        tables.into_iter().map(|table| Keys::new(key, table.as_table().unwrap().clone())).collect()
    }

    fn number(&mut self, key: &str, default: f64) -> f64 {
        self.take(key).map_or(default, |value| number(&value))
    }

    fn text(&mut self, key: &str, default: &str) -> String {
        self.take(key).map_or_else(|| default.to_owned(), |value| value.as_str().unwrap().to_owned())
    }

    /// A time such as "20ms" or "1.5s", in seconds.
    fn time(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.take(key) else { return default };
        let text = value.as_str().unwrap_or_else(|| panic!("{key} is no time"));
        match text.strip_suffix("ms") {
            Some(millis) => millis.parse::<f64>().unwrap() / 1e3,
            None => text.strip_suffix('s').unwrap().parse().unwrap(),
        }
    }

    fn done(self) {
        assert!(self.table.is_empty(), "unknown keys in {}: {:?}", self.title, self.table);
    }
}

pub(super) fn span(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}
