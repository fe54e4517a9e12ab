//! Doorway of kmonitor.

use std::process::ExitCode;

use kafka_http_wrapper::{daemon, kmonitor};

fn main() -> ExitCode {
    daemon::main("kmonitor", "./conf/kmonitor.yaml", kmonitor::load, kmonitor::run)
}
