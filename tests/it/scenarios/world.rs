//! Runs a scenario: clients, proxies and a service, event by event. The proxies are the product's own ledger and windows.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use headworks::control::choice::{Member, Sample};
use headworks::control::credits::{Answer, Ask, Class, Ledger, Slot, Ticket, Turn};
use headworks::control::limit::{Outcome, Start, View};
use headworks::control::published::LoadReport;
use headworks::control::published::heard::Heard;
use headworks::control::windows::{Begun, SetBy, Windows};
use tokio::time::Instant;

use super::script::{Reports, Script, span};
use super::service::Service;
use crate::support::Luck;

/// Length of a step of the record.
const STEP: f64 = 0.1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    /// So many at once.
    Crowd(usize),
    Tries(usize),
    WaitedEnough(usize),
    Leaves(usize),
    Served(usize),
    Failed(usize),
    HasRead(usize),
    /// The shared workers of an endpoint are done with one, unless something came between.
    Shared(usize, u64),
    Changes(usize),
    /// The last endpoint comes.
    Joins,
    Step,
}

#[derive(Debug)]
struct Request {
    user: usize,
    proxy: usize,
    endpoint: usize,
    arrived: f64,
    ticket: Option<Ticket>,
    slot: Option<Slot>,
    begun: Option<Begun>,
    start: Option<Start>,
    sent: f64,
    /// When a worker took it up.
    taken: f64,
    /// The service's time, once it has answered.
    latency: Option<f64>,
    is_over: bool,
}

/// One who wants one answer, and may try for it several times.
#[derive(Clone, Copy, Debug)]
struct User {
    came: f64,
    group: usize,
    key: u64,
    tries: u32,
    is_served: bool,
}

#[derive(Debug)]
struct Proxy {
    ledger: Ledger<usize>,
    windows: Windows,
    heard: Heard,
}

impl Proxy {
    /// One more endpoint, of which nothing is known.
    fn joins(&mut self, script: &Script, now: Instant, cold_since: Option<Instant>) {
        let account = self.ledger.open();
        let unix = Duration::from_millis(1_700_000_000_137);
        self.windows.set(&mut self.ledger, account, (script.proxy.limit, 1024), now, unix);
        let member = Member { identity: 1 + account as u64, ..Member::default() };
        self.ledger.choice().join(account, member, cold_since);
    }

    fn views(&self) -> impl Iterator<Item = View> {
        (0..).map_while(|account| self.windows.view(account))
    }
}

/// What happened within one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    arrived: usize,
    /// Arrivals, and those who try again.
    tried: usize,
    pub(super) good: usize,
    failed: usize,
    sent: usize,
    /// Sent to the last endpoint.
    sent_last: usize,
    refused: usize,
    left: usize,
    latency: f64,
    /// Over all proxies, at the end of the step.
    limit: f64,
    /// Credits that are kept by clients who still read.
    reading: f64,
    measuring: f64,
}

pub(super) struct World {
    script: Script,
    began: Instant,
    now: f64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    luck: Luck,
    services: Vec<Service>,
    /// How often something came between, for each endpoint.
    shared: Vec<u64>,
    proxies: Vec<Proxy>,
    requests: Vec<Request>,
    users: Vec<User>,
    reading: usize,
    steps: Vec<Step>,
    /// When each good answer came, and how long it took.
    latencies: Vec<(f64, f64)>,
}

impl World {
    /// Runs it to its end.
    pub(super) fn run(script: &Script) -> Self {
        let mut world = Self::new(script);
        world.at(0.0, Event::Arrives);
        world.at(STEP, Event::Step);
        for (number, change) in script.service.changes.iter().enumerate() {
            world.at(change.at, Event::Changes(number));
        }
        for (at, worth) in &script.clients.crowds {
            world.at(*at, Event::Crowd((worth * script.service.capacity()) as usize));
        }
        if let Some(at) = script.service.joins {
            world.at(at, Event::Joins);
        }
        while let Some(Reverse((nanos, _, event))) = world.events.pop() {
            world.now = nanos as f64 / 1e9;
            if world.now > script.time {
                break;
            }
            world.happens(event);
        }
        world
    }

