//! Reports in a head or in trailers. There they are for the next hop, so they are taken out on the way to the client.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Fault, Form, LoadReport, credits, millis, number, orca};

/// An ORCA report in any of its forms.
pub static LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// An ORCA report as gRPC sends it.
pub static LOAD_BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
/// How many requests a service wants in flight.
pub static CREDIT: HeaderName = HeaderName::from_static("x-headworks-credit");
/// How long requests wait inside of it, in milliseconds.
pub static QUEUE_DELAY: HeaderName = HeaderName::from_static("x-headworks-queue-delay-ms");

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Found {
    /// Everything that could be read, put together; where two forms say the same thing, the fields of headworks win.
    pub report: LoadReport,
    /// The ORCA report's form, and its fault if it has one.
    pub orca: Option<(Form, Option<Fault>)>,
    /// The same for the fields of headworks.
    pub plain: Option<(Form, Option<Fault>)>,
}

/// Whether any of these fields is there: a look at the names, and no more.
#[must_use]
pub fn is_there(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        match name.len() {
            18 => name == CREDIT.as_str(),
            21 => name == LOAD.as_str(),
            25 => name == LOAD_BINARY.as_str(),
            26 => name == QUEUE_DELAY.as_str(),
            _ => false,
        }
    })
}

/// Reads what is there; none when nothing is.
#[must_use]
pub fn read(headers: &HeaderMap) -> Option<Found> {
    if !is_there(headers) {
        return None;
    }
    let mut found = Found::default();
    let (text, binary) = (only(headers, &LOAD), only(headers, &LOAD_BINARY));
    let orca = match (text, binary) {
        (Ok(None), Ok(None)) => None,
        (Ok(Some(text)), Ok(None)) => Some(orca::read(text)),
        (Ok(None), Ok(Some(text))) => Some((Form::Binary, orca::binary(text))),
        (Ok(Some(_)), Ok(Some(_))) => Some((Form::Text, Err(Fault("two reports")))),
        (Err(fault), _) | (_, Err(fault)) => Some((Form::Text, Err(fault))),
    };
    let plain = plain(headers);
    for (place, read) in [(&mut found.plain, plain), (&mut found.orca, orca)] {
        let Some((form, read)) = read else { continue };
        *place = Some((form, read.err()));
        found.report = found.report.or(read.unwrap_or_default());
    }
    Some(found)
}

/// Takes these fields out.
pub fn remove(headers: &mut HeaderMap) {
    for name in [&LOAD, &LOAD_BINARY, &CREDIT, &QUEUE_DELAY] {
        if let Entry::Occupied(there) = headers.entry(name) {
            there.remove_entry_mult();
        }
    }
}

fn plain(headers: &HeaderMap) -> Option<(Form, Result<LoadReport, Fault>)> {
    let read = || {
        let credit = only(headers, &CREDIT)?.map(|text| credits(whole(text)?)).transpose()?;
        let queue_delay = only(headers, &QUEUE_DELAY)?.map(|text| millis(number(text)?)).transpose()?;
        Ok(LoadReport { credit, queue_delay, ..LoadReport::default() })
    };
    match read() {
        Ok(report) if report.is_empty() => None,
        read => Some((Form::Plain, read)),
    }
}

fn whole(text: &str) -> Result<f64, Fault> {
    let is_whole = !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_whole { number(text) } else { Err(Fault("a credit that is no whole number")) }
}

/// The value of a field that comes once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            value.to_str().map(|text| Some(text.trim())).map_err(|_| Fault("a report that is no text"))
        }
        (Some(_), Some(_)) => Err(Fault("two reports")),
    }
}

/// The fields that say what a report says.
#[must_use]
pub fn write(report: &LoadReport) -> [Option<(HeaderName, HeaderValue)>; 2] {
    let value = |text: String| HeaderValue::try_from(text).ok();
    let text = orca::write(report);
    let load = if text.is_empty() { None } else { value(text).map(|value| (LOAD.clone(), value)) };
    [load, report.credit.map(|credit| (CREDIT.clone(), HeaderValue::from(credit)))]
}

/// The one field that says it in the trailers of gRPC.
#[must_use]
pub fn write_trailer(report: &LoadReport) -> Option<(HeaderName, HeaderValue)> {
    HeaderValue::try_from(orca::write_binary(report)).ok().map(|value| (LOAD_BINARY.clone(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn headers(fields: &[(&HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-headworks-reason-", HeaderValue::from_static("same length as another"));
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        headers
    }

    fn form(found: Option<(Form, Option<Fault>)>) -> Option<(Form, bool)> {
        found.map(|(form, fault)| (form, fault.is_none()))
    }

    #[test]
    fn each_field_is_found_read_and_taken_out() {
        assert!(read(&headers(&[])).is_none());
        for (fields, orca, plain) in [
            (&[(&LOAD, "TEXT cpu_utilization=0.5")][..], Some((Form::Text, true)), None),
            (&[(&LOAD, "JSON {}")], Some((Form::Json, true)), None),
            (&[(&LOAD, "BIN ")], Some((Form::Text, false)), None),
            (&[(&LOAD_BINARY, "SQAAAAAAAPA/")], Some((Form::Binary, true)), None),
            (&[(&CREDIT, "30")], None, Some((Form::Plain, true))),
            (&[(&QUEUE_DELAY, "1.5")], None, Some((Form::Plain, true))),
            (&[(&CREDIT, "30"), (&LOAD, "nothing")], Some((Form::Text, false)), Some((Form::Plain, true))),
            (&[(&CREDIT, "30"), (&CREDIT, "30")], None, Some((Form::Plain, false))),
            (&[(&CREDIT, "-3")], None, Some((Form::Plain, false))),
            (&[(&CREDIT, "")], None, Some((Form::Plain, false))),
            (&[(&LOAD, "TEXT eps=0"), (&LOAD_BINARY, "")], Some((Form::Text, false)), None),
            (&[(&LOAD, "eps=0"), (&LOAD, "eps=0")], Some((Form::Text, false)), None),
            (&[(&LOAD, "eps=\u{e4}")], Some((Form::Text, false)), None),
        ] {
            let mut headers = headers(fields);
            let found = read(&headers).expect("something is there");
            assert_eq!((form(found.orca), form(found.plain)), (orca, plain), "{fields:?}");
            remove(&mut headers);
            assert!(!is_there(&headers) && headers.len() == 1, "{fields:?}");
        }
    }

    #[test]
    fn the_plain_fields_win_and_the_rest_is_put_together() {
        let text = "TEXT application_utilization=0.5,named_metrics.queue_delay_ms=9,named_metrics.headworks_credit=1";
        let found = read(&headers(&[(&LOAD, text), (&CREDIT, "30")])).expect("both");
        let delay = Duration::from_millis(9);
        let known = LoadReport { credit: Some(30), queue_delay: Some(delay), utilization: Some(0.5), rps: None };
        assert_eq!(found.report, known);
    }

    #[test]
    fn what_is_written_is_read() {
        let report = LoadReport { credit: Some(12), queue_delay: None, utilization: Some(1.25), rps: Some(80.0) };
        let mut headers = HeaderMap::new();
        headers.extend(write(&report).into_iter().flatten().map(|(name, value)| (Some(name), value)));
        assert_eq!(read(&headers).map(|found| found.report), Some(report));
        assert_eq!(headers[&LOAD], "TEXT application_utilization=1.25, rps_fractional=80");
        assert!(write(&LoadReport::default()).into_iter().flatten().next().is_none());
    }
}
