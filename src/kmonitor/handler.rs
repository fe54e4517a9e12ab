//! `GET /delay`, and the endpoints that every daemon has.
//!
//! `format` is `json` (default) or `zabbix`. `cluster` selects one cluster and `module` one module; an unknown name is
//! answered with 404. But while a selected cluster has no snapshot, an unknown module is answered with 200, because
//! that cluster may have the module.

use std::collections::BTreeMap;
use std::sync::Arc;

use log::debug;

use crate::admin::Admin;
use crate::http::{Admission, Handler, Head, Reply, Request, Response, percent_decode};

use super::report::{snapshot_json as json, snapshot_zabbix as zabbix};
use super::snapshot::{SnapshotStore, Snapshots};

/// Largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Answers from the newest snapshots.
pub(super) struct DelayHandler {
    /// The delays of all clusters.
    pub store: SnapshotStore,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub admin: Admin,
}

impl Handler for DelayHandler {
    /// Reads the body, which no endpoint uses, so that an incomplete body is answered with 408 and a large one with
    /// 413.
    fn admit(self: Arc<Self>, _: &Head) -> Admission {
        let then = Box::new(move |request: Request, reply: Reply| {
            let head = &request.head;
            let response = self.answer(head);
            debug!("{} {} {}", head.method, head.path, response.status);
            reply.send(response);
        });
        Admission::Read { max_body_bytes: MAX_BODY_BYTES, then }
    }

    fn refusal(&self, status: u16, reason: &str) -> Response {
        refusal(status, "bad_request", reason)
    }
}

impl DelayHandler {
    fn answer(&self, head: &Head) -> Response {
        if let Some(response) = self.admin.answer(head) {
            return response;
        }
        if head.path != "/delay" {
            return refusal(404, "not_found", &format!("no such path: {:?}", head.path));
        }
        const ALLOWED: &str = "GET, HEAD, OPTIONS";
        match &*head.method {
            "GET" | "HEAD" => {}
            "OPTIONS" => return Response::new(200, "", "").with_header("Allow", ALLOWED),
            _ => {
                let message = "method not allowed: use GET or HEAD";
                return refusal(405, "method_not_allowed", message).with_header("Allow", ALLOWED);
            }
        }
        self.delay(head.query.as_deref().unwrap_or_default()).unwrap_or_else(|response| response)
    }

    fn delay(&self, query: &str) -> Result<Response, Response> {
        let parameters = parameters(query).map_err(|reason| refusal(400, "bad_query", &reason))?;
        let parameter = |name: &str| parameters.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let mut snapshots = self.store.snapshots();
        if let Some(cluster) = parameter("cluster") {
            snapshots.retain(|(name, _)| **name == *cluster);
            if snapshots.is_empty() {
                return Err(refusal(
                    404,
                    "unknown_cluster",
                    &format!("unknown cluster {cluster:?}: base.clusters does not name it"),
                ));
            }
        }
        let module = parameter("module");
        if let Some(module) = module.filter(|module| is_absent(&snapshots, module)) {
            let message = format!("unknown module {module:?}: it has no stored offsets in ZooKeeper");
            return Err(refusal(404, "unknown_module", &message));
        }
        match parameter("format").unwrap_or("json") {
            "json" => Ok(Response::json(200, json::render(&snapshots, module))),
            "zabbix" => Ok(Response::text(200, zabbix::render(&snapshots, module))),
            other => Err(refusal(400, "bad_format", &format!("format is {other:?}, but must be json or zabbix"))),
        }
    }
}

/// Returns whether every cluster has a snapshot and none of the snapshots has the module.
fn is_absent(snapshots: &Snapshots, module: &str) -> bool {
    snapshots.iter().all(|(_, snapshot)| snapshot.as_ref().is_some_and(|known| !known.modules.contains_key(module)))
}

fn refusal(status: u16, error: &str, message: &str) -> Response {
    Response::json(status, serde_json::json!({"error": error, "message": message}).to_string())
}

