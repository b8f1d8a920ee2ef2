//! Measures how late the proxy's own tasks run, and says how much to turn away for it.
//!
//! A task sleeps, then waits for its turn behind all that is ready at that moment: the time from when it wanted to wake
//! is what every read and every answer waits too.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::context::Priority;
use crate::control::overload::{Level, Overload, WHOLE};
use crate::layers::shed::Strain;
use crate::metrics::{Gauge, Histogram, Registry};
use crate::snapshot::Current;

/// How often it is measured.
const TICK: Duration = Duration::from_millis(100);

/// The delay of the proxy's own tasks.
#[derive(Clone, Debug)]
pub struct Delay {
    current: Current,
    strain: Arc<Strain>,
    seen: Histogram,
    shed: [(Priority, Gauge); 3],
}

impl Delay {
    /// What is in force says how much may stand; `strain` is told how much to turn away.
    #[must_use]
    pub fn new(current: Current, strain: Arc<Strain>, registry: &Registry) -> Self {
        let shed = |priority: Priority| {
            let help = "Requests of a priority that are turned away because the proxy is busy, of a hundred.";
            (priority, registry.gauge("headworks_shed_percent", help, &[("priority", priority.name())]))
        };
        let help = "How late the proxy's own tasks run, measured ten times a second.";
        Self {
            current,
            strain,
            seen: registry.histogram("headworks_scheduling_delay_seconds", help, &[]),
            shed: [Priority::Background, Priority::Default, Priority::Critical].map(shed),
        }
    }

    /// Measures for as long as the future is kept.
    pub async fn measure(self) {
        let mut overload = Overload::default();
        let mut before = Level::default();
        loop {
            let due = Instant::now() + TICK;
            tokio::time::sleep_until(due).await;
            tokio::task::yield_now().await;
            let now = Instant::now();
            let late = now.duration_since(due);
            self.seen.observe(late);
            let level = if let Some(bound) = self.current.load().config.server.overload.delay {
                overload.sample(now, late, bound)
            } else {
                overload = Overload::default();
                Level::default()
            };
            if level != before {
                self.set(level);
                if level.is_shedding() != before.is_shedding() {
                    tell(level, late);
                }
                before = level;
            }
        }
    }

    fn set(&self, level: Level) {
        self.strain.set(level);
        for (priority, gauge) in &self.shed {
            gauge.set(i64::from(level.share(*priority) / (WHOLE / 100)));
        }
    }
}

fn tell(level: Level, delay: Duration) {
    if level.is_shedding() {
        tracing::warn!(?delay, "the proxy itself is busy: requests of low priority are turned away");
    } else {
        tracing::info!("the proxy is not busy any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::reload::House;
    use arc_swap::ArcSwap;
    use std::path::Path;

    fn current(text: &str, registry: &Registry) -> (Current, Arc<Strain>) {
        let text = format!("[[route]]\nrespond.status = 204\n[server]\n{text}\n");
        let config = Arc::new(config::parse(&text, "x.toml", Path::new("")).unwrap());
        let house = House::new(registry.clone(), None);
        let built = house.build(&config).unwrap();
        let strain = Arc::clone(house.strain());
        (Arc::new(ArcSwap::from_pointee(house.furnish(&config, built, 1))), strain)
    }

    /// The share of background requests that is turned away when every task takes 40 ms: the first above zero, or what
    /// it is after 20 s. The clock goes on by these tasks alone, so that a busy machine adds nothing.
    fn shed(settings: &str) -> i64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let registry = Registry::new();
        let (current, strain) = current(settings, &registry);
        let delay = Delay::new(current, strain, &registry);
        let background = delay.shed[0].1.clone();
        runtime.block_on(async {
            let end = Instant::now() + Duration::from_secs(20);
            let work = async {
                while Instant::now() < end && background.get() == 0 {
                    tokio::time::advance(Duration::from_millis(40)).await;
                }
            };
            tokio::select! {
                () = delay.measure() => {}
                () = work => {}
            }
        });
        background.get()
    }

    #[test]
    fn tasks_that_hold_the_thread_are_noticed() {
        assert!(shed("overload.delay = \"5ms\"") > 0);
        assert_eq!(shed("overload.delay = \"off\""), 0);
        assert_eq!(shed(""), 0, "that is nothing by default");
    }
}
