//! What serves requests now, behind one pointer: a change of configuration is one swap, and a request keeps the
//! snapshot that it began with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::router::Router;
use crate::stack::RouteService;

/// See the module's text.
#[derive(Debug)]
pub struct Snapshot {
    /// All routes.
    pub router: Router<Arc<Leaf>>,
    /// What serves a request that no route matches.
    pub no_route: Arc<Leaf>,
    /// What serves a request that can be read in two ways.
    pub malformed: Arc<Leaf>,
    /// What serves a request for a tunnel to anywhere (CONNECT).
    pub connect: Arc<Leaf>,
}

/// The place that everything reads its snapshot from.
pub type Current = Arc<ArcSwap<Snapshot>>;

/// A route as the front door sees it.
pub struct Leaf {
    /// Its name.
    pub name: Arc<str>,
    /// How long a client of this route may take nothing.
    pub stall_timeout: Duration,
    /// Longest silence in a tunnel.
    pub idle: Option<Duration>,
    /// Its layers.
    pub service: RouteService,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("name", &self.name).finish_non_exhaustive()
    }
}
