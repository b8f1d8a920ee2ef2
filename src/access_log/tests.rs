use super::*;
use crate::context::{Connection, RequestContext, RequestId, TraceId};
use crate::error::Reason;
use http::{Method, StatusCode, Version};
use proptest::prelude::*;
use std::sync::mpsc;
use std::time::SystemTime;

fn context() -> RequestContext {
    let connection = Arc::new(Connection::new("public".into(), None, None, false, Duration::from_secs(1)));
    let id = RequestId::new(at(1_763_683_854_123), 0);
    RequestContext::new(id, connection, Some("192.0.2.1".parse().expect("an address")))
}

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

fn line(context: &RequestContext) -> Line<'_> {
    Line {
        time: at(1_763_683_854_123),
        context,
        method: &Method::POST,
        path: "/v1/chat",
        host: "api.example.com",
        protocol: Version::HTTP_2,
        status: StatusCode::OK,
        bytes_in: 12,
        bytes_out: 3456,
        total: Duration::from_micros(12_345),
        user_agent: None,
    }
}

#[test]
fn a_plain_exchange() {
    let context = context();
    assert_eq!(
        line(&context).render(Format::Json),
        "{\"time\":\"2025-11-21T00:10:54.123Z\",\"id\":\"019aa3bf-e72b-7000-8000-000000000000\",\
         \"client\":\"192.0.2.1\",\"listener\":\"public\",\"method\":\"POST\",\"host\":\"api.example.com\",\
         \"path\":\"/v1/chat\",\"protocol\":\"HTTP/2.0\",\"status\":200,\"total_ms\":12.345,\
         \"bytes_in\":12,\"bytes_out\":3456}\n"
    );
    assert_eq!(
        line(&context).render(Format::Text),
        "2025-11-21T00:10:54.123Z 200 POST api.example.com/v1/chat total=12.345ms client=192.0.2.1 listener=public \
         protocol=HTTP/2.0 in=12 out=3456 id=019aa3bf-e72b-7000-8000-000000000000\n"
    );
}

#[test]
fn an_exchange_with_everything() {
    let context = context();
    let notes = context.notes();
    notes.trace.set(TraceId::new(0xabc).expect("not zero")).expect("unset");
    for (note, name) in [(&notes.route, "chat"), (&notes.upstream, "llm")] {
        note.set(name.into()).expect("unset");
    }
    notes.endpoint.add("10.0.0.1:8000".into());
    notes.queued.set(Duration::from_millis(7));
    notes.first_byte.set(Duration::from_micros(9_050));
    notes.set_reason(Reason::UpstreamReset);
    let line = Line { user_agent: Some("curl/8 \"x\"\n"), ..line(&context) };
    assert_eq!(
        line.render(Format::Json),
        "{\"time\":\"2025-11-21T00:10:54.123Z\",\"id\":\"019aa3bf-e72b-7000-8000-000000000000\",\
         \"trace\":\"00000000000000000000000000000abc\",\"client\":\"192.0.2.1\",\"listener\":\"public\",\
         \"method\":\"POST\",\"host\":\"api.example.com\",\"path\":\"/v1/chat\",\"protocol\":\"HTTP/2.0\",\
         \"status\":200,\"reason\":\"upstream_reset\",\"route\":\"chat\",\"upstream\":\"llm\",\
         \"endpoint\":\"10.0.0.1:8000\",\"queue_ms\":7.000,\"first_byte_ms\":9.050,\"total_ms\":12.345,\
         \"bytes_in\":12,\"bytes_out\":3456,\"user_agent\":\"curl/8 \\\"x\\\"\\u000a\"}\n"
    );
    assert_eq!(
        line.render(Format::Text),
        "2025-11-21T00:10:54.123Z 200 POST api.example.com/v1/chat queue=7.000ms first_byte=9.050ms total=12.345ms \
         reason=upstream_reset route=chat upstream=llm endpoint=10.0.0.1:8000 client=192.0.2.1 listener=public \
         protocol=HTTP/2.0 in=12 out=3456 id=019aa3bf-e72b-7000-8000-000000000000 \
         trace=00000000000000000000000000000abc agent=\"curl/8 \\\"x\\\"\\u000a\"\n"
    );
}

#[test]
fn dates_are_those_of_the_calendar() {
    let context = context();
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_399, "2000-02-28T23:59:59"),
        (951_782_400, "2000-02-29T00:00:00"),
        (951_868_800, "2000-03-01T00:00:00"),
        (1_709_164_800, "2024-02-29T00:00:00"),
        (4_107_542_400, "2100-03-01T00:00:00"),
        (253_402_300_799, "9999-12-31T23:59:59"),
    ] {
        let line = Line { time: at(seconds * 1000), ..line(&context) }.render(Format::Text);
        assert_eq!(line.split('.').next(), Some(text));
    }
}

