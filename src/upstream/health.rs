//! Active health checks: asks each endpoint again and again whether it is well.
//!
//! A check goes the way that requests go (name, TLS, socket), on a connection of its own and without a credit. What it
//! finds sets the endpoint's credits, see `control/breaker/`; it never meets a client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::BodyExt as _;
use tokio::time::{sleep, timeout};

use super::connect::Connector;
use super::endpoint::{Endpoint, Recipe};
use super::settings::{CheckKind, EndpointSettings, HealthCheck, Pool, Protocol, Settings, Timeouts};
use super::{Admission, ClientError};
use crate::body::Body;
use crate::context::{Request, Response};
use crate::control::health::{Health, grpc_answer, grpc_question};
use crate::entropy;
use crate::tasks::{self, Task};

/// Bytes of an answer that are read at most.
const MOST_BYTES: usize = 64 * 1024;
/// The first check comes within this time.
const FIRST: Duration = Duration::from_secs(1);

const GRPC: &str = "/grpc.health.v1.Health/Check";

/// The checks of one endpoint.
#[derive(Debug)]
pub(super) struct Check {
    about: EndpointSettings,
    settings: HealthCheck,
    recipe: Recipe,
    way: Arc<Way>,
    /// None before the first check.
    task: Option<Task>,
}

/// How an endpoint is reached.
enum Way {
    Stream(Connector),
    Http(Arc<Endpoint>),
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream(_) => "Stream",
            Self::Http(_) => "Http",
        })
    }
}

/// Builds the checks that the settings want, and begins none. What is `known` and would be built alike is left out: the
/// answer has none in its place.
pub(super) fn prepare(settings: &Settings, known: &[Check]) -> Result<Vec<Option<Check>>, ClientError> {
    let Some(wanted) = &settings.health else { return Ok(Vec::new()) };
    let check = |about: &EndpointSettings| {
        let fresh = Check::new(settings, wanted, about)?;
        Ok(if known.iter().any(|known| known.is_like(&fresh)) { None } else { Some(fresh) })
    };
    settings.endpoints.iter().map(check).collect()
}

/// Those that go on of the known ones, and the fresh ones.
pub(super) fn merge(settings: &Settings, known: Vec<Check>, planned: Vec<Option<Check>>) -> Vec<Check> {
    let mut known: Vec<_> = known.into_iter().map(Some).collect();
    let mut stays =
        |about: &EndpointSettings| known.iter_mut().find_map(|known| known.take_if(|known| known.about.is_same(about)));
    settings.endpoints.iter().zip(planned).filter_map(|(about, fresh)| fresh.or_else(|| stays(about))).collect()
}

impl Check {
    fn new(settings: &Settings, wanted: &HealthCheck, about: &EndpointSettings) -> Result<Self, ClientError> {
        let protocol = if matches!(wanted.kind, CheckKind::Grpc { .. }) { Protocol::Http2 } else { settings.protocol };
        let own = Settings {
            protocol,
            timeout: Timeouts { connect: wanted.timeout, ..settings.timeout },
            pool: Pool { max_idle: 0, ..settings.pool },
            ..settings.clone()
        };
        let way = match wanted.kind {
            CheckKind::Tcp => Way::Stream(Connector::new(&own, about)?),
            CheckKind::Http { .. } | CheckKind::Grpc { .. } => Way::Http(Endpoint::new(&own, about)?),
        };
        let recipe = Recipe::new(&own, about);
        Ok(Self { about: about.clone(), settings: wanted.clone(), recipe, way: Arc::new(way), task: None })
    }

    fn is_like(&self, other: &Self) -> bool {
        self.about.is_same(&other.about) && self.settings == other.settings && self.recipe == other.recipe
    }

    /// Begins to check, if it has not.
    pub(super) fn start(&mut self, admission: &Admission) {
        let Self { about, settings, way, task, .. } = self;
        task.get_or_insert_with(|| {
            let (admission, about) = (admission.clone(), about.clone());
            tasks::spawn(watch(admission, about, settings.clone(), Arc::clone(way)))
        });
    }
}

async fn watch(admission: Admission, about: EndpointSettings, settings: HealthCheck, way: Arc<Way>) {
    let mut health = Health::new(admission.is_down(&about));
    // Endpoints and proxies that began together are not asked together.
    let mut wait = settings.interval.min(FIRST).mul_f64(entropy::unit());
    loop {
        sleep(wait).await;
        let found = timeout(settings.timeout, ask(&way, &settings.kind)).await;
        let found = found.unwrap_or_else(|_| Err(Fault("no answer in time".into())));
        let is_changed = health.on_check(found.is_ok(), settings.thresholds);
        admission.checked(&about, found.is_ok(), health.is_down());
        match found {
            Ok(()) if is_changed => tracing::info!(endpoint = %about.label, "its health check passes"),
            Err(fault) if is_changed => tracing::warn!(endpoint = %about.label, %fault, "its health check fails"),
            Err(fault) => tracing::debug!(endpoint = %about.label, %fault, "a health check has failed"),
            Ok(()) => {}
        }
        wait = settings.interval.mul_f64(0.9 + 0.2 * entropy::unit());
    }
}

/// Why a check has failed. For the log.
#[derive(Debug)]
struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn fault(why: &dyn fmt::Display) -> Fault {
    Fault(why.to_string())
}

async fn ask(way: &Way, kind: &CheckKind) -> Result<(), Fault> {
    match (way, kind) {
        (Way::Stream(connector), _) => connector.connect(false).await.map(drop).map_err(|error| fault(&error)),
        (Way::Http(endpoint), CheckKind::Http { path, expect }) => {
            let response = send(endpoint, request(Method::GET, path, Body::empty())).await?;
            let status = response.status();
            read(response).await?;
            let is_expected = expect.iter().any(|range| range.contains(&status.as_u16()));
            if is_expected { Ok(()) } else { Err(fault(&status)) }
        }
        (Way::Http(endpoint), CheckKind::Grpc { service }) => {
            let mut request =
                request(Method::POST, &PathAndQuery::from_static(GRPC), Body::full(grpc_question(service)));
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
            let response = send(endpoint, request).await?;
            if response.status() != StatusCode::OK {
                return Err(fault(&response.status()));
            }
            let head = response.headers().clone();
            let (bytes, trailers) = read(response).await?;
            let status = trailers.get("grpc-status").or_else(|| head.get("grpc-status"));
            match status.map(HeaderValue::as_bytes) {
                Some(b"0") => {}
                Some(other) => return Err(Fault(format!("gRPC status {}", String::from_utf8_lossy(other)))),
                None => return Err(Fault("no gRPC status".into())),
            }
            match grpc_answer(&bytes) {
                Some(true) => Ok(()),
                Some(false) => Err(Fault("not serving".into())),
                None => Err(Fault("an answer that cannot be read".into())),
            }
        }
        (Way::Http(_), CheckKind::Tcp) => Ok(()),
    }
}

fn request(method: Method, path: &PathAndQuery, body: Body) -> Request {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(path.clone());
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("headworks (health check)"));
    request
}

async fn send(endpoint: &Endpoint, mut request: Request) -> Result<Response, Fault> {
    endpoint.client().send(&mut request, None).await.map_err(|error| fault(&error))
}

/// The bytes and the trailers of an answer.
async fn read(response: Response) -> Result<(Vec<u8>, HeaderMap), Fault> {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| fault(&error))?;
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
        if bytes.len() > MOST_BYTES {
            // The rest says nothing about health.
            break;
        }
    }
    Ok((bytes, trailers))
}
