//! The HTTP side: `admin_port` with the page, the state of the modules and the operations on them.

use std::sync::Arc;

use crossbeam_channel::{Sender, TrySendError};
use prometheus::IntCounterVec;
use serde_json::json;

use super::answer::{answer_of, unknown_module};
use super::executor::Task;
use super::operation::Refusal;
use super::parse::{self, OperationName, Target};
use super::registry::Operations;
use crate::access::{Credential, CredentialsInForce};
use crate::admin::Admin;
use crate::clock::Moment;
use crate::html::answer::Recent;
use crate::http::{Admission, Handler, Head, Response};
use crate::ktransfer::page::{ModulesContent, ModulesPageAnswers};

/// Largest body of a request.
const MAX_BODY_BYTES: usize = 4096;
/// Bound of the queue of operations. While it is full, further ones are answered with 503.
pub(crate) const QUEUED_TASKS: usize = 16;

/// The handler of `admin_port`.
pub(crate) struct OperationsHandler {
    admin: Admin,
    operations: Operations,
    /// `None` without `credentials_file`: then operations are refused.
    credentials: Option<CredentialsInForce>,
    tasks: Sender<Task>,
    refused: IntCounterVec,
    /// `/` for browsers, and what it loads.
    page: ModulesPageAnswers,
    content: Recent<ModulesContent>,
}

impl OperationsHandler {
    /// Creates the handler. `refused` counts operations by `operation` and `result`.
    pub(crate) fn new(
        admin: Admin,
        operations: Operations,
        credentials: Option<CredentialsInForce>,
        tasks: Sender<Task>,
        counter: IntCounterVec,
    ) -> OperationsHandler {
        let (page, content) = (ModulesPageAnswers::default(), Recent::default());
        OperationsHandler { admin, operations, credentials, tasks, refused: counter, page, content }
    }

    /// Returns what the page shows.
    fn content(&self) -> Arc<ModulesContent> {
        let now = Moment::now();
        self.content.get(now.at, || ModulesContent::take(&self.operations, self.admin.health().troubles(), now))
    }

    fn show(&self, module: Option<&str>) -> Response {
        match module {
            None => {
                let modules: Vec<_> = self.operations.all().iter().map(|handle| handle.json()).collect();
                Response::json(200, json!({"modules": modules}).to_string())
            }
            Some(name) => match self.operations.get(name) {
                Some(handle) => Response::json(200, handle.json().to_string()),
                None => answer_of(&unknown_module(name)),
            },
        }
    }

    /// Returns the credential of an operator who may operate the module `name`.
    fn authorize(&self, name: &str, head: &Head) -> Result<Arc<Credential>, Response> {
        let Some(credentials) = &self.credentials else {
            let message = "operations are disabled: ktransfer.yaml has no credentials_file";
            return Err(answer_of(&Refusal::new(403, "operations_disabled", message)));
        };
        let credential = credentials.authenticate(&head.headers).map_err(|refused| {
            let answer = answer_of(&Refusal::new(401, "unauthorized", refused.message));
            answer.with_header("WWW-Authenticate", refused.challenges)
        })?;
        let Some(handle) = self.operations.get(name) else { return Err(answer_of(&unknown_module(name))) };
        match &credential.topics {
            Some(topics) if !topics.contain(&handle.topic) => {
                let message = format!("topic {} is not in topics of credential {}", handle.topic, credential.name);
                Err(answer_of(&Refusal::new(403, "topic_not_allowed", message)))
            }
            _ => Ok(credential),
        }
    }

    fn operate(self: Arc<Self>, module: Arc<str>, name: OperationName, head: &Head) -> Admission {
        if head.method != "POST" {
            let refusal = Refusal::new(405, "method_not_allowed", "method not allowed: use POST");
            return Admission::Refuse(answer_of(&refusal).with_header("Allow", "POST"));
        }
        let credential = match self.authorize(&module, head) {
            Ok(credential) => credential,
            Err(answer) => {
                self.refused.with_label_values(&[name.word(), "refused"]).inc();
                return Admission::Refuse(answer);
            }
        };
        let is_dry_run = match parse::is_dry_run(head.query.as_deref()) {
            Ok(is_dry_run) => is_dry_run,
            Err(refusal) => return Admission::Refuse(answer_of(&refusal)),
        };
        Admission::Read {
            max_body_bytes: MAX_BODY_BYTES,
            then: Box::new(move |request, reply| {
                let operation = match parse::operation(name, &request.body) {
                    Ok(operation) => operation,
                    Err(refusal) => {
                        self.refused.with_label_values(&[name.word(), "refused"]).inc();
                        return reply.send(answer_of(&refusal));
                    }
                };
                let (by, peer) = (Arc::clone(&credential.name), request.head.peer.clone());
                let task = Task { module, operation, is_dry_run, by, peer, reply };
                if let Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) = self.tasks.try_send(task) {
                    let refusal = Refusal::new(503, "busy", "too many operations are waiting; nothing was changed");
                    task.reply.send(answer_of(&refusal).with_header("Retry-After", "1"));
                }
            }),
        }
    }
}

impl OperationName {
    /// Returns the last segment of the path.
    fn word(self) -> &'static str {
        match self {
            OperationName::Pause => "pause",
            OperationName::Resume => "resume",
            OperationName::Skip => "skip",
            OperationName::Seek => "seek",
        }
    }
}

impl Handler for OperationsHandler {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        if let Some(answer) = self.page.answer(head, || self.content()) {
            return Admission::Refuse(answer);
        }
        if let Some(answer) = self.admin.answer(head) {
            // A browser would have got the page.
            let answer = if head.path == "/" { answer.with_header("Vary", "Accept") } else { answer };
            return Admission::Refuse(answer);
        }
        let is_read = matches!(&*head.method, "GET" | "HEAD");
        match parse::target(&head.path) {
            Some(Target::Operation(module, name)) => self.operate(module, name, head),
            Some(Target::All) if is_read => Admission::Refuse(self.show(None)),
            Some(Target::Module(name)) if is_read => Admission::Refuse(self.show(Some(&name))),
            Some(_) => {
                let refusal = Refusal::new(405, "method_not_allowed", "method not allowed: use GET");
                Admission::Refuse(answer_of(&refusal).with_header("Allow", "GET, HEAD"))
            }
            None => {
                let paths = "use /metrics, /healthz, /readyz, /v1/modules or /v1/modules/MODULE/OPERATION with one of \
                             pause, resume, skip, seek";
                Admission::Refuse(answer_of(&Refusal::new(404, "unknown_path", format!("not found: {paths}"))))
            }
        }
    }

    fn refusal(&self, status: u16, reason: &str, _peer: &str) -> Response {
        answer_of(&Refusal::new(status, "invalid_request", reason))
    }
}
