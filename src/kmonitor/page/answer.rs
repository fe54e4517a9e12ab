//! Answers requests for the page, its rows and its files.
//!
//! What most clients request is rendered at most once a second, whatever their number, and its bytes are shared. It is
//! not rendered once a view, because the ages in it would then stand still when the poller does.

use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use crate::html::assets::{self, accepts_html, with_page_headers};
use crate::http::{Body, Head, Response, SharedBytes, Version};
use crate::kmonitor::facts::Moment;
use crate::kmonitor::view::View;
use crate::locks::lock;

use super::{Query, rows, version, whole};

/// The media type of the page and of its rows.
const HTML: &str = "text/html; charset=utf-8";

/// The methods of the page.
const ALLOWED: &str = "GET, HEAD, OPTIONS";

/// The answers, with what was rendered last.
#[derive(Default)]
pub(crate) struct PageAnswers {
    page: Rendered,
    rows: Rendered,
}

/// Bytes that are rendered at most once a second for each version. The lock is not held while they are rendered.
#[derive(Default)]
struct Rendered(Mutex<Option<(Moments, SharedBytes)>>);

/// A version and a second of the clock.
type Moments = (String, u64);

impl PageAnswers {
    /// Answers a request for the page, its rows or one of its files; `None` for every other path, and for `/` if the
    /// client does not accept HTML: that is the check of a load balancer.
    pub(crate) fn answer(&self, head: &Head, view: impl FnOnce() -> Arc<View>) -> Option<Response> {
        let is_page = head.path == "/" && matches!(&*head.method, "GET" | "HEAD") && accepts_html(head);
        if !is_page && head.path != "/rows" {
            return if matches!(&*head.method, "GET" | "HEAD") { assets::answer(head) } else { None };
        }
        Some(match &*head.method {
            "GET" | "HEAD" => match Query::parse(head.query.as_deref().unwrap_or_default()) {
                Ok(query) if is_page => self.page(head, &query, &view()),
                Ok(query) => self.rows(head, &query, &view()),
                Err(reason) => Response::text(400, format!("{reason}\n")),
            },
            "OPTIONS" => Response::new(200, "", "").with_header("Allow", ALLOWED),
            _ => Response::text(405, "method not allowed: use GET or HEAD\n").with_header("Allow", ALLOWED),
        })
    }

    /// The page has no ETag: a browser that loads it again wants to see the ages of now.
    fn page(&self, head: &Head, query: &Query, view: &View) -> Response {
        let now = Moment::now();
        let body = match &*head.method {
            "HEAD" => Body::Omitted,
            _ => self.page.get(query, view, now, whole),
        };
        let response = Response::new(200, HTML, body).with_header("Cache-Control", "no-cache");
        with_page_headers(response.with_header("Vary", "Accept"))
    }

    fn rows(&self, head: &Head, query: &Query, view: &View) -> Response {
        let now = Moment::now();
        let render = || self.rows.get(query, view, now, rows);
        with_page_headers(Version::new(version(view, query, now)).answer(head, HTML, render))
    }
}

impl Rendered {
    fn get(&self, query: &Query, view: &View, now: Moment, render: fn(&View, &Query, Moment) -> String) -> Body {
        if *query != Query::default() {
            return render(view, query, now).into_bytes().into();
        }
        let second = now.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let wanted = (version(view, query, now), second);
        if let Some((rendered, bytes)) = &*lock(&self.0)
            && *rendered == wanted
        {
            return bytes.clone().into();
        }
        let bytes = SharedBytes::from(render(view, query, now).into_bytes());
        let _old = lock(&self.0).replace((wanted, bytes.clone()));
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::page::samples;

    fn request(
        answers: &PageAnswers,
        method: &'static str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Option<Response> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut head = Head { method: method.into(), path: path.into(), query: Some(query.into()), ..Head::default() };
        for (name, value) in headers {
            head.headers.push(name, value.as_bytes());
        }
        answers.answer(&head, || Arc::new(samples::late()))
    }

    #[test]
    fn browsers_get_the_page_and_everybody_the_rows() {
        let answers = PageAnswers::default();
        let html = [("Accept", "text/html")];
        for (method, target, headers, status) in [
            ("GET", "/", &html[..], Some(200)),
            ("HEAD", "/?filter=a", &html, Some(200)),
            ("GET", "/", &[], None),
            ("OPTIONS", "/", &html, None),
            ("POST", "/", &html, None),
            ("GET", "/?x=1", &html, Some(400)),
            ("GET", "/?x=1", &[], None),
            ("GET", "/rows", &[], Some(200)),
            ("GET", "/rows?sort=x", &[], Some(400)),
            ("OPTIONS", "/rows", &[], Some(200)),
            ("POST", "/rows", &[], Some(405)),
            ("GET", &crate::html::assets::assets().style.path, &[], Some(200)),
            ("GET", "/static/x", &[], None),
            ("GET", "/delay", &html, None),
        ] {
            let answered = request(&answers, method, target, headers).map(|response| response.status);
            assert_eq!(answered, status, "{method} {target}");
        }
    }

    #[test]
    fn the_page_of_most_clients_is_shared_and_a_selection_is_not() {
        let answers = PageAnswers::default();
        let (view, now) = (samples::late(), Moment::now());
        let page = |query: &str| answers.page.get(&Query::parse(query).unwrap(), &view, now, whole);
        let (one, other) = (page(""), page(""));
        let at = |body: &Body| match body {
            Body::Shared { bytes, .. } => Some(bytes.as_ptr()),
            _ => None,
        };
        assert!(at(&one).is_some() && at(&one) == at(&other));
        assert!(matches!(page("sort=name"), Body::Owned(_)));
        let later = Moment { wall: now.wall + std::time::Duration::from_secs(1), ..now };
        let later = answers.page.get(&Query::default(), &view, later, whole);
        assert!(at(&later).is_some() && at(&later) != at(&one), "the ages have changed");
    }

    #[test]
    fn rows_that_are_known_are_not_sent_again() {
        let answers = PageAnswers::default();
        let view = samples::late();
        let query = Query::parse("").unwrap();
        let mut head = Head { method: "GET".into(), path: "/rows".into(), ..Head::default() };
        let first = answers.rows(&head, &query, &view);
        let etag = &first.headers.iter().find(|(name, _)| *name == "ETag").unwrap().1;
        head.headers.push("If-None-Match", etag.as_bytes());
        let again = answers.rows(&head, &query, &view);
        assert_eq!((first.status, again.status, again.body.len()), (200, 304, 0));
    }
}
