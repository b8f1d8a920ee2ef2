//! What the program says has a page that explains it: `docs/signals.md`.

use headworks::error::Reason;

use crate::support::{Origin, Proxy, Raw, get};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/signals.md");
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_reason_is_explained() {
    let page = page();
    let row = |reason: &Reason| format!("| `{}` | {} |", reason.label(), reason.status().as_u16());
    let missing: Vec<_> = Reason::ALL.iter().map(row).filter(|row| !page.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "docs/signals.md has no row that begins with\n{}", missing.join("\n"));
    let known = |line: &&str| Reason::ALL.iter().any(|reason| line.starts_with(&row(reason)));
    let reasons = page.split("## Reasons").nth(1).unwrap().split("\n## ").next().unwrap();
    let stale: Vec<_> = reasons.lines().filter(|line| line.starts_with("| `")).filter(|line| !known(line)).collect();
    assert!(stale.is_empty(), "docs/signals.md explains what does not exist:\n{}", stale.join("\n"));
}

#[tokio::test]
async fn every_metric_is_explained() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n\
         rate_limit = [{{ name = \"r\", by = \"client\", rate = \"1000/s\", top_talkers = {{}} }}]\n\
         [[route]]\nmatch.path = \"/fault\"\nupstream = \"app\"\nfault = {{ delay = \"1ms\" }}\n\
         [[route]]\nmatch.path = \"/shared\"\nupstream = \"app\"\n\
         rate_limit = [{{ name = \"r\", rate = \"1/s\", shared = true }}]\n[store]\nurl = \"redis://127.0.0.1:1\"\n",
        origin.url()
    ));
    assert_eq!(get(proxy.public(), "/sse/2/1").await.status, 200);
    // What broke off is counted in a metric of its own, which begins with the first.
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/reset/10").await;
    let _ = client.read_to_end().await;
    let declared = proxy.metrics().types();
    assert!(!declared.is_empty());
    let page = page();
    let row = |(name, kind): &(String, String)| format!("| `{name}` | {kind} |");
    let missing: Vec<_> = declared.iter().map(row).filter(|row| !page.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "docs/signals.md has no row that begins with\n{}", missing.join("\n"));
    let metrics = page.split("## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    let known = |line: &&str| declared.iter().any(|metric| line.starts_with(&row(metric)));
    let stale: Vec<_> = metrics.lines().filter(|line| line.starts_with("| `")).filter(|line| !known(line)).collect();
    assert!(stale.is_empty(), "docs/signals.md explains what does not exist:\n{}", stale.join("\n"));
}

#[test]
fn the_pages_link_to_what_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/signals.md",
        "docs/admin.md",
        "docs/strict.md",
        "docs/capacity.md",
    ] {
        let text = std::fs::read_to_string(root.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            let outside = file.is_empty() || file.contains("://");
            let near = root.join(page).parent().unwrap().join(file);
            assert!(outside || near.exists(), "{page} links to {link}, which is not there");
        }
    }
}
