//! What outlives a snapshot, by name: the upstreams with their credits, queues and pools, and the rate limits with
//! their buckets.
//!
//! | what | stays as long as | other settings |
//! |---|---|---|
//! | an upstream: queue, credits that are out | its name is there | are brought in force on the same object |
//! | an endpoint: its account, what its window and the choice have learned, whether it drains, what its checks have found | its address is there | another weight or zone changes nothing else |
//! | the breakers of an upstream and its endpoints | their settings are equal | all begin closed |
//! | the connections to an endpoint | whatever a connection depends on is equal, the content of TLS files included | new ones; the old serve what they have and idle no more |
//! | a route's record: its counts | its name is there | |
//! | a route's faults: what an operator has ordered | its name is there | what is configured is brought in force |
//! | what became of a route's requests | its share of successes and its route's name are equal | a new one that knows of nothing |
//! | the shared store: its connection | its settings are equal | a new one |
//! | a rate limit: its buckets | its settings, its route's name and its store are equal | a new one with full buckets |
//!
//! Nothing is kept alive here: what a new snapshot does not point to goes with the last request that uses it, and comes
//! back as it was if it is wanted again before that.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::layers::fault::Faults;
use crate::layers::rate_limit::{self, Limiter};
use crate::layers::record::RecordLayer;
use crate::layers::success_rate::Outcomes;
use crate::metrics::Registry;
use crate::store::Store;
use crate::upstream::{self, Upstream};

/// See the module's text.
#[derive(Debug)]
pub struct Live {
    registry: Registry,
    access_log: Option<AccessLog>,
    known: Mutex<Known>,
}

/// As many entries as the last configuration has names; what was dropped since is left out the next time.
#[derive(Debug, Default)]
struct Known {
    upstreams: HashMap<Arc<str>, Weak<Upstream>>,
    /// By route.
    limiters: HashMap<Arc<str>, Vec<(rate_limit::Settings, Weak<Limiter>)>>,
    records: Records,
    faults: FaultsByRoute,
    outcomes: OutcomesByRoute,
    store: Weak<Store>,
}

/// The state that a configuration needs, all of it built, and nothing changed yet.
#[derive(Debug)]
pub struct Plan {
    upstreams: Vec<Planned>,
    limiters: Limiters,
    records: Records,
    faults: FaultsByRoute,
    outcomes: OutcomesByRoute,
    store: Option<Arc<Store>>,
}

/// Something cannot be built.
#[derive(Debug)]
pub struct Unbuilt {
    /// Which part.
    pub what: String,
    /// Why not.
    pub cause: Box<dyn Error + Send + Sync>,
}

impl Unbuilt {
    fn new(what: impl Into<String>, cause: impl Error + Send + Sync + 'static) -> Self {
        Self { what: what.into(), cause: cause.into() }
    }
}

/// The record of each route, and of requests that no route takes.
pub type Records = HashMap<Arc<str>, RecordLayer>;

/// What is done wrong on each route.
pub type FaultsByRoute = HashMap<Arc<str>, Arc<Faults>>;

/// What became of the requests of each route that goes by it.
pub type OutcomesByRoute = HashMap<Arc<str>, Arc<Outcomes>>;

/// The name under which requests are recorded that no route takes.
pub const NO_ROUTE: &str = "-";

/// The rate limits of each route, in the order of the configuration.
pub type Limiters = HashMap<Arc<str>, Vec<Arc<Limiter>>>;

#[derive(Debug)]
struct Planned {
    name: Arc<str>,
    upstream: Arc<Upstream>,
    /// None when it is new.
    change: Option<upstream::Change>,
}

impl Plan {
    /// In the order of the configuration.
    #[must_use]
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.upstreams.iter().map(|planned| Arc::clone(&planned.upstream)).collect()
    }

    /// All records.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// All faults.
    #[must_use]
    pub fn faults(&self) -> &FaultsByRoute {
        &self.faults
    }

    /// All outcomes that are kept.
    #[must_use]
    pub fn outcomes(&self) -> &OutcomesByRoute {
        &self.outcomes
    }

    /// All rate limits.
    #[must_use]
    pub fn limiters(&self) -> &Limiters {
        &self.limiters
    }
}

impl Live {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(registry: Registry, access_log: Option<AccessLog>) -> Self {
        Self { registry, access_log, known: Mutex::default() }
    }

