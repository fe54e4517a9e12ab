//! Modules that tests render: as they are in a busy process, with hostile names, and very many.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::content::{ModuleRow, ModulesContent};
use crate::broker::{Offset, PartitionId};
use crate::clock::Moment;
use crate::ktransfer::operations::{
    BackendState, BackendStatus, HeadState, HeadStatus, MessageCounts, MessageRates, ModuleStatus, PartitionState,
    PartitionStatus, WindowStatus,
};
use crate::ktransfer::pauses::{PauseMark, Pauses};

pub(super) fn backend(server: &str, state: BackendState) -> BackendStatus {
    let is_out = matches!(state, BackendState::Ejected | BackendState::Probed);
    BackendStatus {
        server: server.to_owned(),
        state,
        since_ms: (state != BackendState::InUse).then_some(if is_out { 252_000 } else { 3_000 }),
        next_probe_ms: is_out.then_some(12_400),
        on_wire: usize::from(!is_out) * 6,
        failures: 0,
        reason: (state != BackendState::InUse)
            .then(|| "5 failures in a row: connect_refused: Connection refused (os error 111)".to_owned()),
    }
}

pub(super) fn partition(number: PartitionId, head: Option<HeadStatus>) -> PartitionStatus {
    let commit_point = 48_000 + Offset::from(number) * 1_117;
    let waits = head.is_some();
    PartitionStatus {
        partition: number,
        state: PartitionState::Pushing,
        commit_point: Some(commit_point),
        read_to: Some(commit_point + if waits { 212 } else { 0 }),
        not_done: if waits { 41 } else { 0 },
        done_ahead: if waits { 171 } else { 0 },
        held_back: 0,
        lease_ms: 5_400,
        read_error: None,
        head,
    }
}

/// The head of line of a message that was tried `attempts` times.
pub(super) fn head(attempts: u32, held_ms: u64, last: Option<&str>) -> HeadStatus {
    HeadStatus {
        offset: 50_234,
        held_ms,
        state: if last.is_some() { HeadState::Waiting } else { HeadState::OnWire },
        on_wire_ms: last.is_none().then_some(40),
        key: Some("order-1182-4471".to_owned()),
        attempts,
        last: last.map(str::to_owned),
        backend: Some("10.20.0.12:8080".to_owned()),
    }
}

pub(super) fn status(backends: Vec<BackendStatus>, partitions: Vec<PartitionStatus>, rate: f64) -> ModuleStatus {
    let not_done: usize = partitions.iter().map(|partition| partition.not_done).sum();
    ModuleStatus {
        window: WindowStatus {
            in_use: not_done.min(24),
            size: 64,
            not_done,
            in_flight_bytes: not_done * 2_100,
            max_in_flight_bytes: 64 << 20,
        },
        partitions,
        backends,
        messages: MessageCounts { delivered: 4_211_907, failed_attempts: 214, given_up: 3, ..MessageCounts::default() },
        per_second: Some(MessageRates { delivered: rate, failed_attempts: 0.0 }),
    }
}

pub(super) fn healthy() -> ModuleStatus {
    let backends = ["10.20.0.11:8080", "10.20.0.12:8080", "10.20.0.13:8080"];
    let partitions = (0..4).map(|number| partition(number, (number == 2).then(|| head(1, 120, None))));
    status(backends.map(|server| backend(server, BackendState::InUse)).into(), partitions.collect(), 312.4)
}

pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    pub(super) topic: &'a str,
    pub(super) status: Option<ModuleStatus>,
    pub(super) pauses: Pauses,
    /// The part of `/readyz` that is not ready, and why.
    pub(super) trouble: Option<(&'a str, &'a str)>,
}

impl<'a> Sample<'a> {
    pub(super) fn new(name: &'a str, topic: &'a str, status: ModuleStatus) -> Sample<'a> {
        Sample { name, topic, status: Some(status), pauses: Pauses::default(), trouble: None }
    }

    pub(super) fn row(self, at: Instant) -> ModuleRow {
        let troubles: HashMap<String, String> =
            self.trouble.iter().map(|(part, why)| (format!("{part} {}", self.name), (*why).to_owned())).collect();
        let latest = self.status.map(|status| (at, status));
        ModuleRow::new((self.name.into(), self.topic.into()), latest, self.pauses, &troubles, at)
    }
}

