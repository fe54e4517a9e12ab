//! The content of the page: the modules as in `/v1/modules`, each with a verdict and the reason for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::verdict::{ModuleVerdict, ModulesPage};
use crate::clock::Moment;
use crate::html::assets::fnv;
use crate::html::selection::Row;
use crate::html::{Count, Rate, Span};
use crate::ktransfer::operations::{
    BackendState, BackendStatus, HeadStatus, ModuleHandle, ModuleStatus, Operations, PartitionState,
};
use crate::ktransfer::pauses::Pauses;

/// A message that failed and has held its commit point for this long makes a module degraded. A retry that succeeds
/// sooner needs no attention.
const HELD_FOR_LONG_MS: u64 = 10_000;
/// A dispatcher that has not written its status for this long is not ready. It writes it once a second.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// The modules of this process at one time.
pub(crate) struct ModulesContent {
    /// Changes whenever the content is taken.
    pub(super) number: u128,
    /// The modules, by name.
    pub(super) modules: Vec<ModuleRow>,
}

/// A module as the page shows it.
pub(super) struct ModuleRow {
    /// FNV-1a 64 of module and topic.
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    pub(super) topic: Arc<str>,
    pub(super) verdict: ModuleVerdict,
    /// The reason for the verdict, as a sentence.
    pub(super) why: String,
    /// The latest status and when it was written; `None` if the module does not run.
    pub(super) latest: Option<(Instant, ModuleStatus)>,
    pub(super) pauses: Pauses,
}

impl ModulesContent {
    /// Takes the state of all modules. `troubles`: the components of `/readyz` that are not ready.
    pub(crate) fn take(operations: &Operations, troubles: Vec<(String, String)>, now: Moment) -> ModulesContent {
        let troubles: HashMap<String, String> = troubles.into_iter().collect();
        let row = |handle: &ModuleHandle| {
            let (name, topic) = (Arc::clone(&handle.name), Arc::clone(&handle.topic));
            let latest = handle.status.latest().map(|(at, status)| (now.of_monotonic(at), status));
            ModuleRow::new((name, topic), latest, handle.pauses.present(), &troubles, now.at)
        };
        ModulesContent::new(operations.all().iter().map(row).collect(), now)
    }

    pub(super) fn new(modules: Vec<ModuleRow>, now: Moment) -> ModulesContent {
        ModulesContent { number: now.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis(), modules }
    }

    /// Returns the number of modules with this verdict.
    pub(super) fn count(&self, verdict: ModuleVerdict) -> u64 {
        self.modules.iter().filter(|module| module.verdict == verdict).count() as u64
    }

    /// Returns the partitions that this process has claimed, and the memory of the messages read and not done.
    pub(super) fn totals(&self) -> (u64, u64) {
        let running = || self.modules.iter().filter_map(|module| module.latest.as_ref());
        let partitions = running().map(|(_, status)| status.partitions.len() as u64).sum();
        (partitions, running().map(|(_, status)| status.window.in_flight_bytes as u64).sum())
    }
}

impl ModuleRow {
    pub(super) fn new(
        (name, topic): (Arc<str>, Arc<str>),
        latest: Option<(Instant, ModuleStatus)>,
        pauses: Pauses,
        troubles: &HashMap<String, String>,
        now: Instant,
    ) -> ModuleRow {
        let (verdict, why) = judge(&name, latest.as_ref(), &pauses, troubles, now);
        ModuleRow { id: fnv(format!("{name}\0{topic}").as_bytes()), name, topic, verdict, why, latest, pauses }
    }

    /// Returns the message that has held the commit point of a pushed partition longest, with its partition.
    pub(super) fn longest_held(&self) -> Option<(i32, &HeadStatus)> {
        longest(&self.latest.as_ref()?.1, |_| true)
    }
}

impl Row<ModulesPage> for ModuleRow {
    fn verdict(&self) -> ModuleVerdict {
        self.verdict
    }

    fn texts(&self) -> Vec<&str> {
        vec![&self.name, &self.topic, &self.why]
    }
}

fn longest(status: &ModuleStatus, counts: impl Fn(&HeadStatus) -> bool) -> Option<(i32, &HeadStatus)> {
    let pushed = status.partitions.iter().filter(|partition| partition.state == PartitionState::Pushing);
    let heads = pushed.filter_map(|partition| Some((partition.partition, partition.head.as_ref()?)));
    heads.filter(|(_, head)| counts(head)).max_by_key(|(_, head)| head.held_ms)
}

