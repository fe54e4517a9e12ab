//! Combines the verdicts of a module's partitions: the worst one, and one sentence for all. Pure.
//!
//! "Nobody pushes 3 of 8 partitions" is one fact for a reader, not three; so the sentence counts the partitions with
//! the worst verdict, sums their waiting messages, and names the longest time.

use std::sync::Arc;
use std::time::Duration;

use super::facts::{self, Facts, Owner, Verdict};
use super::sentence::{grouped, messages, time};
use super::view::{PartitionView, ReasonCode};
use crate::broker::PartitionId;

/// Collects the partitions of one topic of a module.
#[derive(Debug, Default)]
pub(super) struct Summary {
    total: usize,
    counts: [usize; 6],
    lost: u64,
    /// What the partitions with the worst verdict have in common.
    worst: Option<Group>,
}

#[derive(Debug)]
struct Group {
    verdict: Verdict,
    /// The code of the partition that waits longest; the first of equals.
    code: ReasonCode,
    reason: Arc<str>,
    partition: PartitionId,
    rank: (u64, Duration),
    count: usize,
    paused: usize,
    waiting: u64,
    in_transaction: u64,
    came_in: u64,
    again: u64,
    /// The longest time for which what the code says has been so.
    longest: Option<Duration>,
    seconds_behind: f64,
    owner: Option<Arc<str>>,
    has_several_owners: bool,
}

impl Summary {
    /// Adds a partition: its facts, and the view made of them. Partitions that are gone count only if all are.
    pub(super) fn add(&mut self, facts: &Facts, view: &PartitionView) {
        self.total += 1;
        self.counts[usize::from(view.verdict.severity())] += 1;
        self.lost = self.lost.saturating_add(view.lost);
        let rank = (facts::counted(facts).unwrap_or(0), facts.waiting_for.unwrap_or_default());
        match &mut self.worst {
            Some(worst) if view.verdict < worst.verdict => {}
            Some(worst) if view.verdict == worst.verdict => worst.join(facts, view, rank),
            _ => self.worst = Some(Group::new(facts, view, rank)),
        }
    }

    /// Returns the worst verdict, its code, and the sentence; OK for a module without partitions.
    pub(super) fn finish(self) -> (Verdict, ReasonCode, Arc<str>) {
        let Some(worst) = &self.worst else { return (Verdict::Ok, ReasonCode::NothingWaits, "nothing waits".into()) };
        let text = if self.total == 1 { Arc::clone(&worst.reason) } else { self.sentence(worst) };
        (worst.verdict, worst.code, text)
    }

    fn sentence(&self, worst: &Group) -> Arc<str> {
        let mut text = worst.clause(self.total);
        // The reason of a single partition says it already.
        if 0 < worst.in_transaction && (worst.verdict == Verdict::Ok || 1 < worst.count) {
            let wait = if worst.in_transaction == 1 { "waits" } else { "wait" };
            text.push_str(&format!("; {} of them {wait} for a transaction to end", grouped(worst.in_transaction)));
        }
        if 0 < worst.paused && worst.paused < worst.count {
            text.push_str(&format!("; {} paused", partitions(worst.paused)));
        }
        for verdict in
            Verdict::ALL.into_iter().rev().filter(|verdict| Verdict::Ok < *verdict && *verdict < worst.verdict)
        {
            match self.counts[usize::from(verdict.severity())] {
                0 => {}
                count => text.push_str(&format!("; {} {verdict}", partitions(count))),
            }
        }
        // The reason of a single partition says it already.
        if 0 < self.lost && 1 < worst.count {
            text.push_str(&format!("; {} deleted by retention before being pushed", messages(self.lost)));
        }
        text.into()
    }
}

impl Group {
    fn new(facts: &Facts, view: &PartitionView, rank: (u64, Duration)) -> Group {
        let mut group = Group {
            verdict: view.verdict,
            code: view.reason_code,
            reason: Arc::clone(&view.reason),
            partition: view.partition,
            rank,
            count: 0,
            paused: 0,
            waiting: 0,
            in_transaction: 0,
            came_in: 0,
            again: 0,
            longest: None,
            seconds_behind: 0.0,
            owner: None,
            has_several_owners: false,
        };
        group.join(facts, view, rank);
        group
    }

