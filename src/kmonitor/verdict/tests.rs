//! Tables and properties of the rules and the hysteresis; `replay` tests them over time.

mod replay;

use super::*;
use crate::broker::Offset;
use crate::kmonitor::facts::{Behind, Paused, WentBack};
use proptest::prelude::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A place that is read, owned, and has `delay` messages waiting for `time`.
fn waiting(delay: Offset, time: u64) -> Facts {
    Facts {
        stored: Stored::Offset(1_000),
        stored_age: Some(seconds(1)),
        stored_unknown: None,
        log: LogState::Known { oldest: 0, newest: 1_000 + delay },
        log_age: Some(seconds(0)),
        log_unknown: None,
        moved_ago: Some(seconds(5)),
        written_ago: Some(seconds(5)),
        came_in: u64::try_from(delay).unwrap_or(0),
        owner: Owner::Named("host-1:1".into()),
        members: Some(2),
        unwritten_for: Some(seconds(5)),
        waiting_for: (0 < delay).then(|| seconds(time)),
        readable_for: (0 < delay).then(|| seconds(time)),
        behind: Some(Behind { seconds: if 0 < delay { time as f64 } else { 0.0 }, at_least: false, from: "history" }),
        ..Facts::unread()
    }
}

fn nobody(since: u64) -> Owner {
    Owner::Nobody { since: Some(seconds(since)) }
}

fn found(facts: &Facts) -> (Verdict, ReasonCode) {
    let finding = finding(facts, &Limits::default(), false, true);
    (finding.verdict, finding.code)
}

