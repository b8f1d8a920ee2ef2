//! Hands the listening sockets over to a new process of the program: another version, with the same arguments.
//!
//! Both hold the same sockets, so nothing is ever refused: what comes in between waits in the kernel's queue or is
//! taken by either. The new process says when it serves; until then this one goes on as before.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep, timeout_at};

use super::notify::{HEIR, Notifier, SOCKET};
use crate::entropy;

/// For the new process to serve.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has ended.
const GLANCE: Duration = Duration::from_millis(50);
/// The first descriptor that is handed over, by the protocol of systemd.
const FIRST: i32 = 3;

/// How the program was started, to start it again.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// As this process was started. A path is kept as it was written: behind a symbolic link may soon be another
    /// version.
    pub(super) fn current() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        let is_path = name.components().count() > 1;
        let path = if is_path { std::path::absolute(name)? } else { std::env::current_exe()? };
        Ok(Self { path, arguments: arguments.collect() })
    }
}

/// A socket to hand over, with its name.
pub(super) type Handed = (String, OwnedFd);

/// Starts the program and waits until it serves. Gives its process id, or says why it does not; then it has ended.
/// Dropped before, it ends the new process.
pub(super) async fn hand_over(
    program: Program,
    sockets: Vec<Handed>,
    notifier: &Notifier,
) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
    if std::process::id() == 1 {
        return Err("this is process 1: the container would end with it; start another container".into());
    }
    let waiting = Waiting::new()?;
    let mut heir = Heir(Some(start(&program, sockets, &waiting.path(), notifier)?));
    let until = Instant::now() + PATIENCE;
    let mut word = [0; 4096];
    loop {
        tokio::select! {
            heard = timeout_at(until, waiting.socket.recv(&mut word)) => match heard {
                Ok(heard) => {
                    let words = word.get(..heard?).unwrap_or_default();
                    if words.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                        return Ok(heir.release());
                    }
                }
                Err(_) => return Err(format!("it does not serve within {PATIENCE:?}").into()),
            },
            () = sleep(GLANCE) => {
                if let Some(status) = heir.ended()? {
                    return Err(format!("it has ended with {status}; what it said stands above").into());
                }
            }
        }
    }
}

fn start(program: &Program, sockets: Vec<Handed>, notify: &Path, notifier: &Notifier) -> io::Result<Child> {
    let (names, fds): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    let mut command = Command::new(&program.path);
    command
        .args(&program.arguments)
        .stdin(Stdio::null())
        .env("LISTEN_FDS", fds.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS_FIRST_FD")
        .env(SOCKET, notify)
        .env(HEIR, notifier.supervisor().unwrap_or_default());
    let mappings = (FIRST..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
    command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.path.display())))
}

/// The new process, ended when it is not released.
struct Heir(Option<Child>);

impl Heir {
    fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.0.as_mut().map_or(Ok(None), Child::try_wait)
    }

    fn release(mut self) -> u32 {
        self.0.take().map_or(0, |child| child.id())
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A socket that the new process reports to, in a folder that nobody else may enter.
struct Waiting {
    folder: PathBuf,
    socket: UnixDatagram,
}

impl Waiting {
    fn new() -> io::Result<Self> {
        let name = format!("headworks-{}-{:016x}", std::process::id(), entropy::random_u64());
        let folder = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&folder)?;
        match UnixDatagram::bind(folder.join("notify")) {
            Ok(socket) => Ok(Self { folder, socket }),
            Err(error) => {
                drop(fs::remove_dir(&folder));
                Err(error)
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("notify")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}
