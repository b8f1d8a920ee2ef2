//! The load reports of ORCA (gRPC's proposal A51, `xds.data.orca.v3.OrcaLoadReport`), in the forms that Envoy reads:
//! `TEXT key=value, ...`, `JSON {...}`, `BIN <base64>`. The pairs have `:` for `=` where a service follows an older
//! text, which had no prefix either.
//!
//! A report with a part that it may not have (a number that is none, a name twice, in TEXT a name that nobody knows) is
//! no report: half of one could say the opposite.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::wire::{self, Value};
use super::{Fault, Form, LoadReport, MOST_BYTES, MOST_PARTS, credits, millis, not_negative, number};

/// The named metric in which a service tells how long requests wait inside, in milliseconds.
pub const QUEUE_DELAY: &str = "queue_delay_ms";
/// The named metric for what [`super::fields::CREDIT`] says, for services that have only ORCA to say it with.
pub const CREDIT: &str = "headworks_credit";

/// Reads the value of `endpoint-load-metrics`.
pub fn read(text: &str) -> (Form, Result<LoadReport, Fault>) {
    if text.len() > MOST_BYTES {
        return (Form::Text, Err(Fault("a report that is too long")));
    }
    match text.split_once(' ') {
        Some(("JSON", rest)) => (Form::Json, json(rest)),
        Some(("BIN", rest)) => (Form::Binary, binary(rest.trim())),
        Some(("TEXT", rest)) => (Form::Text, pairs(rest)),
        _ => (Form::Text, pairs(text)),
    }
}

/// Reads a whole report as base64 of protobuf, the value of `endpoint-load-metrics-bin`.
pub fn binary(text: &str) -> Result<LoadReport, Fault> {
    if text.len() > MOST_BYTES {
        return Err(Fault("a report that is too long"));
    }
    protobuf(&wire::base64(text)?)
}

/// A report under way.
#[derive(Debug, Default)]
struct Draft {
    report: LoadReport,
    application: f64,
    cpu: f64,
    has_utilization: bool,
}

