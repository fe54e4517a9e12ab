use super::*;
use crate::kmonitor::facts::{Behind, Paused, WentBack};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn facts(stored: i64, oldest: i64, newest: i64) -> Facts {
    Facts {
        stored: Stored::Offset(stored),
        stored_age: Some(seconds(2)),
        stored_unknown: None,
        log: LogState::Known { oldest, newest },
        log_age: Some(seconds(1)),
        log_unknown: None,
        moved_ago: Some(seconds(130)),
        written_ago: Some(seconds(3 * 86_400)),
        came_in: 1_204,
        owner: Owner::Named("host-1:8f3a".into()),
        members: Some(2),
        nobody_there_for: Some(seconds(95)),
        waiting_for: Some(seconds(90)),
        ..Facts::unread()
    }
}

#[test]
fn each_code_has_a_sentence_with_the_numbers() {
    let late =
        Facts { behind: Some(Behind { seconds: 240.4, at_least: false, from: "history" }), ..facts(0, 0, 12_400) };
    let before = |delay| Facts { delay_1m_ago: Some(delay), ..late.clone() };
    let silent = |reason| Facts { log_unknown: Some(reason), log_age: Some(seconds(38)), ..facts(0, 0, 9) };
    let zookeeper = UnknownReason::SourceSilent { since: seconds(42), cause: "connection refused".into() };
    let back = Some(WentBack { from: 5_000, to: 10, ago: seconds(125) });
    let paused = |ago: Option<u64>| Some(Paused { by: "ann".into(), ago: ago.map(seconds) });
    use ReasonCode as Code;
    let rows = [
        (Code::NothingWaits, facts(9, 0, 9), "nothing waits"),
        (Code::NothingWaits, facts(3, 4, 4), "nothing waits; 1 message was deleted by retention before being pushed"),
        (
            Code::NothingDeliverable,
            facts(6, 0, 9),
            "nothing waits (3 offsets are transaction markers or aborted messages)",
        ),
        (
            Code::NothingDeliverable,
            facts(8, 0, 9),
            "nothing waits (1 offset is a transaction marker or an aborted message)",
        ),
        (Code::Waiting, Facts { behind: late.behind, ..facts(0, 0, 12) }, "12 messages wait, 4 min behind"),
        (Code::Waiting, facts(0, 0, 1), "1 message waits"),
        (
            Code::Gone,
            facts(6, 0, 9),
            "the topic or partition does not exist any more; its stored offset from 3 d ago is \
                 left over",
        ),
        (Code::LeftBehind, facts(6, 0, 9), "the module pushes another topic now; this offset was last stored 3 d ago"),
        (Code::SecondsBehind, late.clone(), "4 min behind, 12,400 messages"),
        (Code::SecondsBehind, before(12_400), "4 min behind, 12,400 messages; neither grows nor falls"),
        (Code::SecondsBehind, before(17_200), "4 min behind, 12,400 messages; falls by 80/s, caught up in about 2 min"),
        (Code::SecondsBehind, before(10_000), "4 min behind, 12,400 messages; grows by 40/s"),
        (Code::MessagesBehind, facts(0, 0, 12_400), "12,400 messages behind"),
        (Code::NotReadYet, Facts::unread(), "not read yet"),
        (
            Code::SourceSilent,
            Facts { stored_unknown: Some(zookeeper), stored_age: Some(seconds(42)), ..facts(0, 0, 9) },
            "the stored offset could not be read for 42 s (connection refused)",
        ),
        (
            Code::LeaderSilent,
            silent(UnknownReason::LeaderSilent { broker: 3 }),
            "broker 3, which leads the partition, does not answer; last read 38 s ago",
        ),
        (Code::NoLeader, silent(UnknownReason::NoLeader), "the partition has no leader; last read 38 s ago"),
        (
            Code::NotAuthorized,
            silent(UnknownReason::NotAuthorized),
            "reading is denied to kmonitor; last read 38 s ago",
        ),
        (
            Code::NotAuthorized,
            Facts { stored: Stored::Refused("/consumers/m/offsets".into()), ..facts(0, 0, 9) },
            "reading is denied: /consumers/m/offsets",
        ),
        (
            Code::InvalidTopic,
            Facts { log: LogState::Unknown(UnknownReason::InvalidTopic), log_age: None, ..facts(0, 0, 9) },
            "Kafka accepts no topic of this name",
        ),
        (Code::NoBroker, silent(UnknownReason::NoBroker), "no broker answers; last read 38 s ago"),
        (
            Code::ReadFailed,
            silent(UnknownReason::Failed("odd error 72".into())),
            "it could not be read (odd error 72); last read 38 s ago",
        ),
        (Code::ReadFailed, Facts { log_age: Some(seconds(200)), ..facts(0, 0, 9) }, "not read for 3 min"),
        (
            Code::NotAnOffset,
            Facts { stored: Stored::Unreadable("a\"c".into()), ..facts(0, 0, 9) },
            r#"the stored text "a\"c" is not an offset"#,
        ),
        (
            Code::Recreated,
            Facts { recreated: true, ..facts(5_000, 0, 120) },
            "stored 5,000 is beyond the end 120: the topic was created again or truncated; 120 \
                 messages to push",
        ),
        (
            Code::Recreated,
            Facts { recreated: true, ..facts(50, 0, 120) },
            "the topic was created again; 120 messages to push",
        ),
        (
            Code::WentBack,
            Facts { went_back: back, ..facts(10, 0, 9_000) },
            "the stored offset went back 2 min ago, from 5,000 to 10: 4,990 messages pushed again",
        ),
        (
            Code::NotMoving,
            facts(0, 0, 37),
            "host-1:8f3a owns it, but the stored offset has not moved for 2 min; 37 messages wait, \
                 the first for 90 s: see ktransfer.log.wf and the backend",
        ),
        (
            Code::NotMoving,
            Facts { moved_at_least: true, waiting_at_least: true, ..facts(0, 0, 1) },
            "host-1:8f3a owns it, but the stored offset has not moved for at least 2 min; 1 \
                 message waits, for at least 90 s: see ktransfer.log.wf and the backend",
        ),
        (
            Code::NeverStored,
            Facts { stored: Stored::Nothing, moved_at_least: true, ..facts(0, 0, 100) },
            "no offset was ever stored; 100 messages wait, the first for 90 s",
        ),
        (
            Code::NeverStored,
            Facts { stored: Stored::Nothing, ..facts(0, 0, 100) },
            "no offset is stored any more; 100 messages wait, the first for 90 s",
        ),
        (
            Code::Waiting,
            Facts { stable: Some(2), ..facts(0, 0, 1_004) },
            "1,004 messages wait; 1,002 of them wait for a transaction to end",
        ),
        (
            Code::Waiting,
            Facts { stable: Some(3), ..facts(3, 0, 4) },
            "1 message waits; it waits for a transaction to end",
        ),
        (
            Code::Paused,
            Facts { paused: paused(Some(720)), ..facts(0, 0, 37) },
            "paused by ann 12 min ago; 37 messages wait, the first for 90 s",
        ),
        (
            Code::Paused,
            Facts { paused: paused(None), waiting_for: None, ..facts(0, 0, 1) },
            "paused by ann; 1 message waits",
        ),
        (
            Code::NoMember,
            Facts { paused: paused(Some(720)), ..facts(0, 0, 37) },
            "nobody pushes it: the module has had no live member for 95 s; 37 messages wait, the \
                 first for 90 s; paused by ann 12 min ago",
        ),
        (
            Code::MessagesBehind,
            Facts { stable: Some(1_000), undeliverable: true, behind: late.behind, ..facts(0, 0, 1_004) },
            "4 min behind, 4 messages; all of them wait for a transaction to end",
        ),
        (
            Code::NothingDeliverable,
            Facts { stored: Stored::Nothing, ..facts(0, 6, 9) },
            "nothing waits (3 offsets are transaction markers or aborted messages)",
        ),
        (
            Code::BeyondEnd,
            facts(5_000, 0, 120),
            "stored 5,000 is beyond the end 120: it is not known yet whether the topic was created again",
        ),
        (
            Code::NoMember,
            facts(0, 0, 1_204),
            "nobody pushes it: the module has had no live member for 95 s; 1,204 messages wait, \
                 the first for 90 s",
        ),
        (
            Code::NoMember,
            Facts { went_back: back, ..facts(0, 990, 1_990) },
            "nobody pushes it: the module has had no live member for 95 s; 1,000 messages wait, \
                 the first for 90 s; it went back 2 min ago; 990 messages were deleted by retention \
                 before being pushed",
        ),
        (
            Code::NoOwner,
            Facts { owner: Owner::Nobody { since: Some(seconds(95)) }, ..facts(0, 0, 4) },
            "nobody pushes it: 2 members are alive, but none owns it for 95 s; 4 messages wait, \
                 the first for 90 s",
        ),
        (
            Code::NoOwner,
            Facts { owner: Owner::Nobody { since: Some(seconds(95)) }, members: None, ..facts(0, 0, 4) },
            "nobody pushes it: it has had no owner for 95 s; 4 messages wait, the first for 90 s",
        ),
        (
            Code::NothingStored,
            Facts { owner: Owner::Unsupported, ..facts(0, 0, 1_204) },
            "nothing was stored for 2 min while 1,204 messages came in",
        ),
    ];
    for (code, facts, text) in &rows {
        assert_eq!(&*of(*code, facts), *text, "{code:?}");
    }
    for code in Code::ALL {
        assert!(rows.iter().any(|(row, ..)| *row == code), "{code:?} has no row");
        assert!(!of(code, &Facts::unread()).is_empty(), "{code:?} without any fact");
    }
}

#[test]
fn numbers_and_times_are_short() {
    for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(grouped(number), text);
    }
    for (time, text) in [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7_199, "119 min"),
        (7_200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 d"),
    ] {
        assert_eq!(super::time(seconds(time)), text);
    }
    assert_eq!((offset(-1), offset(1_204)), ("-1".to_owned(), "1,204".to_owned()));
    assert_eq!(super::seconds(f64::INFINITY), "0 s");
    assert_eq!(messages(1), "1 message");
}

#[test]
fn a_long_text_of_a_peer_is_cut() {
    let stored = Stored::Unreadable("ä".repeat(5_000).into());
    let text = of(ReasonCode::NotAnOffset, &Facts { stored, ..Facts::unread() });
    assert!(text.chars().count() < 260, "{text}");
}