    fn join(&mut self, facts: &Facts, view: &PartitionView, rank: (u64, Duration)) {
        // A left-over partition does not speak for those that are there.
        let is_better_example = match (is_left_over(self.code), is_left_over(view.reason_code)) {
            (true, false) => true,
            (false, true) => false,
            _ => self.rank < rank,
        };
        if is_better_example {
            (self.code, self.partition, self.rank) = (view.reason_code, view.partition, rank);
            self.reason = Arc::clone(&view.reason);
        }
        self.count += 1;
        self.paused += usize::from(view.reason_code == ReasonCode::Paused);
        self.waiting = self.waiting.saturating_add(facts::counted(facts).unwrap_or(0));
        self.in_transaction = self.in_transaction.saturating_add(facts::in_transaction(facts));
        self.came_in = self.came_in.saturating_add(facts.came_in);
        if let Some(back) = facts.went_back {
            self.again = self.again.saturating_add(u64::try_from(back.from.saturating_sub(back.to)).unwrap_or(0));
        }
        self.longest = self.longest.max(duration(view.reason_code, facts));
        self.seconds_behind = self.seconds_behind.max(view.seconds_behind.unwrap_or(0.0));
        if let Owner::Named(owner) = &facts.owner {
            self.has_several_owners |= self.owner.as_ref().is_some_and(|known| known != owner);
            self.owner.get_or_insert_with(|| Arc::clone(owner));
        }
    }

    fn clause(&self, total: usize) -> String {
        let several = match self.count {
            1 if self.verdict != Verdict::Ok => return format!("partition {}: {}", self.partition, self.reason),
            count if count == total => format!("all {total} partitions"),
            count => format!("{} of {total} partitions", grouped(count as u64)),
        };
        let wait = match self.waiting {
            1 => "1 message waits".to_owned(),
            count => format!("{} messages wait", grouped(count)),
        };
        let time = self.longest.map_or_else(|| "a while".to_owned(), time);
        // Where some are paused and some are not, the sentence counts the paused ones apart.
        let code = match self.code {
            ReasonCode::Paused if self.paused == self.count => ReasonCode::Paused,
            ReasonCode::Paused if self.verdict == Verdict::Ok => ReasonCode::Waiting,
            ReasonCode::Paused => ReasonCode::SecondsBehind,
            code => code,
        };
        match code {
            ReasonCode::NoMember => format!("nobody pushes {several}: no live member for {time}; {wait}"),
            ReasonCode::NoOwner => format!("nobody pushes {several}: no owner for {time}; {wait}"),
            ReasonCode::NothingStored => {
                format!("nothing was stored of {several} for {time} while {} came in", messages(self.came_in))
            }
            ReasonCode::NotMoving => {
                let owner = match (&self.owner, self.has_several_owners) {
                    (Some(owner), false) => format!(", owned by {owner},"),
                    _ => String::new(),
                };
                format!("{several}{owner} have not moved for {time}; {wait}: see ktransfer.log.wf and the backend")
            }
            ReasonCode::NeverStored => format!("no offset was ever stored of {several}; {wait}"),
            ReasonCode::WentBack => {
                format!("the stored offsets of {several} went back: {} pushed again", messages(self.again))
            }
            ReasonCode::SecondsBehind | ReasonCode::MessagesBehind => {
                format!("{several} are up to {} behind, {}", self.time_behind(), messages(self.waiting))
            }
            ReasonCode::Waiting if 0.0 < self.seconds_behind => {
                format!("{wait}, up to {} behind", self.time_behind())
            }
            ReasonCode::Waiting => wait,
            ReasonCode::Paused => format!("{several} are paused; {wait}"),
            _ if self.verdict == Verdict::Ok => self.reason.to_string(),
            _ => format!("{several}: {}", self.reason),
        }
    }

