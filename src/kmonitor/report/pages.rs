//! The pages that are rendered when a view is published, so that a request costs no rendering and all clients of a page
//! share its memory.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::legacy::{DelayPage, Missing, Selection};
use super::prometheus::{self, Detail};
use super::zabbix_items::{self, Clock, Filter};
use super::{json, v1, zabbix};
use crate::clock::boot_instant;
use crate::http::{Body, Head, PageWatch, Response, SharedBytes, Version};
use crate::kmonitor::view::View;
use crate::locks::lock;

/// A view and its pages.
pub(crate) struct Pages {
    /// The view.
    pub(crate) view: Arc<View>,
    /// Modules that the lines of `/delay?format=zabbix` leave out, because they would share a key.
    pub(crate) ambiguous: Vec<String>,
    /// A number that is another one after a restart.
    started: u128,
    json: DelayPage,
    zabbix: DelayPage,
    metrics: SharedBytes,
    zabbix_values: SharedBytes,
    zabbix_document: SharedBytes,
    zabbix_discovery: SharedBytes,
    requested: Mutex<Requested>,
}

/// Pages that were rendered for a request, by its target, and their size.
#[derive(Default)]
struct Requested {
    pages: Vec<(String, SharedBytes)>,
    bytes: usize,
    /// There is a newer view: no page is kept any more.
    is_closed: bool,
}

/// Largest number of pages of a view that are kept after they were rendered for a request.
const MAX_REQUESTED: usize = 16;
/// Largest size of these pages together. Clients that read slowly hold them for a minute, also when there is a newer
/// view.
const MAX_REQUESTED_BYTES: usize = 8 << 20;
/// Longest target of a request whose page is kept.
const MAX_TARGET_BYTES: usize = 1_024;

/// The formats of `/delay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DelayFormat {
    /// As JSON.
    Json,
    /// As lines for `zabbix_sender`.
    Zabbix,
}

impl Pages {
    /// Renders the pages of a view. `started` is part of their version, since the numbers of views begin again.
    pub(crate) fn render(view: Arc<View>, detail: Detail, started: u128) -> Self {
        let (zabbix, ambiguous) = zabbix::render(&view);
        let clock = Clock { wall: SystemTime::now(), now: boot_instant() };
        let everything = Filter::default();
        Pages {
            ambiguous,
            started,
            json: json::render(&view),
            zabbix,
            metrics: prometheus::render(&view, detail).into(),
            zabbix_values: zabbix_items::render_values(&view, &everything, Some(clock)).into(),
            zabbix_document: zabbix_items::render_document(&view, &everything).into(),
            zabbix_discovery: zabbix_items::render_discovery(&view, &everything).into(),
            requested: Mutex::default(),
            view,
        }
    }

    /// Returns the version of all pages of the view, which is a different one after a restart too.
    pub(crate) fn version(&self, now: Instant) -> Version {
        let known: String = self.view.clusters.iter().map(|cluster| if cluster.known { 'k' } else { 'u' }).collect();
        let version = Version::new(format_args!("{:x}-{}-{known}", self.started, self.view.number));
        match self.age(now) {
            Some(age) => version.aged(age),
            None => version,
        }
    }

