//! The page of ktransfer as a whole: what it says of each state, that names cannot break it, and how large it is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::samples::{Sample, backend, busy, head, healthy, hostile, many, partition, pause, status};
use super::*;
use crate::html::test_support::{HOSTILE_NAMES, assert_harmless, assert_same_rows, between, write_sample};
use crate::ktransfer::operations::{BackendState, ModuleStatus, PartitionState};
use crate::ktransfer::pauses::Pauses;
use crate::ktransfer::read_errors::ReadError;

fn page(content: &ModulesContent, query: &str) -> String {
    ModulesPage::whole(content, &Query::parse(query).unwrap(), Moment::now())
}

fn judged(sample: Sample<'_>) -> (ModuleVerdict, String) {
    let row = sample.row(std::time::Instant::now());
    (row.verdict, row.why)
}

#[test]
fn each_state_has_a_verdict_and_a_reason() {
    let now = Moment::now();
    let with = |change: &dyn Fn(&mut ModuleStatus)| {
        let mut status = healthy();
        change(&mut status);
        Sample::new("m", "t", status)
    };
    let two = |one, other| vec![backend("a:1", one), backend("b:2", other)];
    let one_paused = Pauses { module: None, partitions: BTreeMap::from([(3, pause("ann", now))]) };
    let all_paused = Pauses { module: Some(pause("bob", now)), partitions: BTreeMap::new() };
    let (failed, ejected) = (Some("status 503"), BackendState::Ejected);
    for (sample, verdict, why) in [
        (with(&|_| {}), ModuleVerdict::Pushing, "41 messages are read and not done"),
        (with(&|status| status.window.not_done = 0), ModuleVerdict::Pushing, "nothing waits"),
        (
            with(&|status| status.per_second.as_mut().unwrap().failed_attempts = 0.25),
            ModuleVerdict::Pushing,
            "41 messages are read and not done; 0.25 attempts a second fail",
        ),
        // A retry that lasts short, and a long wait without a failure.
        (
            with(&|status| status.partitions[0] = partition(0, Some(head(2, 9_999, failed)))),
            ModuleVerdict::Pushing,
            "41 messages",
        ),
        (
            with(&|status| status.partitions[0] = partition(0, Some(head(1, 90_000, None)))),
            ModuleVerdict::Pushing,
            "41 messages",
        ),
        (
            with(&|status| status.partitions[0] = partition(0, Some(head(2, 10_000, failed)))),
            ModuleVerdict::Degraded,
            "offset 50234 of partition 0 was tried 2 times in 10 s, last answer by 10.20.0.12:8080: status 503",
        ),
        (
            with(&|status| status.backends = two(BackendState::InUse, ejected)),
            ModuleVerdict::Degraded,
            "1 of 2 backends is ejected: b:2, 5 failures in a row",
        ),
        (
            with(&|status| status.backends = two(BackendState::Probed, ejected)),
            ModuleVerdict::Stalled,
            "every backend is ejected: a:1, 5 failures in a row",
        ),
        (
            with(&|status| status.backends = two(BackendState::SlowStart, BackendState::InUse)),
            ModuleVerdict::Pushing,
            "41 messages",
        ),
        (with(&|status| status.partitions.clear()), ModuleVerdict::NoPartitions, "has claimed no partition"),
        (Sample { pauses: all_paused, ..with(&|_| {}) }, ModuleVerdict::Paused, "the module is paused by bob"),
        (
            Sample { pauses: one_paused, ..with(&|status| status.partitions[3].state = PartitionState::Paused) },
            ModuleVerdict::Paused,
            "1 of 4 partitions are paused by ann",
        ),
        (
            Sample { trouble: Some(("group of", "the group is not joined yet")), ..with(&|_| {}) },
            ModuleVerdict::NotReady,
            "the group is not joined yet",
        ),
        (
            Sample { trouble: Some(("module", "no broker")), status: None, ..with(&|_| {}) },
            ModuleVerdict::Stopped,
            "no broker",
        ),
    ] {
        let (found, reason) = judged(sample);
        assert!(found == verdict && reason.contains(why), "{why}: {found:?}, {reason}");
    }
    let old = now.at - Duration::from_secs(11);
    let mut row = with(&|_| {}).row(old);
    assert_eq!(row.verdict, ModuleVerdict::Pushing);
    let latest = row.latest.take();
    let row = content::ModuleRow::new(
        (row.name, row.topic),
        latest,
        Pauses::default(),
        &std::collections::HashMap::new(),
        now.at,
    );
    assert_eq!((row.verdict, &*row.why), (ModuleVerdict::NotReady, "its dispatcher has not reported for 11 s"));
}