#[test]
fn each_rule_has_its_verdict() {
    let still = |facts: Facts| {
        let long = Some(seconds(95));
        Facts { moved_ago: long, written_ago: long, unwritten_for: long, ..facts }
    };
    let silent = |age| Facts {
        log_age: Some(seconds(age)),
        log_unknown: Some(UnknownReason::LeaderSilent { broker: 3 }),
        ..waiting(3, 2)
    };
    let back = |from, to, ago| Some(WentBack { from, to, ago: seconds(ago) });
    let gone = Facts { log: LogState::Gone, log_age: None, ..waiting(0, 0) };
    let never = |owner| Facts { stored: Stored::Nothing, moved_ago: None, owner, ..waiting(100, 60) };
    let dead = |time| Facts {
        members: Some(0),
        owner: nobody(95),
        nobody_there_for: Some(seconds(95)),
        ..still(waiting(1_204, time))
    };
    let foreign = |owner| Facts { owner, members: None, ..still(waiting(1_204, 90)) };
    let open = |readable: Offset, time| Facts { stable: Some(1_000 + readable), ..still(waiting(37, time)) };
    let paused = Some(Paused { by: "ann".into(), ago: None });
    use ReasonCode as Code;
    use Verdict::{Lagging, Ok, Rewound, Stalled, Stopped, Unknown};
    let rows = [
        ("never read", Facts::unread(), Unknown, Code::NotReadYet),
        ("a leader that has just become silent", silent(14), Ok, Code::Waiting),
        ("a leader that is silent", silent(16), Unknown, Code::LeaderSilent),
        ("idle, read a minute ago", Facts { stored_age: Some(seconds(60)), ..waiting(0, 0) }, Ok, Code::NothingWaits),
        ("not read for long", Facts { stored_age: Some(seconds(76)), ..waiting(0, 0) }, Unknown, Code::ReadFailed),
        (
            "no leader",
            Facts { log: LogState::Unknown(UnknownReason::NoLeader), log_age: None, ..waiting(0, 0) },
            Unknown,
            Code::NoLeader,
        ),
        (
            "ends denied",
            Facts { log: LogState::Unknown(UnknownReason::NotAuthorized), log_age: None, ..waiting(0, 0) },
            Unknown,
            Code::NotAuthorized,
        ),
        ("bad text", Facts { stored: Stored::Unreadable("abc".into()), ..waiting(0, 0) }, Unknown, Code::NotAnOffset),
        (
            "denied",
            Facts { stored: Stored::Refused("/consumers/m".into()), ..waiting(0, 0) },
            Unknown,
            Code::NotAuthorized,
        ),
        ("gone", gone.clone(), Ok, Code::Gone),
        (
            "gone, but ZooKeeper is silent",
            Facts { stored_age: Some(seconds(16)), stored_unknown: Some(UnknownReason::NoBroker), ..gone },
            Unknown,
            Code::NoBroker,
        ),
        ("created again", Facts { recreated: true, ..waiting(-880, 0) }, Rewound, Code::Recreated),
        ("created again, and empty", Facts { recreated: true, ..still(waiting(-1_000, 0)) }, Ok, Code::NothingWaits),
        ("beyond the end", still(waiting(-880, 0)), Unknown, Code::BeyondEnd),
        ("went back", Facts { went_back: back(5_000, 10, 120), ..waiting(0, 0) }, Rewound, Code::WentBack),
        ("went back long ago", Facts { went_back: back(5_000, 10, 300), ..waiting(0, 0) }, Ok, Code::NothingWaits),
        (
            "went back, and its module is dead",
            Facts { went_back: back(5_000, 10, 120), ..dead(90) },
            Stopped,
            Code::NoMember,
        ),
        ("pushes another topic", Facts { left_behind: true, ..dead(90) }, Ok, Code::LeftBehind),
        (
            "pushes another topic, and nothing can be read",
            Facts { left_behind: true, ..silent(99) },
            Ok,
            Code::LeftBehind,
        ),
        ("another topic, never read", Facts { left_behind: true, ..Facts::unread() }, Unknown, Code::NotReadYet),
        ("nothing waits", still(waiting(0, 0)), Ok, Code::NothingWaits),
        ("only markers wait", Facts { undeliverable: true, ..still(waiting(3, 9_000)) }, Ok, Code::NothingDeliverable),
        ("nobody is there", dead(90), Stopped, Code::NoMember),
        ("moves without members", Facts { moved_ago: Some(seconds(20)), ..dead(50) }, Ok, Code::Waiting),
        (
            "an owner, but no member in the list",
            Facts { owner: Owner::Named("a".into()), ..dead(50) },
            Stalled,
            Code::NotMoving,
        ),
        ("nobody is there, the message is new", dead(14), Ok, Code::Waiting),
        (
            "nobody is there, nothing waits",
            Facts { owner: nobody(95), members: Some(0), ..waiting(0, 0) },
            Ok,
            Code::NothingWaits,
        ),
        ("nobody is there for a moment", Facts { nobody_there_for: Some(seconds(14)), ..dead(50) }, Ok, Code::Waiting),
        ("members, but no owner", Facts { owner: nobody(45), ..waiting(9, 50) }, Stopped, Code::NoOwner),
        ("a hand-over", Facts { owner: nobody(20), ..waiting(9, 50) }, Ok, Code::Waiting),
        (
            "no owner, members unknown",
            Facts { owner: nobody(45), members: None, ..waiting(9, 50) },
            Stopped,
            Code::NoOwner,
        ),
        ("a foreign consumer", foreign(Owner::Unsupported), Stopped, Code::NothingStored),
        (
            "a foreign consumer that stores the same",
            Facts { unwritten_for: Some(seconds(5)), ..foreign(Owner::Unsupported) },
            Lagging,
            Code::SecondsBehind,
        ),
        (
            "a foreign consumer, nothing came in",
            Facts { came_in: 0, ..foreign(Owner::Unsupported) },
            Lagging,
            Code::SecondsBehind,
        ),
        ("owners unknown", foreign(Owner::Unknown), Stalled, Code::NothingStored),
        ("an open transaction", open(0, 95), Lagging, Code::SecondsBehind),
        ("an open transaction since a moment ago", open(0, 50), Ok, Code::Waiting),
        ("messages before an open transaction", open(1, 50), Stalled, Code::NotMoving),
        (
            "a transaction that has just ended",
            Facts { readable_for: Some(seconds(5)), ..still(waiting(37, 50)) },
            Ok,
            Code::Waiting,
        ),
        (
            "markers before an open transaction",
            Facts { undeliverable: true, waiting_for: Some(seconds(5)), ..open(3, 95) },
            Ok,
            Code::Waiting,
        ),
        (
            "created again, with markers only",
            Facts { recreated: true, undeliverable: true, ..still(waiting(3, 95)) },
            Ok,
            Code::NothingDeliverable,
        ),
        ("an owner that does not move", still(waiting(37, 50)), Stalled, Code::NotMoving),
        ("paused", Facts { paused: paused.clone(), ..still(waiting(37, 50)) }, Ok, Code::Paused),
        ("paused for long", Facts { paused: paused.clone(), ..still(waiting(37, 95)) }, Lagging, Code::Paused),
        ("paused, and its module is dead", Facts { paused: paused.clone(), ..dead(90) }, Stopped, Code::NoMember),
        ("paused, nothing waits", Facts { paused, ..still(waiting(0, 0)) }, Ok, Code::NothingWaits),
        (
            "resumed a moment ago",
            Facts { unpaused_for: Some(seconds(44)), ..still(waiting(37, 50)) },
            Ok,
            Code::Waiting,
        ),
        (
            "resumed a while ago",
            Facts { unpaused_for: Some(seconds(45)), ..still(waiting(37, 50)) },
            Stalled,
            Code::NotMoving,
        ),
        ("an owner that moves", waiting(37, 50), Ok, Code::Waiting),
        ("an owner on a topic that was idle", still(waiting(1, 44)), Ok, Code::Waiting),
        ("seconds behind", waiting(12_400, 60), Lagging, Code::SecondsBehind),
        ("not so late", waiting(12_400, 59), Ok, Code::Waiting),
        ("never stored, owned", never(Owner::Named("a".into())), Stalled, Code::NeverStored),
        ("never stored, not owned", never(nobody(60)), Stopped, Code::NeverStored),
        (
            "never stored, empty log",
            Facts { log: LogState::Known { oldest: 7, newest: 7 }, ..never(nobody(60)) },
            Ok,
            Code::NothingWaits,
        ),
    ];
    for (name, facts, verdict, code) in rows {
        assert_eq!(found(&facts), (verdict, code), "{name}: {facts:#?}");
    }
}

