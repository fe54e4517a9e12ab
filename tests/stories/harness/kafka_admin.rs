//! Changes of an administrator to a cluster: ACLs, configs of topics, quotas. Encoded by hand, as in
//! [`super::kafka_wire`].

use std::time::Duration;

use super::kafka_wire::{KafkaRequest, call, metadata};
use super::{Cluster, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const ALTER_CONFIGS: i16 = 33;
const ALTER_CLIENT_QUOTAS: i16 = 49;

const TOPIC: u8 = 2;
const CLUSTER: u8 = 4;

/// Operations (Kafka: `org.apache.kafka.common.acl.AclOperation`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    All = 2,
    Read = 3,
    Write = 4,
    Describe = 8,
    DescribeConfigs = 10,
    IdempotentWrite = 12,
}

/// What an ACL concerns.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resource<'a> {
    /// A topic; `*` for all.
    Topic(&'a str),
    Cluster,
}

/// An ACL for every principal and host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acl<'a> {
    pub(crate) resource: Resource<'a>,
    pub(crate) operation: Operation,
    pub(crate) is_allowed: bool,
}

/// Properties of brokers whose ACLs count; without an ACL everything is allowed.
pub(crate) const AUTHORIZER: [&str; 2] =
    ["authorizer.class.name=kafka.security.authorizer.AclAuthorizer", "allow.everyone.if.no.acl.found=true"];

impl Cluster {
    /// Adds an ACL, or removes it if `is_present` is false. The brokers need an authorizer.
    pub(crate) fn set_acl(&self, acl: Acl, is_present: bool) {
        let (resource_type, name) = match acl.resource {
            Resource::Topic(name) => (TOPIC, name),
            Resource::Cluster => (CLUSTER, "kafka-cluster"),
        };
        let mut request = KafkaRequest::default();
        request.int(1);
        request.0.push(resource_type);
        request.text(name);
        request.0.push(3); // Pattern type literal.
        request.text("User:*");
        request.text("*");
        request.0.extend([acl.operation as u8, if acl.is_allowed { 3 } else { 2 }]);
        let api = if is_present { CREATE_ACLS } else { DELETE_ACLS };
        self.ask_controller(&format!("{acl:?}: {is_present}"), api, 1, &request, 8);
    }

    /// Denies, or no longer denies, every client to write to a topic; the brokers need an authorizer.
    pub(crate) fn deny_write(&self, topic: &str, is_denied: bool) {
        let (resource, operation) = (Resource::Topic(topic), Operation::Write);
        self.set_acl(Acl { resource, operation, is_allowed: false }, is_denied);
    }

    /// Allows everything on a topic, except to read its configs.
    pub(crate) fn hide_configs(&self, topic: &str) {
        let resource = Resource::Topic(topic);
        self.set_acl(Acl { resource, operation: Operation::All, is_allowed: true }, true);
        self.set_acl(Acl { resource, operation: Operation::DescribeConfigs, is_allowed: false }, true);
    }

    /// Replaces the configs of a topic.
    pub(crate) fn set_topic_configs(&self, topic: &str, configs: &[(&str, &str)]) {
        let mut request = KafkaRequest::default();
        request.int(1);
        request.0.push(TOPIC);
        request.text(topic);
        request.int(configs.len() as i32);
        for (name, value) in configs {
            request.text(name);
            request.text(value);
        }
        request.0.push(0); // Not validate_only.
        self.ask_controller(&format!("{topic}: {configs:?}"), ALTER_CONFIGS, 0, &request, 8);
    }

    /// Sets the bytes that clients with this id may produce in a second; `None` removes the quota.
    pub(crate) fn set_produce_quota(&self, client_id: &str, bytes_per_second: Option<f64>) {
        let mut request = KafkaRequest::default();
        request.int(1);
        request.int(1);
        request.text("client-id");
        request.text(client_id);
        request.int(1);
        request.text("producer_byte_rate");
        request.long(bytes_per_second.unwrap_or_default().to_bits().cast_signed());
        request.0.push(u8::from(bytes_per_second.is_none()));
        request.0.push(0); // Not validate_only.
        self.ask_controller(&format!("quota {bytes_per_second:?}"), ALTER_CLIENT_QUOTAS, 0, &request, 8);
    }

    /// Repeats a request until the error code at `position` of the response is 0.
    fn ask_controller(&self, what: &str, api: i16, version: i16, request: &KafkaRequest, position: usize) {
        wait_until(DEADLINE, what, || {
            let metadata = metadata(&self.brokers, &[]).ok()?;
            let controller = metadata.brokers.get(&metadata.controller)?;
            let answer = call(controller, api, version, &request.0).ok()?;
            (answer.get(position..position + 2)? == [0, 0]).then_some(())
        });
    }
}
