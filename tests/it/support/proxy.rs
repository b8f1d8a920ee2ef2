//! The program under test, as a process of its own.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::{Metrics, eventually, raise_file_limit};

const PROGRAM: &str = env!("CARGO_BIN_EXE_headworks");
const STARTS_WITHIN: Duration = Duration::from_secs(10);
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// A running proxy. Dropping it ends it, by its own process id.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    stderr: Lines,
    stdout: Lines,
    listeners: Vec<(String, String)>,
    dir: TempDir,
}

impl Proxy {
    /// Starts the proxy and waits until it listens.
    ///
    /// A configuration without `[server]` listens on a free port of the loopback, and so does the admin port of one
    /// without `[admin]`.
    pub(crate) fn from_toml(text: &str) -> Self {
        Self::with_env(text, &[])
    }

    /// The same, with variables in its environment.
    pub(crate) fn with_env(text: &str, env: &[(&str, &str)]) -> Self {
        Self::prepared(text, |command| {
            command.envs(env.iter().copied());
        })
    }

    /// The same, started as `prepare` wants it.
    pub(crate) fn prepared(text: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        raise_file_limit();
        let (text, expected) = complete(text);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("headworks.toml");
        std::fs::write(&file, &text).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("run").arg("--config").arg(&file);
        prepare(&mut command);
        Self::start(command, expected, dir, &text)
    }

    /// The same, with so few descriptors.
    pub(crate) fn with_descriptors(text: &str, most: u32) -> Self {
        let (text, expected) = complete(text);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("headworks.toml");
        std::fs::write(&file, &text).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &most.to_string(), PROGRAM, "run", "--config"]);
        command.arg(&file);
        Self::start(command, expected, dir, &text)
    }

    /// Starts the program with these arguments and waits for `expected` listeners.
    pub(crate) fn with_args(args: &[&str], expected: usize) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(args);
        Self::start(command, expected, tempfile::tempdir().unwrap(), "")
    }

    fn start(mut command: Command, expected: usize, dir: TempDir, config: &str) -> Self {
        let mut child = command
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {PROGRAM}: {error}"));
        let stderr = Lines::collect(child.stderr.take().unwrap());
        let stdout = Lines::collect(child.stdout.take().unwrap());
        let mut proxy = Self { child, stderr, stdout, listeners: Vec::new(), dir };
        let end = Instant::now() + STARTS_WITHIN;
        loop {
            proxy.listeners = proxy.stderr.all().iter().filter_map(|line| listening(line)).collect();
            if proxy.listeners.len() >= expected {
                return proxy;
            }
            let ended = proxy.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < end,
                "the proxy does not listen ({}); its log:\n{}\nits configuration:\n{config}",
                ended.map_or("still running".to_owned(), |status| status.to_string()),
                proxy.log(),
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The address of a listener.
    pub(crate) fn addr(&self, name: &str) -> SocketAddr {
        let found = self.listeners.iter().find(|(known, _)| known == name);
        let found = found.unwrap_or_else(|| panic!("no listener {name:?} among {:?}", self.listeners));
        found.1.parse().unwrap_or_else(|_| panic!("{} is a path", found.1))
    }

    /// Where its configuration file is.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("headworks.toml")
    }

    /// Writes another configuration, completed like the first, and does not tell the proxy.
    pub(crate) fn rewrite(&self, text: &str) {
        let file = self.config_file();
        let new = file.with_extension("new");
        std::fs::write(&new, complete(text).0).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// Brings another configuration in force by SIGHUP and waits until it is.
    pub(crate) async fn reload(&self, text: &str) {
        let before = self.generation();
        self.rewrite(text);
        self.signal("HUP");
        let applied = eventually(|| self.generation() > before, STARTS_WITHIN).await;
        assert!(applied, "not in force:\n{text}\n{}", self.log());
    }

    /// How many configurations have been in force.
    pub(crate) fn generation(&self) -> u64 {
        self.metric("headworks_config_generation", &[]) as u64
    }

    /// Where the listener of this name was opened last.
    pub(crate) fn opened(&self, name: &str) -> SocketAddr {
        let opened = self.stderr.all().iter().rev().filter_map(|line| listening(line)).find(|(known, _)| known == name);
        opened.unwrap_or_else(|| panic!("no listener {name:?}:\n{}", self.log())).1.parse().unwrap()
    }

    /// The first listener that is not the admin port.
    pub(crate) fn public(&self) -> SocketAddr {
        self.addr(&self.listeners.iter().find(|(name, _)| name != "admin").expect("a listener").0)
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.addr("admin")
    }

    /// `http://` and the first listener's address and this path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.public())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.heirs().last().copied().unwrap_or(self.child.id())
    }

    /// The processes that have taken over, oldest first.
    pub(crate) fn heirs(&self) -> Vec<u32> {
        let lines = self.stderr.all().into_iter().filter(|line| line.contains("handed over"));
        lines.filter_map(|line| line.split("pid=").nth(1)?.trim().parse().ok()).collect()
    }

    /// Lets another process of the program take over.
    pub(crate) async fn upgrade(&self) {
        let before = self.heirs().len();
        self.signal("USR2");
        let done = eventually(|| self.heirs().len() > before, STARTS_WITHIN).await;
        assert!(done, "nobody has taken over:\n{}", self.log());
    }

    /// Status and body of a page of the admin port.
    pub(crate) fn page(&self, path: &str) -> (u16, String) {
        self.ask_admin("GET", path, "")
    }

    /// Status and body of what the admin port answers to a method, with these lines added to the head.
    pub(crate) fn ask_admin(&self, method: &str, path: &str, fields: &str) -> (u16, String) {
        let admin = self.admin();
        let mut stream = TcpStream::connect(admin).expect("the admin port answers");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n{fields}\r\n").unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let split = text.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8_lossy(&text[..split]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let body = &text[split + 4..];
        let body = if head.contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_vec() };
        (status, String::from_utf8(body).expect("text"))
    }

    /// Everything on `/metrics`.
    pub(crate) fn metrics(&self) -> Metrics {
        let (status, text) = self.page("/metrics");
        assert_eq!(status, 200, "{text}");
        Metrics::parse(&text)
    }

    /// One number of `/metrics`, summed over the labels that are not given.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().get(name, labels)
    }

    /// The event log so far.
    pub(crate) fn log(&self) -> String {
        self.stderr.all().join("\n")
    }

    /// The lines of the access log so far.
    pub(crate) fn access_log(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// The line that a JSON access log has for this path, as soon as it is there.
    pub(crate) async fn logged(&self, path: &str) -> serde_json::Value {
        let find = || {
            let lines = self.access_log().into_iter().filter_map(|line| serde_json::from_str(&line).ok());
            lines.into_iter().find(|line: &serde_json::Value| line["path"] == path)
        };
        assert!(eventually(|| find().is_some(), STOPS_WITHIN).await, "no line for {path}");
        find().unwrap()
    }

    /// `VmRSS`, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Sends a signal by name, as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status().unwrap();
        assert!(sent.success(), "cannot send SIG{name}");
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // A drain may take its whole grace time, which is not what a finished test waits for.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        for pid in self.heirs() {
            // Not one that has got the number since.
            if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == std::path::Path::new(PROGRAM)) {
                let _ = Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).status();
            }
        }
        if thread::panicking() {
            eprintln!("--- log of the proxy ---\n{}\n--- its access log ---", self.log());
            eprintln!("{}", self.access_log().join("\n"));
        } else {
            assert!(!self.log().contains("a task failed"), "the proxy has a fault of its own:\n{}", self.log());
        }
    }
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {PROGRAM}: {error}"));
    let end = Instant::now() + STOPS_WITHIN;
    let stdout = Lines::collect(child.stdout.take().unwrap());
    let stderr = Lines::collect(child.stderr.take().unwrap());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            panic!("`headworks {}` does not end", args.join(" "));
        }
        thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.finish().into_bytes(), stderr: stderr.finish().into_bytes() }
}

