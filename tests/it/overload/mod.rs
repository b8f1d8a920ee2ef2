//! The real program before a service that is asked for more than it can do, with nothing tuned: beside it a limit that
//! was set by somebody who knows the service, and no protection at all.
//!
//! The tests are small enough for any machine, and their bounds tell a collapse from a busy machine. `scripts/goodput` runs the whole table with the release build, and holds
//! it to its bounds.

mod clients;

use std::time::Duration;

use clients::{Clients, End, Visit};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::{Proxy, Workers};

/// What stands before the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// The defaults.
    Untuned,
    /// A limit by one who knows the service.
    Tuned,
    /// Nothing.
    None,
}

/// One size of everything.
#[derive(Clone, Copy, Debug)]
struct Scale {
    workers: usize,
    /// The mean time that a request takes a worker.
    service: Duration,
    /// How long a client waits.
    patience: Duration,
    /// Before anything is counted.
    warm: Duration,
    /// While it is.
    counted: Duration,
}

/// For any machine, beside other tests.
const SMALL: Scale = Scale {
    workers: 12,
    service: Duration::from_millis(80),
    patience: Duration::from_millis(800),
    warm: Duration::from_secs(5),
    counted: Duration::from_secs(4),
};

/// For the table.
const FULL: Scale = Scale {
    workers: 64,
    service: Duration::from_millis(100),
    patience: Duration::from_secs(1),
    warm: Duration::from_secs(6),
    counted: Duration::from_secs(8),
};

impl Scale {
    fn capacity(&self) -> f64 {
        self.workers as f64 / self.service.as_secs_f64()
    }

