use super::*;

impl HasDeadline for (u32, Instant) {
    fn deadline(&self) -> Instant {
        self.1
    }
}

#[test]
fn an_item_leaves_at_its_deadline_and_the_others_stay() {
    let start = Instant::now();
    let mut topics: TopicTable<(u32, Instant)> = TopicTable::new(3, Duration::from_secs(4));
    assert_eq!((topics.next_deadline(), topics.expire(start)), (None, vec![]));
    for (number, topic, after) in [(1, "t", 20), (2, "t", 10), (3, "u", 30)] {
        topics.add(&topic.into(), (number, at(start, after)), start).expect("the table has room");
    }
    assert_eq!(topics.next_deadline(), Some(at(start, 10)));
    assert_eq!(topics.expire(at(start, 10)), [(2, at(start, 10))]);
    topics.add(&"v".into(), (4, at(start, 40)), start).expect("the table has room again");
    let result = topics.answer("t", LookupAnswer::Exists(1), start);
    assert_eq!(result, Some((exists(1), vec![(1, at(start, 20))])));
    // An item that waits for a partition of a known topic.
    topics.add(&"t".into(), (5, at(start, 15)), start).expect("the table has room");
    assert_eq!((topics.next_deadline(), topics.has_awaited()), (Some(at(start, 15)), true));
    assert_eq!((topics.expire(at(start, 15)), topics.has_awaited()), (vec![(5, at(start, 15))], false));
}

#[test]
fn unknown_names_are_evicted_before_known_topics_and_never_block_new_ones() {
    let start = Instant::now();
    let mut topics = TopicTable::new(100_000, Duration::from_secs(4));
    topics.add(&"real".into(), 0, start).expect("the table has room");
    topics.answer("real", LookupAnswer::Exists(1), start).expect("a result");
    for number in 0..MAX_TOPICS + 50 {
        let name: Arc<str> = format!("t{number}").into();
        topics.add(&name, 1, start).expect("missing topics do not count as lookups without an answer");
        let result_at_once = topics.answer(&name, LookupAnswer::DoesNotExist, start);
        assert_eq!(result_at_once.is_some(), number >= MAX_MISSED, "{number}");
    }
    assert!(topics.topics.len() <= MAX_TOPICS, "{}", topics.topics.len());
    assert_eq!(topics.known("real", None, start), yes(1));
    for number in 0..MAX_LOOKUPS {
        topics.add(&format!("u{number}").into(), 2, start).expect("the table has room");
    }
    assert_eq!(topics.add(&"more".into(), 3, start), Err(3));
    for number in 0..MAX_MISSED {
        topics.answer(&format!("t{number}"), LookupAnswer::DoesNotExist, at(start, 1_000)).expect("a result");
    }
    assert_eq!((topics.lookup_count, topics.missed_count, topics.waiting_count), (MAX_LOOKUPS, 0, MAX_LOOKUPS));
}

fn at(start: Instant, milliseconds: u64) -> Instant {
    start + Duration::from_millis(milliseconds)
}

fn yes(partition_count: i32) -> Known {
    Known::Yes(partition_count, TopicRules::UNKNOWN)
}

/// The result of lookups of a topic whose rules are not known.
fn exists(partition_count: i32) -> LookupResult {
    LookupResult::Exists(partition_count, TopicRules::UNKNOWN)
}

fn table() -> (TopicTable<u32>, Arc<str>, Instant) {
    (TopicTable::new(3, Duration::from_secs(4)), Arc::from("t"), Instant::now())
}

#[test]
fn a_known_topic_that_is_invalidated_is_looked_up_and_unknown_only_after_the_full_time() {
    let (mut topics, name, start) = table();
    topics.invalidate("t", start);
    assert!(topics.due(start).is_empty(), "only a known topic can be invalidated");
    topics.add(&name, 1, start).expect("the table has room");
    topics.answer("t", LookupAnswer::Exists(4), start).expect("a result");

    topics.invalidate("t", start);
    assert_eq!(topics.known("t", None, start), Known::NeedsLookup);
    assert_eq!(topics.due(start), [Arc::clone(&name)]);
    topics.add(&name, 2, start).expect("the table has room");
    assert_eq!(
        topics.answer("t", LookupAnswer::DoesNotExist, at(start, 3_000)),
        None,
        "the broker may have just started"
    );
    let second = topics.answer("t", LookupAnswer::Exists(4), at(start, 3_500));
    assert_eq!(second, Some((exists(4), vec![2])));

    topics.invalidate("t", at(start, 4_000));
    let unknown = topics.answer("t", LookupAnswer::DoesNotExist, at(start, 8_000));
    assert_eq!(unknown, Some((LookupResult::Unknown, vec![])));
    assert_eq!(topics.known("t", None, at(start, 8_001)), Known::No);
}

