//! A real Kafka broker that a story may kill, freeze and restart.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::class_archive::ClassArchive;
use super::jars::{Edition, java};
use super::kafka_wire::{create_topic, metadata};
use super::process::{Process, folder, free_port, tail};
use super::secured::{self, Certificates};
use super::{Link, ServerProcess, ZkClient, ZooKeeper, engine, poll};

/// Deadline for a broker from its start to its first answer.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// Properties of every broker: no automatic creation of topics, no delay before the first rebalance of a group, small
/// internal topics; a transaction is aborted soon after its time is over.
const COMMON_PROPERTIES: &str = "auto.create.topics.enable=false\n\
    group.initial.rebalance.delay.ms=0\n\
    offsets.topic.replication.factor=1\n\
    offsets.topic.num.partitions=4\n\
    transaction.state.log.replication.factor=1\n\
    transaction.state.log.min.isr=1\n\
    transaction.state.log.num.partitions=4\n\
    transaction.abort.timed.out.transaction.cleanup.interval.ms=500\n\
    log.cleaner.dedupe.buffer.size=8388608\n\
    controlled.shutdown.enable=false\n";

/// One broker; dropping the value kills it.
pub(crate) struct Kafka {
    port: u16,
    folder: PathBuf,
    process: ServerProcess,
    /// `None` without ZooKeeper.
    registration: Option<Registration>,
}

/// Where a broker registers itself.
struct Registration {
    /// `host:port` of ZooKeeper.
    zookeeper: String,
    chroot: String,
    broker_id: i32,
}

impl Kafka {
    /// Starts a broker 3.9 of the cluster under `chroot` of this ZooKeeper; returns when it answers. Each of
    /// `properties` is a line `key=value`, which overrides the value of the harness.
    pub(crate) fn start(zookeeper: &ZooKeeper, chroot: &str, broker_id: i32, properties: &[&str]) -> Kafka {
        let port = free_port();
        let own = plaintext(zookeeper, chroot, broker_id, port);
        Kafka::start_with(Edition::WithZooKeeper, port, &own, properties).registered(zookeeper, chroot, broker_id)
    }

    /// Starts a broker 3.9 with a second plaintext listener, which its clients reach only through the returned link:
    /// the broker advertises the port of the link.
    pub(crate) fn start_behind_link(zookeeper: &ZooKeeper, chroot: &str) -> (Kafka, Link) {
        let (port, behind) = (free_port(), free_port());
        let link = Link::to(&format!("127.0.0.1:{behind}"));
        let own = format!(
            "broker.id=0\nzookeeper.connect={}{chroot}\nzookeeper.session.timeout.ms=3000\n\
             listeners=INSIDE://127.0.0.1:{port},LINK://127.0.0.1:{behind}\n\
             advertised.listeners=INSIDE://127.0.0.1:{port},LINK://{}\n\
             listener.security.protocol.map=INSIDE:PLAINTEXT,LINK:PLAINTEXT\n\
             inter.broker.listener.name=INSIDE\n",
            zookeeper.address(),
            link.address()
        );
        (Kafka::start_with(Edition::WithZooKeeper, port, &own, &[]).registered(zookeeper, chroot, 0), link)
    }

    /// Starts a broker 3.9 with a second listener for SASL_SSL; returns the broker and `host:port` of that listener.
    pub(crate) fn start_secured(zookeeper: &ZooKeeper, chroot: &str, certificates: &Certificates) -> (Kafka, String) {
        let (port, secured_port) = (free_port(), free_port());
        let own = format!(
            "broker.id=0\nzookeeper.connect={}{chroot}\nzookeeper.session.timeout.ms=3000\n\
             listeners=INSIDE://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secured_port}\n\
             listener.security.protocol.map=INSIDE:PLAINTEXT,SASL_SSL:SASL_SSL\n\
             inter.broker.listener.name=INSIDE\n{}",
            zookeeper.address(),
            certificates.broker_properties()
        );
        let broker = Kafka::start_with(Edition::WithZooKeeper, port, &own, &[]).registered(zookeeper, chroot, 0);
        secured::add_scram_user(Edition::WithZooKeeper, &broker.address());
        (broker, format!("127.0.0.1:{secured_port}"))
    }

