//! Judges a run with faults by its record: what kproxy confirmed, what the backends received, which offsets were
//! stored.
//!
//! Pure functions; times are counted from the start of the run. The promises that are checked:
//! - every confirmed message is delivered, or is in the dead letters;
//! - the messages of a key are first delivered in the order of their offsets;
//! - a key never has two open requests, with an allowance at a takeover (see [`Limits::fence_slack`]);
//! - no request of an older claim begins after the first request of a newer claim;
//! - the stored offset of a partition never goes back;
//! - each repeat is explained by a disturbance of the instance that delivered the message, or of a shared server;
//! - nothing is left over: processes, claims, members.

mod letters;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

pub(crate) use letters::{LettersVerdict, StoredLetter, judge_letters};

/// A position in the topic.
pub(crate) type Position = (i32, i64);

/// A request at a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Push {
    /// `""` if the message has no key; then neither order nor concurrency is judged.
    pub(crate) key: String,
    pub(crate) position: Position,
    pub(crate) instance: String,
    /// The fencing token; it grows with each claim of the partition.
    pub(crate) claim: Option<u64>,
    pub(crate) began: Duration,
    /// `None` if the request was open until the end of the run.
    pub(crate) ended: Option<Duration>,
    pub(crate) is_delivered: bool,
}

/// The stored offset of a partition at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredOffset {
    pub(crate) at: Duration,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// A fault as it was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disturbance {
    pub(crate) what: String,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    /// The instance that it hit; `None` if it hit all of them.
    pub(crate) instance: Option<String>,
    /// Whether the instance was stopped by SIGSTOP, so that it could not close its connections.
    pub(crate) is_pause: bool,
}

/// The record of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// The positions that kproxy answered with 200.
    pub(crate) confirmed: Vec<Position>,
    pub(crate) dead_letters: BTreeSet<Position>,
    pub(crate) pushes: Vec<Push>,
    pub(crate) stored: Vec<StoredOffset>,
    pub(crate) disturbances: Vec<Disturbance>,
    /// Processes, claims and members that should not be there at the end.
    pub(crate) leftovers: Vec<String>,
}

/// The tolerances of a judgement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A request of the older claim may still be open for this time after the first request of the newer claim, since
    /// the backend learns late that its connection is closed. After a pause, the time counts from the end of the pause.
    /// The same holds for an attempt that was given up, after the next attempt at the message began.
    pub(crate) fence_slack: Duration,
    /// A repeat may come this long after the end of the disturbance that explains it, or after the first request of the
    /// claim that follows it: a second disturbance may delay the takeover.
    pub(crate) aftermath: Duration,
    /// A repeated message may have been delivered this long before the disturbance that explains its repeat.
    pub(crate) commit_lag: Duration,
}

/// The judgement. Each list has one line for each violation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) n_confirmed: usize,
    pub(crate) n_pushes: usize,
    pub(crate) n_delivered: usize,
    pub(crate) n_repeats: usize,
    /// The repeats by the disturbance that explains them.
    pub(crate) repeats_by_disturbance: BTreeMap<String, usize>,
    /// Requests that an instance sent right after a pause under a claim that had ended: only the fencing token
    /// protects against them. They are no violation.
    pub(crate) n_fenced: usize,
    pub(crate) lost: Vec<String>,
    pub(crate) out_of_order: Vec<String>,
    pub(crate) concurrent: Vec<String>,
    pub(crate) stale: Vec<String>,
    pub(crate) went_back: Vec<String>,
    pub(crate) unexplained: Vec<String>,
    pub(crate) leftovers: Vec<String>,
}

impl Verdict {
    fn violations(&self) -> [(&'static str, &Vec<String>); 7] {
        [
            ("lost", &self.lost),
            ("out of order", &self.out_of_order),
            ("concurrent requests of a key", &self.concurrent),
            ("requests of an older claim", &self.stale),
            ("stored offsets that went back", &self.went_back),
            ("repeats without a reason", &self.unexplained),
            ("left over", &self.leftovers),
        ]
    }

    pub(crate) fn is_good(&self) -> bool {
        self.violations().iter().all(|(_, list)| list.is_empty())
    }

    /// Returns the repeats as a share of the confirmed messages.
    pub(crate) fn repeat_share(&self) -> f64 {
        self.n_repeats as f64 / self.n_confirmed.max(1) as f64
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} confirmed, {} delivered, {} requests, {} repeats ({:.2} %), {} refused by their token after a pause",
            self.n_confirmed,
            self.n_delivered,
            self.n_pushes,
            self.n_repeats,
            100.0 * self.repeat_share(),
            self.n_fenced
        )?;
        for (what, n) in &self.repeats_by_disturbance {
            write!(formatter, "\n  {n} repeats after: {what}")?;
        }
        for (name, list) in self.violations() {
            if !list.is_empty() {
                write!(formatter, "\n{} {name}:", list.len())?;
                list.iter().take(10).try_for_each(|line| write!(formatter, "\n  {line}"))?;
            }
        }
        Ok(())
    }
}

