//! Entry point of kmonitor: the delay between Kafka and ktransfer.

use std::process::ExitCode;

use kafka_http_wrapper::{daemon, kmonitor};

fn main() -> ExitCode {
    daemon::main("kmonitor", "./conf/kmonitor.yaml", kmonitor::load, kmonitor::run)
}
