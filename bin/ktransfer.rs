//! Entry point of ktransfer, which pushes Kafka messages to HTTP servers.

use std::process::ExitCode;

use kafka_http_wrapper::ktransfer;

fn main() -> ExitCode {
    ktransfer::main()
}
