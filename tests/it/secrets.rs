//! A secret is in no page, no log and no report, whatever it was set for.

use std::time::Duration;

use crate::support::{Origin, Proxy, Raw, eventually, run};

/// One of its own for each place, so that a failure tells which.
const SECRETS: [(&str, &str); 7] = [
    ("S_TOKEN", "secret-token-of-the-admin-port"),
    ("S_AUTH", "Bearer secret-authorization"),
    ("S_BODY", "secret-body"),
    ("S_HOST", "secret-host.example"),
    ("S_MATCH", "secret-match"),
    ("S_TO", "https://secret-target.example/"),
    ("S_URL", "http://secret-upstream.invalid:1"),
];

/// Values that are written plainly and yet nobody's business.
const PLAIN: [&str; 3] = ["plain-api-key", "plain-cookie", "plain-match"];

fn config(origin: &Origin) -> String {
    format!(
        "[log]\naccess = \"json\"\nlevel = \"debug\"\n\
         [server]\nlisten = \"127.0.0.1:0\"\n\
         [admin]\nlisten = \"127.0.0.1:0\"\ntoken = {{ env = \"S_TOKEN\" }}\n\
         [upstream.app]\nendpoints = [\"{}\"]\n\
         [upstream.hidden]\nendpoints = {{ env = \"S_URL\" }}\n\
         [[route]]\nupstream = \"app\"\n\
         headers.request.set = {{ authorization = {{ env = \"S_AUTH\" }}, x-api-key = \"plain-api-key\" }}\n\
         headers.response.add = {{ set-cookie = \"plain-cookie\" }}\n\
         [[route]]\nmatch = {{ path = \"/hidden\" }}\nupstream = \"hidden\"\n\
         [[route]]\nmatch = {{ path = \"/fixed\", headers = {{ x-a = {{ env = \"S_MATCH\" }}, x-token = \"plain-match\" }} }}\n\
         respond.body = {{ env = \"S_BODY\" }}\n\
         [[route]]\nmatch.host = {{ env = \"S_HOST\" }}\nredirect.to = {{ env = \"S_TO\" }}\n",
        origin.url()
    )
}

fn assert_discreet(what: &str, text: &str) {
    let secrets = SECRETS.iter().map(|(_, secret)| *secret).chain(PLAIN);
    // The part of an address that a message could quote alone.
    let parts = ["secret-authorization", "secret-upstream", "secret-target", "secret-host"];
    for secret in secrets.chain(parts) {
        assert!(!text.contains(secret), "{secret} is in {what}:\n{text}");
    }
}

#[tokio::test]
async fn no_page_and_no_log_tells_a_secret() {
    let origin = Origin::h1();
    let proxy = Proxy::with_env(&config(&origin), &SECRETS);
    let mut open = Raw::connect(proxy.public()).await;
    open.get("/hold").await;
    open.until("\n\n").await;
    for path in ["/bytes/1", "/hidden", "/fixed", "/status/500"] {
        let mut client = Raw::connect(proxy.public()).await;
        client.get(path).await;
        client.head().await;
        proxy.logged(path).await;
    }
    assert_eq!(origin.seen()[0].headers["authorization"], SECRETS[1].1, "the upstream gets it");

    let shown = format!("authorization: Bearer {}\r\n", SECRETS[0].1);
    let (status, index) = proxy.ask_admin("GET", "/", &shown);
    assert_eq!(status, 200);
    let pages: Vec<_> = index.lines().filter_map(|line| line.strip_prefix("GET")).collect();
    for page in pages.iter().filter_map(|line| line.split_whitespace().next()) {
        for form in ["text", "json"] {
            for token in [shown.as_str(), ""] {
                let path = format!("{page}?format={form}");
                assert_discreet(&path, &proxy.ask_admin("GET", &path, token).1);
            }
        }
    }
    let (_, config) = proxy.ask_admin("GET", "/config?format=json", &shown);
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["route"][0]["headers"]["request"]["set"]["authorization"]["env"], "S_AUTH");
    assert_eq!(config["server"]["max_connections"], 10_000);
    let (_, toml) = proxy.ask_admin("GET", "/config", &shown);
    assert!(toml.parse::<toml::Table>().is_ok_and(|table| table.contains_key("upstream")), "{toml}");
    let (status, report) = proxy.ask_admin("POST", "/reload", &shown);
    assert_eq!(status, 200, "{report}");
    drop(open);
    assert!(eventually(|| origin.in_flight() == 0, Duration::from_secs(5)).await);
    assert_discreet("the access log", &proxy.access_log().join("\n"));
    assert_discreet("the event log", &proxy.log());
}

#[test]
fn no_report_of_a_mistake_tells_a_secret() {
    let origin = Origin::h1();
    let dir = tempfile::tempdir().unwrap();
    // Each secret in a place where it is wrong.
    let wrong = "[server]\ngrace = { file = \"s\" }\nthreads = { file = \"s\" }\n[admin]\ntoken = { file = \"s\" }\n\
                 listen = { file = \"s\" }\nopen = { file = \"s\" }\n[upstream.a]\nendpoints = { file = \"s\" }\n\
                 [[route]]\nname = { file = \"s\" }\nupstream = { file = \"s\" }\nmatch.path = { file = \"s\" }\n";
    std::fs::write(dir.path().join("s"), "short-secret").unwrap();
    for (name, text) in [("wrong.toml", wrong.to_owned()), ("right.toml", config(&origin))] {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        for verb in ["check", "explain"] {
            let output = run(&[verb, "--config", file.to_str().unwrap()]);
            let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
            assert!(!said.contains("short-secret"), "{said}");
            assert_discreet(verb, &said);
        }
    }
}
