//! Hundreds of messages that are malformed, ambiguous, or look it, sent byte for byte (HTTP/1.1) and frame by frame
//! (HTTP/2). The upstream reads what it gets with a parser of its own; nothing may reach it as another message than the
//! one that was sent, or as two.
//!
//! The cases stand in `corpus/`, each file with its form on top.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::support::h2_raw::{H2Raw, data, frame, headers, kind, write_integer};
use crate::support::transcript::{Answers, Message, Transcript};
use crate::support::{Proxy, eventually};

const H1: &str = include_str!("corpus/h1.txt");
const H2: &str = include_str!("corpus/h2.txt");
const ANSWERS: &str = include_str!("corpus/answers.txt");

const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to show that nothing comes.
const A_WHILE: Duration = Duration::from_millis(20);
const AT_ONCE: usize = 16;

/// A case, with its escapes still in it.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    /// Path of its own.
    path: String,
    client: String,
    upstream: String,
    text: String,
}

fn cases(file: &str) -> Vec<Case> {
    let mut group = ["", "", ""];
    let mut cases = Vec::new();
    for line in file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(line) = line.strip_prefix("@ ") {
            let mut parts = line.splitn(3, ' ');
            group = std::array::from_fn(|_| parts.next().unwrap_or_default());
            continue;
        }
        let (name, own) = line.split_once(' ').expect("a name and a text");
        let (own, path) = (own.trim_start(), format!("/c{}", cases.len()));
        let [client, upstream, template] = group;
        let template = if template.is_empty() { "{}" } else { template };
        let text = template.replace("{}", own).replace('$', &path);
        let (client, upstream) = (client.to_owned(), upstream.replace("{}", own));
        cases.push(Case { name: name.to_owned(), path, client, upstream, text });
    }
    cases
}

/// `{300*a}` is three hundred times `a`.
fn repeat(text: &str) -> String {
    let Some((before, after)) = text.split_once('{') else { return text.to_owned() };
    let repeated = || {
        let (inside, after) = after.split_once('}')?;
        let (count, part) = inside.split_once('*')?;
        Some((part.repeat(count.parse().ok()?), after))
    };
    let (part, after) = repeated().unwrap_or_else(|| ("{".to_owned(), after));
    format!("{before}{part}{}", repeat(after))
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = repeat(text);
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        if char != '\\' {
            let mut utf8 = [0; 4];
            bytes.extend_from_slice(char.encode_utf8(&mut utf8).as_bytes());
            continue;
        }
        match rest.next().expect("an escape") {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            's' => bytes.push(b' '),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'z' => {}
            'x' => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).expect("two digits"));
            }
            other => panic!("an escape that is none: {other:?}"),
        }
    }
    bytes
}

fn proxy(upstream: &Transcript) -> Proxy {
    Proxy::from_toml(&format!(
        "log.access = \"off\"\n[server]\nlisten = [\"127.0.0.1:0\"]\nmax_header_size = \"16KiB\"\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        upstream.url()
    ))
}

/// Runs all cases of a file, several at once, and gives what went wrong.
async fn run<F>(
    cases: &[Case],
    one: impl Fn(SocketAddr, Case) -> F + Clone + Send + 'static,
    addr: SocketAddr,
) -> Vec<String>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = tokio::task::JoinSet::new();
    for case in cases.iter().cloned() {
        let (one, place) = (one.clone(), Arc::clone(&places).acquire_owned().await.unwrap());
        running.spawn(async move {
            let name = case.name.clone();
            let result = timeout(PATIENCE, one(addr, case)).await.unwrap_or_else(|_| Err("no end".to_owned()));
            drop(place);
            result.map_err(|fault| format!("{name}: {fault}"))
        });
    }
    running.join_all().await.into_iter().filter_map(Result::err).collect()
}

/// What the upstream saw beside what it should have.
async fn judge(cases: &[Case], upstream: &Transcript, faults: &mut Vec<String>) {
    let whole = |case: &Case| wanted(case).filter(|(whole, _)| *whole).count();
    let expected: usize = cases.iter().map(whole).sum();
    eventually(|| upstream.messages().iter().filter(|message| message.whole).count() >= expected, PATIENCE).await;
    // What came in pieces has ended on the client's side, and does so here.
    tokio::time::sleep(Duration::from_millis(100)).await;
    faults.extend(upstream.faults());
    let mut by_case: HashMap<&str, Vec<&Message>> = HashMap::new();
    let messages = upstream.messages();
    for message in &messages {
        let path = cases.iter().map(|case| &*case.path).find(|path| {
            let rest = message.target.strip_prefix(*path);
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
        });
        match path {
            Some(path) => by_case.entry(path).or_default().push(message),
            None => faults.push(format!("the upstream saw {} {}", message.method, message.target)),
        }
    }
    for case in cases {
        let seen = by_case.remove(&*case.path).unwrap_or_default();
        let shown: Vec<_> = seen
            .iter()
            .map(|message| {
                let path = &message.target[case.path.len()..];
                (message.whole, format!("{}:{path}:{}", message.method, String::from_utf8_lossy(&message.body)))
            })
            .collect();
        let wanted: Vec<_> = wanted(case).collect();
        let broken_off = wanted.iter().all(|(whole, _)| !whole);
        let fits = if broken_off {
            let method = |text: &str| text.split(':').next().map(str::to_owned);
            shown.len() <= wanted.len()
                && shown.iter().zip(&wanted).all(|(seen, wanted)| !seen.0 && method(&seen.1) == method(&wanted.1))
        } else {
            shown == wanted
        };
        if !fits {
            faults.push(format!("{}: the upstream saw {shown:?}, not {wanted:?}", case.name));
        }
    }
}

