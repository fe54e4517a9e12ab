//! The pages at `/` of the `admin_port` of ktransfer and kproxy, in a real Chromium.

use std::time::Duration;

use serde_json::json;

use crate::harness::chromium::{self, Chromium};
use crate::harness::page::{self, CHECKS, HOSTILE, ROWS};
use crate::harness::{
    Backend, BackendAnswer, Kproxy, Ktransfer, cluster, configs, free_port, http, poll, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Asserts what a port answers to other clients than browsers, and the headers of the page.
#[track_caller]
fn assert_answers(admin: &str) {
    let mut client = http::Client::connect(admin).unwrap();
    page::assert_answers(&mut client);
    let other = client.request("GET", "/?cluster=x", &[("Accept", "text/html")], b"").unwrap();
    assert_eq!(other.status, 400, "these pages have no clusters");
    // A page that has not changed is not sent again, and it is taken at most once a second.
    let unchanged = poll(DEADLINE, || {
        let rows = client.request("GET", "/rows", &[], b"").unwrap();
        let etag = rows.header("ETag").unwrap().to_owned();
        let again = client.request("GET", "/rows", &[("If-None-Match", &etag)], b"").unwrap();
        (again.status == 304 && again.body.is_empty()).then_some(())
    });
    assert!(unchanged.is_some(), "no two requests within a second");
}

#[test]
fn the_page_of_ktransfer_shows_what_holds_a_module_up() {
    let Some(binary) = chromium::find() else { return };
    let cluster = cluster();
    let (stuck, good) = (unique("stuck"), unique("good"));
    let (stuck_topic, good_topic) = (cluster.new_topic("page_stuck", 2), cluster.new_topic("page_good", 1));
    let backend = Backend::start_with(|request| match request.key().as_str() {
        HOSTILE => BackendAnswer::status(503),
        _ => BackendAnswer::ok(),
    });
    let dead = format!("127.0.0.1:{}", free_port());
    let stuck_file = configs::module(&stuck_topic, &[backend.address(), dead.clone()])
        .set("ejection.failures", 2)
        .set("ejection.interval_ms", 300);
    let good_file = configs::module(&good_topic, &[backend.address()]);
    let ktransfer = Ktransfer::start_ready(cluster, &[(&stuck, stuck_file), (&good, good_file)]);
    cluster.produce(&stuck_topic, 0, &[(HOSTILE.as_bytes(), &b"v"[..]), (&b"k"[..], &b"v"[..])]);
    cluster.produce(&stuck_topic, 1, &[(&b"k2"[..], &b"v"[..]); 20]);
    cluster.produce(&good_topic, 0, &[(&b"k"[..], &b"v"[..]); 20]);
    assert_answers(&ktransfer.admin);

    let origin = format!("http://{}", ktransfer.admin);
    let mut browser = Chromium::start(binary);
    browser.open(&format!("{origin}/"));
    page::wait_for_rows(&mut browser, 2);
    browser.wait_for(&format!("{ROWS}[0].dataset.verdict === 'DEGRADED'"));
    browser.wait_for(&format!("{ROWS}[0].innerText.includes('1 of 2')"));
    browser.wait_for("document.title.startsWith('1 DEGRADED')");
    let names = page::texts(&mut browser, "#modules > tbody[data-id] th > bdi");
    assert_eq!(names, [stuck.as_str(), good.as_str()], "the worst first");
    let row = browser.evaluate(&format!("{ROWS}[0].innerText"));
    assert!(row.as_str().unwrap().contains(&format!("1 of 2 backends is ejected: {dead}")), "{row}");

    // `/` jumps to the filter; what is typed selects rows, and goes into the address.
    browser.press("/");
    assert_eq!(browser.evaluate("document.activeElement.name"), "filter");
    browser.type_text(&stuck_topic.to_uppercase());
    page::wait_for_rows(&mut browser, 1);
    browser.wait_for("location.search.startsWith('?filter=')");
    // The details open by keyboard; focus and filter stay over three refreshes.
    let visited = page::open_by_keyboard_and_refresh(&mut browser);
    let position = |part: &str| visited.iter().position(|stop| stop.contains(part));
    let order = ["INPUT", "A State", "A Module", "A Delivered", "A Held", "SUMMARY"].map(position);
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{visited:?}");
    assert_eq!(browser.evaluate("document.querySelector('[name=filter]').value"), json!(stuck_topic.to_uppercase()));
    page::wait_for_rows(&mut browser, 1);
    let backends = page::texts(&mut browser, ".partitions tbody tr[data-id^=b]");
    assert!(backends[0].contains("IN USE") || backends[0].contains("SLOW START"), "{backends:?}");
    assert!(backends[1].contains(&dead) && backends[1].contains("failures in a row"), "{backends:?}");
    // The key of the message that holds its partition is text.
    browser.wait_for(&format!(
        "[...document.querySelectorAll('.partitions td')].some(cell => cell.innerText === '{HOSTILE}')"
    ));
    browser.wait_for("[...document.querySelectorAll('.partitions td')].some(cell => cell.innerText.includes('503'))");
    assert_eq!(browser.take_problems(&origin), [""; 0]);

    // A pause is seen by itself, and a live region says so: without credentials_file only the table is at hand.
    let url = format!("{origin}/?sort=name");
    page::assert_everybody_can_read(&mut browser, &url, 2, &[]);
    browser.command("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.open(&url);
    assert_eq!(browser.evaluate("document.querySelector('noscript').children.length"), 1, "it is loaded again");
    let link = browser.evaluate("document.querySelector('#modules details a').href");
    browser.open(link.as_str().unwrap());
    assert!(!page::texts(&mut browser, ".partitions tbody tr").is_empty());
    browser.command("Emulation.setScriptExecutionDisabled", json!({"value": false}));
    assert_eq!(browser.take_problems(&origin), [""; 0]);

    // Without answers the page says so.
    let mut ktransfer = ktransfer;
    browser.open(&url);
    ktransfer.daemon.kill9();
    browser.wait_for("!document.getElementById('banner').hidden");
    assert_eq!(browser.evaluate(CHECKS), json!([]));
}

#[test]
fn the_page_of_kproxy_shows_topics_and_connections() {
    let Some(binary) = chromium::find() else { return };
    let cluster = cluster();
    let kproxy = Kproxy::start_usual(cluster);
    let (first, second) = (cluster.new_topic("page_first", 1), cluster.new_topic("page_second", 1));
    let mut client = kproxy.connect();
    let mut post = |topic: &str, acks: &str| client.post(&format!("/commit?topic={topic}&acks={acks}"), b"m").unwrap();
    for _ in 0..20 {
        assert_eq!(post(&first, "1").status, 200);
        assert_eq!(post(&second, "-1").status, 200);
    }
    assert_eq!(post("page_not_there", "1").status, 404);
    assert_answers(&kproxy.admin);
    wait_until(DEADLINE, "the connections are a metric", || {
        let metrics = http::get(&format!("http://{}/metrics", kproxy.admin)).unwrap().text();
        let is_connected = |line: &str, acks: &str| {
            line.starts_with(&format!("kproxy_broker_connections{{acks=\"{acks}\""))
                && line.contains("state=\"connected\"")
        };
        ["1", "-1"].iter().all(|acks| metrics.lines().any(|line| is_connected(line, acks)))
    });

    let origin = format!("http://{}", kproxy.admin);
    let mut browser = Chromium::start(binary);
    browser.open(&format!("{origin}/"));
    // The two topics, and one row for those in which no message was stored.
    browser.wait_for(&format!("{ROWS}.length === 3"));
    let mut turn = 0;
    browser.wait_for("document.getElementById('extra').innerText.includes('CONNECTED')");
    wait_until(DEADLINE, "a topic that has refusals is the worst", || {
        // Both kinds of commits go on, so that there are rates.
        turn += 1;
        assert_eq!(post("page_not_there", "1").status, 404);
        assert_eq!(post(&first, "1").status, 200);
        browser.evaluate(&format!("{ROWS}[0].dataset.verdict === 'REFUSED'")) == true
    });
    let row = browser.evaluate(&format!("{ROWS}[0].innerText"));
    let row = row.as_str().unwrap();
    assert!(row.contains("other topics") && row.contains("404 no such topic, partition or path"), "{row}");
    assert!(turn > 0 && !row.contains("NaN"), "{row}");
    let limits = page::texts(&mut browser, "#extra tr[data-id=req_pool_size] td");
    assert_eq!(limits.len(), 3, "{limits:?}");

    browser.press("/");
    browser.type_text(&first.to_uppercase());
    page::wait_for_rows(&mut browser, 1);
    let visited = page::open_by_keyboard_and_refresh(&mut browser);
    let position = |part: &str| visited.iter().position(|stop| stop.contains(part));
    let order = ["INPUT", "A Verdict", "A Topic", "A Stored", "SUMMARY"].map(position);
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{visited:?}");
    let statuses = page::texts(&mut browser, "#modules .partitions tbody tr");
    assert!(statuses[0].contains("200") && statuses[0].contains("stored"), "{statuses:?}");
    assert_eq!(browser.take_problems(&origin), [""; 0]);

    page::assert_everybody_can_read(&mut browser, &format!("{origin}/?sort=name"), 3, &[]);
    browser.command("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.open(&format!("{origin}/"));
    let link = browser.evaluate("document.querySelector('#modules details a').href");
    browser.open(link.as_str().unwrap());
    assert!(!page::texts(&mut browser, "#modules .partitions tbody tr").is_empty());
    assert_eq!(browser.take_problems(&origin), [""; 0]);
}
