//! What the operator sees: the pages of the admin port.
//!
//! | path | answers |
//! |---|---|
//! | `/metrics` | Prometheus text |
//! | `/live` | 200 as long as the process answers at all |
//! | `/ready` | 200 while requests are taken, 503 before that and while draining |
//! | `/stack` | the layers of every route, in order |
//! | `/` | this list |
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Admin`]: from a path to a page |
//! | `process.rs` | memory, descriptors and processor time, read when asked for |
//! | `serve.rs` | the port |

mod process;
mod serve;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};

pub use serve::{Bound, bind};

use crate::body::Body;
use crate::context::Response;
use crate::metrics::Registry;

/// A page that is written anew each time it is asked for.
pub type Page = Arc<dyn Fn() -> String + Send + Sync>;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

const INDEX: &str = "\
headworks admin

/metrics  Prometheus metrics
/live     200 while the process answers
/ready    200 while requests are taken, 503 otherwise
/stack    the layers of every route
";

/// The pages.
pub struct Admin {
    registry: Registry,
    ready: Arc<AtomicBool>,
    stack: Page,
}

impl Admin {
    /// `ready` tells whether requests are taken, `stack` describes the routes.
    #[must_use]
    pub fn new(registry: Registry, ready: Arc<AtomicBool>, stack: Page) -> Self {
        Self { registry, ready, stack }
    }

    /// Answers a request. Its body is not looked at.
    pub fn handle<B>(&self, request: &Request<B>) -> Response {
        let mut response = match *request.method() {
            Method::GET | Method::HEAD => self.page(request.uri().path()),
            _ => refuse_method(),
        };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if request.method() == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    fn page(&self, path: &str) -> Response {
        match path {
            "/" => text(StatusCode::OK, TEXT, INDEX.to_owned()),
            "/metrics" => {
                let mut page = self.registry.encode();
                process::encode(&mut page);
                text(StatusCode::OK, METRICS, page)
            }
            "/live" => text(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/ready" if self.ready.load(Relaxed) => text(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n".to_owned()),
            "/stack" => text(StatusCode::OK, TEXT, (self.stack)()),
            _ => text(StatusCode::NOT_FOUND, TEXT, "no such page; / lists them\n".to_owned()),
        }
    }
}

fn refuse_method() -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".to_owned());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn text(status: StatusCode, kind: HeaderValue, body: String) -> Response {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("ready", &self.ready).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    async fn ask(admin: &Admin, method: Method, path: &str) -> (u16, http::HeaderMap, String) {
        let request = Request::builder().method(method).uri(path).body(()).expect("a request");
        let (head, body) = admin.handle(&request).into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).expect("text"))
    }

    fn admin() -> Admin {
        let registry = Registry::new();
        registry.counter("headworks_requests_total", "Requests.", &[]).inc();
        Admin::new(registry, Arc::new(AtomicBool::new(false)), Arc::new(|| "route chat\n".to_owned()))
    }

    #[tokio::test]
    async fn every_page_of_the_index_is_there() {
        let admin = admin();
        admin.ready.store(true, Relaxed);
        for path in INDEX.lines().filter(|line| line.starts_with('/')).filter_map(|line| line.split(' ').next()) {
            assert_eq!(ask(&admin, Method::GET, path).await.0, 200, "{path}");
        }
        assert_eq!(ask(&admin, Method::GET, "/stack").await.2, "route chat\n");
        assert_eq!(ask(&admin, Method::GET, "/metrics/").await.0, 404);
    }

    #[tokio::test]
    async fn metrics_are_those_of_the_registry_and_of_the_process() {
        let (_, headers, page) = ask(&admin(), Method::GET, "/metrics?x=1").await;
        assert_eq!(headers[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
        for name in ["headworks_requests_total 1", "headworks_build_info{version=", "headworks_process_open_fds "] {
            assert!(page.lines().any(|line| line.starts_with(name)), "{name} is not in\n{page}");
        }
    }

    #[tokio::test]
    async fn readiness_follows_its_switch() {
        let admin = admin();
        assert_eq!(ask(&admin, Method::GET, "/ready").await.0, 503);
        assert_eq!(ask(&admin, Method::GET, "/live").await.0, 200);
        admin.ready.store(true, Relaxed);
        assert_eq!(ask(&admin, Method::GET, "/ready").await.0, 200);
    }

    #[tokio::test]
    async fn only_reading_is_allowed_and_head_has_no_body() {
        let (status, headers, _) = ask(&admin(), Method::POST, "/ready").await;
        assert_eq!((status, headers[ALLOW].as_bytes()), (405, b"GET, HEAD".as_slice()));
        let (status, headers, body) = ask(&admin(), Method::HEAD, "/metrics").await;
        assert_eq!((status, body.as_str()), (200, ""));
        assert_eq!(headers[CONTENT_TYPE], METRICS);
    }
}
