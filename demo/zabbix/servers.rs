//! PostgreSQL, a Zabbix server and its frontend in PHP, on loopback, in temporary folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::http::Client;
use crate::harness::process::{Process, folder};
use crate::harness::{free_port, wait_until};

const DEADLINE: Duration = Duration::from_secs(120);
const SCHEMA: &str = "/usr/share/zabbix-server-pgsql";
const FRONTEND: &str = "/usr/share/zabbix";

/// A running Zabbix; dropping the value kills its processes.
pub(crate) struct Zabbix {
    /// `host:port` of the server, to which values are sent.
    pub(crate) server: String,
    frontend: String,
    session: String,
    _processes: [Process; 3],
}

impl Zabbix {
    pub(crate) fn start() -> Zabbix {
        let folder = folder("zabbix-server");
        let (database, database_port) = start_database(&folder);
        let server_port = free_port();
        let config = format!(
            "DBHost=127.0.0.1\nDBPort={database_port}\nDBName=zabbix\nDBUser=zabbix\nListenIP=127.0.0.1\n\
             ListenPort={server_port}\nLogFile={0}/server.log\nPidFile={0}/server.pid\nSocketDir={0}\nAllowRoot=1\n\
             CacheUpdateFrequency=2\nStartPollers=2\nStartTrappers=2\n",
            folder.display()
        );
        let config_file = folder.join("server.conf");
        fs::write(&config_file, config).expect("a temporary file");
        let mut command = Command::new("zabbix_server");
        command.arg("-f").arg("-c").arg(&config_file);
        let server = Process::start("zabbix_server", command, &folder.join("server-output"));
        let (web, frontend) = start_frontend(&folder, database_port, server_port);
        let mut zabbix = Zabbix {
            server: format!("127.0.0.1:{server_port}"),
            frontend,
            session: String::new(),
            _processes: [web, server, database],
        };
        let login = json!({"user": "Admin", "password": "zabbix"});
        wait_until(DEADLINE, "the API answers", || {
            let session = zabbix.try_call("user.login", &login);
            session.is_ok_and(|session| {
                zabbix.session = session.as_str().unwrap_or_default().to_owned();
                true
            })
        });
        zabbix
    }

    pub(crate) fn version(&self) -> String {
        let request = json!({"jsonrpc": "2.0", "method": "apiinfo.version", "params": [], "id": 1});
        self.post(&request)["result"].as_str().unwrap_or("?").to_owned()
    }

    /// Calls a method of the API; panics with its error.
    #[track_caller]
    pub(crate) fn call(&self, method: &str, parameters: &Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_call(&self, method: &str, parameters: &Value) -> Result<Value, String> {
        let mut request = json!({"jsonrpc": "2.0", "method": method, "params": parameters, "id": 1});
        if !self.session.is_empty() {
            request["auth"] = self.session.as_str().into();
        }
        let answer = self.post(&request);
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(answer.to_string()),
        }
    }

    fn post(&self, request: &Value) -> Value {
        let headers = [("Content-Type", "application/json-rpc"), ("Connection", "close")];
        let answer = Client::connect(&self.frontend).and_then(|mut client| {
            client.request("POST", "/api_jsonrpc.php", &headers, request.to_string().as_bytes())
        });
        answer.ok().and_then(|answer| serde_json::from_slice(&answer.body).ok()).unwrap_or_default()
    }

    /// Imports templates in YAML.
    pub(crate) fn import(&self, source: &str) {
        let rule = json!({"createMissing": true, "updateExisting": true});
        let kinds = ["groups", "templates", "items", "discoveryRules", "triggers", "valueMaps"];
        let rules: serde_json::Map<_, _> = kinds.iter().map(|kind| ((*kind).to_owned(), rule.clone())).collect();
        let done = self.call("configuration.import", &json!({"format": "yaml", "rules": rules, "source": source}));
        assert_eq!(done, true);
    }

    /// Creates a host with a template, whose interface has the address of kmonitor; returns its id.
    pub(crate) fn create_host(&self, name: &str, template: &str, kmonitor_port: &str) -> String {
        let template = self.call("template.get", &json!({"filter": {"host": [template]}, "output": ["templateid"]}));
        let group = self.call("hostgroup.create", &json!({"name": format!("group of {name}")}));
        let interface = json!({"type": 1, "main": 1, "useip": 1, "ip": "127.0.0.1", "dns": "", "port": kmonitor_port});
        let host = self.call(
            "host.create",
            &json!({
                "host": name, "groups": [{"groupid": group["groupids"][0]}], "interfaces": [interface],
                "templates": [{"templateid": template[0]["templateid"]}],
                "macros": [{"macro": "{$KMONITOR.PORT}", "value": kmonitor_port}],
            }),
        );
        host["hostids"][0].as_str().expect("an id").to_owned()
    }

    /// Requests the items and discovery rules that Zabbix requests itself, as soon as the server knows them.
    pub(crate) fn execute_now(&self, host: &str) {
        let http_agent = json!({"hostids": host, "filter": {"type": 19}, "output": ["itemid"]});
        for method in ["discoveryrule.get", "item.get"] {
            for item in self.call(method, &http_agent).as_array().expect("a list") {
                let task = json!([{"type": 6, "request": {"itemid": item["itemid"]}}]);
                // Refused while the server does not know the item yet; the item has its own interval.
                let _ = self.try_call("task.create", &task);
            }
        }
    }