#[test]
fn a_partition_that_cannot_be_read_comes_first_with_the_reason() {
    let mut status = healthy();
    let reason = "TOPIC_AUTHORIZATION_FAILED <b>".to_owned();
    let last = status.partitions.len() - 1;
    for index in [0, last] {
        status.partitions[index].read_error = Some(ReadError { reason: reason.clone(), for_ms: 12_000 });
    }
    status.partitions[last].head = Some(head(2, 9_999, Some("status 503")));
    let now = Moment::now();
    let content = ModulesContent::new(vec![Sample::new("m", "t", status).row(now.at)], now);
    let id = content.modules[0].id;
    let text = page(&content, &format!("open={id:016x}"));
    let shown = ">12 s</time>: TOPIC_AUTHORIZATION_FAILED &lt;b&gt;";
    assert_eq!(text.matches(shown).count(), 2, "{text}");
    let rows = between(&text, "<tr data-id=\"", "</tr>");
    let of_partitions: Vec<_> = rows.iter().filter(|row| !row.starts_with('b')).collect();
    assert!(of_partitions[..2].iter().all(|row| row.contains(shown)), "{of_partitions:?}");
}

#[test]
fn the_worst_comes_first_with_its_numbers() {
    let content = busy(Moment::now());
    let text = page(&content, "");
    assert!(text.contains("<title>1 STOPPED · ktransfer</title>"));
    let words = between(&text, "<tbody data-id=\"", "><tr>");
    let verdicts: Vec<&str> = words.iter().filter_map(|start| start.split("data-verdict=\"").nth(1)).collect();
    let expected = [
        "STOPPED\"",
        "NOT READY\"",
        "STALLED\"",
        "DEGRADED\"",
        "PAUSED\"",
        "PAUSED\"",
        "NO PARTITIONS\"",
        "PUSHING\"",
        "PUSHING\"",
    ];
    assert_eq!(verdicts, expected);
    let degraded = between(&text, "data-verdict=\"DEGRADED\"><tr>", "</tbody>")[0];
    for part in ["<bdi>invoices</bdi>", "<bdi>billing</bdi>", ">312<", ">24 of 64<", ">2 of 3<", ">97 s</time>"] {
        assert!(degraded.contains(part), "{part}: {degraded}");
    }
    assert!(!text.contains("class=\"partitions\""), "details are shown when they are asked for");
    assert_eq!(between(&page(&content, "sort=name"), "<tbody data-id", "</tbody>").len(), 9);
    assert_eq!(
        between(&page(&content, "filter=paused%20ann"), "<tbody data-id", "</tbody>").len(),
        1,
        "the reason is searched"
    );
    assert_eq!(between(&page(&content, "verdict=paused"), "<tbody data-id", "</tbody>").len(), 2);
    let nothing = page(&ModulesContent::new(Vec::new(), Moment::now()), "");
    assert!(nothing.contains("No module.") && nothing.contains("<title>ktransfer</title>"));
}