#[test]
fn a_priority_is_told_unless_it_is_the_usual() {
    let context = context();
    let render = || [Format::Json, Format::Text].map(|format| line(&context).render(format));
    assert!(render().iter().all(|line| !line.contains("priority")));
    context.set_priority(crate::context::Priority::Background);
    let [json, text] = render();
    assert!(json.contains("\"priority\":\"background\"") && text.contains(" priority=background "), "{json}{text}");
}

proptest! {
    #[test]
    fn whatever_a_client_writes_is_one_valid_line(path: String, host: String, agent in ".{0,20}[\u{0}-\u{1f}\u{7f}-\u{9f}\"\\\\]{0,5}") {
        let context = context();
        let line = Line { path: &path, host: &host, user_agent: Some(&agent), ..line(&context) };
        let json = line.render(Format::Json);
        prop_assert_eq!(json.find('\n'), Some(json.len() - 1));
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        prop_assert_eq!(value["path"].as_str(), Some(path.as_str()));
        prop_assert_eq!(value["host"].as_str(), Some(host.as_str()));
        prop_assert_eq!(value["user_agent"].as_str(), Some(agent.as_str()));
        let text = line.render(Format::Text);
        prop_assert!(text.chars().rev().skip(1).all(|c| !c.is_control()), "{text:?}");
    }
}

/// Hands on what it is given, and takes nothing more until told to.
struct Slow {
    out: mpsc::Sender<Vec<u8>>,
    permits: mpsc::Receiver<()>,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.permits.recv().map_err(io::Error::other)?;
        let _ = self.out.send(bytes.to_vec());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn slow() -> (Slow, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
    let (out, written) = mpsc::channel();
    let (permit, permits) = mpsc::channel();
    (Slow { out, permits }, permit, written)
}

#[test]
fn lines_come_out_in_order_and_closing_waits_for_them() {
    let (slow, permit, written) = slow();
    let log = AccessLog::new(Format::Text, &Registry::new(), slow);
    let context = context();
    for n in 0..1000 {
        log.write(&Line { bytes_in: n, ..line(&context) });
    }
    for _ in 0..1000 {
        permit.send(()).expect("the writer lives");
    }
    log.close();
    let text: Vec<u8> = written.try_iter().flatten().collect();
    let text = String::from_utf8(text).expect("text");
    assert!(text.lines().enumerate().all(|(n, line)| line.contains(&format!(" in={n} "))));
    assert_eq!(text.lines().count(), 1000);
}

#[test]
fn nobody_waits_for_a_reader_that_takes_nothing() {
    let (slow, permit, written) = slow();
    let registry = Registry::new();
    let context = context();
    let size = line(&context).render(Format::Text).len();
    let log = AccessLog::with_capacity(Format::Text, &registry, slow, 10 * size);
    let dropped = registry.counter("headworks_access_log_dropped_total", "", &[]);
    for _ in 0..1000 {
        log.write(&line(&context));
    }
    // Ten lines wait, and the writer may have got hold of ten more.
    let lost = dropped.get();
    assert!((980..=990).contains(&lost), "{lost}");
    for _ in 0..2 {
        permit.send(()).expect("the writer lives");
    }
    log.close();
    let written = written.try_iter().flatten().filter(|byte| *byte == b'\n').count();
    assert_eq!(written as u64 + lost, 1000);
    log.write(&line(&context));
    assert_eq!(dropped.get(), lost + 1, "a closed log drops");
}

#[test]
fn what_cannot_be_written_is_counted() {
    let (slow, permit, _written) = slow();
    drop(permit);
    let registry = Registry::new();
    let log = AccessLog::new(Format::Json, &registry, slow);
    let context = context();
    log.write(&line(&context));
    log.write(&line(&context));
    log.close();
    assert_eq!(registry.counter("headworks_access_log_dropped_total", "", &[]).get(), 2);
}

#[test]
fn several_attempts_are_told() {
    let context = context();
    for endpoint in ["a:1", "b:2"] {
        context.notes().endpoint.add(endpoint.into());
    }
    let json = line(&context).render(Format::Json);
    assert!(json.contains(",\"endpoint\":\"b:2\",\"attempts\":2,\"tried\":[\"a:1\",\"b:2\"],"), "{json}");
    let text = line(&context).render(Format::Text);
    assert!(text.contains(" endpoint=b:2 attempts=2 tried=a:1,b:2 "), "{text}");
}
