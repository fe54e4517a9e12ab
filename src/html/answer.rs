//! Answers requests for a page, its rows and its files.
//!
//! A page that several clients request in the same second is rendered once, and its bytes are shared. So a page that
//! many people have open, or that a program requests in a loop, costs little. The page is rendered again every second
//! even without a change, because the ages in it would otherwise stand still.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::assets::{self, accepts_html, with_page_headers};
use super::query::{Parameters, Query};
use crate::clock::Moment;
use crate::http::{Body, Head, OlderPages, Response, SharedBytes, Version};
use crate::locks::lock;

/// The media type of the page and of its rows.
const HTML: &str = "text/html; charset=utf-8";

/// The methods of the page.
const ALLOWED: &str = "GET, HEAD, OPTIONS";

/// Number of different answers that are kept, for the page and for its rows.
const MAX_KEPT: usize = 4;

/// Limit on the memory of earlier answers that clients still read, for the page and for its rows.
const MAX_OLDER_BYTES: usize = 8 << 20;

/// A page of a daemon: pure functions of its content.
pub(crate) trait Page: Parameters {
    /// The content that the page shows.
    type Content;

    /// Returns the version of the rows. It changes when the rows change, but not with the ages in them, which the
    /// script keeps current.
    fn version(content: &Self::Content, query: &Query<Self>, now: Moment) -> String;

    /// Renders the whole page.
    fn whole(content: &Self::Content, query: &Query<Self>, now: Moment) -> String;

    /// Renders what the script replaces.
    fn rows(content: &Self::Content, query: &Query<Self>, now: Moment) -> String;
}

/// Content that is taken at most once a second, whatever the number of requests.
pub(crate) struct Recent<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent(Mutex::default())
    }
}

impl<T> Recent<T> {
    /// Returns the content, which `take` returns if the last one is older than a second.
    pub(crate) fn get(&self, now: Instant, take: impl FnOnce() -> T) -> Arc<T> {
        let mut recent = lock(&self.0);
        match &*recent {
            Some((at, content)) if now.saturating_duration_since(*at) < Duration::from_secs(1) => Arc::clone(content),
            _ => {
                let content = Arc::new(take());
                *recent = Some((now, Arc::clone(&content)));
                content
            }
        }
    }
}

/// The answers of a page, with the latest rendered bytes.
pub(crate) struct PageAnswers<P: Page> {
    page: Rendered<P>,
    rows: Rendered<P>,
}

/// Bytes that are rendered at most once a second for each query and version. The lock is not held while they are
/// rendered.
struct Rendered<P: Page> {
    kept: Mutex<Vec<(RenderedKey<P>, SharedBytes)>>,
    older: OlderPages,
}

/// A query, a version and a second of the clock.
type RenderedKey<P> = (Query<P>, String, u64);

impl<P: Page> Default for PageAnswers<P> {
    fn default() -> Self {
        PageAnswers { page: Rendered::default(), rows: Rendered::default() }
    }
}

impl<P: Page> PageAnswers<P> {
    /// Answers a request for the page, its rows or one of its files; `None` for every other path, and for `/` if the
    /// client does not accept HTML: that is the check of a load balancer.
    pub(crate) fn answer(&self, head: &Head, content: impl FnOnce() -> Arc<P::Content>) -> Option<Response> {
        let is_page = head.path == "/" && matches!(&*head.method, "GET" | "HEAD") && accepts_html(head);
        if !is_page && head.path != "/rows" {
            return if matches!(&*head.method, "GET" | "HEAD") { assets::answer(head) } else { None };
        }
        Some(match &*head.method {
            "GET" | "HEAD" => match Query::parse(head.query.as_deref().unwrap_or_default()) {
                Ok(query) if is_page => self.page(head, &query, &content()),
                Ok(query) => self.rows(head, &query, &content()),
                Err(reason) => Response::text(400, format!("{reason}\n")),
            },
            "OPTIONS" => Response::new(200, "", "").with_header("Allow", ALLOWED),
            _ => Response::text(405, "method not allowed: use GET or HEAD\n").with_header("Allow", ALLOWED),
        })
    }

    /// The page has no ETag: a browser that loads it again wants to see the ages of now.
    fn page(&self, head: &Head, query: &Query<P>, content: &P::Content) -> Response {
        let now = Moment::now();
        let body = match &*head.method {
            "HEAD" => Body::Omitted,
            _ => self.page.get(query, P::version(content, query, now), now, || P::whole(content, query, now)),
        };
        let response = Response::new(200, HTML, body).with_header("Cache-Control", "no-cache");
        with_page_headers(response.with_header("Vary", "Accept"))
    }

    fn rows(&self, head: &Head, query: &Query<P>, content: &P::Content) -> Response {
        let now = Moment::now();
        let version = P::version(content, query, now);
        let render = || self.rows.get(query, version.clone(), now, || P::rows(content, query, now));
        with_page_headers(Version::new(&version).answer(head, HTML, render))
    }
}

impl<P: Page> Default for Rendered<P> {
    fn default() -> Self {
        Rendered { kept: Mutex::default(), older: OlderPages::default() }
    }
}

