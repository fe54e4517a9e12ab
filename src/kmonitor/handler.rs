//! `/` for browsers, `/delay`, `/v1/delay`, `/v1/zabbix`, and the endpoints that every daemon has.
//!
//! Of `/delay` the parameter `format` is `json` (default) or `zabbix`. `cluster` selects one cluster and `module` one
//! module; an unknown name is answered with 404. But while a selected cluster is not known, an unknown module is
//! answered with 200, because that cluster may have the module.

use std::sync::Arc;

use log::debug;

use crate::admin::Admin;
use crate::clock::boot_instant;
use crate::http::{Admission, Handler, Head, Reply, Request, Response};

use super::page::DelayPageAnswers;
use super::published::PublishedPages;
use super::query::Parameters;
use super::refusals::{refusal, unknown_cluster};
use super::report::legacy::{Missing, Selection};
use super::report::pages::DelayFormat;
use super::report::v1;
use super::zabbix_pages;

/// Largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;

/// The methods of the pages.
const ALLOWED: &str = "GET, HEAD, OPTIONS";

/// Answers from the newest pages.
pub(super) struct DelayHandler {
    /// The pages of the newest view.
    pub pages: Arc<PublishedPages>,
    /// `/` for browsers, and what it loads.
    pub page: DelayPageAnswers,
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
        if let Some(response) = self.page.answer(head, || Arc::clone(&self.pages.pages().view)) {
            return response;
        }
        if let Some(response) = self.admin.answer(head) {
            // A browser would have got the page.
            return if head.path == "/" { response.with_header("Vary", "Accept") } else { response };
        }
        let answer: fn(&Self, &Head) -> Result<Response, Response> = match head.path.as_str() {
            "/delay" => Self::delay,
            "/v1/delay" => Self::delay_v1,
            "/v1/zabbix" => |handler, head| zabbix_pages::values(&handler.pages.pages(), head),
            "/v1/zabbix/discovery" => |handler, head| zabbix_pages::discovery(&handler.pages.pages(), head),
            path => return refusal(404, "not_found", &format!("no such path: {path:?}")),
        };
        match &*head.method {
            "GET" | "HEAD" => answer(self, head).unwrap_or_else(|response| response),
            "OPTIONS" => Response::new(200, "", "").with_header("Allow", ALLOWED),
            _ => {
                let message = "method not allowed: use GET or HEAD";
                refusal(405, "method_not_allowed", message).with_header("Allow", ALLOWED)
            }
        }
    }

    fn delay_v1(&self, head: &Head) -> Result<Response, Response> {
        v1::answer(&self.pages.pages().view, head, boot_instant()).map_err(|reason| refusal(400, "bad_query", &reason))
    }

    fn delay(&self, head: &Head) -> Result<Response, Response> {
        let parameters = Parameters::of(head)?;
        let (format, content_type) = match parameters.value("format").unwrap_or("json") {
            "json" => (DelayFormat::Json, "application/json"),
            "zabbix" => (DelayFormat::Zabbix, "text/plain; charset=utf-8"),
            other => {
                return Err(refusal(400, "bad_format", &format!("format is {other:?}, but must be json or zabbix")));
            }
        };
        let selection = Selection { cluster: parameters.value("cluster"), module: parameters.value("module") };
        let pages = self.pages.pages();
        match pages.delay(format, selection) {
            Ok(body) => Ok(pages.version(boot_instant()).answer_rendered(head, content_type, body)),
            Err(Missing::Cluster) => Err(unknown_cluster(selection.cluster.unwrap_or_default())),
            Err(Missing::Module) => {
                let module = selection.module.unwrap_or_default();
                let message = format!("no module {module:?} has stored offsets");
                Err(refusal(404, "unknown_module", &message))
            }
        }
    }
}

#[cfg(test)]
mod tests;