    /// Starts a broker 4.x with a second listener for SASL_SSL; returns the broker and `host:port` of that listener.
    pub(crate) fn start_kraft_secured(certificates: &Certificates) -> (Kafka, String) {
        let (port, controller_port, secured_port) = (free_port(), free_port(), free_port());
        let own = format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},\
             SASL_SSL://127.0.0.1:{secured_port}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL\n{}",
            certificates.broker_properties()
        );
        let broker = Kafka::start_with(Edition::Kraft, port, &own, &[]);
        secured::add_scram_user(Edition::Kraft, &broker.address());
        (broker, format!("127.0.0.1:{secured_port}"))
    }

    /// Starts a single broker 4.x that is its own controller; returns when it answers.
    pub(crate) fn start_kraft() -> Kafka {
        let port = free_port();
        Kafka::start_with(Edition::Kraft, port, &single_kraft(port), &[])
    }

    /// Starts a node of a cluster 4.x; node 1 is the controller, at `controller_port`, and a broker. Each of the
    /// returned links is before a listener of its own, which advertises the link.
    pub(crate) fn start_kraft_node(
        node: i32,
        controller_port: u16,
        n_links: usize,
        properties: &[&str],
    ) -> (Kafka, Vec<Link>) {
        let port = free_port();
        let behind: Vec<u16> = (0..n_links).map(|_| free_port()).collect();
        let links: Vec<Link> = behind.iter().map(|port| Link::to(&format!("127.0.0.1:{port}"))).collect();
        let listener = |(number, address): (usize, String)| format!(",LINK{number}://{address}");
        let listeners: String =
            behind.iter().map(|port| format!("127.0.0.1:{port}")).enumerate().map(listener).collect();
        let advertised: String = links.iter().map(|link| link.address()).enumerate().map(listener).collect();
        let protocols: String = (0..n_links).map(|number| format!(",LINK{number}:PLAINTEXT")).collect();
        let (roles, controller) = match node {
            1 => ("broker,controller", format!(",CONTROLLER://127.0.0.1:{controller_port}")),
            _ => ("broker", String::new()),
        };
        let own = format!(
            "process.roles={roles}\nnode.id={node}\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             listeners=INSIDE://127.0.0.1:{port}{listeners}{controller}\n\
             advertised.listeners=INSIDE://127.0.0.1:{port}{advertised}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=INSIDE\n\
             listener.security.protocol.map=INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\n"
        );
        (Kafka::start_with(Edition::Kraft, port, &own, properties), links)
    }

    fn start_with(edition: Edition, port: u16, own: &str, overrides: &[&str]) -> Kafka {
        let jvm_options = archived_classes(edition);
        let folder = folder_with_properties(own, overrides);
        if matches!(edition, Edition::Kraft) {
            format_storage(&folder, jvm_options);
        }
        Kafka::start_in(folder, edition, port, jvm_options)
    }

    fn start_in(folder: PathBuf, edition: Edition, port: u16, jvm_options: &[String]) -> Kafka {
        let (launched, jvm_options) = (folder.clone(), jvm_options.to_vec());
        let process = ServerProcess::new(move || launch(edition, &launched, &jvm_options));
        let broker = Kafka { port, folder, process, registration: None };
        broker.wait_ready();
        broker
    }

    fn registered(self, zookeeper: &ZooKeeper, chroot: &str, broker_id: i32) -> Kafka {
        let (zookeeper, chroot) = (zookeeper.address(), chroot.to_owned());
        Kafka { registration: Some(Registration { zookeeper, chroot, broker_id }), ..self }
    }

    /// Returns `host:port` of the plaintext listener.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the folder with the log segments of the partitions.
    pub(crate) fn data_folder(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Starts the broker again with the same port and data; returns when it answers. A broker that still runs is killed
    /// first.
    pub(crate) fn restart(&self) {
        self.kill9();
        if let Some(registration) = &self.registration {
            registration.expire();
        }
        self.relaunch();
        self.wait_ready();
    }

    fn wait_ready(&self) {
        let mut first_end = None;
        let answer = poll(START_DEADLINE, || {
            if let Some(status) = self.ended() {
                // A broker that finds the node of its killed predecessor in ZooKeeper exits at once.
                first_end.get_or_insert(status);
                self.relaunch();
            }
            let metadata = metadata(&self.address(), &[]).ok()?;
            metadata.brokers.values().any(|address| *address == self.address()).then_some(())
        });
        let output = self.folder.join("output");
        assert!(answer.is_some(), "Kafka does not answer (first end: {first_end:?}):\n{}", tail(&output, 40));
    }
}

impl Deref for Kafka {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.process
    }
}

