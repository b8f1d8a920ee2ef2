//! The `headworks` program: arguments, logging, signals, exit code. Nothing else touches the process.

use std::process::ExitCode;

/// Streams come and go in bursts, and the system's allocator keeps the memory of each burst.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    headworks::cli::main()
}