#[test]
fn lagging_may_be_measured_in_messages_and_ends_below_half() {
    let limits = Limits { lagging_seconds: None, lagging_messages: Some(100), ..Limits::default() };
    let with = |limits: &Limits, delay, time, is_lagging, calm| {
        finding(&waiting(delay, time), limits, is_lagging, calm).verdict == Verdict::Lagging
    };
    for (delay, is_lagging, calm_is_over, lags) in [
        (99, false, true, false),
        (100, false, true, true),
        (51, true, true, true),
        (50, true, true, false),
        (50, true, false, true),
        (1, true, false, true),
        (0, true, false, false),
    ] {
        assert_eq!(with(&limits, delay, 3_000, is_lagging, calm_is_over), lags, "{delay} {is_lagging} {calm_is_over}");
    }
    let seconds = Limits::default();
    for (time, is_lagging, lags) in [(59, false, false), (60, false, true), (30, true, true), (29, true, false)] {
        assert_eq!(with(&seconds, 5, time, is_lagging, true), lags, "{time} {is_lagging}");
    }
    // What nobody can deliver before an open transaction does not wait.
    for (open, lags) in [(100, true), (99, false)] {
        let held = Facts { undeliverable: true, stable: Some(1_200 - open), ..waiting(200, 5) };
        assert_eq!(finding(&held, &limits, false, true).verdict == Verdict::Lagging, lags, "{open}");
    }
    // While the stored offset cannot be read, the number of messages is too high.
    let unread = Facts { stored_unknown: Some(UnknownReason::NoBroker), ..waiting(200, 5) };
    assert_eq!(finding(&unread, &limits, false, true).verdict, Verdict::Ok);
    assert_eq!(finding(&unread, &limits, true, true).verdict, Verdict::Lagging, "it does not end an alarm either");
    let off = Limits { lagging_seconds: None, ..Limits::default() };
    assert!(!with(&off, 1_000_000, 3_000, false, true));
}

/// Judges a row of readings, 5 s apart, and returns the verdicts.
fn verdicts(readings: &[Facts]) -> Vec<Verdict> {
    let start = Moment::now();
    let mut standing = Standing::unread(start);
    let mut verdicts = Vec::new();
    for (index, facts) in (1..).zip(readings) {
        let now = Moment { at: start.at + seconds(5 * index), wall: start.wall + seconds(5 * index) };
        let reason;
        (standing, reason) = judge(facts, &Limits::default(), &standing, now);
        assert_eq!(standing.code, reason.code);
        verdicts.push(standing.verdict);
    }
    verdicts
}