#[test]
fn details_have_backends_pauses_and_partitions() {
    let content = busy(Moment::now());
    let module = |name: &str| content.modules.iter().find(|module| &*module.name == name).unwrap();
    let open = |name: &str| {
        let text = page(&content, &format!("open={:x}", module(name).id));
        between(&text, "<details open>", "</details>")[0].to_owned()
    };
    let degraded = open("invoices");
    assert_eq!(between(&degraded, "<tr data-id=\"b", "</tr>").len(), 3);
    let ejected = between(&degraded, "<tr data-id=\"b1\"", "</tr>")[0];
    for part in [">EJECTED<", ">4 min</time>", ">12 s<", "Connection refused"] {
        assert!(ejected.contains(part), "{part}: {ejected}");
    }
    let rows = between(&degraded, "<tr data-id=\"", "</tr>");
    assert!(rows[3].starts_with('3') && rows[3].contains("status 503; waits for its next attempt"), "{}", rows[3]);
    assert!(rows[3].contains("<bdi>order-1182-4471</bdi>") && rows[3].contains(">14<"), "{}", rows[3]);
    assert!(degraded.contains("4,211,907 delivered, 214 attempts failed, 3 given up."), "{degraded}");
    assert!(open("recommendations").contains("The module was paused by ann <time"));
    assert!(open("search_index").contains("Partition 1 was paused by bob <time"));
    let stopped = page(&content, &format!("open={:x}", module("mail").id));
    assert!(!stopped.contains("<details open>"), "a module that does not run has no details");

    let mut large = status(vec![backend("a:1", BackendState::InUse); 500], vec![partition(7, None); 5_000], 1.0);
    large.window.not_done = 0;
    let row = Sample::new("m", "t", large).row(std::time::Instant::now());
    let query = format!("open={:x}", row.id);
    let text = page(&ModulesContent::new(vec![row], Moment::now()), &query);
    assert_eq!(between(&text, "<tr data-id=\"", "</tr>").len(), 2 * details::MAX_ROWS);
    assert!(text.contains("4,800 more partitions are in"));
}

#[test]
fn names_keys_and_answers_stay_text() {
    let now = Moment::now();
    for name in HOSTILE_NAMES {
        let content = hostile(name, now);
        let id = content.modules[0].id;
        for query in ["", "filter=%3Cimg%20src%3Dx%20onerror%3D1%3E%22'", &format!("open={id:x}&filter=onerror")] {
            let query = Query::parse(query).unwrap();
            let (text, rows) = (ModulesPage::whole(&content, &query, now), ModulesPage::rows(&content, &query, now));
            assert_harmless(&text);
            assert_same_rows(&text, &rows);
        }
    }
}

#[test]
fn a_thousand_modules_are_a_page_below_200_kb() {
    let content = many(1_000, Moment::now());
    let text = page(&content, "");
    assert_eq!(between(&text, "<tbody data-id=\"", "\"").len(), 200);
    assert!(text.len() < 200_000, "{}", text.len());
    assert!(text.contains("1 to 200 of 1,000") && text.contains(">Next</a>"));
}

#[test]
fn the_version_of_the_rows_is_that_of_content_and_query() {
    let now = Moment::now();
    let version = |content: &ModulesContent, query: &str| {
        ModulesPage::version(content, &Query::parse(query).unwrap(), Moment::now())
    };
    let (content, later) = (busy(now), busy(Moment { wall: now.wall + Duration::from_secs(1), ..now }));
    assert_eq!(version(&content, ""), version(&content, ""));
    assert_ne!(version(&content, ""), version(&content, "sort=name"));
    assert_ne!(version(&content, ""), version(&later, ""));
}

/// Writes the sample pages for `make screenshots`.
#[test]
fn sample_pages_can_be_written() {
    let content = busy(Moment::now());
    let invoices = content.modules.iter().find(|module| &*module.name == "invoices").unwrap();
    write_sample("ktransfer", &page(&content, ""));
    write_sample("ktransfer-open", &page(&content, &format!("open={:x}", invoices.id)));
}
