//! The jars of Kafka and ZooKeeper, downloaded once by Maven into a cache that git ignores.
//!
//! Invariant: a folder with its final name is complete. A download goes to a folder with another name, which is renamed
//! when the download is done. A file lock makes concurrent processes wait for the download.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::process::{Process, folder, tail};

/// The version of Kafka.
#[derive(Clone, Copy)]
pub(crate) enum Edition {
    /// Kafka 3.9, the last version that runs with ZooKeeper; its jars include ZooKeeper.
    WithZooKeeper,
    /// Kafka 4.x, without ZooKeeper.
    Kraft,
}

impl Edition {
    fn pom(self) -> PathBuf {
        let name = match self {
            Edition::WithZooKeeper => "pom-3.9.xml",
            Edition::Kraft => "pom-4.xml",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka").join(name)
    }
}

/// Returns the folder with the jars of this edition; downloads the jars if they are missing.
pub(crate) fn jars(edition: Edition) -> &'static Path {
    static WITH_ZOOKEEPER: OnceLock<PathBuf> = OnceLock::new();
    static KRAFT: OnceLock<PathBuf> = OnceLock::new();
    let slot = match edition {
        Edition::WithZooKeeper => &WITH_ZOOKEEPER,
        Edition::Kraft => &KRAFT,
    };
    slot.get_or_init(|| download(&edition.pom()))
}

/// Returns a `java` command with these JVM options and the jars of the edition on its class path.
pub(crate) fn java<T: AsRef<OsStr>>(edition: Edition, options: impl IntoIterator<Item = T>) -> Command {
    let mut command = Command::new("java");
    command.args(options);
    command.args([
        "-XX:+UseSerialGC",
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-cp",
    ]);
    command.arg(jars(edition).join("*"));
    command
}

/// Returns the cache folder: `KAFKA_HTTP_WRAPPER_CACHE`, or `target/` of the checkout.
pub(super) fn cache() -> PathBuf {
    match std::env::var_os("KAFKA_HTTP_WRAPPER_CACHE") {
        // Maven would resolve a relative path from the folder of the pom.
        Some(path) => std::path::absolute(path).expect("a path that is not empty"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
    }
}

fn download(pom: &Path) -> PathBuf {
    let text = fs::read_to_string(pom).expect("the pom is part of the tree");
    let version = between(&text, "<kafka.version>", "</kafka.version>");
    let complete = cache().join(format!("kafka-{version}"));
    if complete.is_dir() {
        return complete;
    }
    fs::create_dir_all(cache()).expect("the cache folder can be created");
    let lock = File::create(cache().join(format!("kafka-{version}.lock"))).expect("a lock file in the cache");
    lock.lock().expect("files can be locked");
    if complete.is_dir() {
        return complete;
    }
    eprintln!("downloading Kafka {version} with Maven to {} (once, about 56 MB) ...", complete.display());
    let started = Instant::now();
    let unfinished = cache().join(format!("kafka-{version}.unfinished"));
    let _ = fs::remove_dir_all(&unfinished);
    run_maven(pom, &unfinished);
    // slf4j warns about a second binding, so only the simple binding, which writes to stderr, is kept.
    for jar in fs::read_dir(&unfinished).expect("Maven created the folder").flatten() {
        if jar.file_name().to_string_lossy().starts_with("slf4j-reload4j") {
            fs::remove_file(jar.path()).expect("a jar can be removed");
        }
    }
    fs::rename(&unfinished, &complete).expect("a rename inside the cache");
    eprintln!("Kafka {version} was downloaded in {:.1} s", started.elapsed().as_secs_f64());
    complete
}

fn run_maven(pom: &Path, into: &Path) {
    let output = folder("maven").join("output");
    let mut command = Command::new("mvn");
    command
        .args(["-q", "-B", "-f"])
        .arg(pom)
        .arg("dependency:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", into.display()));
    let mut maven = Process::start("mvn (Maven; `make tools` installs it)", command, &output);
    let mut waited = 0;
    while super::poll(Duration::from_secs(5), || maven.ended()).is_none() {
        waited += 5;
        let n_jars = fs::read_dir(into).map_or(0, Iterator::count);
        eprintln!("  {waited} s, {n_jars} jars so far ...");
        assert!(waited < 600, "Maven takes more than 10 minutes:\n{}", tail(&output, 20));
    }
    let status = maven.ended().expect("Maven has ended");
    assert!(status.success(), "Maven failed ({status}):\n{}", tail(&output, 40));
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let start = text.find(before).expect("the pom names the version") + before.len();
    let end = text[start..].find(after).expect("the element ends") + start;
    &text[start..end]
}
