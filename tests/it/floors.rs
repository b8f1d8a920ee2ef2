//! The house has floors: imports go down only, so that every folder can be read alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// From the ground up. A module sees the floors below it, and its neighbours as long as no circle comes of it.
const FLOORS: &[&[&str]] = &[
    &["body", "error", "context", "entropy", "tls"],
    &["control", "metrics", "tasks"],
    &["layers", "upstream", "stream", "store", "access_log"],
    &["config"],
    &["live", "router", "stack", "explain"],
    &["snapshot"],
    &["server", "admin", "reload", "durable"],
    &["app"],
    &["cli", "main"],
];

/// Neighbours that know each other on purpose: an error may build a body, and a body ends with an error.
const TOGETHER: &[(&str, &str)] = &[("body", "error")];

/// A layer is read, tested and deleted alone.
const NOT_FOR_LAYERS: &[&str] = &["layers", "config", "upstream"];

const LONGEST: usize = 600;

struct Source {
    path: PathBuf,
    module: String,
    /// Without the tests at its end: they may look anywhere.
    text: String,
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    let sources = paths.into_iter().filter(|path| !path.ends_with("tests.rs")).map(|path| {
        let inside = path.strip_prefix(&root).unwrap().to_owned();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap().to_owned();
        Source { module: first.trim_end_matches(".rs").to_owned(), path: inside, text }
    });
    let mut sources: Vec<_> = sources.filter(|source| source.module != "lib").collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// The paths below `crate::` that this text names, two names deep at most. Comments do not count.
fn uses(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |all, line| all + line + "\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `pub(crate)::` does not exist, but `$crate::` and `some_crate::` do.
        if at > 0 && code.as_bytes()[at - 1].is_ascii_alphanumeric() || code[..at].ends_with('_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if rest.starts_with('{') {
            found.extend(group(rest).into_iter().map(|item| two(&item)));
        } else {
            found.insert(two(rest));
        }
    }
    found
}

/// The items of `{a, b::{c, d}, e}`, at its first level.
fn group(text: &str) -> Vec<String> {
    let (mut depth, mut items) = (0_u32, vec![String::new()]);
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => items.push(String::new()),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if !(depth == 1 && matches!(c, '{' | ',')) {
            items.last_mut().unwrap().push(c);
        }
    }
    items.into_iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

/// `a::b` of `a::b::c`, `a` of `a`.
fn two(path: &str) -> String {
    let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(path.len());
    path[..end].trim_end_matches(':').split("::").take(2).collect::<Vec<_>>().join("::")
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[test]
fn imports_go_down_only() {
    let mut faults = String::new();
    let mut neighbours: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        let Some(here) = floor(&source.module) else {
            writeln!(faults, "src/{}: `{}` stands on no floor", source.path.display(), source.module).unwrap();
            continue;
        };
        for path in uses(&source.text) {
            let module = path.split("::").next().unwrap();
            let edge = format!("src/{}: `{}` uses `crate::{path}`", source.path.display(), source.module);
            match floor(module) {
                None => writeln!(faults, "{edge}, which stands on no floor").unwrap(),
                Some(there) if there > here => writeln!(faults, "{edge}, which stands above it").unwrap(),
                Some(there) if there == here && module != source.module => {
                    neighbours.entry(source.module.clone()).or_default().insert(module.to_owned());
                }
                Some(_) => {}
            }
        }
    }
    for (module, seen) in &neighbours {
        for other in seen {
            let together = TOGETHER.contains(&(module, other)) || TOGETHER.contains(&(other, module));
            if !together && reaches(&neighbours, other, module) {
                writeln!(faults, "`{module}` and `{other}` stand on one floor and use each other").unwrap();
            }
        }
    }
    assert!(faults.is_empty(), "the floors do not hold:\n{faults}");
}

fn reaches(edges: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let (mut open, mut seen) = (vec![from], BTreeSet::new());
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            open.extend(edges.get(module).into_iter().flatten().map(String::as_str));
        }
    }
    false
}

#[test]
fn a_layer_stands_alone() {
    let mut faults = String::new();
    for source in sources().iter().filter(|source| source.module == "layers") {
        let name = source.path.iter().nth(1).unwrap().to_str().unwrap().trim_end_matches(".rs");
        if name == "mod" {
            continue;
        }
        for path in uses(&source.text) {
            let (module, item) = path.split_once("::").unwrap_or((&path, ""));
            if NOT_FOR_LAYERS.contains(&module) && !(module == "layers" && item == name) {
                writeln!(faults, "src/{} uses `crate::{path}`", source.path.display()).unwrap();
            }
        }
        for other in ["super::super", "super::{"] {
            let at_top = source.path.iter().count() == 2;
            if at_top && source.text.contains(other) {
                writeln!(faults, "src/{} reaches its neighbours by `{other}`", source.path.display()).unwrap();
            }
        }
    }
    assert!(faults.is_empty(), "a layer knows too much:\n{faults}");
}

#[test]
fn no_file_is_too_long_to_read() {
    let long = sources().into_iter().map(|source| (source.text.lines().count(), source.path));
    let long: Vec<_> = long.filter(|(lines, _)| *lines > LONGEST).collect();
    assert!(long.is_empty(), "above {LONGEST} lines before the tests: {long:?}");
}

#[test]
fn only_tasks_spawns() {
    for source in sources().iter().filter(|source| source.module != "tasks") {
        for (at, line) in source.text.lines().enumerate() {
            let code = !line.trim_start().starts_with("//");
            let spawns =
                line.contains("tokio::spawn") || line.contains("task::spawn(") || line.contains("spawn_local(");
            assert!(!(code && spawns), "src/{}:{}: {}", source.path.display(), at + 1, line.trim());
        }
    }
}

#[test]
fn paths_are_found_in_any_form_of_use() {
    let text = "use crate::error::Reason;\n// use crate::app;\nuse crate::{\n    body::{self, Body},\n    context,\n};\n\
                fn f(_: crate::upstream::pool::Pool) {}\nuse some_crate::x;\n";
    let found: Vec<_> = uses(text).into_iter().collect();
    assert_eq!(found, ["body", "context", "error::Reason", "upstream::pool"]);
}
