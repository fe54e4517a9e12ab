//! An operator of a running ktransfer: by HTTP at `admin_port`, and by the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::NamedTempFile;

use super::http::{self, Client};
use super::{ConfigFile, Ktransfer, Program, binary};

/// The token of the operator `ann`.
pub(crate) const TOKEN: &str = "story-token";
/// The token of the operator `bob`, who may operate no topic of the stories.
pub(crate) const TOKEN_OF_BOB: &str = "b";

/// A credentials file with the operators `ann` and `bob`, for one or more instances.
pub(crate) struct Operators(NamedTempFile);

impl Operators {
    pub(crate) fn new() -> Operators {
        let file = NamedTempFile::new().expect("a temporary file");
        let text = format!(
            "credentials:\n- {{name: ann, token: {TOKEN}}}\n- {{name: bob, token: {TOKEN_OF_BOB}, topics: [x]}}\n"
        );
        fs::write(file.path(), text).expect("a temporary file");
        Operators(file)
    }

    /// Adds the file to `ktransfer.yaml`.
    pub(crate) fn operate(&self, config: ConfigFile) -> ConfigFile {
        config.set("credentials_file", self.0.path())
    }
}

/// Operates one module of an instance.
pub(crate) struct Operator {
    admin: String,
    folder: PathBuf,
    module: String,
}

impl Operator {
    pub(crate) fn of(ktransfer: &Ktransfer, module: &str) -> Operator {
        let folder: &Path = ktransfer.daemon.folder();
        Operator { admin: ktransfer.admin.clone(), folder: folder.to_owned(), module: module.to_owned() }
    }

    /// Posts an operation; returns status and answer.
    #[track_caller]
    pub(crate) fn post(&self, operation: &str, body: &str) -> (u16, Value) {
        self.post_as(TOKEN, operation, body.as_bytes())
    }

    #[track_caller]
    pub(crate) fn post_as(&self, token: &str, operation: &str, body: &[u8]) -> (u16, Value) {
        let path = format!("/v1/modules/{}/{operation}", self.module);
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", authorization.as_str()), ("Connection", "close")];
        let mut client = Client::connect(&self.admin).expect("admin_port listens");
        let answer = client.request("POST", &path, &headers, body).expect("admin_port answers");
        (answer.status, answer.json())
    }

    /// Returns the module in `GET /v1/modules`.
    #[track_caller]
    pub(crate) fn module(&self) -> Value {
        let url = format!("http://{}/v1/modules/{}", self.admin, self.module);
        http::get(&url).expect("admin_port answers").json()
    }

    /// Returns the claimed partitions with this state, from the status.
    #[track_caller]
    pub(crate) fn partitions_that_are(&self, state: &str) -> Vec<i64> {
        let module = self.module();
        let partitions = module["partitions"].as_array().into_iter().flatten();
        partitions.filter(|of| of["state"] == state).filter_map(|of| of["partition"].as_i64()).collect()
    }

    /// Runs ktransfer_bin with the file of this instance and these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        self.command_as(Some(TOKEN), arguments)
    }

    /// As [`Operator::command`], with this token in the environment.
    pub(crate) fn command_as(&self, token: Option<&str>, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary(Program::Ktransfer));
        command.current_dir(&self.folder).args(["-f", "conf/ktransfer.yaml"]).args(arguments);
        command.env_remove("KTRANSFER_TOKEN").envs(token.map(|token| ("KTRANSFER_TOKEN", token)));
        command.output().expect("the program runs")
    }
}
