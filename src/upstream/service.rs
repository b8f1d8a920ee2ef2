//! One upstream: its endpoints, with the one queue in front of them, under the settings that are in force.

use std::collections::HashMap;
use std::hash::RandomState;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use tokio::time::Instant;

use super::admission::EndpointState;
use super::agent::{self, Asker};
use super::endpoint::{Endpoint, Recipe};
use super::health::{self, Check};
use super::{Admission, ClientError, Settings, retry};
use crate::context::{Key, Part, Request};
use crate::control::credits::Ask;
use crate::control::recent::Recent;
use crate::metrics::Registry;

/// A pool of endpoints that serve the same thing, with the one queue in front of them.
///
/// It outlives changes of its settings: credits that are out count on, who waits keeps its place, and an endpoint whose
/// connections would be made alike keeps them. A request that waits gets an endpoint of those that are there when its
/// credit comes.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    pub(super) admission: Admission,
    agents: Mutex<Vec<Asker>>,
    checks: Mutex<Vec<Check>>,
    /// What goes to the same endpoint.
    by: ArcSwapOption<Key>,
    /// Which requests count together in the queue, where that matters.
    keys: ArcSwapOption<Keys>,
    /// No client knows it, and so none can choose a hash.
    seed: RandomState,
    pub(super) retries: retry::Metrics,
    /// How long answers took to begin; measured where somebody wants to know.
    latencies: Mutex<Recent>,
}

/// Keys of requests, by their hashes.
#[derive(Debug)]
struct Keys {
    by: Key,
    weights: HashMap<u64, NonZeroU32>,
}

impl Keys {
    fn new(settings: &Settings, seed: &RandomState) -> Option<Self> {
        let by = settings.queue.by.clone()?;
        let field = by.parts().iter().find_map(|part| match part {
            Part::Header(name) => Some(name),
            _ => None,
        });
        let hash = |(value, weight): &(Arc<str>, NonZeroU32)| {
            let mut request = Request::default();
            request.headers_mut().insert(field?, HeaderValue::try_from(&**value).ok()?);
            Some((by.hash(&request, seed), *weight))
        };
        let weights = settings.queue.weights.iter().filter_map(hash).collect();
        Some(Self { by, weights })
    }
}

/// Other settings of an upstream, with everything built that could fail.
#[derive(Debug)]
pub struct Change {
    settings: Settings,
    endpoints: Vec<Arc<Endpoint>>,
    agents: Vec<Option<Asker>>,
    checks: Vec<Option<Check>>,
}

impl Upstream {
    /// Fails when a certificate, a key or an authority cannot be read. Nothing runs by itself before
    /// [`Upstream::start`].
    pub fn new(settings: &Settings, registry: &Registry) -> Result<Self, ClientError> {
        let endpoints = settings.endpoints.iter().map(|endpoint| Endpoint::new(settings, endpoint));
        let admission = Admission::new(settings, endpoints.collect::<Result<_, _>>()?, registry);
        let agents = agent::prepare(settings, &[])?.into_iter().flatten().collect();
        let checks = health::prepare(settings, &[])?.into_iter().flatten().collect();
        let (agents, checks) = (Mutex::new(agents), Mutex::new(checks));
        let by = ArcSwapOption::from_pointee(settings.balance.by.clone());
        let seed = RandomState::new();
        let keys = ArcSwapOption::new(Keys::new(settings, &seed).map(Arc::new));
        let retries = retry::Metrics::new(registry, &settings.name);
        let latencies = Mutex::new(Recent::new(Instant::now()));
        let name = Arc::clone(&settings.name);
        Ok(Self { name, admission, agents, checks, by, keys, seed, retries, latencies })
    }

    /// Begins to ask the agents, if there are any, and to check the endpoints, if that is wanted.
    pub fn start(&self) {
        self.agents().iter_mut().for_each(|agent| agent.start(&self.admission));
        self.checks().iter_mut().for_each(|check| check.start(&self.admission));
    }

    fn agents(&self) -> MutexGuard<'_, Vec<Asker>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checks(&self) -> MutexGuard<'_, Vec<Check>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Builds what other settings need, and changes nothing.
    pub fn prepare(&self, settings: &Settings) -> Result<Change, ClientError> {
        let known = self.admission.endpoints();
        let endpoints = settings.endpoints.iter().map(|wanted| {
            let recipe = Recipe::new(settings, wanted);
            let same = |state: &&EndpointState| {
                state.endpoint.settings().is_same(wanted) && *state.endpoint.recipe() == recipe
            };
            match known.iter().find(same) {
                Some(state) => Ok(Arc::clone(&state.endpoint)),
                None => Endpoint::new(settings, wanted),
            }
        });
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        let agents = agent::prepare(settings, &self.agents())?;
        let checks = health::prepare(settings, &self.checks())?;
        Ok(Change { endpoints, agents, checks, settings: settings.clone() })
    }

    /// Brings other settings in force.
    pub fn apply(&self, change: Change) {
        let Change { settings, endpoints, agents, checks } = change;
        self.by.store(settings.balance.by.clone().map(Arc::new));
        self.keys.store(Keys::new(&settings, &self.seed).map(Arc::new));
        self.admission.apply(&settings, endpoints);
        let mut running = self.agents();
        *running = agent::merge(&settings, std::mem::take(&mut *running), agents);
        drop(running);
        let mut running = self.checks();
        *running = health::merge(&settings, std::mem::take(&mut *running), checks);
        drop(running);
        self.start();
    }

    /// No route leads here any more: connections are closed as soon as they idle. What is under way goes on.
    pub fn retire(&self) {
        for EndpointState { endpoint, .. } in self.admission.endpoints() {
            endpoint.client().set_closing(true);
        }
        self.agents().clear();
        self.checks().clear();
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// All endpoints, in the order of the configuration.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointState> {
        self.admission.endpoints()
    }

    /// What is equal for requests that should go to the same endpoint.
    pub(super) fn affinity(&self, request: &Request) -> Option<u64> {
        self.by.load().as_ref()?.steady(request)
    }

    /// Which requests count together in the queue, and how much they weigh.
    pub(super) fn tell_apart(&self, request: &Request, ask: &mut Ask) {
        if let Some(keys) = self.keys.load().as_deref() {
            ask.tenant = keys.by.hash(request, &self.seed);
            ask.weight = keys.weights.get(&ask.tenant).copied().unwrap_or(NonZeroU32::MIN);
        }
    }

    /// How many requests wait for a credit.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.admission.waiting()
    }

    /// How long answers took to begin.
    pub(super) fn latencies(&self) -> MutexGuard<'_, Recent> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the drain of an endpoint, or ends it: a draining one gets no more requests, those it has go on, and its
    /// idle connections are closed. False when it is not among the endpoints.
    pub fn set_draining(&self, endpoint: &Arc<Endpoint>, is_draining: bool) -> bool {
        self.admission.set_draining(endpoint, is_draining)
    }
}