/// Adds what a test need not say, and counts the listeners.
fn complete(text: &str) -> (String, usize) {
    let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut text = text.to_owned();
    let mut count = 1;
    match table.get("server").and_then(|server| server.as_table()) {
        None => {
            text.push_str("\n[server]\nlisten = [\"127.0.0.1:0\"]\n");
            count += 1;
        }
        Some(server) => {
            for key in ["listen", "listener"] {
                count += server.get(key).map_or(0, |list| list.as_array().map_or(1, Vec::len));
            }
        }
    }
    if !table.contains_key("admin") {
        text.push_str("\n[admin]\nlisten = \"127.0.0.1:0\"\n");
    }
    (text, count)
}

/// Reads `... listening listener=NAME address=IP:PORT`, or a path in place of the address.
fn listening(line: &str) -> Option<(String, String)> {
    let line = line.replace('"', "");
    let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
    line.contains(" listening ").then_some(())?;
    Some((field("listener=")?, field("address=")?))
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
    panic!("the body has no end")
}

/// The last lines of a pipe, read by a thread that ends with the pipe.
#[derive(Debug)]
struct Lines {
    kept: Arc<Mutex<VecDeque<String>>>,
    reader: thread::JoinHandle<()>,
}

impl Lines {
    const KEPT: usize = 20_000;

    fn collect(pipe: impl Read + Send + 'static) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let lines = Arc::clone(&kept);
        let reader = thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let mut lines = lines.lock().unwrap();
                if lines.len() == Self::KEPT {
                    lines.pop_front();
                }
                lines.push_back(plain(&String::from_utf8_lossy(&line)));
            }
        });
        Self { kept, reader }
    }

    fn all(&self) -> Vec<String> {
        self.kept.lock().unwrap().iter().cloned().collect()
    }

    fn finish(self) -> String {
        self.reader.join().unwrap();
        let lines = self.kept.lock().unwrap();
        lines.iter().fold(String::new(), |text, line| text + line + "\n")
    }
}

/// The line without the colours of a terminal.
fn plain(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[test]
fn listening_lines_are_read() {
    let line = "2026-01-01T00:00:00Z  INFO headworks::app: listening listener=public address=127.0.0.1:41233";
    assert_eq!(listening(line), Some(("public".into(), "127.0.0.1:41233".parse().unwrap())));
    assert_eq!(listening("INFO headworks::app: draining"), None);
    assert_eq!(plain("\u{1b}[2mx\u{1b}[0m y"), "x y");
}
