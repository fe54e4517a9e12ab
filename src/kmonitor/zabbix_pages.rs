//! Answers requests for `/v1/zabbix` and `/v1/zabbix/discovery`.

use std::time::SystemTime;

use globset::{GlobBuilder, GlobMatcher};

use crate::clock::boot_instant;
use crate::http::{Body, Head, Response, Version};

use super::query::Parameters;
use super::refusals::{bad_query, unknown_cluster};
use super::report::pages::{Pages, target};
use super::report::zabbix_items::{Clock, Filter};

/// Longest glob, in bytes: longer than any name.
const MAX_GLOB_BYTES: usize = 1024;

/// Largest number of modules or partitions of an answer that is rendered for a request.
const MAX_ENTRIES: usize = 10_000;

const JSON: &str = "application/json";
const LINES: &str = "text/plain; charset=utf-8";

/// Answers `/v1/zabbix`.
pub(super) fn values(pages: &Pages, head: &Head) -> Result<Response, Response> {
    let parameters = Parameters::of(head)?;
    parameters.expect(&["cluster", "module", "level", "format", "timestamps"])?;
    let is_json = parameters.choice("format", &[("lines", false), ("json", true)])?;
    let with_times = parameters.choice("timestamps", &[("0", false), ("1", true)])?;
    let version = pages.version(boot_instant());
    with_filter(pages, &parameters, |filter| match is_json {
        true if filter.partitions => Err(bad_query("format=json has no level=partition")),
        true => Ok(page(version, head, JSON, filter.is_everything(), || pages.zabbix_document(&target(head), filter))),
        false => {
            let clock = Clock { wall: SystemTime::now(), now: boot_instant() };
            let is_rendered = with_times && filter.is_everything();
            Ok(page(version, head, LINES, is_rendered, || {
                pages.zabbix_values(&target(head), filter, with_times, clock)
            }))
        }
    })
}

/// Answers `/v1/zabbix/discovery`.
pub(super) fn discovery(pages: &Pages, head: &Head) -> Result<Response, Response> {
    let parameters = Parameters::of(head)?;
    parameters.expect(&["cluster", "module", "level"])?;
    let version = pages.version(boot_instant());
    with_filter(pages, &parameters, |filter| {
        Ok(page(version, head, JSON, filter.is_everything(), || pages.zabbix_discovery(&target(head), filter)))
    })
}

/// Answers with a page. HEAD renders none, and has the length of one that is rendered already.
fn page(
    version: Version,
    head: &Head,
    media_type: &'static str,
    is_rendered: bool,
    body: impl FnOnce() -> Body,
) -> Response {
    if is_rendered { version.answer_rendered(head, media_type, body()) } else { version.answer(head, media_type, body) }
}

/// Calls `answer` with what `cluster`, `module` and `level` select.
fn with_filter(
    pages: &Pages,
    parameters: &Parameters,
    answer: impl FnOnce(&Filter<'_>) -> Result<Response, Response>,
) -> Result<Response, Response> {
    let cluster = parameters.value("cluster");
    if let Some(name) = cluster.filter(|name| !pages.view.clusters.iter().any(|known| *known.name == **name)) {
        return Err(unknown_cluster(name));
    }
    let partitions = parameters.choice("level", &[("module", false), ("partition", true)])?;
    let glob = parameters.value("module").map(glob).transpose()?;
    let matches = glob.as_ref().map(|glob| move |name: &str| glob.is_match(name));
    let module = matches.as_ref().map(|matches| matches as &dyn Fn(&str) -> bool);
    let filter = Filter { cluster, module, partitions };
    let count = if filter.is_everything() { 0 } else { filter.count(&pages.view) };
    if MAX_ENTRIES < count {
        let kind = if partitions { "partitions" } else { "modules" };
        let reason =
            format!("{count} {kind} are selected, but an answer has {MAX_ENTRIES}: select by cluster and module");
        return Err(bad_query(&reason));
    }
    answer(&filter)
}

fn glob(text: &str) -> Result<GlobMatcher, Response> {
    if text.len() > MAX_GLOB_BYTES {
        return Err(bad_query(&format!("module has {} bytes, but may have {MAX_GLOB_BYTES}", text.len())));
    }
    let built = GlobBuilder::new(text).build();
    built.map(|glob| glob.compile_matcher()).map_err(|cause| bad_query(&format!("module is no glob: {}", cause.kind())))
}
