//! gRPC of all four kinds, between a client and a server that know nothing of the proxy.

use std::io::BufReader;
use std::process::{Child, ChildStdout, Stdio};

use crate::support::{Proxy, python};

/// A grpcio server in a process of its own, which ends with this value.
struct Server {
    process: Child,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let mut process =
            python("grpc_server.py").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python starts");
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let port = line(&mut output).parse().expect("a port");
        Self { process, output, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn line(output: &mut impl std::io::BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn client(proxy: &Proxy, args: &[&str]) {
    let output = python("grpc_client.py").arg(proxy.public().to_string()).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.trim(), "ok");
}

#[test]
fn all_four_kinds_pass_with_status_and_metadata() {
    let mut server = Server::start();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.grpc]\nendpoints = [\"h2c://127.0.0.1:{}\"]\n[[route]]\nupstream = \"grpc\"\n",
        server.port
    ));
    client(&proxy, &[]);
    // The call whose deadline passed was cancelled at the server, too.
    assert_eq!(line(&mut server.output), "cancelled");
}

#[test]
fn a_refusal_is_a_grpc_status() {
    let server = Server::start();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.grpc]\nendpoints = [\"h2c://127.0.0.1:{}\"]\nlimit = {{ in_flight = 1 }}\n\
         queue = {{ max = 0, timeout = \"1s\" }}\n[[route]]\nupstream = \"grpc\"\n",
        server.port
    ));
    client(&proxy, &["refused"]);
}
