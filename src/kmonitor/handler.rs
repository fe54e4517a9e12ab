//! `/` for browsers, `/delay`, `/v1/delay`, `/v1/zabbix`, and the endpoints that every daemon has.
//!
//! Of `/delay` the parameter `format` is `json` (default) or `zabbix`. `cluster` selects one cluster and `module` one
//! module; an unknown name is answered with 404. But while a selected cluster is not known, an unknown module is
//! answered with 200, because that cluster may have the module.

use std::sync::Arc;

use crate::admin::Admin;
use crate::clock::boot_instant;
use crate::http::{Head, Response};

use super::page::DelayPageAnswers;
use super::published::PublishedPages;
use super::query::Parameters;
use super::refusals::{bad_query, refusal, unknown_cluster};
use super::report::legacy::{Missing, Selection};
use super::report::pages::{DelayFormat, Pages};
use super::zabbix_pages;

/// The methods of the pages.
const ALLOWED: &str = "GET, HEAD, OPTIONS";

/// Answers from the newest pages.
pub(super) struct DelayAnswers {
    /// The pages of the newest view.
    pub pages: Arc<PublishedPages>,
    /// `/` for browsers, and what it loads.
    pub page: DelayPageAnswers,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub admin: Admin,
}

impl DelayAnswers {
    /// Returns whether many modules have to be rendered for the answer from these pages.
    pub(super) fn is_to_be_rendered(head: &Head, pages: &Pages) -> bool {
        let selects = head.query.as_deref().is_some_and(|query| !query.is_empty());
        let has_own_page = match head.path.as_str() {
            "/v1/delay" => true,
            "/v1/zabbix" | "/v1/zabbix/discovery" => selects,
            _ => false,
        };
        has_own_page && matches!(&*head.method, "GET" | "HEAD") && !pages.has(head)
    }

    /// Answers a request from these pages.
    pub(super) fn answer(&self, head: &Head, pages: &Pages) -> Response {
        if let Some(response) = self.page.answer(head, || Arc::clone(&pages.view)) {
            return response;
        }
        if let Some(response) = self.admin.answer(head) {
            // A browser would have got the page.
            return if head.path == "/" { response.with_header("Vary", "Accept") } else { response };
        }
        let answer: fn(&Head, &Pages) -> Result<Response, Response> = match head.path.as_str() {
            "/delay" => delay,
            "/v1/delay" => delay_v1,
            "/v1/zabbix" => |head, pages| zabbix_pages::values(pages, head),
            "/v1/zabbix/discovery" => |head, pages| zabbix_pages::discovery(pages, head),
            path => return refusal(404, "not_found", &format!("no such path: {path:?}")),
        };
        match &*head.method {
            "GET" | "HEAD" => answer(head, pages).unwrap_or_else(|response| response),
            "OPTIONS" => Response::new(200, "", "").with_header("Allow", ALLOWED),
            _ => {
                let message = "method not allowed: use GET or HEAD";
                refusal(405, "method_not_allowed", message).with_header("Allow", ALLOWED)
            }
        }
    }
}

fn delay_v1(head: &Head, pages: &Pages) -> Result<Response, Response> {
    pages.delay_v1(head, boot_instant()).map_err(|reason| bad_query(&reason))
}

fn delay(head: &Head, pages: &Pages) -> Result<Response, Response> {
    let parameters = Parameters::of(head)?;
    let (format, content_type) = match parameters.value("format").unwrap_or("json") {
        "json" => (DelayFormat::Json, "application/json"),
        "zabbix" => (DelayFormat::Zabbix, "text/plain; charset=utf-8"),
        other => {
            return Err(refusal(400, "bad_format", &format!("format is {other:?}, but must be json or zabbix")));
        }
    };
    let selection = Selection { cluster: parameters.value("cluster"), module: parameters.value("module") };
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

#[cfg(test)]
pub(super) mod tests;
