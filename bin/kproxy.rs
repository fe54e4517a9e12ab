//! Entry point of kproxy, which writes HTTP requests to Kafka.

use std::process::ExitCode;

use kafka_http_wrapper::{daemon, kproxy};

fn main() -> ExitCode {
    daemon::main("kproxy", "./conf/kproxy.yaml", kproxy::load, kproxy::run)
}