pub(super) fn pause(by: &str, now: Moment) -> PauseMark {
    let at_ms = now.wall.duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(1_100);
    PauseMark { by: by.to_owned(), at_ms: u64::try_from(at_ms.as_millis()).unwrap() }
}

/// A module of each verdict.
pub(super) fn busy(now: Moment) -> ModulesContent {
    let mut degraded = healthy();
    degraded.backends[1] = backend("10.20.0.12:8080", BackendState::Ejected);
    degraded.backends[2] = backend("10.20.0.13:8080", BackendState::SlowStart);
    degraded.partitions[3].head = Some(head(14, 97_000, Some("status 503")));
    degraded.partitions[3].not_done = 41;
    let mut stalled = status(vec![backend("hooks.example.org:443", BackendState::Probed)], vec![], 0.0);
    stalled.backends.push(backend("hooks-2.example.org:443", BackendState::Ejected));
    stalled.partitions = vec![partition(0, Some(head(31, 741_000, Some("connect_refused: Connection refused"))))];
    let mut paused = healthy();
    for partition in &mut paused.partitions {
        partition.state = PartitionState::Paused;
    }
    let mut partly = healthy();
    partly.partitions[1].state = PartitionState::Draining;
    let nowhere = status(vec![backend("10.20.0.40:80", BackendState::InUse)], vec![], 0.0);
    let by_ann = Pauses { module: Some(pause("ann", now)), partitions: BTreeMap::new() };
    let one = Pauses { module: None, partitions: BTreeMap::from([(1, pause("bob", now))]) };
    let samples = vec![
        Sample::new("audit_log", "audit", healthy()),
        Sample::new("crm_sync", "customers", healthy()),
        Sample::new("invoices", "billing", degraded),
        Sample {
            status: None,
            trouble: Some(("module", "topic mail_outbox does not exist")),
            ..Sample::new("mail", "mail_outbox", healthy())
        },
        Sample {
            trouble: Some(("broker of", "partition 2 of topic events cannot be read: broker 3 has not answered")),
            ..Sample::new("push_notifications", "events", healthy())
        },
        Sample { pauses: by_ann, ..Sample::new("recommendations", "clicks", paused) },
        Sample { pauses: one, ..Sample::new("search_index", "catalog_changes", partly) },
        Sample::new("thumbnails", "uploads", nowhere),
        Sample::new("webhooks", "order_events", stalled),
    ];
    ModulesContent::new(samples.into_iter().map(|sample| sample.row(now.at)).collect(), now)
}

/// A module in which every text is `text`.
pub(super) fn hostile(text: &str, now: Moment) -> ModulesContent {
    let mut status = healthy();
    status.backends[0] =
        BackendStatus { server: text.to_owned(), reason: Some(text.to_owned()), ..backend("", BackendState::Ejected) };
    let head = HeadStatus {
        key: Some(text.to_owned()),
        last: Some(text.to_owned()),
        backend: Some(text.to_owned()),
        ..head(3, 20_000, None)
    };
    status.partitions = vec![partition(0, Some(head))];
    let pauses = Pauses { module: Some(pause(text, now)), partitions: BTreeMap::new() };
    let running = Sample { pauses, ..Sample::new(text, text, status) }.row(now.at);
    let stopped = Sample { status: None, trouble: Some(("module", text)), ..Sample::new(text, "t", healthy()) };
    ModulesContent::new(vec![running, stopped.row(now.at)], now)
}

/// Many modules.
pub(super) fn many(count: usize, now: Moment) -> ModulesContent {
    let names: Vec<String> = (0..count).map(|number| format!("module-of-a-team-{number:04}")).collect();
    let row = |name: &String| {
        let mut status = healthy();
        status.backends[0] = backend("10.20.0.11:8080", BackendState::Ejected);
        Sample::new(name, "topic-of-a-team", status).row(now.at)
    };
    ModulesContent::new(names.iter().map(row).collect(), now)
}
