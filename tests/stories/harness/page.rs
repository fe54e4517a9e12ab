//! Checks of an operators' page in a browser that the stories of all pages share.

use std::time::Duration;

use serde_json::{Value, json};

use super::chromium::Chromium;
use super::{http, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// A name that would run a script if a page took it for HTML. ZooKeeper and Kafka accept it as the name of a group, and
/// as the key of a message.
pub(crate) const HOSTILE: &str = "<img src=x onerror=alert(1)>";

/// The rows in the table.
pub(crate) const ROWS: &str = "document.querySelectorAll('#modules > tbody[data-id]')";

/// What accessibility checkers look at; evaluates to a list of what is wrong.
pub(crate) const CHECKS: &str = include_str!("page_checks.js");

/// Asserts what the port of a page answers to browsers, with the headers of the page, and to other clients.
#[track_caller]
pub(crate) fn assert_answers(client: &mut http::Client) {
    let html = ("Accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8");
    for headers in [&[][..], &[("Accept", "*/*")], &[("Accept", "text/html;q=0")]] {
        let short = client.request("GET", "/", headers, b"").expect("an answer");
        assert_eq!((short.status, short.text()), (200, r#"{"status":"ok"}"#.to_owned()), "{headers:?}");
        assert_eq!(short.header("Vary"), Some("Accept"));
    }
    let page = client.request("GET", "/", &[html], b"").expect("an answer");
    assert_eq!((page.status, page.header("Vary")), (200, Some("Accept")));
    assert!(page.text().starts_with("<!doctype html>"), "{}", page.text());
    let policy = page.header("Content-Security-Policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for (method, target, status) in [
        ("HEAD", "/", 200),
        ("OPTIONS", "/", 200),
        ("POST", "/", 404),
        ("GET", "/?modul=x", 400),
        ("GET", "/rows", 200),
        ("HEAD", "/rows", 200),
        ("OPTIONS", "/rows", 200),
        ("POST", "/rows", 405),
        ("GET", "/rows?verdict=FINE", 400),
        ("GET", "/static/page.0.css", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/metrics", 200),
        ("GET", "/healthz", 200),
    ] {
        let answer = client.request(method, target, &[html], b"").expect("an answer");
        assert_eq!(answer.status, status, "{method} {target}");
    }
}

/// Returns the texts of the elements that a selector finds.
pub(crate) fn texts(browser: &mut Chromium, selector: &str) -> Vec<String> {
    let script = format!("[...document.querySelectorAll({selector:?})].map(found => found.innerText)");
    let texts = browser.evaluate(&script);
    texts.as_array().expect("a list").iter().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits until the table has this number of rows.
#[track_caller]
pub(crate) fn wait_for_rows(browser: &mut Chromium, count: usize) {
    browser.wait_for(&format!("{ROWS}.length === {count}"));
}

/// Opens the details of a row with the keyboard: Tab from the filter to it, then Enter. Returns what Tab stopped at,
/// with its text. Then waits for three refreshes, over which focus, opened details and the row must stay.
#[track_caller]
pub(crate) fn open_by_keyboard_and_refresh(browser: &mut Chromium) -> Vec<String> {
    let mut visited = Vec::new();
    for _ in 0..32 {
        browser.press("Tab");
        let focused = browser.evaluate("document.activeElement.tagName + ' ' + document.activeElement.innerText");
        visited.push(focused.as_str().expect("what has the focus").to_owned());
        if visited.last().is_some_and(|last| last.starts_with("SUMMARY")) {
            break;
        }
    }
    browser.press("Enter");
    browser.wait_for("!!document.querySelector('#modules .partitions tbody tr')");
    browser.evaluate("window.summary = document.activeElement; window.row = summary.closest('tbody')");
    browser.take_requests("/rows");
    let mut refreshes = 0;
    wait_until(DEADLINE, "three refreshes", || {
        refreshes += browser.take_requests("/rows");
        refreshes >= 3
    });
    let kept = browser.evaluate(
        "document.activeElement === summary && summary.isConnected && summary.parentElement.open && row.isConnected",
    );
    assert_eq!(kept, true, "focus and opened details stay");
    visited
}

/// Checks the page in both themes and in windows from a large one to a small phone, with the details of its first row.
/// `words`: the verdicts of rows.
#[track_caller]
pub(crate) fn assert_everybody_can_read(browser: &mut Chromium, url: &str, rows: usize, words: &[&str]) {
    for (scheme, width, height) in [
        ("light", 1280, 900),
        ("dark", 1280, 900),
        ("light", 1024, 768),
        ("light", 780, 600),
        ("light", 641, 600),
        ("light", 390, 844),
        ("dark", 390, 844),
        ("light", 320, 640),
    ] {
        browser.resize(width, height);
        browser.prefer(scheme);
        browser.open(url);
        browser.wait_for(&format!("{ROWS}.length >= {rows}"));
        browser.evaluate("document.querySelector('#modules summary').click()");
        browser.wait_for("!!document.querySelector('#modules .partitions')");
        let wrong = browser.evaluate(CHECKS);
        assert_eq!(wrong, json!([]), "{scheme}, {width} x {height}");
        let (count, unnamed) = rows_of_the_tree(browser, words);
        assert!(
            count >= rows && unnamed.is_empty(),
            "{scheme}, {width} x {height}: {count} rows, without name: {unnamed:?}"
        );
    }
}

/// Returns the number of rows with a heading in the tree that screen readers use, and those of them that lack a name or
/// one of `words`.
fn rows_of_the_tree(browser: &mut Chromium, words: &[&str]) -> (usize, Vec<String>) {
    let tree = browser.command("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().expect("a list");
    let find = |id: &Value| nodes.iter().find(|node| node["nodeId"] == *id);
    let role = |node: &Value| node["role"]["value"].as_str().unwrap_or_default().to_owned();
    let name = |node: &Value| node["name"]["value"].as_str().unwrap_or_default().to_owned();
    let (mut count, mut unnamed) = (0, Vec::new());
    for row in nodes.iter().filter(|node| role(node) == "row") {
        // The parts of the row, its cells and what is in them.
        let mut parts = Vec::new();
        let mut open: Vec<Value> = row["childIds"].as_array().cloned().unwrap_or_default();
        while let Some(node) = open.pop().as_ref().and_then(find) {
            open.extend(node["childIds"].as_array().cloned().unwrap_or_default());
            parts.push((role(node), name(node)));
        }
        let Some((_, heading)) = parts.iter().find(|(role, _)| role == "rowheader") else { continue };
        count += 1;
        let has_word = words.is_empty() || parts.iter().any(|(_, name)| words.contains(&name.trim()));
        if heading.trim().is_empty() || !has_word {
            unnamed.push(format!("{parts:?}"));
        }
    }
    (count, unnamed)
}