#[test]
fn a_verdict_changes_after_two_readings_and_recovers_at_once_when_nothing_waits() {
    use Verdict::{Lagging, Ok, Rewound, Stalled, Unknown};
    let beyond = waiting(-880, 0);
    let again = Facts { recreated: true, ..beyond.clone() };
    let (fine, late) = (waiting(5, 1), waiting(500, 100));
    let stalled = Facts { moved_ago: Some(seconds(200)), ..late.clone() };
    let outdated = Facts { log_age: Some(seconds(99)), log_unknown: Some(UnknownReason::NoBroker), ..late.clone() };
    let bad = Facts { stored: Stored::Unreadable("abc".into()), ..late.clone() };
    for (name, readings, expected) in [
        ("the first reading is believed", vec![&stalled], vec![Stalled]),
        ("one odd reading", vec![&fine, &late, &fine, &late, &fine], vec![Ok; 5]),
        ("two readings", vec![&fine, &late, &late], vec![Ok, Ok, Lagging]),
        ("worse and still worse", vec![&fine, &late, &stalled], vec![Ok, Ok, Stalled]),
        (
            "a better one needs two",
            vec![&stalled, &fine, &stalled, &fine, &fine],
            vec![Stalled, Stalled, Stalled, Stalled, Ok],
        ),
        ("nothing waits", vec![&stalled, &waiting(0, 0)], vec![Stalled, Ok]),
        ("too old", vec![&fine, &outdated, &fine, &stalled], vec![Ok, Unknown, Ok, Ok]),
        ("beyond the end, at once", vec![&fine, &beyond, &fine], vec![Ok, Unknown, Ok]),
        ("beyond the end, and created again", vec![&beyond, &again, &again], vec![Unknown, Rewound, Rewound]),
        ("an alarm does not end beyond the end", vec![&stalled, &beyond, &stalled], vec![Stalled; 3]),
        ("a bad text", vec![&fine, &bad, &fine, &bad, &bad], vec![Ok, Ok, Ok, Ok, Unknown]),
        ("calm", vec![&late; 1].into_iter().chain(vec![&fine; 8]).collect(), {
            // Half of the limit for 30 s since it began, then two readings.
            vec![Lagging, Lagging, Lagging, Lagging, Lagging, Lagging, Lagging, Ok, Ok]
        }),
    ] {
        let readings: Vec<Facts> = readings.into_iter().cloned().collect();
        assert_eq!(verdicts(&readings), expected, "{name}");
    }
}

#[test]
fn one_reading_judged_twice_is_one_reading() {
    let start = Moment::now();
    let standing = judge(&waiting(5, 1), &Limits::default(), &Standing::unread(start), start).0;
    let late = waiting(500, 100);
    let standing = judge(&late, &Limits::default(), &standing, start).0;
    let later = Moment { at: start.at + seconds(2), ..start };
    let same = Facts { stored_age: Some(seconds(3)), log_age: Some(seconds(2)), ..late.clone() };
    let standing = judge(&same, &Limits::default(), &standing, later).0;
    assert_eq!(standing.verdict, Verdict::Ok, "no new number was read");
    assert_eq!(judge(&late, &Limits::default(), &standing, later).0.verdict, Verdict::Lagging);
}

#[test]
fn since_is_when_the_verdict_began_and_the_reason_follows_the_facts() {
    let start = Moment::now();
    let at = |time| Moment { at: start.at + seconds(time), wall: start.wall + seconds(time) };
    let (ok, _) = judge(&waiting(0, 0), &Limits::default(), &Standing::unread(start), at(5));
    let (still, reason) = judge(&waiting(12, 2), &Limits::default(), &ok, at(10));
    assert_eq!((still.since, still.code), (at(5), ReasonCode::Waiting));
    assert_eq!(&*reason.text, "12 messages wait, 2 s behind");
    let (long, owner) = (Some(seconds(95)), nobody(95));
    let dead = Facts { members: Some(0), owner, nobody_there_for: long, moved_ago: long, ..waiting(1_204, 90) };
    let (first, reason) = judge(&dead, &Limits::default(), &still, at(15));
    assert_eq!((first.verdict, reason.code), (Verdict::Ok, ReasonCode::Waiting), "the reason is that of the verdict");
    let (second, reason) = judge(&dead, &Limits::default(), &first, at(20));
    assert_eq!((second.verdict, second.since, reason.code), (Verdict::Stopped, at(20), ReasonCode::NoMember));
}

fn any_age() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((0..400_u64).prop_map(seconds))
}

fn any_owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        Just(Owner::Named("host".into())),
        any_age().prop_map(|since| Owner::Nobody { since }),
        Just(Owner::Unsupported),
        Just(Owner::Unknown),
    ]
}

fn any_unknown() -> impl Strategy<Value = Option<UnknownReason>> {
    proptest::option::of(prop_oneof![
        Just(UnknownReason::NotReadYet),
        Just(UnknownReason::NoLeader),
        Just(UnknownReason::LeaderSilent { broker: 1 }),
        Just(UnknownReason::SourceSilent { since: seconds(5), cause: "refused".into() }),
        Just(UnknownReason::Failed("odd".into())),
    ])
}