impl Draft {
    /// A metric by its name in the proto file; false when there is none of this name.
    fn set(&mut self, name: &str, value: f64) -> Result<bool, Fault> {
        match name {
            "application_utilization" => (self.application, self.has_utilization) = (not_negative(value)?, true),
            "cpu_utilization" => (self.cpu, self.has_utilization) = (not_negative(value)?, true),
            "rps_fractional" => self.report.rps = Some(not_negative(value)?),
            "rps" => self.report.rps = self.report.rps.or(Some(not_negative(value)?)),
            "mem_utilization" | "eps" => drop(not_negative(value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// An entry of `named_metrics`.
    fn set_named(&mut self, name: &str, value: f64) -> Result<(), Fault> {
        match name {
            "" => return Err(Fault("a metric without a name")),
            QUEUE_DELAY => self.report.queue_delay = Some(millis(value)?),
            CREDIT => self.report.credit = Some(credits(value)?),
            _ => {}
        }
        Ok(())
    }

    /// An application that says nothing leaves 0, as everywhere in protobuf; then the processor's word counts.
    fn done(mut self) -> LoadReport {
        if self.has_utilization {
            self.report.utilization = Some(if self.application > 0.0 { self.application } else { self.cpu });
        }
        self.report
    }
}

fn pairs(text: &str) -> Result<LoadReport, Fault> {
    let mut draft = Draft::default();
    let mut names = [""; MOST_PARTS];
    for (at, pair) in text.split(',').enumerate() {
        let end = pair.find(['=', ':']).ok_or(Fault("a pair without a value"))?;
        let (name, value) = pair.split_at(end);
        let (name, value) = (name.trim(), number(value.get(1..).unwrap_or_default().trim())?);
        let (known, rest) = names.split_at_mut_checked(at).ok_or(Fault("too many parts"))?;
        if known.contains(&name) {
            return Err(Fault("a name that comes twice"));
        }
        *rest.first_mut().ok_or(Fault("too many parts"))? = name;
        match name.split_once('.') {
            Some(("named_metrics", name)) => draft.set_named(name, value)?,
            Some(("utilization" | "request_cost", name)) if !name.is_empty() => {}
            _ if draft.set(name, value)? => {}
            _ => return Err(Fault("a name that is no metric")),
        }
    }
    Ok(draft.done())
}

fn json(text: &str) -> Result<LoadReport, Fault> {
    let json: Json = serde_json::from_str(text).map_err(|_| Fault("a text that is no JSON"))?;
    object(&json)
}

/// The JSON form of protobuf: names in either case, numbers also as texts. What is unknown is passed over.
pub(super) fn object(json: &Json) -> Result<LoadReport, Fault> {
    let object = json.as_object().ok_or(Fault("JSON that is no object"))?;
    let mut draft = Draft::default();
    if object.len() > MOST_PARTS {
        return Err(Fault("too many parts"));
    }
    for (name, value) in object {
        let name = match name.as_str() {
            "applicationUtilization" => "application_utilization",
            "cpuUtilization" => "cpu_utilization",
            "memUtilization" => "mem_utilization",
            "rpsFractional" => "rps_fractional",
            "named_metrics" | "namedMetrics" => {
                let named = value.as_object().ok_or(Fault("named metrics that are no object"))?;
                if named.len() > MOST_PARTS {
                    return Err(Fault("too many parts"));
                }
                for (name, value) in named {
                    draft.set_named(name, json_number(value)?)?;
                }
                continue;
            }
            name => name,
        };
        if matches!(
            name,
            "application_utilization" | "cpu_utilization" | "mem_utilization" | "rps_fractional" | "rps" | "eps"
        ) {
            draft.set(name, json_number(value)?)?;
        }
    }
    Ok(draft.done())
}

pub(super) fn json_number(json: &Json) -> Result<f64, Fault> {
    match json {
        Json::Number(number) => number.as_f64().filter(|number| number.is_finite()),
        Json::String(text) => return number(text),
        _ => None,
    }
    .ok_or(Fault("a value that is no finite number"))
}

fn protobuf(mut rest: &[u8]) -> Result<LoadReport, Fault> {
    let mut draft = Draft::default();
    let mut parts = 0;
    while !rest.is_empty() {
        let (number, value, next) = wire::field(rest)?;
        rest = next;
        parts += 1;
        if parts > MOST_PARTS {
            return Err(Fault("too many parts"));
        }
        let name = match number {
            1 => "cpu_utilization",
            2 => "mem_utilization",
            3 => "rps",
            6 => "rps_fractional",
            7 => "eps",
            8 => {
                let Value::Bytes(entry) = value else { return Err(Fault("a field of another type")) };
                let (name, value) = entry_of(entry)?;
                draft.set_named(name, value)?;
                continue;
            }
            9 => "application_utilization",
            _ => continue,
        };
        let value = match value {
            Value::Double(value) if value.is_finite() && number != 3 => value,
            Value::Varint(value) if number == 3 => float(value),
            Value::Double(_) => return Err(Fault("a value that is no finite number")),
            _ => return Err(Fault("a field of another type")),
        };
        draft.set(name, value)?;
    }
    Ok(draft.done())
}

/// An entry of a map is a message of its key and its value.
fn entry_of(mut rest: &[u8]) -> Result<(&str, f64), Fault> {
    let (mut name, mut number) = ("", 0.0);
    while !rest.is_empty() {
        let (at, value, next) = wire::field(rest)?;
        rest = next;
        match (at, value) {
            (1, Value::Bytes(bytes)) => {
                name = std::str::from_utf8(bytes).map_err(|_| Fault("a name that is no text"))?;
            }
            (2, Value::Double(value)) if value.is_finite() => number = value,
            (2, _) => return Err(Fault("a value that is no finite number")),
            _ => {}
        }
    }
    Ok((name, number))
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
fn float(value: u64) -> f64 {
    value as f64
}

/// The TEXT form of a report, which every reader of ORCA understands. What is absent is left out.
#[must_use]
pub fn write(report: &LoadReport) -> String {
    let mut text = String::with_capacity(96);
    let mut pair = |name: &str, value: f64| {
        text.push_str(if text.is_empty() { "TEXT " } else { ", " });
        let _ = write!(text, "{name}={}", (value * 1e3).round() / 1e3);
    };
    if let Some(utilization) = report.utilization {
        pair("application_utilization", utilization);
    }
    if let Some(rps) = report.rps {
        pair("rps_fractional", rps);
    }
    if let Some(delay) = report.queue_delay {
        pair("named_metrics.queue_delay_ms", delay.as_secs_f64() * 1e3);
    }
    text
}

/// The same in protobuf, as `endpoint-load-metrics-bin` has it.
#[must_use]
pub fn write_binary(report: &LoadReport) -> String {
    let mut message = Vec::with_capacity(64);
    if let Some(rps) = report.rps {
        wire::put_double(&mut message, 6, rps);
    }
    let delay = report.queue_delay.map(|delay| (QUEUE_DELAY, delay.as_secs_f64() * 1e3));
    for (name, value) in delay.into_iter().chain(report.credit.map(|credit| (CREDIT, float(credit as u64)))) {
        let mut entry = Vec::with_capacity(32);
        wire::put_bytes(&mut entry, 1, name.as_bytes());
        wire::put_double(&mut entry, 2, value);
        wire::put_bytes(&mut message, 8, &entry);
    }
    if let Some(utilization) = report.utilization {
        wire::put_double(&mut message, 9, utilization);
    }
    wire::to_base64(&message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn report(text: &str) -> Result<LoadReport, Fault> {
        read(text).1
    }

    fn delay(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn pairs_in_both_forms() {
        let known = LoadReport { queue_delay: Some(delay(12)), utilization: Some(0.75), rps: Some(3.5), credit: None };
        for text in [
            "TEXT application_utilization=0.75, rps_fractional=3.5, named_metrics.queue_delay_ms=12",
            "TEXT application_utilization=0.75,cpu_utilization=0.2,rps_fractional=3.5,named_metrics.queue_delay_ms=12.0",
            "application_utilization:0.75,rps_fractional:3.5,named_metrics.queue_delay_ms:1.2e1,eps:0",
            "TEXT cpu_utilization:0.75, rps_fractional:3.5, named_metrics.queue_delay_ms:12, utilization.gpu:0.5",
            "application_utilization=0, cpu_utilization=0.75, rps_fractional=3.5, named_metrics.queue_delay_ms=12",
        ] {
            assert_eq!(read(text), (Form::Text, Ok(known)), "{text}");
        }
        assert_eq!(report("TEXT named_metrics.kv_cache_usage_perc=0.4"), Ok(LoadReport::default()));
        assert_eq!(report("named_metrics.headworks_credit=30").map(|report| report.credit), Ok(Some(30)));
    }

    #[test]
    fn what_is_wrong_in_part_is_wrong() {
        for text in [
            "",
            "TEXT",
            "TEXT ",
            "TEXT cpu_utilization",
            "TEXT cpu_utilization=",
            "TEXT cpu_utilization=NaN",
            "TEXT cpu_utilization=inf",
            "TEXT cpu_utilization=1e999",
            "TEXT cpu_utilization=-1",
            "TEXT cpu_utilization=0.5,",
            "TEXT cpu_utilization=0.5,cpu_utilization=0.5",
            "TEXT cpu_utilization=0.5, queue_delay=3",
            "TEXT named_metrics.=3",
            "TEXT utilization.=3",
            "TEXT named_metrics.queue_delay_ms=-3",
            "JSON",
            "JSON 3",
            "JSON {\"cpu_utilization\": \"NaN\"}",
            "JSON {\"cpu_utilization\": true}",
            "JSON {\"cpu_utilization\": 0.5",
            "JSON {\"named_metrics\": 3}",
            "BIN !",
            "BIN CQ==",
            "text cpu_utilization=0.5",
        ] {
            assert!(report(text).is_err(), "{text}");
        }
        let many: Vec<_> = (0..=MOST_PARTS).map(|n| format!("named_metrics.m{n}=1")).collect();
        assert_eq!(report(&many.join(",")), Err(Fault("too many parts")));
        assert!(report(&many[..MOST_PARTS].join(",")).is_ok());
        assert!(report(&format!("TEXT named_metrics.{}=1", "x".repeat(MOST_BYTES))).is_err());
    }

    #[test]
    fn json_in_either_case() {
        let known =
            LoadReport { queue_delay: Some(delay(250)), utilization: Some(1.5), rps: Some(9.0), credit: Some(12) };
        for text in [
            r#"JSON {"application_utilization": 1.5, "rps_fractional": 9, "named_metrics": {"queue_delay_ms": 250, "headworks_credit": 12}}"#,
            r#"JSON {"applicationUtilization": "1.5", "rpsFractional": 9.0, "requestCost": {"x": 1}, "new": [],
               "namedMetrics": {"queue_delay_ms": "250", "headworks_credit": 12.9, "x": -1}}"#,
        ] {
            assert_eq!(read(text), (Form::Json, Ok(known)), "{text}");
        }
    }

    #[test]
    fn protobuf_as_grpc_sends_it() {
        // cpu_utilization 0.5, rps 7, utilization {"a": 0}, rps_fractional 2, named_metrics {"queue_delay_ms": 8}.
        let mut bytes = vec![0x09];
        bytes.extend(0.5_f64.to_le_bytes());
        bytes.extend([0x18, 7, 0x2a, 12, 0x0a, 1, b'a', 0x11, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.push(0x31);
        bytes.extend(2.0_f64.to_le_bytes());
        bytes.extend([0x42, 25, 0x0a, 14]);
        bytes.extend(QUEUE_DELAY.as_bytes());
        bytes.push(0x11);
        bytes.extend(8.0_f64.to_le_bytes());
        let known = LoadReport { queue_delay: Some(delay(8)), utilization: Some(0.5), rps: Some(2.0), credit: None };
        assert_eq!(protobuf(&bytes), Ok(known));
        for end in 1..bytes.len() {
            // A message that ends between two fields is whole; anywhere else it is broken.
            let whole = [9, 11, 25, 34].contains(&end);
            assert_eq!(protobuf(&bytes[..end]).is_ok(), whole, "{end}");
        }
        assert!(protobuf(&[0x08, 1]).is_err(), "a number of another type");
        assert_eq!(
            read("BIN SQAAAAAAAPA/"),
            (Form::Binary, Ok(LoadReport { utilization: Some(1.0), ..LoadReport::default() }))
        );
        assert!(binary("SQAAAAAAAPh/").is_err(), "no number at all");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(utilization in 0.0..9.0_f64, rps in 0.0..1e6_f64, millis in 0_u64..100_000) {
            let round = |value: f64| (value * 1e3).round() / 1e3;
            let written = LoadReport {
                credit: None,
                queue_delay: Some(delay(millis)),
                utilization: Some(round(utilization)),
                rps: Some(round(rps)),
            };
            prop_assert_eq!(read(&write(&written)), (Form::Text, Ok(written)));
            let credit = Some(usize::try_from(millis).expect("it fits"));
            let written = LoadReport { credit, ..written };
            prop_assert_eq!(binary(&write_binary(&written)), Ok(written));
        }

        #[test]
        fn what_was_read_is_written_alike(cpu in -1.0..1e9_f64, rps in prop_oneof![Just(-0.0), 0.0..1e12_f64], delay in 0.0..1e8_f64) {
            let text = format!("cpu_utilization={cpu},rps_fractional={rps},named_metrics.queue_delay_ms={delay}");
            if let Ok(report) = report(&text) {
                prop_assert_eq!(read(&write(&report)).1.map(|again| write(&again)), Ok(write(&report)));
            }
        }

        #[test]
        fn whatever_comes_is_finite_or_a_fault(text in "\\PC{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            for report in [report(&text), report(&format!("TEXT {text}")), report(&format!("JSON {text}")), binary(&text),
                protobuf(&bytes)].into_iter().flatten()
            {
                prop_assert!(report.utilization.is_none_or(|value| value.is_finite() && value >= 0.0));
                prop_assert!(report.queue_delay.is_none_or(|delay| delay <= super::super::LONGEST_DELAY));
            }
        }
    }
}
