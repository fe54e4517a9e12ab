//! A real ZooKeeper server that a story may kill, freeze and restart.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::class_archive::ClassArchive;
use super::jars::{Edition, java};
use super::process::{Process, folder, free_port, tail};
use super::{ServerProcess, ZkClient, poll};

/// Deadline for a server from its start to its first answer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// One standalone server on a free port; dropping the value kills it.
pub(crate) struct ZooKeeper {
    port: u16,
    folder: PathBuf,
    process: ServerProcess,
}

impl ZooKeeper {
    /// Starts a server; returns when it answers.
    pub(crate) fn start() -> ZooKeeper {
        static ARCHIVE: ClassArchive = ClassArchive::new("zookeeper", Edition::WithZooKeeper);
        let rehearse = |options: &[String]| {
            let server = ZooKeeper::start_with(options);
            server.client().create("/a/b", "");
            server.terminate(START_DEADLINE);
        };
        ZooKeeper::start_with(ARCHIVE.options(rehearse))
    }

    fn start_with(jvm_options: &[String]) -> ZooKeeper {
        let port = free_port();
        let folder = folder("zookeeper");
        let properties = format!(
            "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n\
             tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=60000\nmaxClientCnxns=0\n",
            folder.join("data").display()
        );
        fs::write(folder.join("zookeeper.properties"), properties).expect("a file in a temporary folder");
        let (launched, jvm_options) = (folder.clone(), jvm_options.to_vec());
        let process = ServerProcess::new(move || launch(&launched, &jvm_options));
        let server = ZooKeeper { port, folder, process };
        server.wait_ready();
        server
    }

    /// Returns `host:port` of the server.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Opens a session with this server, through the client of the harness.
    pub(crate) fn client(&self) -> ZkClient {
        ZkClient::connect(&self.address()).expect("the server answers")
    }

    /// Starts the server again with the same port and data; returns when it answers. A server that still runs is
    /// killed first.
    pub(crate) fn restart(&self) {
        self.relaunch();
        self.wait_ready();
    }

    fn wait_ready(&self) {
        let answer = poll(START_DEADLINE, || {
            if let Some(status) = self.ended() {
                panic!("ZooKeeper ended ({status}):\n{}", tail(&self.folder.join("output"), 30));
            }
            ZkClient::connect(&self.address()).ok()
        });
        assert!(answer.is_some(), "ZooKeeper does not answer:\n{}", tail(&self.folder.join("output"), 30));
    }
}

impl Deref for ZooKeeper {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.process
    }
}

fn launch(folder: &Path, jvm_options: &[String]) -> Process {
    // Without forceSync no write waits for the disk. A kill -9 loses no data: the page cache has it.
    let options = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dzookeeper.forceSync=no"];
    let mut command = java(Edition::WithZooKeeper, options.into_iter().chain(jvm_options.iter().map(String::as_str)));
    command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(folder.join("zookeeper.properties"));
    Process::start("ZooKeeper", command, &folder.join("output"))
}
