//! A real Prometheus that scrapes the daemons with the files under `conf/prometheus`, and `promtool`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::http;
use super::process::{Process, folder};
use super::{free_port, poll, wait_until};

const START_DEADLINE: Duration = Duration::from_secs(60);

/// Returns the folder `conf/prometheus`.
pub(crate) fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/prometheus")
}

/// Runs `promtool` in the folder `conf/prometheus`; panics with its output if it fails.
#[track_caller]
pub(crate) fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(conf()).output();
    let output = output.unwrap_or_else(|cause| panic!("{}", missing("promtool", &cause)));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "promtool {arguments:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// Returns the message for a program that cannot be run.
pub(crate) fn missing(program: &str, cause: &std::io::Error) -> String {
    match cause.kind() {
        ErrorKind::NotFound => format!("{program} is not installed: `.ci/tools monitoring` installs it"),
        _ => format!("cannot run {program}: {cause}"),
    }
}

/// A running Prometheus; dropping the value kills it.
pub(crate) struct Prometheus {
    process: Process,
    address: String,
    output: PathBuf,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes each second. Its jobs are those of `scrape.yml`, with these addresses instead
    /// (job and `host:port`), and its rules those of `rules.yml`. Returns when all targets have been scraped.
    pub(crate) fn start(targets: &[(&str, &str)]) -> Prometheus {
        let folder = folder("prometheus");
        let scrape: serde_yaml::Value = read_yaml("scrape.yml");
        let mut jobs = scrape;
        for job in jobs.as_sequence_mut().expect("scrape.yml is a list of jobs") {
            let name = job["job_name"].as_str().expect("a job has a name").to_owned();
            let (_, address) = targets.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}"));
            job["static_configs"][0]["targets"] = vec![serde_yaml::Value::from(*address)].into();
        }
        let mut config = serde_yaml::Mapping::new();
        let mut global = serde_yaml::Mapping::new();
        global.insert("scrape_interval".into(), "1s".into());
        global.insert("evaluation_interval".into(), "1s".into());
        config.insert("global".into(), global.into());
        config.insert("rule_files".into(), vec![conf().join("rules.yml").display().to_string()].into());
        config.insert("scrape_configs".into(), jobs);
        let file = folder.join("prometheus.yml");
        fs::write(&file, serde_yaml::to_string(&config).expect("a YAML document")).expect("a temporary file");

        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(&folder);
        let probe = Command::new("prometheus").arg("--version").output();
        probe.unwrap_or_else(|cause| panic!("{}", missing("prometheus", &cause)));
        let output = folder.join("output");
        let process = Process::start("prometheus", command, &output);
        let mut prometheus = Prometheus { process, address, output };
        prometheus.wait_until_scraped(targets.len());
        prometheus
    }

    fn wait_until_scraped(&mut self, count: usize) {
        let mut last = String::new();
        let scraped = poll(START_DEADLINE, || {
            let log = || fs::read_to_string(&self.output).unwrap_or_default();
            assert!(self.process.ended().is_none(), "prometheus ended:\n{}", log());
            let answer = http::get(&format!("http://{}/api/v1/targets?state=active", self.address)).ok()?;
            last = answer.text();
            // 503 until it has read its database.
            if answer.status != 200 {
                return None;
            }
            let targets = answer.json()["data"]["activeTargets"].as_array()?.clone();
            (targets.len() == count && targets.iter().all(|target| target["health"] == "up")).then_some(())
        });
        assert!(scraped.is_some(), "not all targets can be scraped: {last}");
    }

    /// Evaluates an expression now; returns the series of its result. Panics if it is not valid.
    #[track_caller]
    pub(crate) fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.get(&format!("/api/v1/query?query={}", percent_encoded(expression)));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        match answer["data"]["resultType"].as_str() {
            Some("vector") => answer["data"]["result"].as_array().expect("a vector").clone(),
            other => panic!("{expression}: the result is a {other:?}"),
        }
    }

    /// Waits until the result of an expression is not empty; returns its series.
    #[track_caller]
    pub(crate) fn wait_for(&self, expression: &str, deadline: Duration) -> Vec<Value> {
        wait_until(deadline, &format!("{expression} has a result"), || !self.query(expression).is_empty());
        self.query(expression)
    }

    /// Returns the names of all metrics that were scraped.
    pub(crate) fn metrics(&self) -> Vec<String> {
        let answer = self.get("/api/v1/label/__name__/values");
        serde_json::from_value(answer["data"].clone()).expect("a list of names")
    }

    /// Returns the rules, each with its `health` and `lastError`.
    pub(crate) fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().expect("a list of groups").clone();
        groups.iter().flat_map(|group| group["rules"].as_array().expect("a list of rules").clone()).collect()
    }

    #[track_caller]
    fn get(&self, target: &str) -> Value {
        http::get(&format!("http://{}{target}", self.address)).expect("prometheus answers").json()
    }
}

fn read_yaml(name: &str) -> serde_yaml::Value {
    let text = fs::read_to_string(conf().join(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"));
    serde_yaml::from_str(&text).unwrap_or_else(|cause| panic!("{name}: {cause}"))
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}
