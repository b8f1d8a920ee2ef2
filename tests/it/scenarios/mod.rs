//! The adaptive window and the choice among endpoints against simulated services. The files beside this one each tell a load, a service and the ranges
//! that must hold; a discrete-event simulation runs them with the product's own ledger and windows.

mod script;
mod service;
mod world;

use std::path::{Path, PathBuf};
use std::thread;

use script::Script;
use world::World;

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

/// What does not hold.
fn faults(script: &Script) -> Vec<String> {
    let world = World::run(script);
    let mut faults = Vec::new();
    for expect in &script.expect {
        let to = expect.to.min(script.time);
        for (name, range) in &expect.ranges {
            let value = world.figure(name, expect.from, to);
            let line = format!("{}: {name} from {} s to {to} s is {value:.3}", script.name, expect.from);
            println!("{line}");
            if !range.contains(&value) {
                faults.push(format!("{line}, not within {range:?}"));
            }
        }
    }
    faults
}

#[test]
fn every_scenario_holds() {
    let scripts: Vec<_> = files().iter().map(|path| Script::read(path)).collect();
    assert!(scripts.len() > 15, "{}", scripts.len());
    let faults: Vec<_> = thread::scope(|scope| {
        let half = scripts.len() / 2;
        let run = |scripts: &[Script]| scripts.iter().flat_map(faults).collect::<Vec<_>>();
        let (one, other) = scripts.split_at(half);
        let other = scope.spawn(move || run(other));
        run(one).into_iter().chain(other.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Untuned, beside a fixed limit that was set by somebody who knows the number of workers.
#[test]
fn hardly_less_is_served_than_by_one_who_knows_the_capacity() {
    let kinds = [("constant", "queue"), ("exponential", "queue"), ("bimodal", "queue"), ("exponential", "sharing")];
    let mut shares = Vec::new();
    for workers in [4, 16, 32] {
        for (law, discipline) in kinds {
            for load in [0.9, 1.2, 2.0, 10.0] {
                let text = format!(
                    "time = \"20s\"\nservice = {{ workers = {workers}, mean = \"50ms\", law = \"{law}\", discipline = \
                     \"{discipline}\" }}\nclients = {{ load = {load}, patience = \"2s\" }}\n"
                );
                let goodput = |limit: &str| {
                    let script = Script::parse("beside a fixed limit".into(), &format!("{text}{limit}"));
                    World::run(&script).figure("goodput", 8.0, 20.0)
                };
                let fixed = workers + workers / 4 + 1;
                let share = goodput("") / goodput(&format!("proxy = {{ limit = {fixed} }}"));
                println!("{workers} workers, {law}, {discipline}, {load} times the capacity: {share:.3}");
                shares.push(share);
            }
        }
    }
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let worst = shares.iter().copied().fold(f64::INFINITY, f64::min);
    println!("mean {mean:.4}, worst {worst:.3}");
    assert!(mean >= 0.985 && worst >= 0.95, "mean {mean:.4}, worst {worst:.3}");
}

/// The slower a part of the pool is, the less it gets, so that hardly anybody notices.
#[test]
fn endpoints_that_are_slower_cost_the_others_little() {
    let p99 = |odd: &str, policy: &str| {
        let text = format!(
            "time = \"40s\"\nservice = {{ endpoints = 16, workers = 8, mean = \"20ms\", odd = [{odd}] }}\n\
             clients = {{ load = 0.9, patience = \"20s\" }}\n\
             proxy = {{ count = 4, {policy} }}\n"
        );
        World::run(&Script::parse(policy.into(), &text)).figure("p99", 10.0, 40.0)
    };
    let quarter = "{ count = 4, slower = 4 }";
    let (alike, slower) = (p99("", "limit = 1000"), p99(quarter, "limit = 1000"));
    let by_turns = p99(quarter, "limit = 1000, policy = \"round_robin\"");
    let fewer = p99("{ count = 4, workers = 0.25 }", "limit = 1000");
    println!(
        "alike {alike:.3} s, a quarter slower {slower:.3} s, by turns {by_turns:.3} s, with fewer workers {fewer:.3} s"
    );
    assert!(slower <= 1.5 * alike && fewer <= 1.5 * alike, "{slower} {fewer} {alike}");
    assert!(by_turns > 10.0 * slower, "{by_turns}");
}
