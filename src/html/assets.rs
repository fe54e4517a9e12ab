//! The style sheet, the script and the icon of the pages, under paths that change with their content, and the headers
//! of a page.
//!
//! A file is cached by browsers without a check, because a changed file has another path. A page loads nothing else:
//! its content security policy refuses scripts and styles inside of the page and every other server.

use std::sync::OnceLock;

use crate::http::{Head, Response, Version};

/// The policy of every page. `'self'` are the files of this module and the refresh of the page by its script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A file that pages load.
pub(crate) struct Asset {
    /// Its path, with a hash of its content.
    pub(crate) path: String,
    content_type: &'static str,
    pub(crate) text: &'static str,
}

/// All files that pages load.
pub(crate) struct Assets {
    /// The style sheet.
    pub(crate) style: Asset,
    /// The script.
    pub(crate) script: Asset,
    /// The icon, also for browsers that would request `/favicon.ico`.
    pub(crate) icon: Asset,
}

/// Returns the files that pages load.
pub(crate) fn assets() -> &'static Assets {
    static ASSETS: OnceLock<Assets> = OnceLock::new();
    ASSETS.get_or_init(|| Assets {
        style: asset("css", "text/css; charset=utf-8", include_str!("page.css")),
        script: asset("js", "text/javascript; charset=utf-8", include_str!("page.js")),
        icon: asset("svg", "image/svg+xml", include_str!("icon.svg")),
    })
}

/// Returns the response to a GET or HEAD of a file; `None` for every other path. A file of another version of this
/// program is 404.
pub(crate) fn answer(head: &Head) -> Option<Response> {
    let assets = assets();
    let known = [&assets.style, &assets.script, &assets.icon].into_iter().find(|asset| asset.path == head.path)?;
    let version = Version::new(&known.path).immutable();
    let response = version.answer(head, known.content_type, || known.text.as_bytes().to_vec());
    Some(response.with_header(NOSNIFF.0, NOSNIFF.1))
}

/// Adds the headers that a page has; those of its version are there already.
pub(crate) fn with_page_headers(response: Response) -> Response {
    response
        .with_header("Content-Security-Policy", POLICY)
        .with_header(NOSNIFF.0, NOSNIFF.1)
        .with_header("Referrer-Policy", "no-referrer")
        .with_header("Cross-Origin-Opener-Policy", "same-origin")
}

/// Returns whether the client accepts HTML by name, as browsers do; checks of load balancers do not.
pub(crate) fn accepts_html(head: &Head) -> bool {
    let accepted = head.headers.iter().filter(|(name, _)| *name == "accept");
    accepted.flat_map(|(_, value)| value.split(|byte| *byte == b',')).any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let is_html = parts.next().is_some_and(|media| media.eq_ignore_ascii_case(b"text/html"));
        is_html && !parts.any(|parameter| matches!(parameter, b"q=0" | b"q=0.0" | b"q=0.00" | b"q=0.000"))
    })
}

const NOSNIFF: (&str, &str) = ("X-Content-Type-Options", "nosniff");

fn asset(extension: &str, content_type: &'static str, text: &'static str) -> Asset {
    Asset { path: format!("/static/page.{:016x}.{extension}", fnv(text.as_bytes())), content_type, text }
}

/// Returns the FNV-1a hash of the bytes.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn head(path: &str, accept: &[&str]) -> Head {
        let mut head = Head { method: "GET".into(), path: path.into(), ..Head::default() };
        for value in accept {
            head.headers.push("Accept", value.as_bytes());
        }
        head
    }

    #[test]
    fn files_are_found_by_the_hash_of_their_content() {
        for asset in [&assets().style, &assets().script, &assets().icon] {
            let response = answer(&head(&asset.path, &[])).unwrap();
            assert_eq!((response.status, response.content_type), (200, asset.content_type));
            let cached = response.headers.iter().find(|(name, _)| *name == "Cache-Control").unwrap();
            assert!(cached.1.contains("immutable"), "{}", cached.1);
        }
        assert!(answer(&head("/static/page.0000000000000000.css", &[])).is_none());
        assert_ne!(assets().style.path, assets().script.path);
    }

    #[test]
    fn the_files_are_small() {
        let bytes: usize = [&assets().style, &assets().script, &assets().icon].iter().map(|file| file.text.len()).sum();
        assert!(bytes < 32 << 10, "{bytes}");
    }

    #[test]
    fn only_clients_that_name_html_get_a_page() {
        for (accept, expected) in [
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"][..], true),
            (&["application/json, TEXT/HTML ; q=0.5"], true),
            (&["application/json", "text/html"], true),
            (&["text/html;q=0, */*"], false),
            (&["*/*"], false),
            (&["text/htmlx"], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(accepts_html(&head("/", accept)), expected, "{accept:?}");
        }
    }

    /// Returns the colours of one theme by the name of their variable: `light-dark(#f7f8f7, #14191c)` has two.
    fn colours(theme: usize) -> BTreeMap<&'static str, [f64; 3]> {
        let lines = assets().style.text.lines().filter(|line| line.contains("light-dark("));
        let declarations = lines.filter_map(|line| line.trim().strip_prefix("--")?.split_once(':'));
        declarations
            .map(|(name, value)| {
                let value = value.trim().strip_prefix("light-dark(").and_then(|rest| rest.strip_suffix(");")).unwrap();
                let hex = value.split(',').nth(theme).unwrap().trim().strip_prefix('#').unwrap();
                (name, [0, 2, 4].map(|at| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0))
            })
            .collect()
    }

    /// Returns the contrast of two colours (WCAG 2.2).
    fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
        let linear = |part: f64| if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) };
        let luminance =
            |[red, green, blue]: [f64; 3]| 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn every_text_can_be_read_in_both_themes() {
        assert!((contrast([0.0; 3], [1.0; 3]) - 21.0).abs() < 1e-9);
        for theme in [0, 1] {
            let colours = colours(theme);
            for text in ["text", "muted", "accent", "ok", "lagging", "unknown", "rewound", "stalled", "stopped"] {
                for ground in ["ground", "surface", "hover"] {
                    let contrast = contrast(colours[text], colours[ground]);
                    assert!(contrast >= 4.5, "theme {theme}: {text} on {ground}: {contrast:.2}");
                }
            }
            let banner = contrast(colours["stopped"], colours["warning"]);
            assert!(banner >= 4.5, "theme {theme}: the banner: {banner:.2}");
            // The borders of controls (WCAG 1.4.11).
            let edge = contrast(colours["edge"], colours["surface"]);
            assert!(edge >= 3.0, "theme {theme}: the edge of a control: {edge:.2}");
        }
    }
}