    fn new(script: &Script) -> Self {
        let began = Instant::now();
        let proxy = |_| {
            let mut ledger = Ledger::new(0, 0, Some(1024), 0);
            ledger.set_rules(script.proxy.rules);
            ledger.choice().set(script.proxy.balance);
            let mut proxy = Proxy { ledger, windows: Windows::default(), heard: Heard::default() };
            let late = usize::from(script.service.joins.is_some());
            for _ in late..script.service.endpoints {
                proxy.joins(script, began, None);
            }
            proxy
        };
        let service = |endpoint| {
            let odd = script.service.odd(endpoint);
            let (workers, mean) = (script.service.workers * odd.workers, script.service.mean * odd.slower);
            let settings = super::script::Service { workers, mean, ..script.service.clone() };
            Service::new(&settings, script.seed + 1000 * endpoint as u64)
        };
        Self {
            began,
            now: 0.0,
            events: BinaryHeap::new(),
            count: 0,
            luck: Luck::new(script.seed),
            services: (0..script.service.endpoints).map(service).collect(),
            shared: vec![0; script.service.endpoints],
            proxies: (0..script.proxy.count).map(proxy).collect(),
            requests: Vec::new(),
            users: Vec::new(),
            reading: 0,
            steps: vec![Step::default()],
            latencies: Vec::new(),
            script: script.clone(),
        }
    }

    fn at(&mut self, time: f64, event: Event) {
        self.count += 1;
        self.events.push(Reverse(((time * 1e9) as u64, self.count, event)));
    }

    fn instant(&self) -> Instant {
        self.began + span(self.now)
    }