/// Parses and decodes a query such as `a=1&b=2`. Fails for a duplicate parameter or an invalid percent-encoding.
fn parameters(query: &str) -> Result<BTreeMap<String, String>, String> {
    let mut parameters = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(name)?;
        if parameters.insert(name.clone(), decoded(value)?).is_some() {
            return Err(format!("duplicate parameter {name:?}"));
        }
    }
    Ok(parameters)
}

fn decoded(text: &str) -> Result<String, String> {
    let bytes = percent_decode(text).ok_or_else(|| format!("invalid percent-encoding in {text:?}"))?;
    String::from_utf8(bytes.into_owned()).map_err(|_| format!("{text:?} does not decode to UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Health;
    use crate::kmonitor::delay::LogEnd::Newest;
    use crate::kmonitor::snapshot::tests::snapshot;
    use crate::metrics::Registry;

    fn respond(handler: &DelayHandler, method: &str, target: &str) -> (u16, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut head = Head { path: path.into(), query: Some(query.into()), ..Head::default() };
        head.method = method.to_owned().into();
        let response = handler.answer(&head);
        (response.status, String::from_utf8(response.body.to_vec()).unwrap())
    }

    #[test]
    fn every_request_has_its_answer() {
        let store = SnapshotStore::new(["c", "c 2", "away"]);
        let writers = store.writers();
        writers[0].put(Some(snapshot(&[("m", &[(3, Newest(15))]), ("n", &[(0, Newest(1))])])));
        writers[1].put(Some(snapshot(&[("m", &[(0, Newest(0))])])));
        let handler = DelayHandler { store, admin: Admin::new(Registry::new(), Health::new()) };
        let all = r#"{"c":{"m":{"0":12},"n":{"0":1}},"c 2":{"m":{"0":0}},"away":{}}"#;
        for (target, status, body) in [
            ("/delay", 200, all),
            ("/delay?", 200, all),
            ("/delay?format=json&cluster=&other=1", 200, all),
            ("/delay?cluster=c", 200, r#"{"c":{"m":{"0":12},"n":{"0":1}}}"#),
            ("/delay?cluster=c%202&module=m", 200, r#"{"c 2":{"m":{"0":0}}}"#),
            ("/delay?cluster=c+2", 200, r#"{"c 2":{"m":{"0":0}}}"#),
            ("/delay?cluster=away", 200, r#"{"away":{}}"#),
            ("/delay?cluster=c&format=zabbix", 200, "- c.m.0.delay 12\n- c.n.0.delay 1\n"),
            ("/delay?format=zabbix&module=n", 200, "- c.n.0.delay 1\n"),
            // One cluster has no snapshot, so it may have the module.
            ("/delay?module=x", 200, r#"{"c":{},"c 2":{},"away":{}}"#),
            ("/healthz", 200, r#"{"status":"ok"}"#),
            ("/", 200, r#"{"status":"ok"}"#),
        ] {
            assert_eq!(respond(&handler, "GET", target), (status, body.into()), "{target}");
        }
        for target in ["/delay", "*", "/", "/healthz"] {
            assert_eq!(respond(&handler, "OPTIONS", target), (200, String::new()), "{target}");
        }
        for (method, target, status, error) in [
            ("GET", "/delay?cluster=x", 404, "unknown_cluster"),
            ("GET", "/delay?cluster=c&module=x", 404, "unknown_module"),
            ("GET", "/delay?format=xml", 400, "bad_format"),
            ("GET", "/delay?cluster=c&cluster=c", 400, "bad_query"),
            ("GET", "/delay?cluster=%zz", 400, "bad_query"),
            ("GET", "/delay?cluster=%", 400, "bad_query"),
            ("GET", "/delay?cluster=%+1", 400, "bad_query"),
            ("GET", "/delay?cluster=%ff", 400, "bad_query"),
            ("GET", "/delays", 404, "not_found"),
            ("POST", "/delay", 405, "method_not_allowed"),
        ] {
            let (answered, body) = respond(&handler, method, target);
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!((answered, body["error"].as_str()), (status, Some(error)), "{target}");
        }
    }
}
