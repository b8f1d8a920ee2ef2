use super::*;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Empty, Full};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[derive(Default)]
struct Desk {
    ready: AtomicBool,
}

impl Operator for Desk {
    fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }
    fn stack(&self) -> String {
        "route chat\n".into()
    }
    fn upstreams(&self) -> Vec<Arc<crate::upstream::Upstream>> {
        Vec::new()
    }
    fn config(&self) -> serde_json::Value {
        serde_json::json!({ "server": { "threads": "auto", "listener": [], "mode": null } })
    }
    fn reload(&self) -> Later<'_> {
        Box::pin(async { Ok(Reply::Facts(vec![("result", "ok".into())])) })
    }
    fn drain(&self, upstream: &str, endpoint: &str, out: bool) -> Result<Reply, Denied> {
        Ok(Reply::Text(format!("{upstream} {endpoint} {out}\n")))
    }
}

fn admin(ready: bool) -> Admin {
    let registry = Registry::new();
    registry.counter("headworks_requests_total", "Requests.", &[]).inc();
    let config = config::parse("[[route]]\nrespond = {}\n[admin]\n", "x.toml", Path::new("")).expect("a configuration");
    let settings = config.admin.expect("an admin port");
    Admin::new(&settings, registry, Arc::new(Desk { ready: AtomicBool::new(ready) }), Arc::default())
}

async fn ask(admin: &Admin, method: Method, path: &str) -> (u16, http::HeaderMap, String) {
    let request = Request::builder().method(method).uri(path).header("host", "127.0.0.1:9901");
    send(admin, request.body(Empty::<&[u8]>::new()).expect("a request")).await
}

async fn send<B: http_body::Body>(admin: &Admin, request: Request<B>) -> (u16, http::HeaderMap, String) {
    let (head, body) = admin.handle(&request).await.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn the_pages_are_there() {
    let admin = admin(true);
    for path in ["/", "/metrics", "/live", "/ready", "/stack", "/config"] {
        assert_eq!(ask(&admin, Method::GET, path).await.0, 200, "{path}");
    }
    assert_eq!(ask(&admin, Method::GET, "/stack").await.2, "route chat\n");
    assert_eq!(ask(&admin, Method::GET, "/config").await.2, "[server]\nlistener = []\nthreads = \"auto\"\n");
    assert_eq!(ask(&admin, Method::GET, "/metrics/").await.0, 404);
    assert_eq!(ask(&admin, Method::GET, "/reload").await.0, 501);
}

#[tokio::test]
async fn verbs_reach_the_operator() {
    let admin = admin(true);
    assert_eq!(ask(&admin, Method::POST, "/reload").await.2, "result  ok\n");
    assert_eq!(ask(&admin, Method::POST, "/reload?format=json").await.2, "{\"result\":\"ok\"}\n");
    assert_eq!(ask(&admin, Method::POST, "/drain/llm/http://a:1").await.2, "llm http://a:1 true\n");
    assert_eq!(ask(&admin, Method::DELETE, "/drain/llm/0").await.2, "llm 0 false\n");
}

#[tokio::test]
async fn a_body_is_refused_unread() {
    let request = Request::post("/reload").header("host", "localhost").body(Full::new(&b"x"[..])).expect("a request");
    assert_eq!(send(&admin(true), request).await.0, 413);
}

#[tokio::test]
async fn metrics_are_those_of_the_registry_and_of_the_process() {
    let (_, headers, page) = ask(&admin(true), Method::GET, "/metrics?x=1").await;
    assert_eq!(headers[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    for name in ["headworks_requests_total 1", "headworks_build_info{version=", "headworks_process_open_fds "] {
        assert!(page.lines().any(|line| line.starts_with(name)), "{name} is not in\n{page}");
    }
}

#[tokio::test]
async fn readiness_follows_its_switch() {
    assert_eq!(ask(&admin(false), Method::GET, "/ready").await.0, 503);
    assert_eq!(ask(&admin(false), Method::GET, "/live").await.0, 200);
    assert_eq!(ask(&admin(true), Method::GET, "/ready").await.0, 200);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones_and_head_has_no_body() {
    let (status, headers, _) = ask(&admin(true), Method::POST, "/ready").await;
    assert_eq!((status, headers[ALLOW].as_bytes()), (405, b"GET, HEAD".as_slice()));
    let (status, headers, body) = ask(&admin(true), Method::HEAD, "/metrics").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert_eq!(headers[CONTENT_TYPE], METRICS);
}

#[tokio::test]
async fn refusals_have_the_form_that_was_asked_for() {
    let (status, headers, body) = ask(&admin(true), Method::GET, "/nothing?format=json").await;
    assert_eq!((status, body.as_str()), (404, "{\"error\":\"no such page; / lists them\"}\n"));
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    let request = Request::get("/stack").header("host", "evil.example").body(Empty::<&[u8]>::new()).expect("a request");
    assert_eq!(send(&admin(true), request).await.0, 403);
}
