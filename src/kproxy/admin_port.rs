//! `admin_port`: the page at `/`, which shows what `/metrics` counts and the connections to the brokers, and the
//! endpoints that every daemon has. None of them needs credentials, so the port is for operators only.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::handler::CommitHandler;
use super::metrics::acks_label;
use super::page::{LimitRow, ProxyContent, ProxyPageAnswers, TopicRow};
use super::traffic::Traffic;
use crate::admin::Admin;
use crate::broker::ConnectionStatus;
use crate::clock::Moment;
use crate::html::answer::Recent;
use crate::http::{Admission, ByteBudget, Handler, Head, ServerMetrics};
use crate::metrics::{Registry, Row};
use crate::reload::Reloads;

/// Name of the server that takes the commits.
const SERVER: &str = "http";

/// The counters of requests that were refused for a reason that is no status of a topic.
const REFUSALS: [(&str, &str); 5] = [
    ("kproxy_pool_full_total", "too few of the req_pool_size slots were free"),
    ("kproxy_unauthorized_total", "credentials"),
    ("kproxy_rate_limited_total", "rate limit of the"),
    ("http_limits_total", "limit of the server"),
    ("http_timeouts_total", "deadline of the server"),
];

/// The sources of the page's content.
pub(super) struct PageSource {
    pub(super) handler: Arc<CommitHandler>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) budget: ByteBudget,
    /// Largest number of connections of `port`.
    pub(super) max_connections: usize,
    pub(super) servers: ServerMetrics,
    pub(super) registry: Registry,
    pub(super) reloads: Reloads,
}

impl PageSource {
    fn content(&self, now: Moment) -> ProxyContent {
        let access = self.handler.access.as_ref();
        let limits_of = |topic: &str| access.and_then(|access| access.limits_of(topic));
        let topics = self.traffic.topics().into_iter();
        ProxyContent {
            number: now.wall.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis(),
            broker: self.handler.producers.reachable(),
            failed_reloads: self.reloads.failures(),
            topics: topics.map(|topic| TopicRow::new(limits_of, topic)).collect(),
            connections: self.handler.producers.connections().map(|connections| {
                let by_the_clock = |(producer, connection): (usize, ConnectionStatus)| {
                    let time = connection.time.map(|time| now.of_monotonic(time));
                    (producer, ConnectionStatus { time, ..connection })
                };
                connections.into_iter().map(by_the_clock).collect()
            }),
            waits: self.traffic.waits(),
            limits: self.limits(),
            refusals: self.refusals(),
        }
    }

    fn limits(&self) -> Vec<LimitRow> {
        let slots = &self.handler.slots;
        vec![
            LimitRow::count("Messages in flight", "req_pool_size", slots.used() as u64, slots.size() as u64),
            LimitRow::bytes("Memory of requests", "max_in_flight_bytes", self.budget.used(), self.budget.max()),
            LimitRow::count(
                "Connections of clients",
                "max_connections",
                self.servers.open_connections(SERVER),
                self.max_connections as u64,
            ),
        ]
    }

    /// Returns the number of refusals since the start by kind, each with its description.
    fn refusals(&self) -> Vec<(String, u64)> {
        let counts = self.registry.counts(&REFUSALS.map(|(name, _)| name));
        let in_words = |(name, labels, count): (String, Vec<String>, u64)| {
            let (_, what) = REFUSALS.iter().find(|(metric, _)| *metric == name)?;
            // The refusals of the admin port are left out.
            let labels: Vec<&str> = labels.iter().map(String::as_str).filter(|label| *label != SERVER).collect();
            let words = if labels.is_empty() { (*what).to_owned() } else { format!("{what}: {}", labels.join(", ")) };
            (count > 0 && !labels.contains(&"admin")).then_some((words, count))
        };
        counts.into_iter().filter_map(in_words).collect()
    }
}

/// The handler of `admin_port`.
pub(super) struct AdminPort {
    source: PageSource,
    page: ProxyPageAnswers,
    content: Recent<ProxyContent>,
}

impl AdminPort {
    pub(super) fn new(source: PageSource) -> AdminPort {
        AdminPort { source, page: ProxyPageAnswers::default(), content: Recent::default() }
    }

    /// Adds the metric of the connections to brokers, if the engine reports them.
    pub(super) fn register_metrics(&self, registry: &Registry) {
        // Weak: the handler has the registry.
        let handler = Arc::downgrade(&self.source.handler);
        let rows = move || {
            let connections = handler.upgrade().and_then(|handler| handler.producers.connections());
            let mut counts: BTreeMap<[String; 3], f64> = BTreeMap::new();
            for (_, connection) in connections.into_iter().flatten() {
                let (broker, acks) = (connection.broker.to_string(), acks_label(connection.acks).to_owned());
                *counts.entry([broker, acks, connection.state.word().to_owned()]).or_default() += 1.0;
            }
            counts.into_iter().map(|(labels, value)| Row { labels: labels.into(), value }).collect()
        };
        registry.table(
            "kproxy_broker_connections",
            "Connections to brokers by state: connected, idle, connecting, throttled, silent, back_off.",
            &["broker", "acks", "state"],
            rows,
        );
    }
}

impl Handler for AdminPort {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        let now = Moment::now();
        let content = || self.content.get(now.at, || self.source.content(now));
        if let Some(answer) = self.page.answer(head, content) {
            return Admission::Refuse(answer);
        }
        let admin = &self.source.handler.admin;
        Admission::Refuse(match admin.answer(head) {
            // A browser would have got the page.
            Some(answer) if head.path == "/" => answer.with_header("Vary", "Accept"),
            Some(answer) => answer,
            None => Admin::not_found(),
        })
    }
}