    /// Returns the age of the oldest number that is shown.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        let oldest = self.view.clusters.iter().filter_map(|cluster| cluster.oldest_read).min()?;
        Some(now.saturating_duration_since(oldest))
    }

    /// Returns `/delay`.
    pub(crate) fn delay(&self, format: DelayFormat, selection: Selection<'_>) -> Result<Body, Missing> {
        self.json.check(selection)?;
        Ok(match format {
            DelayFormat::Json => json::select(&self.json, selection),
            DelayFormat::Zabbix => zabbix::select(&self.zabbix, selection),
        })
    }

    /// Answers `/v1/delay`, or returns why the query is refused.
    pub(crate) fn delay_v1(&self, head: &Head, now: Instant) -> Result<Response, String> {
        v1::answer(&self.view, head, now, |render| self.requested(&target(head), render))
    }

    /// Keeps no further pages of requests, since there is a newer view, and returns references to all pages that
    /// clients share. A page that is still being rendered then is memory of its response.
    pub(crate) fn close(&self) -> Vec<PageWatch> {
        let rendered = [
            &self.json.bytes,
            &self.zabbix.bytes,
            &self.metrics,
            &self.zabbix_values,
            &self.zabbix_document,
            &self.zabbix_discovery,
        ];
        let mut requested = lock(&self.requested);
        requested.is_closed = true;
        rendered.into_iter().chain(requested.pages.iter().map(|(_, page)| page)).map(SharedBytes::watch).collect()
    }

    /// Whether the page of a request is kept.
    pub(crate) fn has(&self, head: &Head) -> bool {
        let target = target(head);
        lock(&self.requested).pages.iter().any(|(known, _)| *known == target)
    }

    /// Returns the metrics of the view, as [`crate::admin::Admin`] adds them to `/metrics`.
    pub(crate) fn metrics(&self, now: Instant) -> (Vec<u8>, SharedBytes) {
        (prometheus::render_ages(&self.view, now), self.metrics.clone())
    }

    /// Returns `/v1/zabbix`, with times or without. `target`: what was requested.
    pub(crate) fn zabbix_values(&self, target: &str, filter: &Filter<'_>, with_times: bool, clock: Clock) -> Body {
        if with_times && filter.is_everything() {
            return self.zabbix_values.clone().into();
        }
        self.requested(target, || zabbix_items::render_values(&self.view, filter, with_times.then_some(clock)))
    }

    /// Returns `/v1/zabbix?format=json`.
    pub(crate) fn zabbix_document(&self, target: &str, filter: &Filter<'_>) -> Body {
        if filter.is_everything() {
            return self.zabbix_document.clone().into();
        }
        self.requested(target, || zabbix_items::render_document(&self.view, filter))
    }

    /// Returns `/v1/zabbix/discovery`.
    pub(crate) fn zabbix_discovery(&self, target: &str, filter: &Filter<'_>) -> Body {
        if filter.is_everything() {
            return self.zabbix_discovery.clone().into();
        }
        self.requested(target, || zabbix_items::render_discovery(&self.view, filter))
    }

    /// Returns the page of a request. It is kept, so that many requests of one target render it once a view, and share
    /// its memory. A page that is not kept is memory of the response, which counts in the budget of the server.
    fn requested(&self, target: &str, render: impl FnOnce() -> Vec<u8>) -> Body {
        let is_it = |(known, _): &&(String, SharedBytes)| known == target;
        if let Some((_, page)) = lock(&self.requested).pages.iter().find(is_it) {
            return page.clone().into();
        }
        let page = render();
        let mut requested = lock(&self.requested);
        let is_kept = !requested.is_closed
            && requested.pages.len() < MAX_REQUESTED
            && requested.bytes + page.len() <= MAX_REQUESTED_BYTES
            && target.len() <= MAX_TARGET_BYTES;
        if !is_kept {
            return page.into();
        }
        requested.bytes += page.len();
        let page = SharedBytes::from(page);
        requested.pages.push((target.to_owned(), page.clone()));
        page.into()
    }
}