prop_compose! {
    fn any_facts()(
        stored in prop_oneof![
            6 => (0..50_i64).prop_map(Stored::Offset), 1 => Just(Stored::Nothing),
            1 => Just(Stored::Unreadable("x".into())), 1 => Just(Stored::Refused("x".into())),
        ],
        ages in (any_age(), any_age(), any_unknown(), any_unknown()),
        log in prop_oneof![
            6 => (0..50_i64, 0..50_i64).prop_map(|(a, b)| LogState::Known { oldest: a.min(b), newest: a.max(b) }),
            1 => Just(LogState::Gone), 1 => Just(LogState::Unknown(UnknownReason::NoLeader)),
        ],
        flags in (any::<bool>(), any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        went_back in proptest::option::weighted(0.2, (0..50_i64, 0..50_i64, 0..600_u64)),
        times in (any_age(), any_age(), any_age(), any_age(), any_age()),
        stable in proptest::option::weighted(0.2, 0..50_i64),
        came_in in 0..5_u64,
        owner in any_owner(),
        members in proptest::option::of(0..3_u32),
        behind in proptest::option::of(0.0..400.0_f64),
    ) -> Facts {
        Facts {
            stored, log, came_in, owner, members, stable,
            stored_age: ages.0, log_age: ages.1, stored_unknown: ages.2, log_unknown: ages.3,
            recreated: flags.0 && flags.1, moved_at_least: flags.1, undeliverable: flags.2, left_behind: flags.3,
            went_back: went_back.map(|(from, to, ago)| WentBack { from, to, ago: seconds(ago) }),
            moved_ago: times.0, unwritten_for: times.1, nobody_there_for: times.2, waiting_for: times.3,
            readable_for: times.3.zip(times.4).map(|(waiting, free)| waiting.min(free)),
            behind: behind.map(|seconds| Behind { seconds, at_least: false, from: "history" }),
            ..Facts::unread()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn rewound_needs_evidence(facts in any_facts()) {
        if found(&facts).0 == Verdict::Rewound {
            let went_back = facts.went_back.is_some_and(|back| back.to < back.from && back.ago < seconds(300));
            prop_assert!(facts.recreated || went_back);
        }
    }

    #[test]
    fn no_delay_is_no_alarm(facts in any_facts()) {
        let verdict = found(&facts).0;
        if facts::waiting(&facts) == Some(0) {
            prop_assert!(matches!(verdict, Verdict::Ok | Verdict::Rewound | Verdict::Unknown), "{verdict}");
        }
    }

    #[test]
    fn unknown_data_is_unknown(facts in any_facts()) {
        let is_missing = facts.stored_age.is_none() || facts.log_age.is_none() && facts.log != LogState::Gone;
        let is_left_behind = facts.left_behind && facts.stored_age.is_some();
        if (is_missing || matches!(facts.log, LogState::Unknown(_))) && !is_left_behind {
            prop_assert_eq!(found(&facts).0, Verdict::Unknown);
        }
        // And an alarm is always based on two recent numbers.
        if matches!(found(&facts).0, Verdict::Stalled | Verdict::Stopped | Verdict::Lagging) {
            prop_assert!(facts.stored_age.is_some_and(|age| age <= seconds(75)), "{:?}", facts.stored_age);
        }
    }

    #[test]
    fn more_waiting_is_never_better(
        facts in any_facts(),
        messages in 0..20_i64,
        time in 0..200_u64,
        was_lagging: bool,
    ) {
        let mut more = facts.clone();
        if let LogState::Known { newest, .. } = &mut more.log {
            *newest += messages;
        }
        more.came_in += u64::try_from(messages).unwrap();
        more.waiting_for = facts.waiting_for.map(|waited| waited + seconds(time));
        more.readable_for = facts.readable_for.map(|waited| waited + seconds(time));
        if let Some(behind) = &mut more.behind {
                let time = time as f64;
            behind.seconds += time;
        }
        // Of a log that ends before the stored offset nothing is known.
        prop_assume!(!facts::is_beyond_end(&facts));
        let limits = Limits { lagging_messages: Some(10), ..Limits::default() };
        let judge = |facts: &Facts| finding(facts, &limits, was_lagging, true).verdict;
        prop_assert!(judge(&facts) <= judge(&more), "{} {}", judge(&facts), judge(&more));
    }

    #[test]
    fn every_verdict_has_a_sentence_with_its_code(facts in any_facts()) {
        let start = Moment::now();
        let (standing, reason) = judge(&facts, &Limits::default(), &Standing::unread(start), start);
        prop_assert_eq!(standing.code, reason.code);
        prop_assert!(!reason.text.is_empty() && reason.text.len() < 1_000, "{}", reason.text);
    }
}
