//! What a service says of its load is a report within bounds or nothing, in whatever form, and is the same again when it
//! is told on.
#![no_main]

use std::time::Duration;

use headworks::control::published::{LoadReport, agent, fields, orca};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fn check(report: &LoadReport) {
    assert!(report.queue_delay.is_none_or(|delay| delay <= Duration::from_secs(3600)));
    assert!(report.utilization.is_none_or(|utilization| utilization.is_finite() && utilization >= 0.0));
    assert!(report.rps.is_none_or(|rps| rps.is_finite() && rps >= 0.0));
    assert!(report.credit.is_none_or(|credit| credit <= 1_000_000));
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for report in [orca::read(&text).1, orca::binary(&text)].into_iter().flatten() {
        check(&report);
        let written = orca::write(&report);
        if !written.is_empty() && report.utilization.unwrap_or(0.0).max(report.rps.unwrap_or(0.0)) < 1e12 {
            let again = orca::read(&written).1.expect("what is written can be read");
            assert_eq!(orca::write(&again), written);
        }
    }
    if let Ok(advice) = agent::read(&text) {
        check(&advice.report);
        assert!(advice.cap(40).is_none_or(|credits| credits <= 40.max(advice.report.credit.unwrap_or(0))));
    }
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    for name in [&fields::LOAD, &fields::LOAD_BINARY, &fields::CREDIT, &fields::QUEUE_DELAY] {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.clone());
        check(&fields::read(&headers).expect("something is there").report);
        fields::remove(&mut headers);
        assert!(headers.is_empty());
    }
});
