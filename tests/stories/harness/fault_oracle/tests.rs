//! A broken record of each kind is found, and a correct one passes.

use std::time::Duration;

use super::{Disturbance, Evidence, Limits, Push, StoredOffset, Verdict, judge};

const LIMITS: Limits = Limits {
    fence_slack: Duration::from_millis(200),
    aftermath: Duration::from_secs(5),
    commit_lag: Duration::from_secs(2),
};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Parses pushes such as `a7@1 100-150 k`: instance, offset, claim, begin and end in milliseconds, key. A `!` at the
/// end means that the push was not delivered; `-` without an end means that it is still open.
fn pushes(text: &str) -> Vec<Push> {
    text.split(',')
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (offset, claim) = words[0][1..].split_once('@').expect("offset@claim");
            let (began, ended) = words[1].split_once('-').expect("begin-end");
            let ended: Option<u64> = ended.parse().ok();
            Push {
                key: words[2].trim_end_matches('!').to_owned(),
                position: (0, offset.parse().expect("an offset")),
                instance: words[0][..1].to_owned(),
                claim: claim.parse().ok(),
                began: ms(began.parse().expect("a time")),
                ended: ended.map(ms),
                is_delivered: ended.is_some() && !words[2].ends_with('!'),
            }
        })
        .collect()
}

fn fault(instance: Option<&str>, from: u64, until: u64, is_pause: bool) -> Disturbance {
    let instance = instance.map(str::to_owned);
    Disturbance { what: "a fault".to_owned(), from: ms(from), until: ms(until), instance, is_pause }
}

fn evidence(text: &str) -> Evidence {
    Evidence { confirmed: vec![(0, 1), (0, 2)], pushes: pushes(text), ..Evidence::default() }
}

#[track_caller]
fn expect(evidence: &Evidence, violations: &[&str]) -> Verdict {
    let verdict = judge(evidence, &LIMITS);
    let found: Vec<&str> =
        verdict.violations().iter().filter(|(_, list)| !list.is_empty()).map(|(name, _)| *name).collect();
    assert_eq!(found, violations, "{verdict}");
    assert_eq!(verdict.is_good(), violations.is_empty());
    verdict
}

#[test]
fn a_correct_record_passes() {
    let mut good = evidence("a1@1 0-10 k, a2@1 10-20 k, a3@1 5-15 other");
    let stored = |at, offset| StoredOffset { at: ms(at), partition: 0, offset };
    good.stored = vec![stored(0, 0), stored(10, 2), stored(20, 2), stored(30, 3)];
    let verdict = expect(&good, &[]);
    assert_eq!((verdict.n_confirmed, verdict.n_delivered, verdict.n_pushes, verdict.n_repeats), (2, 3, 3, 0));
}

#[test]
fn a_lost_message_is_found_unless_it_is_a_dead_letter() {
    let mut lost = evidence("a1@1 0-10 k, a2@1 10-20 k!");
    expect(&lost, &["lost"]);
    lost.dead_letters.insert((0, 2));
    expect(&lost, &[]);
}

#[test]
fn a_key_out_of_order_is_found_and_other_keys_are_independent() {
    expect(&evidence("a2@1 0-10 k, a1@1 10-20 k"), &["out of order"]);
    expect(&evidence("a2@1 0-10 k, a1@1 10-20 other"), &[]);
    expect(&evidence("a1@1 0-10 k, a2@1 10-20 k, a3@1 20-30 k, a5@1 30-40 k, a4@1 40-50 k"), &["out of order"]);
}

#[test]
fn two_open_requests_of_a_key_are_found() {
    expect(&evidence("a1@1 0-10 k, a2@1 9-20 k"), &["concurrent requests of a key"]);
    expect(&evidence("a1@1 0-10 k!, a1@1 12-20 k, a2@1 30-40 k, a3@1 31-32 k!"), &["concurrent requests of a key"]);
    // By two instances without a fencing token.
    expect(&evidence("a1@- 0-1000 k, b2@- 10-20 k"), &["out of order", "concurrent requests of a key"]);
}

#[test]
fn an_attempt_that_was_given_up_may_end_a_moment_after_the_next_one_began() {
    expect(&evidence("a1@1 0-150 k!, a1@1 100-110 k, a2@1 200-210 k"), &[]);
    expect(&evidence("a1@1 0-150 k!, a1@1 100-110 k, a2@1 120-130 k"), &[]);
    expect(&evidence("a1@1 0-900 k!, a1@1 100-110 k, a2@1 120-130 k"), &["concurrent requests of a key"]);
    for overlap in [
        "a1@1 0-400 k!, a1@1 100-110 k, a2@1 500-510 k",
        "a1@1 0-150 k, a1@1 100-110 k, a2@1 200-210 k",
        "a1@1 0-150 k!, b1@1 100-110 k, a2@1 200-210 k",
        "a1@1 0-150 k!, a2@1 100-110 k, a1@1 200-210 k",
    ] {
        let verdict = judge(&evidence(overlap), &LIMITS);
        assert_eq!(verdict.concurrent.len(), 1, "{overlap}: {verdict}");
    }
}