/// Returns what is requested, as the client wrote it.
pub(crate) fn target(head: &Head) -> String {
    format!("{}?{}", head.path, head.query.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};
    use crate::kmonitor::report::prometheus::DetailLevel;

    #[test]
    fn pages_that_all_clients_get_are_shared() {
        let one = module("m", "t", vec![partition(0, Some(12))]);
        let all = Arc::new(view(vec![cluster("c", vec![one]), unknown("away")]));
        let pages = Pages::render(all, Detail { level: DetailLevel::Auto, max_partitions: 1 }, 1);
        let now = Instant::now();
        let clock = Clock { wall: SystemTime::now(), now };
        let (c, m) = (Selection { cluster: Some("c"), module: None }, |name: &str| name == "m");
        let only_m = Filter { module: Some(&m), ..Filter::default() };
        for (page, text) in [
            (pages.delay(DelayFormat::Json, Selection::default()).unwrap(), r#"{"c":{"m":{"0":12}},"away":{}}"#),
            (pages.delay(DelayFormat::Json, c).unwrap(), r#"{"c":{"m":{"0":12}}}"#),
            (pages.delay(DelayFormat::Zabbix, c).unwrap(), "- c.m.0.delay 12\n"),
            (pages.zabbix_values("1", &Filter::default(), true, clock), "- kmonitor.delay[c,m,t,zookeeper] "),
            (pages.zabbix_values("2", &Filter::default(), false, clock), "- kmonitor.alive 1\n"),
            (pages.zabbix_values("3", &only_m, true, clock), "- kmonitor.delay[c,m,t,zookeeper] "),
            (pages.zabbix_document("4", &Filter::default()), r#""delay":12,"#),
            (pages.zabbix_document("5", &only_m), r#""delay":12,"#),
            (pages.zabbix_discovery("6", &Filter::default()), r##""{#MODULE}":"m""##),
            (pages.zabbix_discovery("7", &only_m), r##""{#MODULE}":"m""##),
        ] {
            assert!(matches!(page, Body::Shared { .. }), "{text}");
            let page = String::from_utf8(page.to_vec()).unwrap();
            assert!(page.contains(text), "{text} {page}");
        }
        let (ages, metrics) = pages.metrics(now);
        assert!(String::from_utf8(ages).unwrap().contains("kmonitor_age_seconds{cluster=\"c\"} 0."));
        assert!(std::str::from_utf8(&metrics).unwrap().contains("kmonitor_module_verdict{"));
        assert!(pages.age(now + Duration::from_secs(3)).unwrap() >= Duration::from_secs(3));
        assert_eq!(
            pages.delay(DelayFormat::Zabbix, Selection { cluster: Some("x"), module: None }),
            Err(Missing::Cluster)
        );
    }

    #[test]
    fn a_page_is_rendered_once_for_all_requests_of_a_target_and_few_are_kept() {
        let one = module("m", "t", vec![partition(0, Some(12))]);
        let all = Arc::new(view(vec![cluster("c", vec![one])]));
        let pages = Pages::render(all, Detail { level: DetailLevel::Auto, max_partitions: 1 }, 1);
        let renders = std::cell::Cell::new(0);
        let request = |target: &str| {
            let render = || {
                renders.set(renders.get() + 1);
                target.as_bytes().to_vec()
            };
            assert_eq!(pages.requested(target, render).to_vec(), target.as_bytes());
        };
        (0..100).for_each(|_| request("/v1/zabbix?module=a"));
        assert_eq!(renders.get(), 1);
        (0..100).for_each(|number| request(&format!("/v1/zabbix?module={number}")));
        request(&"x".repeat(MAX_TARGET_BYTES + 1));
        assert_eq!(lock(&pages.requested).pages.len(), MAX_REQUESTED);
        request("/v1/zabbix?module=a");
        assert_eq!(renders.get(), 102);
    }

    #[test]
    fn pages_that_are_kept_are_bounded_and_others_are_memory_of_their_responses() {
        let all = Arc::new(view(vec![]));
        let pages = Pages::render(all, Detail { level: DetailLevel::Auto, max_partitions: 1 }, 1);
        let is_kept = |target: &str, bytes| {
            let body = pages.requested(target, || vec![b'x'; bytes]);
            assert_eq!(body.len(), bytes, "{target}");
            matches!(body, Body::Shared { .. })
        };
        let half = MAX_REQUESTED_BYTES / 2;
        assert!(is_kept("a", half));
        assert!(!is_kept("b", half + 1));
        assert!(is_kept("c", half) && is_kept("a", half));
        assert!(!is_kept("d", 1));
        assert_eq!(lock(&pages.requested).bytes, MAX_REQUESTED_BYTES);
    }

    #[test]
    fn a_page_that_is_rendered_while_a_newer_view_is_published_is_memory_of_its_response() {
        let pages = Pages::render(Arc::new(view(vec![])), Detail { level: DetailLevel::Auto, max_partitions: 1 }, 1);
        let mut watched = 0;
        let body = pages.requested("a", || {
            watched = pages.close().len();
            b"x".to_vec()
        });
        assert!(matches!(body, Body::Owned(_)), "none of the {watched} pages that are watched");
        assert!(matches!(pages.requested("b", || b"y".to_vec()), Body::Owned(_)));
    }
}