/// Judges a run.
pub(crate) fn judge(evidence: &Evidence, limits: &Limits) -> Verdict {
    let first_deliveries = first_deliveries(&evidence.pushes);
    let mut verdict = Verdict {
        n_confirmed: evidence.confirmed.len(),
        n_pushes: evidence.pushes.len(),
        n_delivered: first_deliveries.len(),
        leftovers: evidence.leftovers.clone(),
        went_back: offsets_that_went_back(&evidence.stored),
        out_of_order: out_of_order(&first_deliveries),
        ..Verdict::default()
    };
    for position in &evidence.confirmed {
        if !first_deliveries.contains_key(position) && !evidence.dead_letters.contains(position) {
            verdict.lost.push(format!("partition {} offset {}", position.0, position.1));
        }
    }
    let history = History::new(evidence, limits);
    history.find_stale(&mut verdict);
    history.find_concurrent(&mut verdict);
    history.find_repeats(&mut verdict);
    verdict
}

/// Returns the first delivery of each message.
fn first_deliveries(pushes: &[Push]) -> HashMap<Position, &Push> {
    let mut first: HashMap<Position, &Push> = HashMap::new();
    for push in pushes.iter().filter(|push| push.is_delivered) {
        let known = first.entry(push.position).or_insert(push);
        if push.ended < known.ended {
            *known = push;
        }
    }
    first
}

fn offsets_that_went_back(stored: &[StoredOffset]) -> Vec<String> {
    let mut highest: BTreeMap<i32, i64> = BTreeMap::new();
    let mut found = Vec::new();
    for StoredOffset { at, partition, offset } in stored {
        let highest = highest.entry(*partition).or_insert(*offset);
        if offset < highest {
            found.push(format!("partition {partition}: {offset} at {:.3} s, after {highest}", at.as_secs_f64()));
        }
        *highest = *offset.max(highest);
    }
    found
}

fn out_of_order(first_deliveries: &HashMap<Position, &Push>) -> Vec<String> {
    let mut deliveries: Vec<&Push> = first_deliveries.values().copied().filter(|push| !push.key.is_empty()).collect();
    deliveries.sort_by_key(|push| push.ended);
    let mut newest: HashMap<(&str, i32), i64> = HashMap::new();
    let mut found = Vec::new();
    for push in deliveries {
        let (partition, offset) = push.position;
        let newest = newest.entry((&push.key, partition)).or_insert(offset);
        if offset < *newest {
            found.push(format!("{push} first delivered after offset {newest}"));
        }
        *newest = offset.max(*newest);
    }
    found
}

impl fmt::Display for Push {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Push { key, position: (partition, offset), instance, claim, began, ended, .. } = self;
        write!(formatter, "key {key}, partition {partition} offset {offset} by {instance}")?;
        claim.map_or(Ok(()), |claim| write!(formatter, " under claim {claim}"))?;
        let ended = ended.map_or("the end".to_owned(), |ended| format!("{:.3} s", ended.as_secs_f64()));
        write!(formatter, " from {:.3} s until {ended}", began.as_secs_f64())
    }
}

/// The pushes of a run by partition and key, each in the order in which they began.
struct History<'a> {
    evidence: &'a Evidence,
    limits: &'a Limits,
    by_partition: BTreeMap<i32, Vec<&'a Push>>,
    by_key: BTreeMap<(&'a str, i32), Vec<&'a Push>>,
}

