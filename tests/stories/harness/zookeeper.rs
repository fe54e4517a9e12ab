//! A real ZooKeeper server that a story may hurt.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::jars::{Edition, java};
use super::process::{Process, folder, free_port, tail};
use super::{Zk, poll};

/// How long a server may take from start to its first answer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// One server, alone, on a port of its own; dropped, it is gone with its data.
pub(crate) struct ZooKeeper {
    port: u16,
    folder: PathBuf,
    process: Mutex<Process>,
}

impl ZooKeeper {
    /// Starts one and returns when it answers.
    pub(crate) fn start() -> ZooKeeper {
        let port = free_port();
        let folder = folder("zookeeper");
        let properties = format!(
            "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n\
             tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=60000\nmaxClientCnxns=0\n",
            folder.join("data").display()
        );
        fs::write(folder.join("zookeeper.properties"), properties).expect("a file in our own folder");
        let process = Mutex::new(launch(&folder));
        let server = ZooKeeper { port, folder, process };
        server.wait_ready();
        server
    }

    /// `host:port` of the server.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client of our own for looking and meddling.
    pub(crate) fn client(&self) -> Zk {
        Zk::connect(&self.address()).expect("the server answers")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Ends it at once.
    pub(crate) fn kill9(&self) {
        self.process().kill9();
    }

    /// Starts it again, with the same port and data (ends it before if it still runs), and returns when it answers.
    pub(crate) fn restart(&self) {
        {
            let mut process = self.process();
            process.kill9();
            *process = launch(&self.folder);
        }
        self.wait_ready();
    }

    /// Freezes it: connections stay open and nothing answers.
    pub(crate) fn stop_process(&self) {
        self.process().signal(libc::SIGSTOP);
    }

    /// Lets it go on.
    pub(crate) fn continue_process(&self) {
        self.process().signal(libc::SIGCONT);
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wait_ready(&self) {
        let answer = poll(START_DEADLINE, || {
            if let Some(status) = self.process().ended() {
                panic!("ZooKeeper ended ({status}):\n{}", tail(&self.folder.join("output"), 30));
            }
            Zk::connect(&self.address()).ok()
        });
        assert!(answer.is_some(), "ZooKeeper does not answer:\n{}", tail(&self.folder.join("output"), 30));
    }
}

fn launch(folder: &std::path::Path) -> Process {
    // Without forceSync a write waits for no disk. What is written survives a kill -9 all the same.
    let mut command =
        java(Edition::WithZooKeeper, &["-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dzookeeper.forceSync=no"]);
    command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(folder.join("zookeeper.properties"));
    Process::start("ZooKeeper", command, &folder.join("output"))
}