#[test]
fn a_known_topic_is_refreshed_at_intervals_and_may_have_new_partitions() {
    let (mut topics, name, start) = table();
    topics.add(&name, 1, start).expect("the table has room");
    assert!(topics.stale_topics(9, at(start, 20_000)).is_empty(), "the topic is not known yet");
    topics.answer("t", LookupAnswer::Exists(2), start).expect("a result");
    assert!(topics.stale_topics(9, at(start, 9_999)).is_empty());
    assert_eq!(topics.stale_topics(9, at(start, 10_000)), [Arc::clone(&name)]);
    assert!(topics.stale_topics(0, at(start, 10_000)).is_empty());
    topics.refreshed("t", LookupAnswer::DoesNotExist, at(start, 10_000));
    assert_eq!(topics.known("t", None, at(start, 10_000)), yes(2));
    topics.refreshed("t", LookupAnswer::Exists(5), at(start, 20_000));
    assert_eq!(topics.known("t", Some(4), at(start, 20_001)), yes(5));
    assert!(topics.stale_topics(9, at(start, 29_999)).is_empty());
}

#[test]
fn a_known_topic_that_is_missing_for_a_minute_is_forgotten() {
    let (mut topics, name, start) = table();
    topics.add(&name, 1, start).expect("the table has room");
    topics.answer("t", LookupAnswer::Exists(2), start).expect("a result");
    let interrupting = [
        LookupAnswer::Exists(2),
        LookupAnswer::NotYet,
        LookupAnswer::Unreachable("".into()),
        LookupAnswer::DoesNotExist,
    ];
    for (round, answer) in (0..).zip(interrupting) {
        // The last one does not interrupt the time.
        let refreshes = [(10, LookupAnswer::DoesNotExist), (40, answer), (69, LookupAnswer::DoesNotExist)];
        for (second, answer) in refreshes {
            topics.refreshed("t", answer, at(start, round * 1_000_000 + second * 1_000));
        }
        assert_eq!(topics.known("t", None, start), yes(2), "{round}");
        topics.refreshed("t", LookupAnswer::DoesNotExist, at(start, round * 1_000_000 + 70_000));
        let is_forgotten = topics.known("t", None, start) == Known::NeedsLookup;
        assert_eq!(is_forgotten, round == 3, "{round}");
        if is_forgotten {
            assert!(topics.stale_topics(9, at(start, round * 1_000_000 + 900_000)).is_empty());
            topics.add(&name, 2, start).expect("the table has room");
            topics.answer("t", LookupAnswer::Exists(2), start).expect("a result");
        } else {
            topics.refreshed("t", LookupAnswer::Exists(2), at(start, round * 1_000_000 + 80_000));
        }
    }
    // An item that waits for a partition leaves as after any other refresh.
    topics.add(&name, 3, start).expect("the table has room");
    topics.refreshed("t", LookupAnswer::DoesNotExist, at(start, 5_000_000)).expect("an item waits");
    topics.add(&name, 4, start).expect("the table has room");
    let last = topics.refreshed("t", LookupAnswer::DoesNotExist, at(start, 5_060_000));
    assert!(matches!(last, Some((LookupResult::Unreachable(_), waiting)) if waiting == [4]));
    assert_eq!((topics.has_awaited(), topics.waiting_count, topics.topics.len()), (false, 0, 0));
}

#[test]
fn items_leave_in_order_when_their_topic_exists() {
    let (mut topics, name, start) = table();
    assert_eq!(topics.known("t", None, start), Known::NeedsLookup);
    topics.add(&name, 1, start).expect("the table has room");
    topics.add(&name, 2, start).expect("the table has room");
    assert_eq!(topics.due(start), [Arc::clone(&name)]);
    assert_eq!(topics.answer("t", LookupAnswer::NotYet, start), None);
    assert_eq!(topics.due(start), []);
    assert_eq!(topics.next_due(), Some(at(start, 50)));
    let result = topics.answer("t", LookupAnswer::Exists(8), at(start, 60));
    assert_eq!(result, Some((exists(8), vec![1, 2])));
    assert_eq!(topics.known("t", Some(7), at(start, 100)), yes(8));
}

