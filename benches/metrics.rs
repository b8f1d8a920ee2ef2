//! What one count costs, alone and with a second thread counting the same.

use std::time::Duration;

use headworks::metrics::Registry;

fn main() {
    divan::main();
}

#[divan::bench(threads = [1, 2])]
fn counter_inc(bencher: divan::Bencher<'_, '_>) {
    let counter = Registry::new().counter("headworks_bench_total", "Bench.", &[("route", "a")]);
    bencher.bench(|| counter.inc());
}

#[divan::bench(threads = [1, 2])]
fn gauge_inc_dec(bencher: divan::Bencher<'_, '_>) {
    let gauge = Registry::new().gauge("headworks_bench", "Bench.", &[("route", "a")]);
    bencher.bench(|| {
        gauge.inc();
        gauge.dec();
    });
}

#[divan::bench(threads = [1, 2])]
fn histogram_observe(bencher: divan::Bencher<'_, '_>) {
    let histogram = Registry::new().histogram("headworks_bench_seconds", "Bench.", &[("route", "a")]);
    bencher.bench(|| histogram.observe(divan::black_box(Duration::from_micros(4321))));
}