    /// Finds what is there already and builds the rest.
    pub fn plan(&self, config: &Config) -> Result<Plan, Unbuilt> {
        let known = self.known();
        let store = self.store(&known, config)?;
        let upstreams = config.upstreams.iter().map(|settings| {
            let failed = |error| Unbuilt::new(format!("upstream {}", settings.name), error);
            let name = Arc::clone(&settings.name);
            if let Some(upstream) = known.upstreams.get(&settings.name).and_then(Weak::upgrade) {
                let change = Some(upstream.prepare(settings).map_err(failed)?);
                return Ok(Planned { name, upstream, change });
            }
            let upstream = Arc::new(Upstream::new(settings, &self.registry).map_err(failed)?);
            Ok(Planned { name, upstream, change: None })
        });
        let upstreams = upstreams.collect::<Result<_, _>>()?;
        let limiter = |route: &Arc<str>, settings: &rate_limit::Settings| {
            let store = store.as_ref().filter(|_| settings.shared);
            let found = known.limiters.get(route).and_then(|known| known.iter().find(|(known, _)| known == settings));
            let found = found.and_then(|(_, limiter)| limiter.upgrade()).filter(|limiter| limiter.is_through(store));
            found.unwrap_or_else(|| {
                let limiter = Limiter::new(settings.clone(), &self.registry, route);
                Arc::new(match store {
                    None => limiter,
                    Some(store) => limiter.shared(store),
                })
            })
        };
        let limiters = config.routes.iter().filter(|route| !route.rate_limits.is_empty()).map(|route| {
            let limiters = route.rate_limits.iter().map(|settings| limiter(&route.name, settings));
            (Arc::clone(&route.name), limiters.collect())
        });
        let record = |name: Arc<str>| {
            let found = known.records.get(&name).cloned();
            let record = found.unwrap_or_else(|| RecordLayer::new(&name, &self.registry, self.access_log.clone()));
            (name, record)
        };
        let names = config.routes.iter().map(|route| Arc::clone(&route.name));
        let records = names.chain([NO_ROUTE.into()]).map(record);
        let faults = config.routes.iter().map(|route| {
            let found = known.faults.get(&route.name).cloned();
            let name = Arc::clone(&route.name);
            let fresh = || Arc::new(Faults::new(Arc::clone(&name), &self.registry));
            (Arc::clone(&name), found.unwrap_or_else(fresh))
        });
        let faults = faults.collect();
        let outcomes = config.routes.iter().filter_map(|route| {
            let least = route.success_rate?;
            let found = known.outcomes.get(&route.name).filter(|known| known.least() == least).cloned();
            Some((Arc::clone(&route.name), found.unwrap_or_else(|| Arc::new(Outcomes::new(least)))))
        });
        let outcomes = outcomes.collect();
        let (limiters, records) = (limiters.collect(), records.collect());
        Ok(Plan { upstreams, limiters, records, faults, outcomes, store })
    }

    /// Brings the settings of a plan in force and lets go of what it does not name.
    pub fn commit(&self, config: &Config, plan: Plan) {
        let mut known = self.known();
        let before = std::mem::take(&mut *known);
        for Planned { name, upstream, change } in plan.upstreams {
            known.upstreams.insert(name, Arc::downgrade(&upstream));
            match change {
                Some(change) => upstream.apply(change),
                None => upstream.start(),
            }
        }
        plan.store.iter().for_each(|store| store.start());
        known.store = plan.store.as_ref().map_or(before.store, Arc::downgrade);
        for route in &config.routes {
            if let Some(limiters) = plan.limiters.get(&route.name) {
                let limiters = route.rate_limits.iter().cloned().zip(limiters.iter().map(Arc::downgrade));
                known.limiters.insert(Arc::clone(&route.name), limiters.collect());
            }
        }
        known.records = plan.records;
        for route in &config.routes {
            if let Some(faults) = plan.faults.get(&route.name) {
                faults.configure(route.fault.clone());
            }
        }
        known.faults = plan.faults;
        known.outcomes = plan.outcomes;
        for (name, upstream) in before.upstreams {
            if let Some(gone) = upstream.upgrade().filter(|_| !known.upstreams.contains_key(&name)) {
                gone.retire();
                known.upstreams.insert(name, upstream);
            }
        }
    }

