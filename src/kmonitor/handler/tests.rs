use super::*;
use crate::admin::Health;
use crate::http::Body;
use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};
use crate::kmonitor::report::prometheus::{Detail, DetailLevel};
use crate::metrics::Registry;

pub(crate) fn answers() -> DelayAnswers {
    let one = |name: &str, delay| module(name, "t", vec![partition(0, Some(delay))]);
    let all =
        view(vec![cluster("c", vec![one("m", 12), one("n", 1)]), cluster("c 2", vec![one("m", 0)]), unknown("away")]);
    let detail = Detail { level: DetailLevel::Auto, max_partitions: 10 };
    let pages = Arc::new(PublishedPages::new(move || all.clone(), detail));
    DelayAnswers { pages, page: DelayPageAnswers::default(), admin: Admin::new(Registry::new(), Health::new()) }
}

pub(crate) fn head(method: &str, target: &str) -> Head {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut head = Head { path: path.into(), query: Some(query.into()), ..Head::default() };
    head.method = method.to_owned().into();
    head
}

fn respond(handler: &DelayAnswers, method: &str, target: &str) -> (u16, String) {
    let response = handler.answer(&head(method, target), &handler.pages.pages());
    (response.status, String::from_utf8(response.body.to_vec()).unwrap())
}

#[test]
fn every_request_has_its_answer() {
    let handler = answers();
    let all = r#"{"c":{"m":{"0":12},"n":{"0":1}},"c 2":{"m":{"0":0}},"away":{}}"#;
    for (target, status, body) in [
        ("/delay", 200, all),
        ("/delay?", 200, all),
        ("/delay?format=json&cluster=&other=1", 200, all),
        ("/delay?cluster=c", 200, r#"{"c":{"m":{"0":12},"n":{"0":1}}}"#),
        ("/delay?cluster=c%202&module=m", 200, r#"{"c 2":{"m":{"0":0}}}"#),
        ("/delay?cluster=c+2", 200, r#"{"c 2":{"m":{"0":0}}}"#),
        ("/delay?cluster=away", 200, r#"{"away":{}}"#),
        ("/delay?cluster=c&format=zabbix", 200, "- c.m.0.delay 12\n- c.n.0.delay 1\n"),
        ("/delay?format=zabbix&module=n", 200, "- c.n.0.delay 1\n"),
        // One cluster is not known, so it may have the module.
        ("/delay?module=x", 200, r#"{"c":{},"c 2":{},"away":{}}"#),
        (
            "/v1/zabbix?level=partition&cluster=c%202",
            200,
            "- \"kmonitor.partition.delay[c 2,m,t,zookeeper,0]\" 0\n\
          - \"kmonitor.partition.verdict[c 2,m,t,zookeeper,0]\" 0\n",
        ),
        ("/v1/zabbix?module=x*", 200, ""),
        ("/v1/zabbix/discovery?module=[xy]", 200, "[\n]\n"),
        ("/v1/zabbix?format=json&module=x", 200, r#"{"left_out":0,"modules":[],"unknown_clusters":1}"#),
        ("/healthz", 200, r#"{"status":"ok"}"#),
        ("/", 200, r#"{"status":"ok"}"#),
    ] {
        assert_eq!(respond(&handler, "GET", target), (status, body.into()), "{target}");
    }
    for target in ["/delay", "*", "/", "/healthz", "/v1/zabbix", "/v1/zabbix/discovery"] {
        assert_eq!(respond(&handler, "OPTIONS", target), (200, String::new()), "{target}");
    }
    for (method, target, status, error) in [
        ("GET", "/v1/delay?modul=x", 400, "bad_query"),
        ("PUT", "/v1/delay", 405, "method_not_allowed"),
        ("GET", "/delay?cluster=x", 404, "unknown_cluster"),
        ("GET", "/delay?cluster=c&module=x", 404, "unknown_module"),
        ("GET", "/delay?format=xml", 400, "bad_format"),
        ("GET", "/delay?cluster=c&cluster=c", 400, "bad_query"),
        ("GET", "/delay?cluster=%zz", 400, "bad_query"),
        ("GET", "/delay?cluster=%", 400, "bad_query"),
        ("GET", "/delay?cluster=%+1", 400, "bad_query"),
        ("GET", "/delay?cluster=%ff", 400, "bad_query"),
        ("GET", "/delays", 404, "not_found"),
        ("POST", "/delay", 405, "method_not_allowed"),
        ("GET", "/v1/zabbix?cluster=x", 404, "unknown_cluster"),
        ("GET", "/v1/zabbix?modul=x", 400, "bad_query"),
        ("GET", "/v1/zabbix?module=[", 400, "bad_query"),
        ("GET", "/v1/zabbix?timestamps=yes", 400, "bad_query"),
        ("GET", "/v1/zabbix?format=json&level=partition", 400, "bad_query"),
        ("GET", "/v1/zabbix/discovery?timestamps=1", 400, "bad_query"),
        ("DELETE", "/v1/zabbix", 405, "method_not_allowed"),
    ] {
        let (answered, body) = respond(&handler, method, target);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((answered, body["error"].as_str()), (status, Some(error)), "{target}");
    }
}

#[test]
fn a_client_that_has_the_page_gets_304_and_head_renders_nothing() {
    let handler = answers();
    for target in ["/delay", "/delay?module=m", "/v1/zabbix", "/v1/zabbix?module=m&format=json", "/v1/zabbix/discovery"]
    {
        let response = handler.answer(&head("GET", target), &handler.pages.pages());
        let (_, etag) = response.headers.iter().find(|(name, _)| *name == "ETag").unwrap();
        assert!(response.headers.iter().any(|(name, age)| *name == "Age" && age == "0"), "{:?}", response.headers);
        let mut again = head("GET", target);
        again.headers.push("If-None-Match", etag.as_bytes());
        let again = handler.answer(&again, &handler.pages.pages());
        assert_eq!((again.status, again.body.len()), (304, 0), "{target}");
    }
    let response = handler.answer(&head("HEAD", "/v1/zabbix?module=m"), &handler.pages.pages());
    assert!(matches!(response.body, Body::Omitted), "{:?}", response.body);
}

#[test]
fn an_answer_for_zabbix_is_bounded_and_says_how_to_select_less() {
    let partitions = (0..6_000).map(|number| partition(number, Some(1))).collect::<Vec<_>>();
    let all = view(vec![cluster("c", vec![module("m", "t", partitions.clone()), module("n", "t", partitions)])]);
    let detail = Detail { level: DetailLevel::Auto, max_partitions: 10 };
    let pages = Arc::new(PublishedPages::new(move || all.clone(), detail));
    let handler =
        DelayAnswers { pages, page: DelayPageAnswers::default(), admin: Admin::new(Registry::new(), Health::new()) };
    for path in ["/v1/zabbix", "/v1/zabbix/discovery"] {
        let (status, body) = respond(&handler, "GET", &format!("{path}?level=partition"));
        assert_eq!(status, 400, "{path}");
        assert!(body.contains("12000 partitions are selected, but an answer has 10000"), "{body}");
        assert_eq!(respond(&handler, "GET", &format!("{path}?level=partition&module=m")).0, 200, "{path}");
        assert_eq!(respond(&handler, "GET", path).0, 200, "{path}");
    }
}
