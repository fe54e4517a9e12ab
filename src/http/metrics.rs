//! Prometheus metrics of the HTTP servers of a daemon.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::metrics::Registry;

/// Metrics of all servers of a daemon; the label `server` is the name of the server.
#[derive(Clone)]
pub struct ServerMetrics {
    connections: IntGaugeVec,
    accepted: IntCounterVec,
    accept_failures: IntCounterVec,
    refused: IntCounterVec,
    limits: IntCounterVec,
    timeouts: IntCounterVec,
    handshakes: IntCounterVec,
}

impl ServerMetrics {
    /// Registers the metrics. Call it at most once for each registry.
    pub fn new(registry: &Registry) -> Self {
        ServerMetrics {
            connections: registry.gauge("http_connections", "Open connections.", &["server"]),
            accepted: registry.counter("http_accepted_total", "Connections accepted.", &["server"]),
            accept_failures: registry.counter(
                "http_accept_failures_total",
                "Times that accepting paused because the process had no descriptors or memory left.",
                &["server"],
            ),
            refused: registry.counter(
                "http_refused_total",
                "Requests and connections refused by the server itself, by status.",
                &["server", "status"],
            ),
            limits: registry.counter(
                "http_limits_total",
                "Requests and connections refused because a limit was reached, by limit: connections, \
                 connections_per_ip, uri, headers, header_fields, request_size, chunks, in_flight_bytes, answer_bytes.",
                &["server", "limit"],
            ),
            timeouts: registry.counter(
                "http_timeouts_total",
                "Connections that reached a deadline, by deadline: read, write, idle, linger.",
                &["server", "deadline"],
            ),
            handshakes: registry.counter(
                "http_tls_handshakes_total",
                "TLS handshakes, by outcome: ok, failed, timeout.",
                &["server", "outcome"],
            ),
        }
    }

    /// Returns the number of open connections of a server.
    pub(crate) fn open_connections(&self, server: &str) -> u64 {
        u64::try_from(self.connections.with_label_values(&[server]).get()).unwrap_or(0)
    }

    /// Returns the metrics of one server.
    pub(super) fn of(&self, server: &'static str) -> ServerCounters {
        ServerCounters {
            connections: self.connections.with_label_values(&[server]),
            accepted: self.accepted.with_label_values(&[server]),
            accept_failures: self.accept_failures.with_label_values(&[server]),
            families: self.clone(),
            server,
        }
    }
}

/// The metrics of one server.
#[derive(Clone)]
pub(super) struct ServerCounters {
    pub(super) connections: IntGauge,
    pub(super) accepted: IntCounter,
    pub(super) accept_failures: IntCounter,
    /// For the metrics whose labels are looked up on each use: failures, and events that happen once for each
    /// connection.
    families: ServerMetrics,
    server: &'static str,
}

impl ServerCounters {
    pub(super) fn refused(&self, status: u16) {
        self.families.refused.with_label_values(&[self.server, &status.to_string()]).inc();
    }

    pub(super) fn limit_reached(&self, limit: &str) {
        self.families.limits.with_label_values(&[self.server, limit]).inc();
    }

    pub(super) fn handshake(&self, outcome: &str) {
        self.families.handshakes.with_label_values(&[self.server, outcome]).inc();
    }

    pub(super) fn timed_out(&self, deadline: &str) {
        self.families.timeouts.with_label_values(&[self.server, deadline]).inc();
    }
}
