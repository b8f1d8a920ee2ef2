//! The command line: one file a subcommand.
//!
//! Exit codes: 0 all is well, 1 it failed, 2 the arguments or the configuration are wrong.

mod check;
mod demo;
mod health;
mod run;
mod schema;
mod signals;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{config, explain};

/// It did not work.
const FAILED: ExitCode = ExitCode::FAILURE;

/// What was asked for, or the configuration, is wrong.
const USAGE: u8 = 2;

/// A backpressure-aware HTTP reverse proxy: it lets through what a service can do, makes the rest wait a bounded time
/// or tells it when to come back, and lets a slow reader slow its producer.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  headworks demo                                    try it: a built-in upstream streams tokens
  headworks --upstream http://127.0.0.1:8000        protect one service, on 127.0.0.1:8080
  headworks run --config headworks.toml             serve what a file says
  headworks check --config headworks.toml           read the file and report every mistake",
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Serve this one upstream with safe defaults
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Where to serve it
    #[arg(long, value_name = "ADDRESS", requires = "upstream", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve what a configuration file says, until SIGTERM or SIGINT; SIGHUP reads it anew
    #[command(after_help = "Example:\n  headworks run --config /etc/headworks.toml")]
    Run(File),
    /// Read a configuration file and report every mistake in it
    #[command(after_help = "Example:\n  headworks check --config headworks.toml && systemctl reload headworks")]
    Check(File),
    /// Print the layers of each route, in order, with the values in force
    #[command(after_help = "Example:\n  headworks explain --config headworks.toml --route chat")]
    Explain {
        #[command(flatten)]
        file: File,
        /// Only this route
        #[arg(long, value_name = "NAME")]
        route: Option<String>,
    },
    /// Print the JSON Schema of the configuration file, for editors
    #[command(after_help = "Example:\n  headworks schema > headworks.schema.json")]
    Schema,
    /// Run the proxy in front of a built-in service that streams tokens, with three commands to try
    #[command(after_help = "Example:\n  headworks demo --listen 127.0.0.1:9000")]
    Demo {
        /// Address of the proxy
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Address of the admin pages
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9901")]
        admin: SocketAddr,
    },
    /// Ask a running proxy whether it lives; exit code 0 if it does (for container health checks)
    #[command(after_help = "Examples:\n  headworks health --admin 127.0.0.1:9901\n  \
                            headworks health --admin unix:/run/hw-admin.sock\n  \
                            headworks health --config /etc/headworks.toml")]
    Health {
        /// Address of the admin port, or `unix:` and the path of its socket
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9901", value_parser = health::Target::parse)]
        admin: health::Target,
        /// Ask the admin port that this configuration file names, with its token
        #[arg(long, value_name = "FILE", conflicts_with = "admin")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct File {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Does what the process's arguments say.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (mut out, mut errors) = (std::io::stdout(), std::io::stderr());
    let done = match (arguments.command, arguments.upstream) {
        (Some(Command::Check(file)), _) => check::run(&file.config, is_coloured(), &mut out, &mut errors),
        (Some(Command::Explain { file, route }), _) => match config::load(&file.config) {
            Ok(config) => explain::write(&config, route.as_deref(), &mut out, &mut errors),
            Err(error) => write!(errors, "{}", error.render(is_coloured())).map(|()| USAGE),
        },
        (Some(Command::Schema), _) => schema::run(&mut out),
        (Some(Command::Health { admin, config }), _) => {
            let target = config.map_or(Ok(admin), |file| health::Target::of_file(&file, &mut errors));
            return target.map_or_else(|code| code, |target| health::run(&target, &mut errors));
        }
        (Some(Command::Demo { listen, admin }), _) => return demo::run(listen, admin, &mut out, &mut errors),
        (Some(Command::Run(file)), _) => {
            return run::run(config::load(&file.config), Some(file.config), &mut errors);
        }
        (None, Some(url)) => return run::run(config::from_upstream(&url, arguments.listen), None, &mut errors),
        (None, None) => Ok(USAGE),
    };
    // Only a closed pipe makes writing fail, and then nobody reads the reason either.
    done.map_or(FAILED, ExitCode::from)
}

/// Whether reports on standard error may use colours (no-color.org).
fn is_coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