impl<'a> History<'a> {
    fn new(evidence: &'a Evidence, limits: &'a Limits) -> History<'a> {
        let mut pushes: Vec<&Push> = evidence.pushes.iter().collect();
        pushes.sort_by_key(|push| push.began);
        let (mut by_partition, mut by_key) = (BTreeMap::new(), BTreeMap::new());
        for push in pushes {
            let partition = push.position.0;
            by_partition.entry(partition).or_insert_with(Vec::new).push(push);
            if !push.key.is_empty() {
                by_key.entry((push.key.as_str(), partition)).or_insert_with(Vec::new).push(push);
            }
        }
        History { evidence, limits, by_partition, by_key }
    }

    /// Returns the end of the pause of `instance` that contains `time`, with the slack after it.
    fn pause_end(&self, instance: &str, time: Duration) -> Option<Duration> {
        let pauses = self.evidence.disturbances.iter().filter(|disturbance| disturbance.is_pause);
        let of_instance = pauses.filter(|pause| pause.instance.as_deref() == Some(instance));
        let ends = of_instance.map(|pause| (pause.from, pause.until + self.limits.fence_slack));
        ends.filter(|(from, end)| (*from..=*end).contains(&time)).map(|(_, end)| end).max()
    }

    /// Finds requests that began under a claim after the first request of a newer one.
    fn find_stale(&self, verdict: &mut Verdict) {
        for pushes in self.by_partition.values() {
            let mut newest: Option<&Push> = None;
            for push in pushes.iter().filter(|push| push.claim.is_some()) {
                match newest.filter(|newest| newest.claim > push.claim) {
                    Some(_) if self.pause_end(&push.instance, push.began).is_some() => verdict.n_fenced += 1,
                    Some(newest) => verdict.stale.push(format!("{push}, after {newest}")),
                    None => newest = Some(push),
                }
            }
        }
    }

    /// Finds requests of one key that were open at the same time.
    fn find_concurrent(&self, verdict: &mut Verdict) {
        for pushes in self.by_key.values() {
            let mut open: Vec<&Push> = Vec::new();
            for push in pushes {
                open.retain(|earlier| earlier.ended.is_none_or(|ended| ended > push.began));
                for earlier in &open {
                    if !self.is_takeover(earlier, push) && !self.is_given_up(earlier, push) {
                        verdict.concurrent.push(format!("{earlier}, and {push}"));
                    }
                }
                open.push(push);
            }
        }
    }

    /// Whether `earlier` is an attempt that was given up when `push` began: `push`, or one before it, is the next
    /// attempt at the message of `earlier`. A backend may notice a moment later that the connection was closed.
    fn is_given_up(&self, earlier: &Push, push: &Push) -> bool {
        let is_next = |one: &&&Push| one.position == earlier.position && one.began > earlier.began;
        let next = self.by_partition[&earlier.position.0].iter().filter(is_next).min_by_key(|one| one.began);
        let is_closed = earlier.ended.is_some_and(|ended| ended <= push.began + self.limits.fence_slack);
        let is_retried = next.is_some_and(|next| next.claim == earlier.claim && next.began <= push.began);
        is_retried
            && push.claim == earlier.claim
            && push.instance == earlier.instance
            && !earlier.is_delivered
            && is_closed
    }

    /// Whether `push` belongs to a newer claim, and `earlier` began before that claim and ended in time.
    fn is_takeover(&self, earlier: &Push, push: &Push) -> bool {
        let is_newer = |one: &Push| match (earlier.claim, one.claim) {
            (Some(older), Some(newer)) => newer > older,
            _ => one.instance != earlier.instance && one.began > earlier.began,
        };
        let is_stale_after_pause = earlier.claim.is_some()
            && push.claim.is_some()
            && push.claim < earlier.claim
            && self.pause_end(&push.instance, push.began).is_some();
        if !is_newer(push) {
            return is_stale_after_pause;
        }
        let first = self.by_partition[&push.position.0].iter().find(|one| is_newer(one)).expect("`push` is newer");
        let end = match self.pause_end(&earlier.instance, first.began) {
            Some(end) => end,
            None => first.began + self.limits.fence_slack,
        };
        earlier.began <= first.began && earlier.ended.is_some_and(|ended| ended <= end)
    }

    /// Returns when the first request of the claim of `push` began.
    fn first_of_claim(&self, push: &Push) -> Option<Duration> {
        let of_partition = &self.by_partition[&push.position.0];
        push.claim.and_then(|_| of_partition.iter().find(|one| one.claim == push.claim)).map(|first| first.began)
    }

    /// Returns the end of the disturbances that hit the instance of `push` before it: they delay what a new owner
    /// repeats.
    fn disturbed_until(&self, push: &Push) -> Duration {
        let hits = |one: &&Disturbance| one.instance.as_deref().is_none_or(|hit| hit == push.instance);
        let before = self.evidence.disturbances.iter().filter(hits).filter(|one| one.from <= push.began);
        before.map(|one| one.until).max().unwrap_or_default()
    }

    /// Finds requests of messages that had been delivered before, and looks for the disturbance that explains each. The
    /// latest delivery counts: what was delivered and not stored may be repeated more than once, each time for a reason
    /// of its own.
    fn find_repeats(&self, verdict: &mut Verdict) {
        let mut deliveries: HashMap<Position, Vec<&Push>> = HashMap::new();
        for push in self.by_partition.values().flatten().filter(|push| push.is_delivered) {
            deliveries.entry(push.position).or_default().push(push);
        }
        for push in self.by_partition.values().flatten() {
            let earlier = deliveries.get(&push.position).into_iter().flatten();
            let ends = earlier.filter_map(|one| Some((one.ended?, one))).filter(|(ended, _)| *ended <= push.began);
            let latest = ends.filter(|(_, one)| *one != push).max_by_key(|(ended, _)| *ended);
            let Some((delivered, last)) = latest else { continue };
            verdict.n_repeats += 1;
            let taken_over = self.first_of_claim(push).filter(|_| last.claim < push.claim);
            let delayed = taken_over.map(|taken_over| taken_over.max(self.disturbed_until(push)));
            let explains = |disturbance: &&Disturbance| {
                let from = disturbance.from.saturating_sub(self.limits.commit_lag);
                let hit =
                    disturbance.instance.as_deref().is_none_or(|hit| [&*last.instance, &push.instance].contains(&hit));
                hit && delivered >= from
                    && push.began >= disturbance.from
                    && push.began <= delayed.unwrap_or_default().max(disturbance.until) + self.limits.aftermath
            };
            // The latest one is the most likely reason.
            let reason = self.evidence.disturbances.iter().filter(explains).max_by_key(|disturbance| disturbance.from);
            match reason {
                Some(reason) => *verdict.repeats_by_disturbance.entry(reason.what.clone()).or_default() += 1,
                None => verdict.unexplained.push(format!("{push}, delivered as {last}")),
            }
        }
    }
}

#[cfg(test)]
mod tests;