fn judge(
    name: &str,
    latest: Option<&(Instant, ModuleStatus)>,
    pauses: &Pauses,
    troubles: &HashMap<String, String>,
    now: Instant,
) -> (ModuleVerdict, String) {
    let trouble = |component: &str| troubles.get(&format!("{component}{name}")).cloned();
    let Some((at, status)) = latest else {
        let reason = trouble("module ").unwrap_or_else(|| "it is stopping or starting".to_owned());
        return (ModuleVerdict::Stopped, reason);
    };
    let age = now.saturating_duration_since(*at);
    if age > STALE_AFTER {
        return (ModuleVerdict::NotReady, format!("its dispatcher has not reported for {}", Span(age)));
    }
    let parts = ["module ", "broker of ", "group of ", "dead letters of "];
    let unready: Vec<String> = parts.iter().filter_map(|part| trouble(part)).collect();
    if !unready.is_empty() {
        return (ModuleVerdict::NotReady, unready.join("; "));
    }
    let out_of_use: Vec<&BackendStatus> = status.backends.iter().filter(|backend| !is_usable(backend)).collect();
    if !out_of_use.is_empty() && out_of_use.len() == status.backends.len() {
        return (ModuleVerdict::Stalled, format!("every backend is ejected: {}", described(&out_of_use)));
    }
    let retried = longest(status, |head| head.last.is_some() && head.held_ms >= HELD_FOR_LONG_MS);
    if !out_of_use.is_empty() || retried.is_some() {
        let ejected = (!out_of_use.is_empty()).then(|| {
            let (count, all) = (out_of_use.len(), status.backends.len());
            let are = if count == 1 { "is" } else { "are" };
            format!("{count} of {all} backends {are} ejected: {}", described(&out_of_use))
        });
        let why: Vec<String> = retried.map(retries).into_iter().chain(ejected).collect();
        return (ModuleVerdict::Degraded, why.join("; "));
    }
    if let Some(why) = paused(status, pauses) {
        return (ModuleVerdict::Paused, why);
    }
    if status.partitions.is_empty() {
        return (ModuleVerdict::NoPartitions, "this process has claimed no partition of the topic".to_owned());
    }
    (ModuleVerdict::Pushing, pushing(status))
}

pub(super) fn is_usable(backend: &BackendStatus) -> bool {
    matches!(backend.state, BackendState::InUse | BackendState::SlowStart)
}

/// Names the first of these backends, with the reason.
fn described(backends: &[&BackendStatus]) -> String {
    let Some(first) = backends.first() else { return String::new() };
    let more = match backends.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("{}, {}{more}", first.server, first.reason.as_deref().unwrap_or("no reason known"))
}

fn retries((partition, head): (i32, &HeadStatus)) -> String {
    let (times, held) = (Count(head.attempts.into()), Span(Duration::from_millis(head.held_ms)));
    let tried = if head.attempts == 1 { "once".to_owned() } else { format!("{times} times") };
    let last = head.last.as_deref().unwrap_or("unknown");
    let backend = head.backend.as_deref().map(|backend| format!(" by {backend}")).unwrap_or_default();
    format!("offset {} of partition {partition} was tried {tried} in {held}, last answer{backend}: {last}", head.offset)
}

/// Says what an operator has paused; `None` if nothing is.
fn paused(status: &ModuleStatus, pauses: &Pauses) -> Option<String> {
    if let Some(mark) = &pauses.module {
        return Some(format!("the module is paused by {}", mark.by));
    }
    let is_held = |state| matches!(state, PartitionState::Paused | PartitionState::Draining | PartitionState::Seeking);
    let held = status.partitions.iter().filter(|partition| is_held(partition.state)).count();
    let by = pauses.partitions.values().next().map(|mark| format!(" by {}", mark.by)).unwrap_or_default();
    (held > 0).then(|| format!("{held} of {} partitions are paused{by}", status.partitions.len()))
}

fn pushing(status: &ModuleStatus) -> String {
    let mut why = match status.window.not_done {
        0 => "nothing waits".to_owned(),
        1 => "1 message is read and not done".to_owned(),
        count => format!("{} messages are read and not done", Count(count as u64)),
    };
    if let Some(failed) = status.per_second.map(|rates| rates.failed_attempts).filter(|failed| *failed > 0.0) {
        why += &format!("; {} attempts a second fail", Rate(failed).to_string().replace("&lt;", "<"));
    }
    if status.messages.dead_letters_waiting > 0 {
        why += &format!("; {} wait until their dead letter is stored", Count(status.messages.dead_letters_waiting));
    }
    why
}