impl Registration {
    /// Deletes what the session of a killed broker still holds, as its expiry does seconds later. Otherwise a new
    /// broker would exit, as long as the node with its id exists.
    fn expire(&self) {
        // If ZooKeeper is down, the broker waits for it.
        let Ok(client) = ZkClient::connect(&self.zookeeper) else { return };
        let Registration { chroot, broker_id, .. } = self;
        client.delete(&format!("{chroot}/brokers/ids/{broker_id}"));
        let controller = format!("{chroot}/controller");
        if client.read(&controller).is_some_and(|text| text.contains(&format!("\"brokerid\":{broker_id},"))) {
            client.delete(&controller);
        }
    }
}

/// Returns the properties of a broker 3.9 with one listener.
fn plaintext(zookeeper: &ZooKeeper, chroot: &str, broker_id: i32, port: u16) -> String {
    format!(
        "broker.id={broker_id}\nlisteners=PLAINTEXT://127.0.0.1:{port}\n\
         zookeeper.connect={}{chroot}\nzookeeper.session.timeout.ms=3000\n",
        zookeeper.address()
    )
}

/// Returns the properties of a broker 4.x that is its own controller.
fn single_kraft(port: u16) -> String {
    let controller_port = free_port();
    format!(
        "process.roles=broker,controller\nnode.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n"
    )
}

/// Returns a new folder with the properties of a broker; each of `overrides` is a line `key=value`.
fn folder_with_properties(own: &str, overrides: &[&str]) -> PathBuf {
    let folder = folder("kafka");
    let properties =
        format!("{COMMON_PROPERTIES}log.dirs={}\n{own}{}\n", folder.join("data").display(), overrides.join("\n"));
    fs::write(properties_of(&folder), properties).expect("a file in a temporary folder");
    folder
}

/// Returns the JVM options for an archive of the broker's classes.
fn archived_classes(edition: Edition) -> &'static [String] {
    static WITH_ZOOKEEPER: ClassArchive = ClassArchive::new("kafka-3.9", Edition::WithZooKeeper);
    static KRAFT: ClassArchive = ClassArchive::new("kafka-4", Edition::Kraft);
    match edition {
        Edition::WithZooKeeper => WITH_ZOOKEEPER.options(|options| {
            let (zookeeper, port) = (ZooKeeper::start(), free_port());
            let folder = folder_with_properties(&plaintext(&zookeeper, "", 0, port), &[]);
            rehearse(&Kafka::start_in(folder, edition, port, options));
        }),
        Edition::Kraft => KRAFT.options(|options| {
            let port = free_port();
            let folder = folder_with_properties(&single_kraft(port), &[]);
            format_storage(&folder, &[]);
            rehearse(&Kafka::start_in(folder, edition, port, options));
        }),
    }
}

/// Does what brokers do in stories, and ends the broker.
fn rehearse(broker: &Kafka) {
    create_topic(&broker.address(), "rehearsal", 1, 1);
    engine::append_some(&broker.address(), "rehearsal", 10);
    engine::read_partition(&broker.address(), "rehearsal", 0, 10);
    broker.terminate(START_DEADLINE);
}

fn properties_of(folder: &Path) -> PathBuf {
    folder.join("server.properties")
}

fn launch(edition: Edition, folder: &Path, jvm_options: &[String]) -> Process {
    // In a story a broker lives for seconds, too short for the second compiler. Benchmarks compile the harness as no
    // test.
    let compiler = if cfg!(test) { &["-XX:TieredStopAtLevel=1"][..] } else { &[] };
    let options = ["-Xmx512m"].iter().chain(compiler).copied().chain(jvm_options.iter().map(String::as_str));
    let mut command = java(edition, options);
    command.arg("kafka.Kafka").arg(properties_of(folder));
    Process::start("Kafka", command, &folder.join("output"))
}

fn format_storage(folder: &Path, jvm_options: &[String]) {
    let options = ["-Xmx256m", "-XX:TieredStopAtLevel=1"];
    let mut command: Command = java(Edition::Kraft, options.into_iter().chain(jvm_options.iter().map(String::as_str)));
    command.args(["kafka.tools.StorageTool", "format", "-t", "kafka-http-wrapper-abc", "-c"]);
    command.arg(properties_of(folder));
    let output = folder.join("output");
    let status = Process::start("Kafka's StorageTool", command, &output).wait(START_DEADLINE);
    assert!(status.success(), "formatting Kafka's storage ({status}):\n{}", tail(&output, 40));
}