#[test]
fn a_topic_is_unknown_after_repeated_answers_and_only_for_a_while() {
    let (mut topics, name, start) = table();
    topics.add(&name, 1, start).expect("the table has room");
    for after in [0, 50, 150, 999] {
        assert_eq!(topics.answer("t", LookupAnswer::DoesNotExist, at(start, after)), None, "after {after} ms");
    }
    assert_eq!(
        topics.answer("t", LookupAnswer::DoesNotExist, at(start, 1_000)),
        Some((LookupResult::Unknown, vec![1]))
    );
    assert_eq!(topics.known("t", None, at(start, 3_999)), Known::No);
    assert_eq!(topics.known("t", None, at(start, 4_000)), Known::NeedsLookup);
}

#[test]
fn a_missing_partition_causes_a_lookup_later() {
    let (mut topics, name, start) = table();
    topics.add(&name, 1, start).expect("the table has room");
    topics.answer("t", LookupAnswer::Exists(2), start).expect("a result");
    assert_eq!(topics.known("t", Some(2), at(start, 3_000)), yes(2));
    assert_eq!(topics.known("t", Some(2), at(start, 3_001)), Known::NeedsLookup);
    assert_eq!(topics.known("t", Some(1), at(start, 3_001)), yes(2));
}

#[test]
fn the_number_of_items_is_bounded_and_an_unreachable_broker_ends_their_wait() {
    let (mut topics, name, start) = table();
    for waiting in 1..=3 {
        topics.add(&name, waiting, start).expect("the table has room");
    }
    assert_eq!(topics.add(&name, 4, start), Err(4));
    let result = topics.answer("t", LookupAnswer::Unreachable("down".into()), start);
    assert_eq!(result, Some((LookupResult::Unreachable("down".into()), vec![1, 2, 3])));
    assert_eq!(topics.known("t", None, start), Known::NeedsLookup);
    topics.add(&name, 5, start).expect("the table has room again");
    assert_eq!(topics.drain(), [5]);
}

#[test]
fn the_table_does_not_grow_with_the_names_that_were_looked_up() {
    let (mut topics, _, start) = table();
    for number in 0..MAX_TOPICS + 50 {
        let name: Arc<str> = format!("t{number}").into();
        topics.add(&name, 1, start).expect("the table has room");
        topics.answer(&name, LookupAnswer::Exists(1), start).expect("a result");
    }
    assert_eq!(topics.topics.len(), MAX_TOPICS);
}

#[test]
fn a_refused_lookup_is_remembered_for_two_seconds() {
    let (mut topics, name, start) = table();
    let denied = || LookupAnswer::Refused(AppendFailure::NotAuthorized, "no right".to_owned());
    topics.add(&name, 1, start).expect("the table has room");
    let result = LookupResult::Refused(AppendFailure::NotAuthorized, "no right".to_owned());
    assert_eq!(topics.answer("t", denied(), start), Some((result, vec![1])));
    let refused = Known::Refused(AppendFailure::NotAuthorized, "no right".into());
    assert_eq!(topics.known("t", None, at(start, 1_999)), refused);
    assert_eq!(topics.known("t", None, at(start, 2_000)), Known::NeedsLookup);
    // A known topic that becomes refused with a refresh.
    topics.add(&name, 2, at(start, 2_000)).expect("the table has room");
    topics.answer("t", LookupAnswer::Exists(2), at(start, 2_000)).expect("a result");
    topics.refreshed("t", denied(), at(start, 12_000));
    assert_eq!(topics.known("t", None, at(start, 13_999)), refused);
    topics.add(&name, 3, at(start, 14_000)).expect("the table has room");
    assert_eq!(topics.due(at(start, 14_000)), [name]);
}

