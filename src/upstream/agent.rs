//! Asks agents for the credits of endpoints, again and again.
//!
//! An agent that fails changes nothing: its last word counts for as long as any report does, and then no more.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderValue, StatusCode, Uri};
use http_body_util::BodyExt as _;
use tokio::time::{sleep, timeout};

use super::endpoint::Endpoint;
use super::settings::{EndpointSettings, HostPolicy, Poll, Pool, Protocol, Settings};
use super::{Admission, ClientError};
use crate::body::Body;
use crate::context::Request;
use crate::control::published::MOST_BYTES;
use crate::control::published::agent::{Advice, read};
use crate::entropy;
use crate::tasks::{self, Task};

/// A question that is being asked, or could be.
#[derive(Debug)]
pub(super) struct Asker {
    poll: Poll,
    interval: Duration,
    agent: Arc<Endpoint>,
    /// None before the first question.
    task: Option<Task>,
}

/// Builds what the settings want asked, and asks nothing. What is `known` and would be built alike is left out: the
/// answer has none in its place.
pub(super) fn prepare(settings: &Settings, known: &[Asker]) -> Result<Vec<Option<Asker>>, ClientError> {
    let Some(agent) = &settings.published.agent else { return Ok(Vec::new()) };
    let ask = |poll: &Poll| {
        let fresh = Asker::new(settings, poll, agent.interval)?;
        Ok(if known.iter().any(|known| known.is_like(&fresh)) { None } else { Some(fresh) })
    };
    agent.polls.iter().map(ask).collect()
}

impl Asker {
    fn new(settings: &Settings, poll: &Poll, interval: Duration) -> Result<Self, ClientError> {
        let settings = Settings {
            protocol: Protocol::Auto,
            host: HostPolicy::Endpoint,
            pool: Pool { max_idle: 1, idle_timeout: interval * 2, ..Pool::default() },
            ..settings.clone()
        };
        let endpoint = EndpointSettings::new("agent", poll.address.clone());
        let agent = Endpoint::new(&settings, &endpoint)?;
        Ok(Self { poll: poll.clone(), interval, agent, task: None })
    }

    fn is_like(&self, other: &Self) -> bool {
        self.poll == other.poll && self.interval == other.interval && self.agent.recipe() == other.agent.recipe()
    }

    /// Begins to ask, if it has not.
    pub(super) fn start(&mut self, admission: &Admission) {
        let (admission, poll) = (admission.clone(), self.poll.clone());
        let (agent, interval) = (Arc::clone(&self.agent), self.interval);
        self.task.get_or_insert_with(|| {
            tasks::spawn(async move {
                // Endpoints and proxies that began together are not asked together.
                let mut wait = interval.mul_f64(entropy::unit() / 2.0);
                loop {
                    sleep(wait).await;
                    admission.advise(&poll.about, ask(&agent, &poll, interval).await);
                    wait = interval.mul_f64(0.9 + 0.2 * entropy::unit());
                }
            })
        });
    }
}

/// Those that go on of the known ones, and the fresh ones, in the order of the settings.
pub(super) fn merge(settings: &Settings, known: Vec<Asker>, planned: Vec<Option<Asker>>) -> Vec<Asker> {
    let polls = settings.published.agent.iter().flat_map(|agent| &agent.polls);
    let mut known: Vec<_> = known.into_iter().map(Some).collect();
    let mut stays = |poll: &Poll| known.iter_mut().find_map(|known| known.take_if(|known| known.poll == *poll));
    polls.zip(planned).filter_map(|(poll, fresh)| fresh.or_else(|| stays(poll))).collect()
}

/// Why there is no advice. For the log.
#[derive(Debug)]
pub(super) struct Failed(pub(super) String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks once. Within an interval, or a second where that is short.
async fn ask(agent: &Endpoint, poll: &Poll, interval: Duration) -> Result<Advice, Failed> {
    let limit = interval.max(Duration::from_secs(1));
    let answer = async {
        let failed = |error: &dyn fmt::Display| Failed(error.to_string());
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::from(poll.path.clone());
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/plain, application/json"));
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("headworks"));
        let response = agent.client().send(&mut request, None).await.map_err(|error| failed(&error))?;
        if response.status() != StatusCode::OK {
            return Err(failed(&response.status()));
        }
        let text = text(response.into_body()).await?;
        read(&text).map_err(|fault| failed(&fault))
    };
    timeout(limit, answer).await.unwrap_or_else(|_| Err(Failed("no answer in time".into())))
}

async fn text(mut body: Body) -> Result<String, Failed> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failed(error.to_string()))?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if bytes.len() > MOST_BYTES {
            return Err(Failed("an answer that is too long".into()));
        }
    }
    String::from_utf8(bytes).map_err(|_| Failed("an answer that is no text".into()))
}
