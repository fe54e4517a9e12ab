use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::*;
use crate::http::Body;
use crate::json_schema::assert_valid;
use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};
use crate::kmonitor::view::{ReasonCode, Trouble, module_id};

const SCHEMA: &str = include_str!("../../../../conf/schema/delay-v1.json");

fn head(query: &str) -> Head {
    let mut head = Head { path: "/v1/delay".into(), query: Some(query.into()), ..Head::default() };
    head.method = "GET".to_owned().into();
    head
}

fn answered(view: &View, head: &Head) -> Result<Response, String> {
    answer(view, head, Instant::now(), |render| render().into())
}

/// Answers a query, and holds the answer against the schema.
fn get(view: &View, query: &str) -> Value {
    let response = answered(view, &head(query)).unwrap();
    let Body::Owned(body) = &response.body else { panic!("{response:?}") };
    assert_eq!((response.status, response.content_type), (200, "application/json"));
    let value = serde_json::from_slice(body).unwrap();
    assert_valid(SCHEMA, &value);
    value
}

/// A time after 1970, for `since` and the like.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Two clusters: one with a stopped and a fine module, one that was never read.
fn sample() -> View {
    let now = Instant::now();
    let ago = |millis| now.checked_sub(Duration::from_millis(millis));
    let stopped = PartitionView {
        verdict: Verdict::Stopped,
        since: at(1_764_093_695),
        reason: "nobody pushes it".into(),
        reason_code: ReasonCode::NoOwner,
        stored: Some(1_000),
        newest: Some(1_402),
        seconds_behind: Some(90.24),
        seconds_from: Some("history"),
        stored_moved: ago(95_000),
        owner: Some("host-1:8f3a".into()),
        read_at: ago(2_120),
        history: Arc::new(std::array::from_fn(|minute| u8::try_from(minute.saturating_sub(56)).unwrap())),
        ..partition(0, Some(402))
    };
    let late = ModuleView {
        seconds_behind: Some(90.24),
        since: at(1_764_093_695),
        in_per_second: Some(12.612_4),
        out_per_second: Some(0.0),
        owners: Some(2),
        members: Some(2),
        ..module("m", "t", vec![stopped, partition(1, None), partition(2, Some(0))])
    };
    let trouble = Some(Trouble { text: "connection refused".into(), since: at(7) });
    let known = ClusterView {
        published: now,
        oldest_read: ago(2_120),
        ..cluster("c", vec![late, module("n", "t", vec![partition(0, Some(0))])])
    };
    let away = ClusterView { published: now, trouble, ..unknown("away") };
    View { number: 48_213, made_at: at(1_764_093_790), ..view(vec![known, away]) }
}

#[test]
fn the_answer_is_as_documented() {
    let mut expected: Value = serde_json::from_str(include_str!("documented.json")).unwrap();
    let nulls = |count| vec![Value::Null; count];
    let module = &mut expected["clusters"][0]["modules"][0];
    module["id"] = format!("{:016x}", module_id("c", "m", "t", Source::Zookeeper)).into();
    module["history"]["delay"] = nulls(60).into();
    module["partition"][0]["history"]["delay"] = [nulls(57), vec![json!(0), json!(1), json!(1)]].concat().into();
    let mut answer = get(&sample(), "verdict=!OK&history=1");
    // The unknown partition is bad, too.
    let listed = answer["clusters"][0]["modules"][0]["partition"].as_array_mut().unwrap();
    let second = listed.remove(1);
    assert_eq!(
        (&second["delay"], &second["newest"], &second["unknown"]),
        (&json!(null), &json!(null), &json!("leader_silent"))
    );
    assert_eq!(answer, expected, "{answer:#}");
}

#[test]
fn parameters_select_clusters_modules_and_partitions() {
    let counts = |query: &str| -> Vec<Vec<usize>> {
        let answer = get(&sample(), query);
        let clusters = answer["clusters"].as_array().unwrap().iter();
        let partitions = |module: &Value| module["partition"].as_array().unwrap().len();
        clusters.map(|cluster| cluster["modules"].as_array().unwrap().iter().map(partitions).collect()).collect()
    };
    for (query, expected) in [
        ("", vec![vec![2, 0], vec![]]),
        ("partitions=all", vec![vec![3, 1], vec![]]),
        ("partitions=none", vec![vec![0, 0], vec![]]),
        ("cluster=c&partitions=all&module=n", vec![vec![1]]),
        ("cluster=a*", vec![vec![]]),
        ("cluster=x", vec![]),
        ("min_seconds=60", vec![vec![2], vec![]]),
    ] {
        assert_eq!(counts(query), expected, "{query}");
    }
    let first = get(&sample(), "limit=1");
    let next = first["next"].as_str().unwrap();
    let second = get(&sample(), &format!("limit=1&after={next}"));
    assert_eq!((&second["clusters"][0]["modules"][0]["module"], &second["next"]), (&json!("n"), &json!(null)));
}

#[test]
fn equal_versions_have_equal_bytes_and_304() {
    let view = sample();
    let answered_to = |view: &View, query: &str| answered(view, &head(query)).unwrap();
    let field = |response: &Response, name: &str| {
        response.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    };
    let first = answered_to(&view, "module=m");
    let tag = field(&first, "ETag").unwrap();
    assert!(tag.starts_with("\"48213-"), "{tag}");
    assert_eq!(field(&first, "Cache-Control").as_deref(), Some("no-cache"));
    assert_eq!(field(&first, "Age").as_deref(), Some("2"));
    let second = answered_to(&view, "module=m");
    assert_eq!((&first.body, field(&second, "ETag")), (&second.body, Some(tag.clone())));
    let mut known = head("module=m");
    known.headers.push("If-None-Match", tag.as_bytes());
    assert_eq!(answered(&view, &known).unwrap().status, 304);

    let mut hanging = view.clone();
    Arc::make_mut(&mut hanging.clusters[0]).known = false;
    let newer = View { number: 48_214, ..view.clone() };
    let restarted = View { made_at: at(9), ..view.clone() };
    for (other, query) in [(&view, "module=n"), (&hanging, "module=m"), (&newer, "module=m"), (&restarted, "module=m")]
    {
        assert_ne!(field(&answered_to(other, query), "ETag"), Some(tag.clone()), "{query}");
    }
    assert_eq!(answered(&view, &head("x=1")).unwrap_err().split(':').next(), Some("unknown parameter \"x\""));
}

#[test]
fn the_schema_names_every_verdict_source_and_reason_code() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let words = |pointer: &str| -> Vec<String> {
        let list = schema.pointer(pointer).unwrap().as_array().unwrap();
        list.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(words("/$defs/verdict/enum"), Verdict::ALL.map(Verdict::word));
    assert_eq!(words("/$defs/reason_code/enum"), ReasonCode::ALL.map(ReasonCode::word));
    assert_eq!(words("/$defs/source/enum"), [Source::Zookeeper, Source::Kafka].map(Source::word));
}