#[test]
fn rules_are_read_at_once_then_at_intervals_and_a_second_after_a_refusal() {
    let (mut topics, name, start) = table();
    topics.add(&name, 1, start).expect("the table has room");
    topics.answer("t", LookupAnswer::Exists(2), start).expect("a result");
    assert_eq!(topics.topics_with_stale_rules(9, start), [Arc::clone(&name)]);
    let configs = [("cleanup.policy".to_owned(), "compact".to_owned())];
    let rules = TopicRules::from_configs(&configs.into());
    topics.set_rules("t", Some(rules), start);
    assert_eq!(topics.known("t", None, start), Known::Yes(2, rules));
    assert!(topics.topics_with_stale_rules(9, at(start, 9_999)).is_empty());
    assert_eq!(topics.topics_with_stale_rules(9, at(start, 10_000)), [Arc::clone(&name)]);
    for _ in 0..100 {
        topics.refresh_soon("t");
    }
    assert!(topics.topics_with_stale_rules(9, at(start, 999)).is_empty() && topics.stale_topics(9, start).is_empty());
    assert_eq!(topics.topics_with_stale_rules(9, at(start, 1_000)), [Arc::clone(&name)]);
    assert_eq!(topics.stale_topics(9, at(start, 1_000)), [name]);
    // Rules that cannot be read any more stay; those of a topic that is looked up again count until they are read.
    topics.set_rules("t", None, at(start, 1_000));
    assert_eq!(topics.known("t", None, at(start, 1_000)), Known::Yes(2, rules));
    topics.invalidate("t", at(start, 2_000));
    let result = topics.answer("t", LookupAnswer::Exists(2), at(start, 2_000));
    assert_eq!(result, Some((LookupResult::Exists(2, rules), vec![])));
    assert_eq!(topics.known("t", None, at(start, 2_000)), Known::Yes(2, rules));
    assert_eq!(topics.topics_with_stale_rules(9, at(start, 2_000)), ["t".into()]);
}

/// A table with topics 0 to `count`, known at `start`.
fn known_topics(count: usize) -> (TopicTable<u32>, Vec<Arc<str>>, Instant) {
    let (mut topics, _, start) = table();
    let names: Vec<Arc<str>> = (0..count).map(|number| format!("t{number}").into()).collect();
    for name in &names {
        topics.add(name, 1, start).expect("the table has room");
        topics.answer(name, LookupAnswer::Exists(1), start).expect("a result");
    }
    (topics, names, start)
}

#[test]
fn each_known_topic_is_refreshed_however_many_there_are() {
    let (mut topics, names, start) = known_topics(400);
    let mut refreshed_at: HashMap<Arc<str>, Instant> = names.iter().map(|name| (Arc::clone(name), start)).collect();
    let mut rules_at = refreshed_at.clone();
    for second in 1..=60 {
        let now = at(start, second * 1_000);
        for name in topics.stale_topics(40, now) {
            assert_eq!(topics.refreshed(&name, LookupAnswer::Exists(2), now), None);
            refreshed_at.insert(name, now);
        }
        for name in topics.topics_with_stale_rules(40, now) {
            topics.set_rules(&name, None, now);
            rules_at.insert(name, now);
        }
        let oldest = refreshed_at.values().chain(rules_at.values()).min().expect("there are topics");
        // The first refreshes of all are due at the same time, and take ten seconds.
        let limit = Duration::from_secs(if second < 30 { 20 } else { 12 });
        assert!(now - *oldest <= limit, "after {second} s the oldest is {:?} old", now - *oldest);
    }
}

#[test]
fn topics_that_refuse_messages_all_the_time_do_not_keep_others_from_being_refreshed() {
    let (mut topics, names, start) = known_topics(21);
    let (other, refused) = names.split_first().expect("there are topics");
    let mut latest = start;
    for second in 1..=60 {
        let now = at(start, second * 1_000);
        refused.iter().for_each(|name| topics.refresh_soon(name));
        for name in topics.stale_topics(16, now) {
            topics.refreshed(&name, LookupAnswer::Exists(1), now);
            latest = if name == *other { now } else { latest };
        }
        assert!(now - latest <= Duration::from_secs(13), "after {second} s: {:?}", now - latest);
    }
}

