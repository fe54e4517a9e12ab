//! ktransfer and topics that cannot be read: `/readyz`, `/v1/modules` and the page say so, and say when it is over.

use std::time::Duration;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::http::Client;
use crate::harness::kafka_admin::{AUTHORIZER, Acl, Operation, Resource};
use crate::harness::operator::Operator;
use crate::harness::{Cluster, ConfigFile, Ktransfer, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

#[track_caller]
fn wait_until_unready(ktransfer: &Ktransfer, part: &str, reason: &str) {
    wait_until(DEADLINE, &format!("/readyz names {reason:?}"), || {
        let (status, text) = ktransfer.readiness();
        status == 503 && text.contains(part) && text.contains(reason)
    });
    let mut browser = Client::connect(&ktransfer.admin).expect("admin_port listens");
    let page = browser.request("GET", "/", &[("Accept", "text/html")], b"").expect("a page").text();
    assert!(page.contains("data-verdict=\"NOT READY\"") && page.contains(reason), "{page}");
}

fn assert_misspelt_topic_is_named(config: ConfigFile) {
    let cluster = cluster();
    let (topic, module, fleet) = (unique("misspelt"), unique("misspelt"), Fleet::start(1, |_| Reply::ok()));
    let file = configs::module(&topic, &fleet.addresses());
    let mut ktransfer = Ktransfer::start(config, &[(&module, file)]);
    wait_until_unready(&ktransfer, &format!("group of {module}"), &format!("topic {topic} does not exist"));
    cluster.create_topic(&topic, 1);
    ktransfer.wait_until_ready();
    cluster.produce(&topic, 0, &[(b"key", b"value")]);
    fleet.wait_until_delivered(1, DEADLINE);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_misspelt_topic_is_named_until_it_is_created() {
    assert_misspelt_topic_is_named(configs::ktransfer(cluster()));
}

#[test]
fn a_misspelt_topic_is_named_until_it_is_created_also_without_zookeeper() {
    let brokers: Vec<String> = cluster().broker_list().into_iter().map(str::to_owned).collect();
    assert_misspelt_topic_is_named(configs::ktransfer_without_zookeeper(&brokers));
}

#[test]
fn a_right_to_read_that_is_revoked_is_named_until_it_is_granted_again() {
    let cluster = Cluster::start_with(1, &AUTHORIZER);
    let topic = cluster.new_topic("denied", 2);
    let (module, fleet) = (unique("denied"), Fleet::start(1, |_| Reply::ok()));
    let mut ktransfer = Ktransfer::start_ready(&cluster, &[(&module, configs::module(&topic, &fleet.addresses()))]);
    cluster.produce(&topic, 1, &[(b"key", b"value")]);
    fleet.wait_until_delivered(1, DEADLINE);
    let denied = Acl { resource: Resource::Topic(&topic), operation: Operation::Read, is_allowed: false };
    cluster.set_acl(denied, true);
    let reason = "TOPIC_AUTHORIZATION_FAILED";
    wait_until_unready(&ktransfer, &format!("broker of {module}"), reason);
    let status = Operator::of(&ktransfer, &module).module();
    for partition in status["partitions"].as_array().expect("partitions") {
        let error = &partition["read_error"];
        assert!(error["reason"].as_str().is_some_and(|text| text.contains(reason)), "{status}");
        assert!(error["for_ms"].as_u64().is_some_and(|for_ms| for_ms >= 5_000), "{status}");
    }
    // No message comes that would show that the partitions are read again.
    cluster.set_acl(denied, false);
    ktransfer.wait_until_ready();
    wait_until(DEADLINE, "no partition has an error", || {
        let status = Operator::of(&ktransfer, &module).module();
        status["partitions"].as_array().is_some_and(|all| all.iter().all(|of| of["read_error"].is_null()))
    });
    cluster.produce(&topic, 1, &[(b"key", b"value")]);
    fleet.wait_until_delivered(2, DEADLINE);
    ktransfer.daemon.stop(STOP_DEADLINE);
}