    fn time_behind(&self) -> String {
        time(Duration::try_from_secs_f64(self.seconds_behind.round()).unwrap_or_default())
    }
}

fn is_left_over(code: ReasonCode) -> bool {
    matches!(code, ReasonCode::Gone | ReasonCode::LeftBehind)
}

/// For how long what the code says has been so.
fn duration(code: ReasonCode, facts: &Facts) -> Option<Duration> {
    match (code, &facts.owner) {
        (ReasonCode::NoMember, _) => facts.nobody_there_for,
        (ReasonCode::NoOwner, Owner::Nobody { since }) => *since,
        _ => facts.moved_ago,
    }
}

fn partitions(count: usize) -> String {
    if count == 1 { "1 partition".to_owned() } else { format!("{} partitions", grouped(count as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::facts::{LogState, Stored, WentBack};
    use std::time::SystemTime;

    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    fn facts(waiting: i64) -> Facts {
        Facts {
            stored: Stored::Offset(1_000),
            log: LogState::Known { oldest: 0, newest: 1_000 + waiting },
            came_in: u64::try_from(waiting).unwrap(),
            moved_ago: seconds(130),
            nobody_there_for: seconds(95),
            owner: Owner::Named("host-1:8f3a".into()),
            went_back: Some(WentBack { from: 1_500, to: 1_000, ago: Duration::from_secs(9) }),
            ..Facts::unread()
        }
    }

    fn view(partition: PartitionId, verdict: Verdict, code: ReasonCode) -> PartitionView {
        PartitionView {
            partition,
            verdict,
            since: SystemTime::UNIX_EPOCH,
            reason: format!("why {partition}").into(),
            reason_code: code,
            delay: None,
            stored: None,
            oldest: None,
            newest: None,
            lost: 0,
            seconds_behind: Some(0.0),
            seconds_from: None,
            seconds_at_least: false,
            stored_moved: None,
            owner: None,
            read_at: None,
            unknown: None,
            history: Arc::new([0; 60]),
        }
    }

    fn summary(rows: &[(Verdict, ReasonCode, Facts)]) -> (Verdict, ReasonCode, String) {
        let mut summary = Summary::default();
        for (number, (verdict, code, facts)) in (0..).zip(rows) {
            let seconds_behind = (facts::waiting(facts) != Some(0)).then(|| f64::from(number) * 100.0);
            summary.add(facts, &PartitionView { seconds_behind, ..view(number, *verdict, *code) });
        }
        let (verdict, code, text) = summary.finish();
        (verdict, code, text.to_string())
    }

    #[test]
    fn one_sentence_counts_the_partitions_with_the_worst_verdict() {
        use ReasonCode as Code;
        use Verdict::{Lagging, Ok, Rewound, Stalled, Stopped, Unknown};
        let fine = (Ok, Code::NothingWaits, facts(0));
        let row = |verdict, code, waiting| (verdict, code, facts(waiting));
        let unowned = |time| Facts { owner: Owner::Nobody { since: seconds(time) }, ..facts(602) };
        let other = Facts { owner: Owner::Named("host-2".into()), ..facts(3) };
        let rows = [
            (vec![], Ok, Code::NothingWaits, "nothing waits"),
            (vec![row(Stalled, Code::NotMoving, 3)], Stalled, Code::NotMoving, "why 0"),
            (vec![fine.clone(), fine.clone()], Ok, Code::NothingWaits, "why 0"),
            (vec![row(Ok, Code::Waiting, 3), fine.clone()], Ok, Code::Waiting, "3 messages wait"),
            (vec![fine.clone(), row(Ok, Code::Waiting, 1)], Ok, Code::Waiting, "1 message waits, up to 100 s behind"),
            (vec![fine.clone(), row(Stopped, Code::NoMember, 4)], Stopped, Code::NoMember, "partition 1: why 1"),
            (
                vec![
                    fine.clone(),
                    (Stopped, Code::NoOwner, unowned(95)),
                    (Stopped, Code::NoOwner, unowned(60)),
                    row(Unknown, Code::NoLeader, 0),
                ],
                Stopped,
                Code::NoOwner,
                "nobody pushes 2 of 4 partitions: no owner for 95 s; 1,204 messages wait; 1 partition \
                 UNKNOWN",
            ),
            (
                vec![row(Stopped, Code::NoMember, 4); 2],
                Stopped,
                Code::NoMember,
                "nobody pushes all 2 partitions: no live member for 95 s; 8 messages wait",
            ),
            (
                vec![row(Stopped, Code::NothingStored, 4); 2],
                Stopped,
                Code::NothingStored,
                "nothing was stored of all 2 partitions for 2 min while 8 messages came in",
            ),
            (
                vec![row(Stalled, Code::NotMoving, 4); 2],
                Stalled,
                Code::NotMoving,
                "all 2 partitions, owned by host-1:8f3a, have not moved for 2 min; 8 messages wait: \
                 see ktransfer.log.wf and the backend",
            ),
            (
                vec![row(Stalled, Code::NotMoving, 4), (Stalled, Code::NotMoving, other)],
                Stalled,
                Code::NotMoving,
                "all 2 partitions have not moved for 2 min; 7 messages wait: see ktransfer.log.wf and \
                 the backend",
            ),
            (
                vec![row(Stalled, Code::NeverStored, 4); 2],
                Stalled,
                Code::NeverStored,
                "no offset was ever stored of all 2 partitions; 8 messages wait",
            ),
            (
                vec![
                    row(Rewound, Code::WentBack, 4),
                    row(Rewound, Code::WentBack, 9),
                    row(Lagging, Code::SecondsBehind, 9),
                ],
                Rewound,
                Code::WentBack,
                "the stored offsets of 2 of 3 partitions went back: 1,000 messages pushed again; 1 \
                 partition LAGGING",
            ),
            (vec![row(Rewound, Code::Recreated, 4); 2], Rewound, Code::Recreated, "all 2 partitions: why 0"),
            (
                vec![row(Lagging, Code::SecondsBehind, 4), fine.clone(), row(Lagging, Code::SecondsBehind, 9)],
                Lagging,
                Code::SecondsBehind,
                "2 of 3 partitions are up to 3 min behind, 13 messages",
            ),
            (vec![row(Unknown, Code::NoBroker, 0); 3], Unknown, Code::NoBroker, "all 3 partitions: why 0"),
            (vec![row(Ok, Code::Paused, 4); 2], Ok, Code::Paused, "all 2 partitions are paused; 8 messages wait"),
            (
                vec![fine.clone(), row(Ok, Code::Paused, 4)],
                Ok,
                Code::Paused,
                "4 messages wait, up to 100 s behind; 1 partition paused",
            ),
            (
                vec![row(Lagging, Code::SecondsBehind, 4), row(Lagging, Code::Paused, 9)],
                Lagging,
                Code::Paused,
                "all 2 partitions are up to 100 s behind, 13 messages; 1 partition paused",
            ),
            (vec![row(Ok, Code::Gone, 0), fine], Ok, Code::NothingWaits, "why 1"),
            (vec![row(Ok, Code::Gone, 0); 2], Ok, Code::Gone, "why 0"),
        ];
        for (partitions, verdict, code, text) in rows {
            assert_eq!(summary(&partitions), (verdict, code, text.to_owned()), "{partitions:#?}");
        }
    }

    #[test]
    fn messages_that_were_lost_are_named_once() {
        let mut summary = Summary::default();
        for number in 0..2 {
            let lost = PartitionView { lost: 495, ..view(number, Verdict::Stopped, ReasonCode::NoMember) };
            summary.add(&facts(4), &lost);
        }
        let text = "nobody pushes all 2 partitions: no live member for 95 s; 8 messages wait; 990 messages deleted by \
                    retention before being pushed";
        assert_eq!(&*summary.finish().2, text);
    }
}