impl<P: Page> Rendered<P> {
    fn get(&self, query: &Query<P>, version: String, now: Moment, render: impl FnOnce() -> String) -> Body {
        let second = now.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let wanted = (query.clone(), version, second);
        if let Some((_, bytes)) = lock(&self.kept).iter().find(|(rendered, _)| *rendered == wanted) {
            return bytes.clone().into();
        }
        let bytes = SharedBytes::from(render().into_bytes());
        let mut kept = lock(&self.kept);
        let mut old: Vec<_> = kept.extract_if(.., |((query, _, at), _)| *at != second || *query == wanted.0).collect();
        old.extend((kept.len() >= MAX_KEPT).then(|| kept.remove(0)));
        kept.push((wanted, bytes.clone()));
        // Large bodies are freed without the lock.
        drop(kept);
        let watches: Vec<_> = old.iter().map(|(_, bytes)| bytes.watch()).collect();
        drop(old);
        self.older.add(watches, MAX_OLDER_BYTES);
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_page::TestPage;
    use super::*;

    impl Page for TestPage {
        type Content = u64;

        fn version(content: &u64, query: &Query<Self>, _: Moment) -> String {
            format!("{content}{}", query.link())
        }

        fn whole(content: &u64, query: &Query<Self>, _: Moment) -> String {
            format!("page {content} {}", query.link())
        }

        fn rows(content: &u64, query: &Query<Self>, _: Moment) -> String {
            format!("rows {content} {}", query.link())
        }
    }

    fn head(method: &'static str, target: &str, headers: &[(&str, &str)]) -> Head {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut head = Head { method: method.into(), path: path.into(), query: Some(query.into()), ..Head::default() };
        for (name, value) in headers {
            head.headers.push(name, value.as_bytes());
        }
        head
    }

    #[test]
    fn browsers_get_the_page_and_everybody_the_rows() {
        let answers = PageAnswers::<TestPage>::default();
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
            ("GET", &assets::assets().style.path, &[], Some(200)),
            ("GET", "/static/x", &[], None),
            ("GET", "/delay", &html, None),
        ] {
            let answered = answers.answer(&head(method, target, headers), || Arc::new(7));
            assert_eq!(answered.map(|response| response.status), status, "{method} {target}");
        }
    }

    #[test]
    fn an_answer_is_rendered_once_a_second_for_each_query_and_version() {
        let rendered = Rendered::<TestPage>::default();
        let now = Moment::now();
        let get = |text: &str, version: &str, now| {
            let body = rendered.get(&Query::parse(text).unwrap(), version.to_owned(), now, || "page".to_owned());
            match body {
                Body::Shared { bytes, .. } => bytes,
                _ => panic!("{text} is not shared"),
            }
        };
        let (one, other) = (get("", "1", now), get("sort=name", "1", now));
        assert!(get("", "1", now).as_ptr() == one.as_ptr() && get("sort=name", "1", now).as_ptr() == other.as_ptr());
        assert_ne!(get("", "2", now).as_ptr(), one.as_ptr(), "the content has changed");
        let later = Moment { wall: now.wall + Duration::from_secs(1), ..now };
        let newest = get("", "2", later);
        assert_eq!(lock(&rendered.kept).len(), 1, "only the present second is kept");
        for page in 1..100 {
            get(&format!("page={page}"), "2", later);
            assert!(lock(&rendered.kept).len() <= MAX_KEPT);
        }
        assert_ne!(get("", "2", later).as_ptr(), newest.as_ptr());
    }

    #[test]
    fn answers_that_clients_read_slowly_are_bounded_whatever_they_request() {
        let (rendered, now) = (Rendered::<TestPage>::default(), Moment::now());
        let get = |page: usize| {
            let query = Query::parse(&format!("page={page}")).unwrap();
            rendered.get(&query, "1".to_owned(), now, || "x".repeat(MAX_OLDER_BYTES / 10))
        };
        let bodies: Vec<Body> = (1..=40).map(get).collect();
        let withdrawn = bodies.iter().filter(|body| body.is_withdrawn()).count();
        assert_eq!(withdrawn, 40 - 10 - MAX_KEPT, "those that are kept can be requested again");
        assert!(bodies.iter().rev().take(10 + MAX_KEPT).all(|body| !body.is_withdrawn()), "the oldest are withdrawn");
        drop(bodies);
        get(41);
        assert_eq!(rendered.older.count(), 0);
    }

    #[test]
    fn content_is_taken_once_a_second() {
        let (recent, now) = (Recent::default(), Instant::now());
        assert_eq!(*recent.get(now, || 1), 1);
        assert_eq!(*recent.get(now + Duration::from_millis(999), || 2), 1);
        assert_eq!(*recent.get(now + Duration::from_secs(1), || 3), 3);
    }

    #[test]
    fn rows_that_are_known_are_not_sent_again() {
        let answers = PageAnswers::<TestPage>::default();
        let query = Query::parse("").unwrap();
        let mut head = head("GET", "/rows", &[]);
        let first = answers.rows(&head, &query, &7);
        let etag = &first.headers.iter().find(|(name, _)| *name == "ETag").unwrap().1;
        head.headers.push("If-None-Match", etag.as_bytes());
        let again = answers.rows(&head, &query, &7);
        assert_eq!((first.status, again.status, again.body.len()), (200, 304, 0));
        assert_eq!(answers.rows(&head, &query, &8).status, 200);
    }
}
