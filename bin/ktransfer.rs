//! Entry point of ktransfer, which pushes Kafka messages to HTTP servers.

use std::process::ExitCode;

use kafka_http_wrapper::{daemon, ktransfer};

fn main() -> ExitCode {
    if let Some(code) = ktransfer::operate() {
        return code;
    }
    daemon::main_with_tools(
        "ktransfer",
        "./conf/ktransfer.yaml",
        ktransfer::load,
        ktransfer::run,
        &[&ktransfer::MOVE_OFFSETS, &ktransfer::REPLAY],
    )
}
