//! The page as a whole: what it says, that it cannot be broken by names, and how large it is.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::html::test_support::{HOSTILE_NAMES, assert_harmless, assert_same_rows, between, write_sample};

fn page(view: &View, query: &str) -> String {
    whole(view, &Query::parse(query).unwrap(), Moment::now())
}

#[test]
fn a_row_says_the_verdict_as_a_word_and_why() {
    let text = page(&samples::late(), "");
    let first = between(&text, "<tbody", "</tbody>")[0];
    for part in [
        "data-verdict=\"STOPPED\"",
        "<td class=verdict>STOPPED<",
        "<bdi>invoices</bdi>",
        "<bdi>billing</bdi>",
        ">1,204<",
        ">90 s<",
        ">nobody<",
        "3 of 8 partitions not OK",
        "the module has had no live member for 95 s",
        "aria-label=\"last hour: at most",
    ] {
        assert!(first.contains(part), "{part}: {first}");
    }
    assert!(text.contains("<title>1 STOPPED · kmonitor</title>"));
    assert!(text.contains("5 modules shown, 9 more are OK: <a href=\"/?verdict=STOPPED&amp;"), "{text}");
    assert!(!text.contains("audit_log"));
    assert!(page(&samples::healthy(), "").contains("<title>OK · kmonitor</title>"));
}

#[test]
fn names_stay_text() {
    let late = samples::hostile();
    let hostile = &late.clusters[0].modules.iter().find(|module| module.name.starts_with('<')).unwrap();
    let opened =
        format!("open={:x}&filter=%22%3E%3Cimg%20src%3Dx%20onerror%3D&cluster=%22%3E%3Cimg%20src%3Dx", hostile.id);
    for query in ["", "filter=img", "filter=%3Cimg%20src%3Dx%20onerror%3D1%3E%22'", &opened] {
        let text = page(&late, query) + &fragment(&late, &Query::parse(query).unwrap(), Moment::now()).render();
        assert_harmless(&page(&late, query));
        assert!(!text.contains("<img"), "{query}");
    }
    assert!(page(&late, "").contains("<bdi>&lt;img src=x onerror=alert(1)&gt;</bdi>"));
    let mut odd = samples::late();
    let cluster = Arc::make_mut(&mut odd.clusters[0]);
    cluster.name = "<b>\"&".into();
    cluster.modules[0].reason = "<i>\u{202e}".into();
    cluster.trouble = Some(crate::kmonitor::view::Trouble { text: "<u>'\0".into(), since: odd.made_at });
    let text = page(&odd, "verdict=OK&verdict=STOPPED&verdict=REWOUND");
    for bad in ["<b>\"", "<i>", "<u>", "\u{202e}", "\0"] {
        assert!(!text.contains(bad), "{bad:?}");
    }
    for name in HOSTILE_NAMES {
        Arc::make_mut(&mut odd.clusters[0]).modules[0].name = name.into();
        assert_harmless(&page(&odd, "verdict=OK&verdict=STOPPED"));
    }
}

/// The policy of the page refuses scripts and styles in it, so there must be none.
#[test]
fn a_page_has_no_inline_code_and_loads_nothing_from_elsewhere() {
    assert_harmless(&page(&samples::away(), "open=1&sort=delay&cluster=orders"));
}

#[test]
fn partitions_are_shown_when_they_are_asked_for() {
    let late = samples::late();
    let module = late.clusters[0].modules.iter().find(|module| &*module.name == "recommendations").unwrap();
    let closed = page(&late, "");
    assert!(!closed.contains("class=\"partitions\""));
    let link = format!("/?open={:016x}", module.id);
    assert!(closed.contains(&link), "the link for browsers without scripts");
    let text = page(&late, &link[2..]);
    let partitions = between(&text, "<details open>", "</details>");
    assert_eq!(partitions.len(), 1);
    let rows = between(partitions[0], "<tr data-id=\"", "</tr>");
    assert_eq!(rows.len(), 24);
    assert!(rows[0].contains(">LAGGING<") && rows[9].contains(">OK<"), "the worst ones first");
    assert!(partitions[0].contains("12.6 messages a second come in"));

    let mut many = samples::many(1);
    let modules = &mut Arc::make_mut(&mut many.clusters[0]).modules;
    let partition = modules[0].partitions[0].clone();
    modules[0].partitions = vec![partition; 5_000];
    let id = modules[0].id;
    let text = page(&many, &format!("open={id:x}"));
    assert_eq!(between(&text, "<tr data-id=\"", "</tr>").len(), partitions::MAX_PARTITIONS);
    assert!(text.contains("4,800 more partitions are in"));
}

#[test]
fn a_cluster_that_is_away_has_a_row_and_old_numbers_look_old() {
    let text = page(&samples::away(), "");
    let first = between(&text, "<tbody", "</tbody>")[0];
    assert!(first.contains("cluster common") && first.contains("ZooKeeper has not answered for 42 s"), "{first}");
    assert!(first.contains("its 2 modules are not listed"), "{first}");

    let late = samples::late();
    let now = Moment::now();
    let later = Moment { at: now.at + Duration::from_secs(60), wall: now.wall + Duration::from_secs(60) };
    let query = Query::default();
    assert!(!whole(&late, &query, now).contains("class=\"age late\""));
    let text = whole(&late, &query, later);
    assert!(text.contains("class=\"age late\">read <time") && text.contains(" class=\"old\""), "{text}");
    assert_eq!(version(&late, &query, now), version(&late, &query, now));
    assert_ne!(version(&late, &query, now), version(&late, &query, later), "greyed numbers are another version");
    assert_ne!(version(&late, &query, now), version(&late, &Query::parse("sort=name").unwrap(), now));
}

#[test]
fn the_fragment_is_the_same_rows() {
    let late = samples::late();
    let (query, now) = (Query::default(), Moment::now());
    assert_same_rows(&whole(&late, &query, now), &fragment(&late, &query, now).render());
}

#[test]
fn a_thousand_modules_are_a_page_below_200_kb() {
    let many = samples::many(1_000);
    let text = page(&many, "");
    assert_eq!(between(&text, "data-id=\"", "\"").len(), 200);
    assert!(text.len() < 200_000, "{}", text.len());
    assert!(text.contains("1 to 200 of 900") && text.contains(">Next</a>"));
    let empty = page(&samples::many(0), "");
    assert!(empty.contains("No module.") && empty.len() < 10_000, "{}", empty.len());
}

/// Writes the sample pages for `make screenshots`.
#[test]
fn sample_pages_can_be_written() {
    let late = samples::late();
    let recommendations = late.clusters[0].modules.iter().find(|module| &*module.name == "recommendations").unwrap();
    let open = format!("open={:x}", recommendations.id);
    for (name, view, query) in [
        ("healthy", &samples::healthy(), ""),
        ("late", &late, ""),
        ("open", &late, open.as_str()),
        ("away", &samples::away(), ""),
    ] {
        write_sample(name, &page(view, query));
    }
}
