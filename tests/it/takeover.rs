//! Listening sockets outlive the process: they are handed to another version of the program, or come from systemd.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::support::{Origin, Proxy, Raw, eventually, get};

const SOON: Duration = Duration::from_secs(10);

fn forwards(origin: &Origin, server: &str) -> String {
    format!(
        "[server]\n{server}\n[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nname = \"app\"\nupstream = \"app\"\n",
        origin.url()
    )
}

/// One request on a connection of its own. Nothing about it may fail.
async fn ask(addr: SocketAddr) {
    let mut stream = TcpStream::connect(addr).await.expect("somebody always listens");
    let request = b"GET /delay/1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("the request is taken");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("no reset");
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"ok"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn three_upgrades_under_load_refuse_nobody_and_cut_no_stream() {
    let origin = Origin::h1();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let listen = format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]\ngrace = \"60s\"", path.display());
    let mut proxy = Proxy::from_toml(&forwards(&origin, &listen));
    let addr = proxy.public();
    let (over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (over, answers) = (Arc::clone(&over), Arc::clone(&answers));
            tokio::spawn(async move {
                while !over.load(SeqCst) {
                    ask(addr).await;
                    answers.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let mut streams = Vec::new();
    for upgrade in 0..3 {
        let mut stream = Raw::connect(addr).await;
        stream.get("/sse-gate").await;
        assert_eq!(stream.head().await.0, 200);
        streams.push(stream);
        let mut tunnel = Raw::tunnel(addr).await;
        proxy.upgrade().await;
        tunnel.send("ping").await;
        assert_eq!(tunnel.read_n(4).await, b"ping", "upgrade {upgrade}");
        let before = answers.load(SeqCst);
        assert!(eventually(|| answers.load(SeqCst) > before + 20, SOON).await, "the load goes on");
        assert_eq!(proxy.page("/ready").0, 200, "the new process answers operators");
    }
    over.store(true, SeqCst);
    for asker in load {
        asker.await.expect("every request was served");
    }
    origin.open_gate(3);
    for mut stream in streams {
        stream.until("data: [DONE]").await;
    }
    assert!(eventually(|| proxy.log().matches("stopped").count() == 3, SOON).await, "{}", proxy.log());
    assert_eq!(proxy.wait(SOON).expect("the first has ended").code(), Some(0));
    ask(addr).await;
    let mut unix = UnixStream::connect(&path).await.expect("the file is still there");
    unix.write_all(b"GET /delay/1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    let environment = std::fs::read(format!("/proc/{}/environ", proxy.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_PID"));
    proxy.signal("TERM");
    assert!(eventually(|| !path.exists(), SOON).await, "the last one takes its file along");
}

#[tokio::test]
async fn a_new_process_that_does_not_serve_changes_nothing() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&forwards(&origin, "listen = \"127.0.0.1:0\"\nwatch = \"off\""));
    let mut stream = Raw::connect(proxy.public()).await;
    stream.get("/sse-gate").await;
    stream.head().await;
    proxy.rewrite("[server]\nlisten = \"127.0.0.1:0\"\nwtach = \"off\"\n");
    proxy.signal("USR2");
    assert!(eventually(|| proxy.log().contains("no upgrade"), SOON).await, "{}", proxy.log());
    assert!(proxy.log().contains("did you mean `watch`?"), "what it said is there: {}", proxy.log());
    assert_eq!((get(proxy.public(), "/delay/1").await.status.as_u16(), proxy.page("/ready").0), (200, 200));
    origin.open_gate(1);
    stream.until("data: [DONE]").await;
    proxy.rewrite(&forwards(&origin, "listen = \"127.0.0.1:0\"\nwatch = \"off\""));
    proxy.upgrade().await;
    assert_eq!(get(proxy.public(), "/delay/1").await.status, 200);
}

#[tokio::test]
async fn systemd_hands_in_a_socket_and_hears_how_it_goes() {
    let origin = Origin::h1();
    let dir = tempfile::tempdir().unwrap();
    let supervisor = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    supervisor.set_read_timeout(Some(SOON)).unwrap();
    let hear = || {
        let mut word = [0; 256];
        let length = supervisor.recv(&mut word).expect("a word");
        String::from_utf8_lossy(&word[..length]).into_owned()
    };
    // Nobody else can listen there as long as this one is open.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let text = forwards(&origin, &format!("listen = \"{addr}\""));
    let mut proxy = Proxy::prepared(&text, |command| {
        let parent_fd = OwnedFd::from(socket.try_clone().unwrap());
        command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }]).unwrap();
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web");
        command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    });
    assert_eq!(hear(), "READY=1");
    assert_eq!((proxy.public(), get(addr, "/delay/1").await.status.as_u16()), (addr, 200));
    proxy.reload(&text).await;
    assert_eq!((hear(), hear()), ("RELOADING=1".into(), "READY=1".into()));
    proxy.upgrade().await;
    assert_eq!(hear(), format!("MAINPID={}", proxy.pid()));
    assert_eq!(proxy.wait(SOON).expect("nothing is left to do").code(), Some(0));
    assert_eq!(get(addr, "/delay/1").await.status, 200);
    proxy.signal("TERM");
    assert_eq!(hear(), "STOPPING=1", "the supervisor is that of the first");
}

#[tokio::test]
async fn the_file_of_a_socket_of_systemd_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o606)).unwrap();
    let text =
        format!("[server]\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n[[route]]\nrespond = {{}}\n", path.display());
    let mut proxy = Proxy::prepared(&text, |command| {
        let parent_fd = OwnedFd::from(socket.try_clone().unwrap());
        command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }]).unwrap();
        command.env("LISTEN_FDS", "1");
    });
    proxy.reload(&text).await;
    proxy.upgrade().await;
    assert_eq!(proxy.wait(SOON).expect("nothing is left to do").code(), Some(0));
    proxy.signal("TERM");
    assert!(eventually(|| proxy.log().matches("stopped").count() == 2, SOON).await, "{}", proxy.log());
    let file = std::fs::metadata(&path).expect("the supervisor still listens there, and starts the program again");
    assert_eq!(file.permissions().mode() & 0o777, 0o606);
}