    fn step(&mut self) -> &mut Step {
        self.steps.last_mut().unwrap()
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrives => {
                let load =
                    self.script.clients.load.iter().rev().find(|(at, _)| *at <= self.now).map_or(0.0, |step| step.1);
                let bursts = self.script.clients.bursts;
                let most = load.max(1e-6) * bursts.map_or(1.0, |bursts| bursts.peak);
                let gap = self.luck.exponential() / (most * self.script.service.capacity());
                // A pause in the load must not outlast its end.
                self.at(self.now + gap.min(0.5), Event::Arrives);
                let part = bursts.map_or(1.0, |bursts| bursts.factor(self.now) / bursts.peak);
                if gap <= 0.5 && (part >= 1.0 || self.luck.unit() < part) {
                    self.comes();
                }
            }
            Event::Crowd(count) => (0..count).for_each(|_| self.comes()),
            Event::Tries(user) => self.tries(user),
            Event::WaitedEnough(id) => self.waited_enough(id),
            Event::Leaves(id) => self.leaves(id),
            Event::Served(id) => {
                self.services[self.requests[id].endpoint].end();
                self.served(id);
            }
            Event::Failed(id) => self.failed(id),
            Event::HasRead(id) => {
                self.reading -= 1;
                self.ends(id);
            }
            Event::Shared(endpoint, version) if version == self.shared[endpoint] => {
                if let Some((id, _)) = self.services[endpoint].next_shared(self.now) {
                    self.services[endpoint].end_shared(self.now);
                    self.served(id);
                }
            }
            Event::Shared(..) => {}
            Event::Changes(number) => {
                for endpoint in 0..self.services.len() {
                    self.services[endpoint].change(self.now, self.script.service.changes[number]);
                    self.work(endpoint);
                }
            }
            Event::Joins => {
                let now = self.instant();
                for proxy in 0..self.proxies.len() {
                    self.proxies[proxy].joins(&self.script, now, Some(now));
                    self.hand_out(proxy);
                }
            }
            Event::Step => {
                let now = self.instant();
                for proxy in &mut self.proxies {
                    proxy.heard.expire(&mut proxy.ledger, &mut proxy.windows, now);
                }
                let sum = |read: &dyn Fn(&Proxy) -> usize| self.proxies.iter().map(read).sum::<usize>() as f64;
                let limit = sum(&|proxy| {
                    let of = |(account, view): (usize, View)| match proxy.windows.in_force(account) {
                        Some((credits, SetBy::Published)) => credits,
                        _ => view.found,
                    };
                    proxy.views().enumerate().map(of).sum()
                });
                let measuring = sum(&|proxy| proxy.views().filter(|view| view.is_measuring).count());
                let reading = self.reading as f64;
                *self.step() = Step { limit, reading, measuring, ..*self.step() };
                self.steps.push(Step::default());
                self.at(self.now + STEP, Event::Step);
            }
        }
    }

    /// One comes, of any group.
    fn comes(&mut self) {
        let groups = &self.script.clients.groups;
        let all: f64 = groups.iter().map(|group| group.share).sum();
        let mut luck = if groups.len() > 1 { self.luck.unit() * all } else { 0.0 };
        let group = groups.iter().position(|group| {
            luck -= group.share;
            luck < 0.0
        });
        let group = group.unwrap_or(0);
        let keys = groups[group].keys;
        let key = if keys > 1 { (self.luck.unit() * keys as f64) as u64 } else { 0 };
        // Keys are hashes.
        let key = (key * 100 + group as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        self.step().arrived += 1;
        self.users.push(User { came: self.now, group, key, tries: 0, is_served: false });
        self.tries(self.users.len() - 1);
    }

    fn tries(&mut self, user: usize) {
        self.users[user].tries += 1;
        self.step().tried += 1;
        let proxy = (self.luck.unit() * self.proxies.len() as f64) as usize;
        let id = self.requests.len();
        let keys = self.script.clients.keys;
        // The shares of the keys are as one to their number in the line.
        let affinity = (keys > 0.0).then(|| keys.powf(self.luck.unit()) as u64);
        let mut ask = Ask { affinity, ..Ask::new(Class::Unary, self.began + span(self.now)) };
        ask.tenant = self.users[user].key;
        ask.priority = self.script.clients.groups[self.users[user].group].priority;
        let mut granted = self.proxies[proxy].ledger.try_acquire(&ask);
        if granted.is_none() {
            let at = &mut self.proxies[proxy];
            at.windows.relieve(&mut at.ledger, ask.at);
            self.hand_out(proxy);
            granted = self.proxies[proxy].ledger.try_again(&ask);
        }
        let answer = match granted {
            Some(slot) => Answer::Granted(slot),
            None => match self.proxies[proxy].ledger.wait(&ask, id) {
                Ok(ticket) => Answer::Queued(ticket),
                Err((id, why)) => Answer::Refused(id, why),
            },
        };
        self.requests.push(Request {
            user,
            proxy,
            endpoint: 0,
            arrived: self.now,
            ticket: None,
            slot: None,
            begun: None,
            start: None,
            sent: 0.0,
            taken: 0.0,
            latency: None,
            is_over: false,
        });
        let clients = &self.script.clients;
        let (patience, fickle) = (clients.patience, clients.fickle);
        let leaves = if fickle > 0.0 && self.luck.unit() < fickle {
            patience.min(self.luck.exponential() * self.script.service.mean)
        } else {
            patience
        };
        match answer {
            Answer::Granted(slot) => {
                self.at(self.now + leaves, Event::Leaves(id));
                self.send(id, slot);
            }
            Answer::Queued(ticket) => {
                self.requests[id].ticket = Some(ticket);
                self.at(self.now + leaves, Event::Leaves(id));
                self.at(self.now + self.script.proxy.wait, Event::WaitedEnough(id));
                self.hand_out(proxy);
            }
            Answer::Refused(..) => self.refused(id),
        }
    }

    fn send(&mut self, id: usize, slot: Slot) {
        let (now, endpoint) = (self.instant(), slot.endpoint());
        let proxy = &mut self.proxies[self.requests[id].proxy];
        let start = proxy.windows.on_start(&mut proxy.ledger, &slot, now);
        let request = &mut self.requests[id];
        (request.slot, request.start, request.sent, request.ticket) = (Some(slot), start, self.now, None);
        request.endpoint = endpoint;
        self.step().sent += 1;
        self.step().sent_last += usize::from(endpoint + 1 == self.services.len());
        let odd = self.script.service.odd(endpoint);
        if odd.errors > 0.0 && self.now >= odd.after && self.luck.unit() < odd.errors {
            self.at(self.now + 0.001, Event::Failed(id));
        } else {
            self.services[endpoint].take(self.now, id);
            self.work(endpoint);
        }
    }

    /// An endpoint goes on with what it has.
    fn work(&mut self, endpoint: usize) {
        while let Some((id, done)) = self.services[endpoint].begin(self.now) {
            self.requests[id].taken = self.now;
            self.at(done, Event::Served(id));
        }
        if let Some((_, done)) = self.services[endpoint].next_shared(self.now) {
            self.shared[endpoint] += 1;
            self.at(done, Event::Shared(endpoint, self.shared[endpoint]));
        }
    }

    fn learn(&mut self, id: usize, sample: Sample) {
        let now = self.instant();
        let request = &self.requests[id];
        self.proxies[request.proxy].ledger.choice().learn(request.endpoint, sample, now);
    }

    fn served(&mut self, id: usize) {
        let latency = self.now - self.requests[id].sent;
        if !self.requests[id].is_over {
            self.requests[id].latency = Some(latency);
            self.learn(id, Sample::Answered(span(latency)));
            self.reports(id);
            self.step().good += 1;
            self.users[self.requests[id].user].is_served = true;
            let waited = self.now - self.requests[id].arrived;
            self.latencies.push((self.now, waited));
            self.step().latency += waited;
            let clients = &self.script.clients;
            let (slow, reading) = (clients.slow, clients.reading);
            if slow > 0.0 && self.luck.unit() < slow {
                let now = self.instant();
                let request = &mut self.requests[id];
                if let (Some(start), Some(slot)) = (&mut request.start, request.slot.take()) {
                    let windows = &mut self.proxies[request.proxy].windows;
                    request.begun = Some(windows.on_head(slot, start, span(latency), now));
                }
                self.reading += 1;
                self.at(self.now + reading, Event::HasRead(id));
            } else {
                self.ends(id);
            }
        }
        self.work(self.requests[id].endpoint);
    }

    /// The service says with an answer what it has to do.
    fn reports(&mut self, id: usize) {
        let Some(reports) = self.script.service.reports.filter(|_| self.now < self.script.service.silent_from) else {
            return;
        };
        let request = &self.requests[id];
        let report = match reports {
            Reports::Delay => {
                let waited = (request.taken - request.sent).max(0.0);
                LoadReport { queue_delay: Some(span(waited)), ..LoadReport::default() }
            }
            Reports::Utilization => {
                LoadReport { utilization: Some(self.services[request.endpoint].utilization()), ..LoadReport::default() }
            }
            Reports::Credit => {
                let credit = (self.services[request.endpoint].workers() * 1.2).ceil() as usize;
                LoadReport { credit: Some(credit), ..LoadReport::default() }
            }
        };
        let (now, latency) = (self.instant(), request.latency.map(span));
        let Proxy { ledger, windows, heard } = &mut self.proxies[request.proxy];
        heard.on_report((ledger, windows), (request.endpoint, Class::Unary), &report, latency, now);
    }

    fn ends(&mut self, id: usize) {
        let latency = self.requests[id].latency.unwrap_or(0.0);
        self.over(id, Outcome::Answered(span(latency)));
    }

    fn failed(&mut self, id: usize) {
        if !self.requests[id].is_over {
            self.step().failed += 1;
            self.learn(id, Sample::Failed { after: span(0.001), retry_after: None });
            self.over(id, Outcome::Failed(span(0.001)));
        }
    }

    fn leaves(&mut self, id: usize) {
        if self.requests[id].is_over || self.requests[id].latency.is_some() {
            return;
        }
        self.step().left += 1;
        if let Some(ticket) = self.requests[id].ticket.take() {
            self.gives_up_place(id, ticket);
        } else {
            let waited = span(self.now - self.requests[id].sent);
            self.learn(id, Sample::Left(waited));
            self.over(id, Outcome::Left(waited));
        }
        self.retries(id);
    }

    fn waited_enough(&mut self, id: usize) {
        if let Some(ticket) = self.requests[id].ticket.take() {
            self.step().refused += 1;
            self.gives_up_place(id, ticket);
            self.retries(id);
        }
    }

    fn gives_up_place(&mut self, id: usize, ticket: Ticket) {
        self.requests[id].is_over = true;
        let proxy = self.requests[id].proxy;
        self.proxies[proxy].ledger.leave(ticket);
        let now = self.instant();
        let at = &mut self.proxies[proxy];
        at.windows.relieve(&mut at.ledger, now);
        self.hand_out(proxy);
    }

    /// The proxy is done with a request that had a credit.
    fn over(&mut self, id: usize, outcome: Outcome) {
        let now = self.instant();
        let request = &mut self.requests[id];
        request.is_over = true;
        let (at, endpoint) = (request.proxy, request.endpoint);
        let (slot, begun, start) = (request.slot.take(), request.begun.take(), request.start.take());
        let proxy = &mut self.proxies[at];
        if let Some(slot) = slot.or_else(|| proxy.windows.take_back(begun?)) {
            proxy.ledger.release(&slot, now);
        }
        if let Some(start) = start {
            proxy.windows.on_end(&mut proxy.ledger, endpoint, start, outcome, now);
        }
        self.hand_out(at);
    }

    fn hand_out(&mut self, proxy: usize) {
        let now = self.instant();
        while let Some(turn) = self.proxies[proxy].ledger.grant(now) {
            match turn {
                Turn::Granted(id, slot) => self.send(id, slot),
                Turn::Dismissed(id, _) => self.refused(id),
            }
        }
    }

    fn refused(&mut self, id: usize) {
        self.step().refused += 1;
        let request = &mut self.requests[id];
        (request.is_over, request.ticket) = (true, None);
        self.retries(id);
    }

    fn retries(&mut self, id: usize) {
        let user = self.requests[id].user;
        let tries = self.users[user].tries;
        if tries < self.script.clients.tries {
            let pause = if self.script.clients.obey {
                let (now, luck) = (self.instant(), self.luck.unit());
                self.proxies[self.requests[id].proxy].ledger.book(Class::Unary, now, luck).as_secs_f64()
            } else {
                0.1 * f64::from(1 << (tries - 1)) * self.luck.unit()
            };
            self.at(self.now + pause, Event::Tries(user));
        }
    }

    /// In seconds, of the answers that came between two moments.
    fn quantile(&self, part: f64, from: f64, to: f64) -> f64 {
        let came = self.latencies.iter().filter(|(at, _)| (from..to).contains(at));
        let mut took: Vec<_> = came.map(|(_, took)| *took).collect();
        took.sort_by(f64::total_cmp);
        took[(took.len() as f64 * part) as usize]
    }

    /// The figures between two moments.
    pub(super) fn figure(&self, name: &str, from: f64, to: f64) -> f64 {
        let range = (from / STEP).round() as usize..((to / STEP).round() as usize).min(self.steps.len() - 1);
        let steps = &self.steps[range];
        let sum = |read: fn(&Step) -> f64| steps.iter().map(read).sum::<f64>();
        let count = steps.len() as f64;
        let good = sum(|step| step.good as f64);
        match name {
            // In multiples of what the service could do at the beginning.
            "goodput" => good / (count * STEP) / self.script.service.capacity(),
            "refused" => sum(|step| (step.refused + step.left) as f64) / sum(|step| step.arrived as f64),
            "limit" => sum(|step| step.limit) / count,
            // What is left of the limit for requests that the service works on.
            "working" => sum(|step| step.limit - step.reading) / count,
            "limit_per_worker" => {
                sum(|step| step.limit) / count / self.script.service.workers / self.services.len() as f64
            }
            "measuring" => sum(|step| step.measuring) / count,
            // Of the answers, those that tell of a fault.
            "errors" => sum(|step| step.failed as f64) / (good + sum(|step| step.failed as f64)),
            // What the last endpoint gets, as a part of what each would get.
            "last_share" => {
                sum(|step| step.sent_last as f64) / sum(|step| step.sent as f64) * self.services.len() as f64
            }
            "p99" => self.quantile(0.99, from, to),
            "latency" => sum(|step| step.latency) / good,
            "worst_goodput" => {
                let windows = steps.windows((1.0 / STEP) as usize);
                windows.map(|steps| steps.iter().map(|step| step.good).sum::<usize>()).min().unwrap() as f64
                    / self.script.service.capacity()
            }
            // Of those who came, those who got an answer in the end; how often they tried for it.
            "served" => self.served_of(from, to, |_| true),
            "tries" => {
                let came: Vec<_> = self.users.iter().filter(|user| (from..to).contains(&user.came)).collect();
                came.iter().map(|user| f64::from(user.tries)).sum::<f64>() / came.len() as f64
            }
            // The most that came within half a second, as a multiple of what the service could do.
            "peak" => {
                let windows = steps.windows((0.5 / STEP) as usize);
                windows.map(|steps| steps.iter().map(|step| step.tried).sum::<usize>()).max().unwrap() as f64
                    / (0.5 * self.script.service.capacity())
            }
            name if name.starts_with("served_") => {
                let group: usize = name["served_".len()..].parse().unwrap();
                self.served_of(from, to, |user| user.group == group)
            }
            // The least that any key of a group got.
            name if name.starts_with("worst_") => {
                let group: usize = name["worst_".len()..].parse().unwrap();
                let of_group = self.users.iter().filter(|user| user.group == group);
                let keys: BTreeSet<_> = of_group.map(|user| user.key).collect();
                let shares = keys.into_iter().map(|key| self.served_of(from, to, |user| user.key == key));
                shares.fold(f64::INFINITY, f64::min)
            }
            other => panic!("there is no figure {other}"),
        }
    }

    fn served_of(&self, from: f64, to: f64, which: impl Fn(&User) -> bool) -> f64 {
        let came = self.users.iter().filter(|user| (from..to).contains(&user.came) && which(user));
        let (came, served) = came.fold((0, 0), |(came, served), user| (came + 1, served + usize::from(user.is_served)));
        f64::from(served as u32) / f64::from(came)
    }
}