    /// Returns the last value of each item by its key.
    pub(crate) fn items(&self, host: &str) -> BTreeMap<String, String> {
        let items = self.call("item.get", &json!({"hostids": host, "output": ["key_", "lastvalue"]}));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        items.as_array().expect("a list").iter().map(|item| (text(&item["key_"]), text(&item["lastvalue"]))).collect()
    }

    /// Returns the names of the present problems.
    pub(crate) fn problems(&self, host: &str) -> Vec<String> {
        let problems = self.call("problem.get", &json!({"hostids": host, "output": ["name"]}));
        let names = problems.as_array().expect("a list").iter().map(|problem| problem["name"].as_str());
        names.map(|name| name.unwrap_or_default().to_owned()).collect()
    }

    /// Returns what the discovery could not create.
    pub(crate) fn discovery_errors(&self, host: &str) -> String {
        let rules = self.call("discoveryrule.get", &json!({"hostids": host, "output": ["error"]}));
        rules.as_array().expect("a list").iter().filter_map(|rule| rule["error"].as_str()).collect()
    }
}

/// Returns a template for 7.0 in the form of 6.0, which has no groups of templates and no times of disabling.
pub(crate) fn as_6_0(template: &str) -> String {
    let text = template
        .replace("  version: '7.0'\n", "  version: '6.0'\n  date: '2026-01-01T00:00:00Z'\n")
        .replace("  template_groups:\n", "  groups:\n");
    text.lines().filter(|line| !line.contains("enabled_lifetime")).map(|line| format!("{line}\n")).collect()
}

/// Starts PostgreSQL with the database of Zabbix; returns its process and port.
fn start_database(folder: &Path) -> (Process, u16) {
    let programs =
        fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: run .ci/tools zabbix").flatten();
    let programs = programs.map(|entry| entry.path().join("bin")).max().expect("a version of PostgreSQL");
    let data = folder.join("database");
    fs::create_dir(&data).expect("a temporary folder");
    // PostgreSQL refuses to run as root.
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if is_root {
        run(Command::new("chown").arg("postgres").arg(folder).arg(&data));
        for path in folder.ancestors().take(2) {
            run(Command::new("chmod").arg("755").arg(path));
        }
    }
    let program = |name: &str| {
        let path: PathBuf = programs.join(name);
        if !is_root {
            return Command::new(path);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path).current_dir(folder);
        command
    };
    run(program("initdb").arg("-D").arg(&data).args(["-A", "trust", "-U", "zabbix", "-E", "UTF8", "--locale=C.UTF-8"]));
    let port = free_port();
    let mut command = program("postgres");
    command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k"]).arg(folder);
    for setting in ["listen_addresses=127.0.0.1", "fsync=off", "synchronous_commit=off", "full_page_writes=off"] {
        command.args(["-c", setting]);
    }
    let process = Process::start("postgres", command, &folder.join("database-output"));
    let address = format!("-h 127.0.0.1 -p {port} -U zabbix");
    let shell = |script: &str| {
        let quiet = Command::new("bash").args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        quiet.expect("bash starts").success()
    };
    wait_until(DEADLINE, "PostgreSQL answers", || shell(&format!("psql {address} -d postgres -c 'select 1'")));
    assert!(shell(&format!("createdb {address} zabbix")), "createdb");
    for file in ["schema", "images", "data"] {
        let script =
            format!("set -o pipefail; zcat {SCHEMA}/{file}.sql.gz | psql -v ON_ERROR_STOP=1 -q {address} -d zabbix");
        assert!(shell(&script), "{file}.sql.gz of Zabbix cannot be loaded");
    }
    (process, port)
}

/// Starts the frontend in the web server of PHP; returns its process and `host:port`.
fn start_frontend(folder: &Path, database_port: u16, server_port: u16) -> (Process, String) {
    let web = folder.join("web");
    run(Command::new("cp").args(["-r", FRONTEND]).arg(&web));
    let config = web.join("conf/zabbix.conf.php");
    let text = format!(
        "<?php\n$DB['TYPE'] = 'POSTGRESQL'; $DB['SERVER'] = '127.0.0.1'; $DB['PORT'] = '{database_port}';\n\
         $DB['DATABASE'] = 'zabbix'; $DB['USER'] = 'zabbix'; $DB['PASSWORD'] = ''; $DB['SCHEMA'] = '';\n\
         $DB['ENCRYPTION'] = false; $DB['DOUBLE_IEEE754'] = true;\n\
         $ZBX_SERVER = '127.0.0.1'; $ZBX_SERVER_PORT = '{server_port}'; $ZBX_SERVER_NAME = '';\n\
         $IMAGE_FORMAT_DEFAULT = IMAGE_FORMAT_PNG;\n"
    );
    fs::write(&config, text).expect("a temporary file");
    // Debian's frontend reads its configuration from a fixed path.
    let class = web.join("include/classes/core/CConfigFile.php");
    let source = fs::read_to_string(&class).expect("a file of the frontend");
    let source = source.replace("/etc/zabbix/zabbix.conf.php", &config.display().to_string());
    fs::write(&class, source).expect("a temporary file");
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new("php");
    for setting in ["error_reporting=0", "memory_limit=256M", "post_max_size=16M", "max_execution_time=300"] {
        command.args(["-d", setting]);
    }
    command.args(["-S", &address, "-t"]).arg(&web).current_dir(&web);
    (Process::start("php", command, &folder.join("web-output")), address)
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|cause| panic!("{command:?}: {cause}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
