//! Conditional requests and caching headers (RFC 9110 13.1.2, RFC 9111 5.1): a client that has the current version of a
//! page gets 304 without the page, and HEAD gets the head without the page being rendered.

use std::fmt::Display;
use std::time::Duration;

use super::message::{Head, Response};
use super::response_body::Body;

/// The version of a page that a response has.
#[derive(Clone, Debug)]
pub struct Version {
    /// With its quotes.
    etag: String,
    age: Option<Duration>,
    cache_control: &'static str,
}

impl Version {
    /// Creates the version that `tag` names: equal tags mean equal bytes. Characters that an entity tag may not have
    /// become `_`. A cache may keep the page, but must revalidate it at each request.
    pub fn new(tag: impl Display) -> Self {
        let allowed = |character: char| character.is_ascii_graphic() && character != '"';
        let tag: String =
            tag.to_string().chars().map(|character| if allowed(character) { character } else { '_' }).collect();
        Version { etag: format!("\"{tag}\""), age: None, cache_control: "no-cache" }
    }

    /// Returns the version with the age of its data, which the header `Age` shows in seconds.
    #[must_use]
    pub fn aged(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }

    /// Returns the version of a page whose path changes with its content: clients keep it for a year.
    #[must_use]
    pub fn immutable(mut self) -> Self {
        self.cache_control = "public, max-age=31536000, immutable";
        self
    }

    /// Answers a GET or HEAD request for the page: 304 if the client has this version, else 200 with the page. `render`
    /// is called only if the page is sent, so HEAD costs no rendering; its response then has no Content-Length.
    pub fn answer<B: Into<Body>>(
        self,
        head: &Head,
        content_type: &'static str,
        render: impl FnOnce() -> B,
    ) -> Response {
        let response = if self.is_known_by(head) {
            Response::new(304, "", "")
        } else if head.method == "HEAD" {
            Response::new(200, content_type, Body::Omitted)
        } else {
            Response::new(200, content_type, render())
        };
        self.describe(response)
    }

    /// Answers as [`Self::answer`] does, with a page that is rendered already: HEAD then has a Content-Length.
    pub fn answer_rendered(self, head: &Head, content_type: &'static str, page: impl Into<Body>) -> Response {
        let response =
            if self.is_known_by(head) { Response::new(304, "", "") } else { Response::new(200, content_type, page) };
        self.describe(response)
    }

    fn describe(self, response: Response) -> Response {
        let response = response.with_header("ETag", self.etag).with_header("Cache-Control", self.cache_control);
        match self.age {
            Some(age) => response.with_header("Age", age.as_secs().to_string()),
            None => response,
        }
    }

    /// Returns whether an `If-None-Match` of the request names this version.
    fn is_known_by(&self, head: &Head) -> bool {
        let mut fields = head.headers.iter().filter(|(name, _)| *name == "if-none-match");
        fields.any(|(_, value)| names(value, self.etag.as_bytes()))
    }
}

/// Returns whether the list of entity tags in `value` has `etag`, by the weak comparison. `*` stands for every version.
/// A malformed list ends where it is malformed.
fn names(value: &[u8], etag: &[u8]) -> bool {
    let mut rest = value.trim_ascii();
    if rest == b"*" {
        return true;
    }
    loop {
        while let [b',' | b' ' | b'\t', more @ ..] = rest {
            rest = more;
        }
        let tag = rest.strip_prefix(b"W/").unwrap_or(rest);
        let Some(length) = tag.strip_prefix(b"\"").and_then(|tag| tag.iter().position(|byte| *byte == b'"')) else {
            return false;
        };
        let (tag, more) = tag.split_at(length + 2);
        if tag == etag {
            return true;
        }
        rest = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &'static str, if_none_match: &[&str]) -> Head {
        let mut head = Head { method: method.into(), path: "/".into(), ..Head::default() };
        if_none_match.iter().for_each(|value| head.headers.push("If-None-Match", value.as_bytes()));
        head
    }

    fn status(if_none_match: &[&str]) -> u16 {
        Version::new("7-a").answer(&head("GET", if_none_match), "text/plain", || "page").status
    }

    #[test]
    fn a_client_that_has_the_version_gets_304() {
        for (fields, expected) in [
            (&[][..], 200),
            (&["\"7-a\""], 304),
            (&["W/\"7-a\""], 304),
            (&["*"], 304),
            (&["\"7\", W/\"6,\" ,\"7-a\""], 304),
            (&["\"7-a"], 200),
            (&["7-a"], 200),
            (&["\"8\""], 200),
            (&["\"x\", *"], 200),
            (&["", ",", "\"x\""], 200),
            (&["\"x\"", "\"7-a\""], 304),
            (&["w/\"7-a\""], 200),
        ] {
            assert_eq!(status(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn the_headers_describe_the_version_and_head_renders_nothing() {
        let version = || Version::new("1 \"2\n").aged(Duration::from_millis(2900));
        let response = version().answer(&head("GET", &[]), "text/plain", || "page");
        let fields = [("ETag", "\"1__2_\""), ("Cache-Control", "no-cache"), ("Age", "2")];
        assert_eq!(response.headers, fields.map(|(name, value)| (name, value.to_owned())));
        assert_eq!((response.body, response.content_type), (Body::from("page"), "text/plain"));
        let unrendered = || -> &str { panic!("rendered") };
        let response = version().answer(&head("HEAD", &[]), "text/plain", unrendered);
        assert_eq!((response.status, matches!(response.body, Body::Omitted)), (200, true));
        let response = version().answer(&head("GET", &["*"]), "text/plain", unrendered);
        assert_eq!((response.status, response.body.len(), response.headers.len()), (304, 0, 3));
        let response = Version::new(1).immutable().answer_rendered(&head("HEAD", &[]), "text/css", "page");
        assert_eq!(response.body.len(), 4, "HEAD of a rendered page has its length");
        assert!(response.headers[1].1.ends_with("immutable"), "{:?}", response.headers);
    }
}
