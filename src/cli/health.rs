//! `headworks health`: asks the admin port of a running proxy whether it lives.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::{FAILED, USAGE, is_coloured};
use crate::config::{self, ListenAddress};

const PATIENCE: Duration = Duration::from_secs(2);

/// Where to ask, and what to show.
#[derive(Clone, Debug)]
pub(super) struct Target {
    address: ListenAddress,
    token: Option<config::Token>,
}

impl Target {
    /// Reads `IP:PORT` or `unix:PATH`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let address = match text.strip_prefix("unix:") {
            Some(path) => ListenAddress::Unix(PathBuf::from(path)),
            None => text.parse::<SocketAddr>().map_err(|_| "expected IP:PORT or unix:PATH")?.into(),
        };
        Ok(Self { address, token: None })
    }

    /// What a configuration says of its own admin port; the exit code when it says nothing.
    pub(super) fn of_file(path: &Path, errors: &mut impl Write) -> Result<Self, ExitCode> {
        let config = config::load(path).map_err(|error| {
            let _ = write!(errors, "{}", error.render(is_coloured()));
            ExitCode::from(USAGE)
        })?;
        let admin = config.admin.ok_or_else(|| {
            let _ = writeln!(errors, "{}: there is no [admin] to ask", path.display());
            ExitCode::from(USAGE)
        })?;
        Ok(Self { address: admin.listen, token: admin.token })
    }
}

/// Exit code 0 when `/live` answers 200 in two seconds.
pub(super) fn run(target: &Target, errors: &mut impl Write) -> ExitCode {
    let address = &target.address;
    match ask(target) {
        Ok(head) if head.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(head) => {
            let _ = writeln!(errors, "{address} answered: {}", head.lines().next().unwrap_or_default());
            FAILED
        }
        Err(error) => {
            let _ = writeln!(errors, "{address} does not answer: {error}");
            FAILED
        }
    }
}

fn ask(target: &Target) -> io::Result<String> {
    match &target.address {
        ListenAddress::Tcp(address) => {
            let address = reachable(*address);
            let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream, &address.to_string(), target.token.as_ref())
        }
        ListenAddress::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream, "localhost", target.token.as_ref())
        }
    }
}

/// Who listens on every address is asked on this machine's own.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn exchange(mut stream: impl Read + Write, host: &str, token: Option<&config::Token>) -> io::Result<String> {
    let token = token.map(|token| format!("authorization: Bearer {}\r\n", token.text())).unwrap_or_default();
    write!(stream, "GET /live HTTP/1.1\r\nhost: {host}\r\n{token}connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
