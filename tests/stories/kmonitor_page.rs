//! kmonitor: the page at `/`, in a real Chromium, of a real kmonitor with a real ZooKeeper and Kafka.

use std::time::Duration;

use serde_json::json;

use crate::harness::chromium::{self, Chromium};
use crate::harness::page::{self, CHECKS, HOSTILE, ROWS};
use crate::harness::{Cluster, ConfigFile, Kmonitor, cluster, configs, free_port, http, unique};

const DEADLINE: Duration = Duration::from_secs(30);

/// The verdicts of modules.
const VERDICTS: [&str; 6] = ["OK", "LAGGING", "UNKNOWN", "REWOUND", "STALLED", "STOPPED"];

fn config(cluster: &Cluster) -> ConfigFile {
    configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
        .set("base.poll_interval_ms", 200)
        .set("http_server.admin_port", free_port())
}

/// Three modules of one topic: one is done, one has messages to push, and the text of one is not an offset. Returns the
/// last part of their names, which no other story uses.
fn create_modules(cluster: &Cluster) -> String {
    // With a last letter, so that no suffix is the beginning of another one.
    let suffix = format!("{}x", unique("page"));
    let topic = cluster.new_topic("page", 2);
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 12]);
    let store = |module: &str, partition: i32, text: &str| {
        let path = format!("{}/consumers/{module}/offsets/{topic}/{partition}", cluster.chroot);
        assert!(cluster.zk().create(&path, text), "{path}");
    };
    store(&format!("done {suffix}"), 0, "12");
    store(&format!("waits {suffix}"), 0, "0");
    store(&format!("waits {suffix}"), 1, "0");
    store(&format!("broken {suffix}"), 0, "no number");
    store(&format!("{HOSTILE} {suffix}"), 0, "no number either");
    suffix
}

/// A browser, a kmonitor, and the address of a page of the modules of one story.
struct Stage {
    monitor: Kmonitor,
    browser: Chromium,
    origin: String,
    suffix: String,
}

/// Returns `None` if this machine has no Chromium.
fn stage() -> Option<Stage> {
    let binary = chromium::find()?;
    let cluster = cluster();
    let suffix = create_modules(cluster);
    let monitor = Kmonitor::start(&config(cluster));
    monitor.wait_for_delay("tc", &format!("waits {suffix}"), &json!({"0": 12, "1": 0}), DEADLINE);
    let origin = format!("http://{}", monitor.address);
    Some(Stage { monitor, browser: Chromium::start(binary), origin, suffix })
}

impl Stage {
    /// Opens the page with the modules of this story alone.
    fn open(&mut self) {
        let url = format!("{}/?filter={}", self.origin, self.suffix);
        self.browser.open(&url);
    }

    fn problems(&mut self) -> Vec<String> {
        self.browser.take_problems(&self.origin)
    }

    fn texts(&mut self, selector: &str) -> Vec<String> {
        page::texts(&mut self.browser, selector)
    }

    fn wait_for_rows(&mut self, count: usize) {
        page::wait_for_rows(&mut self.browser, count);
    }
}

#[test]
fn the_page_shows_the_worst_first_and_keeps_itself_current() {
    let Some(mut stage) = stage() else { return };
    stage.open();
    stage.wait_for_rows(4);
    stage.browser.wait_for(&format!("{ROWS}[0].dataset.verdict !== 'OK'"));
    let names = stage.texts("#modules > tbody[data-id] th > bdi");
    let hostile = format!("{HOSTILE} {}", stage.suffix);
    assert!(names.contains(&hostile), "the name is shown as text: {names:?}");
    let severities = stage.browser.evaluate(&format!(
        "[...{ROWS}].map(row => ['OK','LAGGING','UNKNOWN','REWOUND','STALLED','STOPPED'].indexOf(row.dataset.verdict))"
    ));
    let severities: Vec<i64> = serde_json::from_value(severities).unwrap();
    assert!(severities.is_sorted_by(|one, next| one >= next), "{severities:?}");
    let broken = format!("[...{ROWS}].find(row => row.innerText.includes('broken {}'))", stage.suffix);
    let text = stage.browser.evaluate(&format!("{broken}.innerText"));
    let text = text.as_str().unwrap();
    assert!(text.contains("UNKNOWN") && text.contains("no number") && text.contains("not an offset"), "{text}");
    assert!(!text.contains("NaN") && !text.contains("undefined"), "{text}");

    // What changes in ZooKeeper appears by itself, and a live region says so.
    let cluster = cluster();
    let topic = stage.texts("#modules th small bdi")[0].clone();
    cluster.zk().write(&format!("{}/consumers/broken {}/offsets/{topic}/0", cluster.chroot, stage.suffix), "12");
    stage.browser.wait_for(&format!("{broken}.dataset.verdict === 'OK'"));
    stage.browser.wait_for("document.getElementById('live').textContent.includes('broken')");
    let live = stage.texts("#live");
    assert!(live[0].ends_with("became OK"), "{live:?}");
    assert_eq!(stage.problems(), [""; 0]);
}

