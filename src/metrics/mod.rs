//! The registry: every counter, gauge and histogram of the process, and the name rules they keep.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Registry`]: hands out handles, writes all of them as Prometheus text |
//! | `number.rs` | [`Counter`] and [`Gauge`], sharded by thread |
//! | `histogram.rs` | [`Histogram`]: log-linear buckets of durations |
//! | `text.rs` | the text form 0.0.4, name rules and escaping |
//!
//! A handle is resolved once, when a route or an upstream is built; the fast path then touches atomics and nothing
//! else. The same name and labels give the same handle, so counts survive a reload. Label values come from the
//! configuration and from closed enums only: whoever registers a client's input as a label breaks the bound on
//! memory.

mod histogram;
mod number;
mod text;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use histogram::Histogram;
pub use number::{Counter, Gauge};
pub use text::{Kind, labels as write_labels, name_fault, write_head};

/// All metrics of the process; a cheap clone, passed by constructor.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Families>>);

/// Families by name, so that the text form is stable.
type Families = BTreeMap<&'static str, Family>;

#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: Kind,
    /// By the labels as they are printed.
    series: BTreeMap<String, Series>,
}

#[derive(Debug)]
enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// Labels of one series: names known to the code, values known to the configuration.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

impl Registry {
    /// A registry without metrics.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter of this name and these labels.
    #[must_use]
    pub fn counter(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Counter {
        self.series(name, help, labels, Kind::Counter, Counter::default(), Series::Counter, |series| match series {
            Series::Counter(counter) => Some(counter.clone()),
            _ => None,
        })
    }

    /// The gauge of this name and these labels.
    #[must_use]
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Gauge {
        self.series(name, help, labels, Kind::Gauge, Gauge::default(), Series::Gauge, |series| match series {
            Series::Gauge(gauge) => Some(gauge.clone()),
            _ => None,
        })
    }

    /// The histogram of this name and these labels.
    #[must_use]
    pub fn histogram(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Histogram {
        let wrap = Series::Histogram;
        self.series(name, help, labels, Kind::Histogram, Histogram::default(), wrap, |series| match series {
            Series::Histogram(histogram) => Some(histogram.clone()),
            _ => None,
        })
    }

    /// Forgets the series that only the registry still holds: those of routes and upstreams that a reload took away.
    pub fn sweep(&self) {
        let mut families = self.lock();
        for family in families.values_mut() {
            family.series.retain(|_, series| !series.is_orphan());
        }
        families.retain(|_, family| !family.series.is_empty());
    }

    /// Everything in the Prometheus text format 0.0.4.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for (name, family) in self.lock().iter() {
            write_head(&mut out, name, family.help, family.kind);
            for (labels, series) in &family.series {
                series.encode(&mut out, name, labels);
            }
        }
        out
    }

    /// Name, help and kind of every family, in the order of the text form.
    #[must_use]
    pub fn families(&self) -> Vec<(&'static str, &'static str, Kind)> {
        self.lock().iter().map(|(name, family)| (*name, family.help, family.kind)).collect()
    }

    /// Finds a series or begins it. A name used for two kinds is a mistake in the code: the second user then gets a
    /// handle that nobody prints, rather than a panic in production.
    #[expect(clippy::too_many_arguments, reason = "the three public functions are the interface")]
    fn series<T: Clone>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        kind: Kind,
        fresh: T,
        wrap: impl FnOnce(T) -> Series,
        unwrap: impl FnOnce(&Series) -> Option<T>,
    ) -> T {
        debug_assert_eq!(name_fault(name, help, kind), None, "{name}");
        let mut families = self.lock();
        let family = families.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        debug_assert_eq!(family.kind, kind, "{name} is registered as two kinds");
        let known = family.series.entry(text::labels(labels)).or_insert_with(|| wrap(fresh.clone()));
        unwrap(known).unwrap_or(fresh)
    }

    fn lock(&self) -> MutexGuard<'_, Families> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Series {
    fn is_orphan(&self) -> bool {
        match self {
            Self::Counter(counter) => counter.is_orphan(),
            Self::Gauge(gauge) => gauge.is_orphan(),
            Self::Histogram(histogram) => histogram.is_orphan(),
        }
    }

    fn encode(&self, out: &mut String, name: &str, labels: &str) {
        match self {
            Self::Counter(counter) => text::sample(out, name, "", labels, counter.get()),
            Self::Gauge(gauge) => text::sample(out, name, "", labels, gauge.get()),
            Self::Histogram(histogram) => {
                let reading = histogram.read();
                let comma = if labels.is_empty() { "" } else { "," };
                for (bound, count) in &reading.cumulative {
                    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
                }
                let (seconds, micros) = (reading.sum.as_secs(), reading.sum.subsec_micros());
                text::sample(out, name, "_sum", labels, format_args!("{seconds}.{micros:06}"));
                text::sample(out, name, "_count", labels, reading.count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_text_form_is_sorted_and_complete() {
        let registry = Registry::new();
        registry.gauge("headworks_streams", "Open streams.", &[]).set(-2);
        let requests = registry.counter("headworks_requests_total", "Requests \\ answers.\nAll.", &[("route", "b")]);
        registry.counter("headworks_requests_total", "", &[("route", "a\"\\\n")]).inc();
        requests.add(3);
        assert_eq!(
            registry.encode(),
            "# HELP headworks_requests_total Requests \\\\ answers.\\nAll.\n\
             # TYPE headworks_requests_total counter\n\
             headworks_requests_total{route=\"a\\\"\\\\\\n\"} 1\n\
             headworks_requests_total{route=\"b\"} 3\n\
             # HELP headworks_streams Open streams.\n\
             # TYPE headworks_streams gauge\n\
             headworks_streams -2\n"
        );
    }

    #[test]
    fn a_histogram_is_printed_cumulatively() {
        let registry = Registry::new();
        let histogram = registry.histogram("headworks_wait_seconds", "Wait.", &[("route", "a")]);
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(7200));
        let text = registry.encode();
        for line in [
            "headworks_wait_seconds_bucket{route=\"a\",le=\"0.0025\"} 0",
            "headworks_wait_seconds_bucket{route=\"a\",le=\"0.005\"} 1",
            "headworks_wait_seconds_bucket{route=\"a\",le=\"1000\"} 1",
            "headworks_wait_seconds_bucket{route=\"a\",le=\"+Inf\"} 2",
            "headworks_wait_seconds_sum{route=\"a\"} 7200.003000",
            "headworks_wait_seconds_count{route=\"a\"} 2",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_same_name_and_labels_are_the_same_series() {
        let registry = Registry::new();
        let labels: Labels<'_> = &[("route", "a")];
        registry.counter("headworks_requests_total", "Requests.", labels).inc();
        registry.clone().counter("headworks_requests_total", "Requests.", labels).inc();
        assert_eq!(registry.counter("headworks_requests_total", "Requests.", labels).get(), 2);
        assert_eq!(registry.families(), [("headworks_requests_total", "Requests.", Kind::Counter)]);
    }

    #[test]
    fn a_sweep_forgets_what_nobody_holds() {
        let registry = Registry::new();
        let kept = registry.counter("headworks_requests_total", "Requests.", &[("route", "kept")]);
        drop(registry.counter("headworks_requests_total", "Requests.", &[("route", "gone")]));
        drop(registry.histogram("headworks_wait_seconds", "Wait.", &[]));
        kept.inc();
        registry.sweep();
        assert_eq!(registry.families().len(), 1);
        assert!(registry.encode().ends_with("counter\nheadworks_requests_total{route=\"kept\"} 1\n"));
    }
}