/// Each message that the upstream may see: whether it is whole, and `METHOD:path:body`.
fn wanted(case: &Case) -> impl Iterator<Item = (bool, String)> {
    case.upstream.split(',').filter(|wanted| *wanted != "-").map(|wanted| {
        let (whole, wanted) = (!wanted.starts_with('~'), wanted.trim_start_matches('~'));
        let mut text = String::from_utf8(unescape(wanted)).expect("text");
        if text.matches(':').count() < 2 {
            text.push(':');
        }
        (whole, text)
    })
}

fn none(faults: &[String]) {
    let list = faults.iter().fold(String::new(), |mut list, fault| {
        let _ = writeln!(list, "  {fault}");
        list
    });
    assert!(faults.is_empty(), "{} faults:\n{list}", faults.len());
}

/// Reads the answer whose head begins `bytes`; none when it is not whole.
fn answer(bytes: &[u8], has_body: bool) -> Option<(u16, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse().ok());
    let length: usize = if has_body && status >= 200 { length.unwrap_or(0) } else { 0 };
    (bytes.len() >= end + length).then_some((status, end + length))
}

async fn over_h1(addr: SocketAddr, case: Case) -> Result<(), String> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (statuses, ends) = case.client.split_at(case.client.len() - 1);
    // A refusal in the middle of what is sent may end the connection before all of it is.
    let _ = stream.write_all(&unescape(&case.text)).await;
    let mut bytes = Vec::new();
    let mut seen = Vec::new();
    let count = statuses.split(',').filter(|status| !status.is_empty()).count();
    while seen.len() < count {
        match answer(&bytes, !case.text.starts_with("HEAD")) {
            Some((100, length)) => drop(bytes.drain(..length)),
            Some((status, length)) => {
                bytes.drain(..length);
                seen.push(status.to_string());
            }
            None => match stream.read_buf(&mut bytes).await {
                Ok(1..) => {}
                end => return Err(format!("{end:?} after {seen:?} and {:?}", String::from_utf8_lossy(&bytes))),
            },
        }
    }
    if seen.join(",") != statuses {
        return Err(format!("the client got {seen:?}, not {statuses}"));
    }
    let end = if ends == "!" {
        Ok(stream.read_buf(&mut bytes).await)
    } else {
        timeout(A_WHILE, stream.read_buf(&mut bytes)).await
    };
    match (ends, end) {
        _ if !bytes.is_empty() => Err(format!("and then {:?}", String::from_utf8_lossy(&bytes))),
        ("!", Ok(Ok(0) | Err(_))) | (".", Err(_)) => Ok(()),
        (_, end) => Err(format!("the connection's end: {end:?}, not {ends}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_over_http1_is_read_in_two_ways() {
    let cases = cases(H1);
    assert!(cases.len() >= 300, "{}", cases.len());
    let upstream = Transcript::start(Answers::new()).await;
    let proxy = proxy(&upstream);
    let mut faults = run(&cases, over_h1, proxy.public()).await;
    judge(&cases, &upstream, &mut faults).await;
    none(&faults);
}

/// Bytes of frames, after the form in the file.
fn frames(text: &str, path: &str) -> Vec<u8> {
    let plain = |method| format!(":method={method} :scheme=http :authority=a :path={path}");
    let mut bytes = Vec::new();
    for part in text.split(" | ") {
        let (what, rest) = part.split_once(' ').unwrap_or((part, ""));
        let end = what.ends_with('.');
        match &what[..1] {
            "H" => {
                let mut block = Vec::new();
                let rest = rest.split(' ').map(|word| match word {
                    "%" => plain("GET"),
                    "&" => plain("POST"),
                    word => word.to_owned(),
                });
                for field in repeat(&rest.collect::<Vec<_>>().join(" ")).split(' ').filter(|field| !field.is_empty()) {
                    let at = field.find('=').expect("a field");
                    block.push(0);
                    for text in [&field[..at], &field[at + 1..]] {
                        let text = unescape(text);
                        write_integer(&mut block, 7, 0, text.len());
                        block.extend_from_slice(&text);
                    }
                }
                bytes.extend(fragments(&block, end));
            }
            "D" => bytes.extend(data(1, end, &unescape(rest))),
            _ => {
                let digits: String = rest.split(' ').collect();
                let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
                bytes.extend(pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()));
            }
        }
    }
    bytes
}

/// A field block in as many frames as it needs.
fn fragments(block: &[u8], end: bool) -> Vec<u8> {
    const MOST: usize = 16_000;
    if block.len() <= MOST {
        return headers(1, end, block);
    }
    let mut bytes = frame(kind::HEADERS, u8::from(end), 1, &block[..MOST]);
    let mut rest = block[MOST..].chunks(MOST).peekable();
    while let Some(part) = rest.next() {
        bytes.extend(frame(kind::CONTINUATION, if rest.peek().is_none() { 4 } else { 0 }, 1, part));
    }
    bytes
}

async fn over_h2(addr: SocketAddr, case: Case) -> Result<(), String> {
    let mut client = H2Raw::connect(addr).await;
    let _ = client.try_send(frames(&case.text, &case.path)).await;
    let mut said = None;
    // What breaks the stream may come behind its answer.
    while let Some(frame) = client.next().await {
        match frame.kind {
            kind::HEADERS if said.is_none() && case.client != "bad" => {
                let fields = frame.fields();
                said = fields.into_iter().find(|(name, _)| name == ":status").map(|(_, value)| value);
                if frame.ends_stream() {
                    break;
                }
            }
            kind::DATA if frame.ends_stream() && said.is_some() => break,
            kind::HEADERS => {
                let fields = frame.fields();
                let status = fields.into_iter().find(|(name, _)| name == ":status").map(|(_, value)| value);
                // The body broke the rules behind the head: the answer may have been quicker than the reset.
                if status.as_deref() == Some("400") {
                    said = Some("bad".to_owned());
                    break;
                }
                return Err(format!("the client got {status:?}"));
            }
            kind::RST_STREAM | kind::GOAWAY => {
                said.get_or_insert_with(|| "bad".to_owned());
                break;
            }
            _ => {}
        }
    }
    let said = said.unwrap_or_else(|| "bad".to_owned());
    if said == case.client { Ok(()) } else { Err(format!("the client got {said}, not {}", case.client)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_over_http2_is_read_in_two_ways() {
    let cases = cases(H2);
    assert!(cases.len() >= 100, "{}", cases.len());
    let upstream = Transcript::start(Answers::new()).await;
    let proxy = proxy(&upstream);
    let mut faults = run(&cases, over_h2, proxy.public()).await;
    judge(&cases, &upstream, &mut faults).await;
    none(&faults);
}

/// Asks once, and then again on another connection: the first answer must leave nothing behind for the second.
async fn ask(addr: SocketAddr, case: Case) -> Result<(), String> {
    let (method, wanted) = case.client.split_once(':').expect("METHOD:RESULT");
    for (path, wanted) in [(case.path.clone(), wanted), (format!("{}/next", case.path), "200:ok")] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let method = if path.ends_with("/next") { "GET" } else { method };
        let ask = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let clean = stream.read_to_end(&mut bytes).await.is_ok();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).unwrap_or("none");
        let head = head.to_ascii_lowercase();
        let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let is_chunked = head.contains("transfer-encoding: chunked");
        let whole = if method == "HEAD" {
            body.is_empty()
        } else if is_chunked {
            clean && body.ends_with("0\r\n\r\n")
        } else {
            length.is_none_or(|length: usize| length == body.len())
        };
        let got = match (status, whole) {
            ("200", false) => "cut".to_owned(),
            ("200", true) if is_chunked => format!("200:{}", body.split("\r\n").nth(1).unwrap_or_default()),
            ("200", true) => format!("200:{body}"),
            (status, _) => status.to_owned(),
        };
        if got != wanted {
            return Err(format!("{path}: the client got {got:?}, not {wanted:?}: {text:?}"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_of_an_upstream_is_taken_for_another() {
    let mut cases = cases(ANSWERS);
    assert!(cases.len() >= 60, "{}", cases.len());
    let close = |case: &Case| case.upstream == "close";
    let answers = cases.iter().map(|case| (case.path.clone(), (unescape(&case.text), close(case)))).collect();
    let upstream = Transcript::start(answers).await;
    let proxy = proxy(&upstream);
    let faults = run(&cases, ask, proxy.public()).await;
    cases.clear();
    none(&[faults, upstream.faults()].concat());
}