    /// What instances share; none where they share nothing. The limits that are shared keep it.
    fn store(&self, known: &Known, config: &Config) -> Result<Option<Arc<Store>>, Unbuilt> {
        let is_used = config.routes.iter().flat_map(|route| &route.rate_limits).any(|limit| limit.shared);
        let Some(settings) = config.store.as_ref().filter(|_| is_used) else { return Ok(None) };
        if let Some(store) = known.store.upgrade().filter(|store| store.settings() == settings) {
            return Ok(Some(store));
        }
        let store = Store::new(settings, &self.registry).map_err(|error| Unbuilt::new("store", error))?;
        Ok(Some(Arc::new(store)))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const BEFORE: &str = "[upstream.app]\nendpoints = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]\n\
                          [[route]]\nname = \"app\"\nupstream = \"app\"\nrate_limit = [{ name = \"a\", rate = \"5/s\" }]\n";

    fn config(text: &str) -> Config {
        crate::config::parse(text, "x.toml", Path::new("")).unwrap()
    }

    fn take(live: &Live, text: &str) -> (Vec<Arc<Upstream>>, Limiters) {
        let config = config(text);
        let plan = live.plan(&config).unwrap();
        let taken = (plan.upstreams(), plan.limiters().clone());
        live.commit(&config, plan);
        taken
    }

    #[tokio::test]
    async fn what_is_equal_is_the_very_same() {
        let live = Live::new(Registry::new(), None);
        let (upstreams, limiters) = take(&live, BEFORE);
        let endpoints = upstreams[0].endpoints();
        let (again, limits) = take(&live, BEFORE);
        assert!(Arc::ptr_eq(&upstreams[0], &again[0]) && Arc::ptr_eq(&limiters["app"][0], &limits["app"][0]));
        for (before, after) in endpoints.iter().zip(again[0].endpoints()) {
            assert!(Arc::ptr_eq(&before.endpoint, &after.endpoint));
        }
    }

    #[tokio::test]
    async fn what_differs_in_part_keeps_the_rest() {
        let live = Live::new(Registry::new(), None);
        let (upstreams, limiters) = take(&live, BEFORE);
        let before = upstreams[0].endpoints();
        let text =
            BEFORE.replace(":2", ":3").replace("5/s", "6/s").replace("[[route]]", "limit.in_flight = 7\n[[route]]");
        let (again, limits) = take(&live, &text);
        assert!(Arc::ptr_eq(&upstreams[0], &again[0]), "the queue and what is out stay");
        assert!(!Arc::ptr_eq(&limiters["app"][0], &limits["app"][0]), "another rate is another limit");
        let after = again[0].endpoints();
        assert_eq!(after.len(), 2);
        let kept =
            |known: &upstream::EndpointState| before.iter().any(|state| Arc::ptr_eq(&state.endpoint, &known.endpoint));
        assert_eq!(after.iter().filter(|state| kept(state)).count(), 1);
        let (again, _) = take(&live, &text.replace("[[route]]", "pool.max_idle = 1\n[[route]]"));
        let fresh = again[0].endpoints();
        assert!(fresh.iter().all(|new| !after.iter().any(|old| Arc::ptr_eq(&old.endpoint, &new.endpoint))));
    }

    #[tokio::test]
    async fn a_store_lasts_as_long_as_a_limit_is_shared_through_it() {
        let live = Live::new(Registry::new(), None);
        let shared = BEFORE.replace("rate = \"5/s\"", "rate = \"5/s\", shared = true");
        let store = "[store]\nurl = \"redis://127.0.0.1:1\"\n";
        let (_, first) = take(&live, &format!("{store}{shared}"));
        let (_, again) = take(&live, &format!("{store}{shared}"));
        assert!(Arc::ptr_eq(&first["app"][0], &again["app"][0]));
        let (_, other) = take(&live, &format!("{store}prefix = \"other\"\n{shared}"));
        assert!(!Arc::ptr_eq(&first["app"][0], &other["app"][0]), "another store, another limit");
        let (_, own) = take(&live, &format!("{store}{BEFORE}"));
        assert!(!own["app"][0].settings().shared && live.known().store.upgrade().is_some());
        drop((first, again, other));
        assert!(live.known().store.upgrade().is_none(), "nobody shares anything");
    }

    #[tokio::test]
    async fn what_has_gone_comes_back_as_long_as_somebody_uses_it() {
        let live = Live::new(Registry::new(), None);
        let other = "[upstream.other]\nendpoints = [\"http://127.0.0.1:1\"]\n";
        let (upstreams, _) = take(&live, BEFORE);
        take(&live, other);
        take(&live, other);
        let (again, _) = take(&live, BEFORE);
        assert!(Arc::ptr_eq(&upstreams[0], &again[0]));
        drop((upstreams, again));
        take(&live, other);
        assert_eq!(live.known().upstreams.len(), 1);
    }
}