#[test]
fn appends_to_a_missing_partition_wait_for_a_refresh_that_leaves_the_topic_as_it_is() {
    let (mut topics, name, start) = table();
    topics.add(&name, 1, start).expect("the table has room");
    topics.answer("t", LookupAnswer::Exists(2), start).expect("a result");
    let rules = TopicRules::from_configs(&[("cleanup.policy".to_owned(), "compact".to_owned())].into());
    topics.set_rules("t", Some(rules), start);
    let now = at(start, 3_001);
    for (round, answer) in [
        LookupAnswer::Unreachable("down".to_owned()),
        LookupAnswer::DoesNotExist,
        LookupAnswer::NotYet,
        LookupAnswer::Exists(2),
        LookupAnswer::Exists(3),
    ]
    .into_iter()
    .enumerate()
    {
        let now = at(now, 4_000 * round as u64);
        assert_eq!(topics.known("t", Some(2), now), Known::NeedsLookup);
        topics.add(&name, 7, now).expect("the table has room");
        topics.add(&name, 8, now).expect("the table has room");
        // No other append waits, and no lookup is due that could create the topic.
        assert_eq!(topics.known("t", Some(1), now), Known::Yes(2, rules));
        assert_eq!((topics.due(now), topics.has_awaited()), (vec![], true));
        assert_eq!(topics.stale_topics(1, now), [Arc::clone(&name)]);
        let (result, waiting) = topics.refreshed("t", answer.clone(), now).expect("a result");
        assert_eq!((waiting, topics.has_awaited(), topics.waiting_count), (vec![7, 8], false, 0));
        match answer {
            LookupAnswer::Exists(count) => assert_eq!(result, LookupResult::Exists(count, rules)),
            _ => assert!(matches!(result, LookupResult::Unreachable(_)), "{result:?}"),
        }
        let count = if answer == LookupAnswer::Exists(3) { 3 } else { 2 };
        assert_eq!(topics.known("t", None, now), Known::Yes(count, rules));
    }
}

#[test]
fn an_append_to_a_missing_partition_stays_behind_those_that_wait_for_it() {
    let (mut topics, name, start) = table();
    topics.add(&name, 1, start).expect("the table has room");
    topics.answer("t", LookupAnswer::Exists(2), start).expect("a result");
    topics.add(&name, 2, at(start, 4_000)).expect("the table has room");
    assert_eq!(topics.known("t", Some(2), at(start, 4_001)), Known::NeedsLookup);
    // The topic is found missing: those that wait go on waiting, for the lookup.
    topics.invalidate("t", at(start, 4_002));
    assert!(!topics.has_awaited());
    topics.add(&name, 3, at(start, 4_003)).expect("the table has room");
    let result = topics.answer("t", LookupAnswer::Exists(3), at(start, 4_004));
    assert_eq!(result, Some((exists(3), vec![2, 3])));
    // When the producer closes, and when a refresh is refused.
    topics.add(&name, 4, at(start, 9_000)).expect("the table has room");
    assert_eq!((topics.drain(), topics.has_awaited()), (vec![4], false));
    topics.add(&name, 5, at(start, 9_000)).expect("the table has room");
    let denied = LookupAnswer::Refused(AppendFailure::NotAuthorized, "no right".to_owned());
    let (result, waiting) = topics.refreshed("t", denied, at(start, 9_000)).expect("a result");
    assert_eq!((result, waiting), (LookupResult::Refused(AppendFailure::NotAuthorized, "no right".into()), vec![5]));
    assert!(matches!(topics.known("t", None, at(start, 9_000)), Known::Refused(..)));
}

#[test]
fn names_that_do_not_exist_never_evict_known_topics() {
    let (mut topics, _, start) = table();
    for number in 0..MAX_TOPICS {
        let name: Arc<str> = format!("t{number}").into();
        topics.add(&name, 1, start).expect("the table has room");
        topics.answer(&name, LookupAnswer::Exists(1), start).expect("a result");
    }
    for number in 0..2_000 {
        let now = at(start, 2_000 * number);
        let name: Arc<str> = format!("made-up{number}").into();
        topics.add(&name, 1, now).expect("it is looked up");
        assert_eq!(topics.answer(&name, LookupAnswer::DoesNotExist, now), None);
        topics.answer(&name, LookupAnswer::DoesNotExist, at(now, 1_000)).expect("a result");
    }
    let known = (0..MAX_TOPICS).filter(|number| topics.known(&format!("t{number}"), None, start) == yes(1)).count();
    assert_eq!((known, topics.topics.len()), (MAX_TOPICS, MAX_TOPICS));
    // A topic that exists takes the place of another one.
    topics.add(&"new".into(), 1, start).expect("it is looked up");
    topics.answer("new", LookupAnswer::Exists(3), start).expect("a result");
    assert_eq!((topics.known("new", None, start), topics.topics.len()), (yes(3), MAX_TOPICS));
}
