//! Entry point of ktransfer: Kafka to HTTP.

use std::process::ExitCode;

use kafka_http_wrapper::{daemon, ktransfer};

fn main() -> ExitCode {
    daemon::main("ktransfer", "./conf/ktransfer.yaml", ktransfer::load, ktransfer::run)
}