    fn proxy(&self, guard: Guard, service: &Workers) -> Proxy {
        let more = match guard {
            Guard::Untuned => String::new(),
            Guard::Tuned => format!("limit.in_flight = {}\n", self.workers * 6 / 5),
            Guard::None => "limit.in_flight = 1000000\npool.max_connections = 1000000\n".to_owned(),
        };
        Proxy::from_toml(&format!(
            "[upstream.app]\nendpoints = [\"{}\"]\n{more}[[route]]\nupstream = \"app\"\n[server]\n\
             listen = [\"127.0.0.1:0\"]\nmax_connections = 100000\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\naccess = \
             \"off\"\n",
            service.url()
        ))
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Clients served in time, as a share of what the service can do.
    goodput: f64,
    /// Clients told to come back, as a share of all.
    refused: f64,
    /// Seconds that a served client waited.
    p50: f64,
    p99: f64,
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted.get((sorted.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

/// Clients that came from `from` to `to`, beside a service with this capacity.
fn figures(visits: &[Visit], from: f64, to: f64, capacity: f64) -> Figures {
    let counted: Vec<_> = visits.iter().filter(|visit| (from..to).contains(&visit.came)).collect();
    let mut waits: Vec<_> = counted.iter().filter(|visit| visit.end == End::Served).map(|visit| visit.took).collect();
    waits.sort_by(f64::total_cmp);

    let refused = counted.iter().filter(|visit| visit.end == End::Refused).count();
    Figures {
        goodput: waits.len() as f64 / (to - from) / capacity,
        refused: refused as f64 / counted.len().max(1) as f64,
        p50: percentile(&waits, 0.5),
        p99: percentile(&waits, 0.99),
    }
}

/// What the service can really do on this machine, whose timers are late: the share of its nominal capacity.
fn slack(scale: &Scale, service: &Workers) -> f64 {
    let mean = service.held().as_secs_f64() / service.served().max(1) as f64;
    scale.service.as_secs_f64() / mean
}

/// `load` times the capacity all the time.
async fn steady(scale: Scale, guard: Guard, load: f64) -> Figures {
    let service = Workers::exponential(scale.workers, scale.service);
    let proxy = scale.proxy(guard, &service);
    let clients = Clients::new(proxy.public(), scale.patience, 0);
    let visits = clients.come(load * scale.capacity(), scale.warm + scale.counted).await;
    let (from, to) = (scale.warm.as_secs_f64(), (scale.warm + scale.counted).as_secs_f64());
    figures(&visits, from, to, scale.capacity() * slack(&scale, &service))
}

/// Half of the workers fall out at twice the capacity, and come back: goodput as a share of what there is, from two
/// seconds after the loss, and from two seconds after the return.
async fn halved(scale: Scale, guard: Guard) -> [Figures; 2] {
    let service = Workers::exponential(scale.workers, scale.service);
    let proxy = scale.proxy(guard, &service);
    let clients = Clients::new(proxy.public(), scale.patience, 0);
    let (settle, began) = (Duration::from_secs(2), Instant::now());
    let lost = scale.warm;
    let back = lost + settle + scale.counted;
    let end = back + settle + scale.counted;
    let turns = async {
        sleep_until(began + lost).await;
        service.lose(scale.workers / 2);
        sleep_until(began + back).await;
        service.gain(scale.workers / 2);
        std::future::pending::<()>().await;
    };
    let visits = tokio::select! {
        visits = clients.come(2.0 * scale.capacity(), end) => visits,
        () = turns => unreachable!("it waits"),
    };
    let capacity = scale.capacity() * slack(&scale, &service);
    let half = capacity * (scale.workers - scale.workers / 2) as f64 / scale.workers as f64;
    let at = |time: Duration| time.as_secs_f64();
    [figures(&visits, at(lost + settle), at(back), half), figures(&visits, at(back + settle), at(end), capacity)]
}

/// Clients that try four times each meet a service that stumbles: goodput as a share of the load, from five seconds
/// after it stands again.
async fn storm(scale: Scale, guard: Guard) -> Figures {
    const LOAD: f64 = 0.8;
    let service = Workers::exponential(scale.workers, scale.service);
    let proxy = scale.proxy(guard, &service);
    let clients = Clients::new(proxy.public(), scale.patience, 3);
    let (began, stumble, settle) = (Instant::now(), Duration::from_secs(4), Duration::from_secs(5));
    let gone = scale.workers * 3 / 5;
    let end = scale.warm + stumble + settle + scale.counted;
    let turns = async {
        sleep_until(began + scale.warm).await;
        service.lose(gone);
        sleep(stumble).await;
        service.gain(gone);
        std::future::pending::<()>().await;
    };
    let visits = tokio::select! {
        visits = clients.come(LOAD * scale.capacity(), end) => visits,
        () = turns => unreachable!("it waits"),
    };
    let from = (scale.warm + stumble + settle).as_secs_f64();
    figures(&visits, from, end.as_secs_f64(), LOAD * scale.capacity())
}

#[tokio::test]
async fn near_its_capacity_nobody_is_refused_and_far_above_it_hardly_less_is_done() {
    let near = steady(SMALL, Guard::Untuned, 0.85).await;
    assert!(near.refused < 0.05, "{near:?}");
    for load in [2.0, 10.0] {
        let far = steady(SMALL, Guard::Untuned, load).await;
        assert!(far.goodput > 0.7, "{load}: {far:?}");
    }
}

#[tokio::test]
async fn half_a_service_does_half_and_a_whole_one_all_again() {
    let [half, whole] = halved(SMALL, Guard::Untuned).await;
    assert!(half.goodput > 0.6 && whole.goodput > 0.6, "{half:?}, {whole:?}");
}

#[tokio::test]
async fn a_storm_of_retries_passes() {
    let after = storm(SMALL, Guard::Untuned).await;
    assert!(after.goodput > 0.8, "{after:?}");
}

/// The table of the README.
#[tokio::test]
#[ignore = "takes five minutes, a quiet machine and the release build: scripts/goodput"]
async fn the_table() {
    let mut faults = Vec::new();
    let mut hold = |what: &str, holds: bool| {
        if !holds {
            faults.push(what.to_owned());
        }
    };
    println!("| load | untuned: goodput, refused, p50, p99 | fixed by hand | no protection |\n|---|---|---|---|");
    let cell = |it: Figures| {
        format!("{:.3}, {:.1} %, {:.0} ms, {:.0} ms", it.goodput, it.refused * 100.0, it.p50 * 1e3, it.p99 * 1e3)
    };
    for load in [0.9, 1.2, 2.0, 10.0] {
        let ours = steady(FULL, Guard::Untuned, load).await;
        let tuned = steady(FULL, Guard::Tuned, load).await;
        let none = steady(FULL, Guard::None, load).await;
        println!("| {load} x capacity | {} | {} | {} |", cell(ours), cell(tuned), cell(none));
        hold(&format!("goodput at {load}"), ours.goodput >= 0.95 * load.min(1.0));
        hold(&format!("refused at {load}"), load > 1.0 || ours.refused <= 0.005);
        hold(&format!("p99 at {load}"), ours.p99 <= 1.3 * tuned.p99);
    }
    let [ours, tuned, none] =
        [halved(FULL, Guard::Untuned).await, halved(FULL, Guard::Tuned).await, halved(FULL, Guard::None).await];
    for (at, what) in ["half of the workers, after 2 s", "all of them again, after 2 s"].into_iter().enumerate() {
        println!("| 2 x, {what} | {} | {} | {} |", cell(ours[at]), cell(tuned[at]), cell(none[at]));
        hold(what, ours[at].goodput >= 0.95);
    }
    let (ours, tuned, none) =
        (storm(FULL, Guard::Untuned).await, storm(FULL, Guard::Tuned).await, storm(FULL, Guard::None).await);
    println!("| 0.8 x, 5 s after a storm of retries | {} | {} | {} |", cell(ours), cell(tuned), cell(none));
    hold("after the storm", ours.goodput >= 0.95);
    assert!(faults.is_empty(), "{faults:?}");
}
