//! Entry point of kmonitor, which reports how far ktransfer is behind Kafka.

use std::process::ExitCode;

use kafka_http_wrapper::{daemon, kmonitor};

fn main() -> ExitCode {
    daemon::main("kmonitor", "./conf/kmonitor.yaml", kmonitor::load, kmonitor::run)
}
