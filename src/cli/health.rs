//! `headworks health`: asks the admin port of a running proxy whether it lives.

use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use super::FAILED;

const PATIENCE: Duration = Duration::from_secs(2);

/// Exit code 0 when `/live` answers 200 in two seconds.
pub(super) fn run(admin: SocketAddr, errors: &mut impl Write) -> ExitCode {
    match ask(admin) {
        Ok(head) if head.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(head) => {
            let _ = writeln!(errors, "{admin} answered: {}", head.lines().next().unwrap_or_default());
            FAILED
        }
        Err(error) => {
            let _ = writeln!(errors, "{admin} does not answer: {error}");
            FAILED
        }
    }
}

fn ask(admin: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /live HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