#[test]
fn a_request_of_the_older_claim_must_end_at_the_takeover() {
    let ends_in_time = "a1@1 0-600 k!, b1@5 500-510 k, b2@5 510-520 k";
    expect(&evidence(ends_in_time), &[]);
    let ends_late = "a1@1 0-800 k!, b1@5 500-510 k, b2@5 510-520 k";
    expect(&evidence(ends_late), &["concurrent requests of a key"]);
    let never_ends = "a1@1 0- k!, b1@5 500-510 k, b2@5 510-520 k";
    expect(&evidence(never_ends), &["concurrent requests of a key"]);
    let mut paused = evidence(ends_late);
    paused.disturbances.push(fault(Some("a"), 100, 700, true));
    expect(&paused, &[]);
    // The pause of another instance is no reason.
    paused.disturbances[0].instance = Some("c".to_owned());
    expect(&paused, &["concurrent requests of a key"]);
}

#[test]
fn a_request_that_begins_under_an_older_claim_is_found() {
    let stale = "b1@5 500-510 k, b2@5 510-520 k, a7@1 900-910 other";
    expect(&evidence(stale), &["requests of an older claim"]);
    let mut paused = evidence(stale);
    paused.disturbances.push(fault(Some("a"), 100, 850, true));
    assert_eq!(expect(&paused, &[]).n_fenced, 1);
    // The slack after the pause is over.
    paused.disturbances[0].until = ms(600);
    expect(&paused, &["requests of an older claim"]);
}

#[test]
fn a_stored_offset_that_goes_back_is_found_in_its_partition() {
    let mut back = evidence("a1@1 0-10 k, a2@1 10-20 k");
    let stored = |partition, offset| StoredOffset { at: ms(1), partition, offset };
    back.stored = vec![stored(0, 5), stored(1, 3), stored(0, 4), stored(0, 5)];
    expect(&back, &["stored offsets that went back"]);
    back.stored = vec![stored(0, 5), stored(1, 3), stored(0, 5), stored(1, 4)];
    expect(&back, &[]);
}

#[test]
fn a_repeat_needs_a_disturbance_of_its_time_and_its_instance() {
    let repeat = "a1@1 0-10 k, a2@1 10-20 k, b1@5 4000-4010 k";
    let mut repeated = evidence(repeat);
    assert_eq!(expect(&repeated, &["repeats without a reason"]).n_repeats, 1);
    for (disturbance, is_explained) in [
        (fault(Some("a"), 500, 1000, false), true),
        (fault(Some("b"), 500, 1000, false), true),
        (fault(None, 500, 1000, false), true),
        (fault(Some("c"), 500, 1000, false), false),
        // It begins after the repeat.
        (fault(Some("a"), 4500, 5000, false), false),
        // The message was delivered, and its offset stored, long before.
        (fault(Some("a"), 3000, 3500, false), false),
    ] {
        repeated.disturbances = vec![disturbance];
        let verdict = expect(&repeated, if is_explained { &[] } else { &["repeats without a reason"] });
        assert_eq!(verdict.repeats_by_disturbance.get("a fault"), is_explained.then_some(&1));
    }
    for late in
        ["a1@1 0-10 k, a2@1 10-20 k, a1@1 9000-9010 k", "a1@1 0-10 k, a2@1 10-20 k, b3@5 3900-3910 k, b1@5 9000-9010 k"]
    {
        let mut late = evidence(late);
        late.disturbances.push(fault(Some("a"), 500, 1000, false));
        expect(&late, &["repeats without a reason"]);
        assert_eq!(judge(&late, &LIMITS).repeat_share(), 0.5);
    }
    // Nobody pushed the partition for eight seconds.
    let mut late_takeover = evidence("a1@1 0-10 k, a2@1 10-20 k, b3@5 9000-9010 k, b1@5 9100-9110 k");
    late_takeover.disturbances.push(fault(Some("a"), 500, 1000, false));
    expect(&late_takeover, &[]);
    // The new owner's backend did not answer for five seconds.
    let mut delayed = evidence("a1@1 0-10 k, a2@1 10-20 k, b3@5 3900-3910 k, b1@5 11000-11010 k");
    delayed.disturbances = vec![fault(Some("a"), 500, 1000, false), fault(Some("c"), 4000, 9000, false)];
    expect(&delayed, &["repeats without a reason"]);
    delayed.disturbances.push(fault(None, 4000, 9000, false));
    expect(&delayed, &[]);
    // A second repeat is explained by what happened after the first one.
    let mut twice = evidence("a1@1 0-10 k, a2@1 10-20 k, b1@5 4000-4010 k, c1@6 9000-9010 k");
    twice.disturbances = vec![fault(Some("a"), 500, 1000, false), fault(Some("b"), 5000, 8500, false)];
    assert_eq!(expect(&twice, &[]).n_repeats, 2);
    twice.disturbances.pop();
    expect(&twice, &["repeats without a reason"]);
}

#[test]
fn a_process_that_is_left_is_named() {
    let mut left = evidence("a1@1 0-10 k, a2@1 10-20 k");
    left.leftovers.push("process 7 of instance a".to_owned());
    assert!(expect(&left, &["left over"]).to_string().contains("process 7"));
}