#[test]
fn typing_filters_and_focus_and_opened_partitions_stay() {
    let Some(mut stage) = stage() else { return };
    let origin = stage.origin.clone();
    stage.browser.open(&format!("{origin}/"));
    // `/` jumps to the filter; what is typed selects rows, and goes into the address.
    stage.browser.press("/");
    assert_eq!(stage.browser.evaluate("document.activeElement.name"), "filter");
    let typed = format!("BROKEN {}", stage.suffix);
    stage.browser.type_text(&typed);
    stage.wait_for_rows(1);
    stage.browser.wait_for("location.search.startsWith('?filter=BROKEN')");
    assert_eq!(stage.browser.evaluate("document.activeElement.value"), typed);

    // The order of Tab is that of reading: from the filter over verdicts to the headings and the rows.
    // Enter opens the partitions, which the script requests; focus and opened partitions stay over three refreshes.
    let visited = page::open_by_keyboard_and_refresh(&mut stage.browser);
    let position = |part: &str| visited.iter().position(|stop| stop.contains(part));
    let order = ["INPUT", "A Verdict", "A Module", "A Delay", "A Behind", "SUMMARY"].map(position);
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{visited:?}");

    assert_eq!(stage.texts(".partitions tbody tr").len(), 2);
    let partitions = stage.texts(".partitions tbody tr");
    assert!(partitions[0].contains("not an offset"), "the worst one first: {partitions:?}");

    // Esc in the filter clears it.
    stage.browser.press("/");
    stage.browser.press("Escape");
    assert_eq!(stage.browser.evaluate("document.querySelector('[name=filter]').value"), "");
    stage.browser.wait_for("!location.search.includes('filter')");
    assert_eq!(stage.problems(), [""; 0]);
}

#[test]
fn a_page_without_answers_says_so() {
    let Some(mut stage) = stage() else { return };
    stage.open();
    stage.wait_for_rows(4);
    stage.browser.wait_for("document.getElementById('banner').hidden");
    assert_eq!(stage.problems(), [""; 0]);
    stage.monitor.daemon.kill9();
    stage.browser.wait_for("!document.getElementById('banner').hidden");
    let banner = stage.texts("#banner");
    assert!(banner[0].starts_with("No answer since "), "{banner:?}");
    assert_eq!(stage.browser.evaluate("document.documentElement.classList.contains('lost')"), true);
    assert_eq!(stage.texts("#live"), banner, "it is said, too");
    assert_eq!(stage.browser.evaluate(CHECKS), json!([]));
}

#[test]
fn everybody_can_read_the_page() {
    let Some(mut stage) = stage() else { return };
    let url = format!("{}/?filter={}", stage.origin, stage.suffix);
    page::assert_everybody_can_read(&mut stage.browser, &url, 4, &VERDICTS);
    // The button of the theme overrides the system, also after a reload.
    let ground = "getComputedStyle(document.documentElement).backgroundColor";
    let dark = {
        stage.browser.prefer("dark");
        stage.browser.evaluate(ground)
    };
    stage.browser.prefer("light");
    let light = stage.browser.evaluate(ground);
    assert_ne!(dark, light);
    let choose = "document.getElementById('theme').click(); document.getElementById('theme').textContent";
    assert_eq!(stage.browser.evaluate(choose), "Theme: light");
    assert_eq!(stage.browser.evaluate(choose), "Theme: dark");
    assert_eq!(stage.browser.evaluate(ground), dark);
    stage.open();
    assert_eq!(stage.browser.evaluate(ground), dark);
    assert_eq!(stage.problems(), [""; 0]);
}

#[test]
fn without_scripts_the_page_lists_and_filters() {
    let Some(mut stage) = stage() else { return };
    stage.browser.command("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    let origin = stage.origin.clone();
    stage.browser.open(&format!("{origin}/?filter={}", stage.suffix));
    assert_eq!(stage.texts("#modules > tbody[data-id] th > bdi").len(), 4);
    assert_eq!(stage.browser.evaluate("document.querySelector('noscript').children.length"), 1, "it is loaded again");
    // The form, sent as a browser sends it.
    stage.browser.evaluate("document.querySelector('[name=filter]').focus()");
    stage.browser.evaluate("document.querySelector('[name=filter]').select()");
    stage.browser.type_text(&format!("done {}", stage.suffix));
    stage.browser.evaluate("document.querySelector('[value=OK]').checked = true");
    stage.browser.press("Enter");
    stage.browser.wait_for("location.search.includes('filter=done')");
    stage.wait_for_rows(1);
    let link = stage.browser.evaluate("document.querySelector('#modules details a').href");
    stage.browser.open(link.as_str().unwrap());
    assert_eq!(stage.texts(".partitions tbody tr").len(), 2, "also the one without a stored offset");
    assert_eq!(stage.problems(), [""; 0]);
}

#[test]
fn a_load_balancer_gets_a_short_answer_and_a_browser_the_page() {
    let cluster = cluster();
    let suffix = create_modules(cluster);
    let monitor = Kmonitor::start(&config(cluster));
    monitor.wait_for_delay("tc", &format!("waits {suffix}"), &json!({"0": 12, "1": 0}), DEADLINE);
    let mut client = http::Client::connect(&monitor.address).unwrap();
    page::assert_answers(&mut client);
    // A page that has not changed is not sent again.
    let target = format!("/rows?filter={suffix}");
    let etag = crate::harness::poll(DEADLINE, || {
        let rows = client.request("GET", &target, &[], b"").unwrap();
        let etag = rows.header("ETag").unwrap().to_owned();
        let again = client.request("GET", &target, &[("If-None-Match", &etag)], b"").unwrap();
        (again.status == 304 && again.body.is_empty()).then_some(etag)
    });
    assert!(etag.is_some(), "no two requests within one poll");
    let text = client.request("GET", &target, &[], b"").unwrap().text();
    for file in text.split('"').filter(|part| part.starts_with("/static/")).flat_map(|paths| paths.split(' ')) {
        let asset = client.request("GET", file, &[], b"").unwrap();
        assert_eq!((asset.status, asset.header("X-Content-Type-Options")), (200, Some("nosniff")), "{file}");
    }
}
