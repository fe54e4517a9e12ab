//! Replays of what a monitor sees over time, one text file a case in `tests/fixtures/replays`, most of them complaints
//! about other monitors. A file has lines of three kinds:
//!
//! ```text
//! # comment
//! 600  stored=100 newest=100+1/60 owner=nobody     from second 600 on; what is not named stays
//! => 620 STOPPED no_member                         the verdict changes at second 620, for this reason
//! ```
//!
//! `cycle` is the time between two readings, in seconds, from the start on (5 if it is not named).
//!
//! Numbers are `N`, `N+R` or `N+1/R` (R a second, or one in R seconds); for `stored` also `newest`, `newest-N`, and
//! `newest@S` or `newest@S-N` (what `newest` was at the last multiple of S seconds: a consumer that stores so often).
//! A stored offset that grows stops at the newest one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::kmonitor::behind;
use crate::kmonitor::ends_history::EndsHistory;
use crate::kmonitor::facts::WentBack;

/// Seconds between two readings, where a file names none.
const CYCLE: u64 = 5;

/// One line: from when on, and the values of the keys.
struct State {
    from: u64,
    values: HashMap<String, (u64, String)>,
}

struct Replay {
    states: Vec<State>,
    expected: Vec<String>,
    end: u64,
}

impl Replay {
    fn parse(text: &str) -> Replay {
        let (mut states, mut expected, mut end) = (Vec::<State>::new(), Vec::new(), 0);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(change) = line.strip_prefix("=> ") {
                expected.push(change.split_whitespace().collect::<Vec<_>>().join(" "));
                continue;
            }
            let mut words = line.split_whitespace();
            let from = words.next().unwrap().parse().unwrap_or_else(|_| panic!("{line}: no time"));
            let mut values = states.last().map(|state| state.values.clone()).unwrap_or_default();
            values.retain(|key, _| key != "restart" && key != "end");
            for word in words {
                let (key, value) = word.split_once('=').unwrap_or((word, "yes"));
                assert!(
                    [
                        "stored",
                        "oldest",
                        "newest",
                        "stable",
                        "cycle",
                        "owner",
                        "members",
                        "elected",
                        "recreated",
                        "deliverable",
                        "pushes",
                        "zookeeper",
                        "leader",
                        "topic",
                        "restart",
                        "end"
                    ]
                    .contains(&key),
                    "{line}: {key}?"
                );
                values.insert(key.to_owned(), (from, value.to_owned()));
            }
            if values.contains_key("end") {
                end = from;
            }
            states.push(State { from, values });
        }
        assert!(0 < end, "a line `T end` is missing");
        Replay { states, expected, end }
    }

    fn word(&self, key: &str, now: u64) -> Option<(u64, &str)> {
        let state = self.states.iter().rev().find(|state| state.from <= now)?;
        state.values.get(key).map(|(since, value)| (*since, value.as_str()))
    }

    fn is(&self, key: &str, value: &str, now: u64) -> bool {
        self.word(key, now).is_some_and(|(_, word)| word == value)
    }

    fn number(&self, key: &str, now: u64) -> Option<Offset> {
        let (since, word) = self.word(key, now)?;
        let number = |text: &str| text.parse::<i64>().unwrap_or_else(|_| panic!("{key}={word}"));
        if let Some(rest) = word.strip_prefix("newest") {
            let (step, less) = rest.split_once('-').unwrap_or((rest, "0"));
            let step: u64 = step.strip_prefix('@').map_or(1, |step| step.parse().unwrap());
            return Some(self.number("newest", now - now % step)? - number(less));
        }
        if word == "none" {
            return None;
        }
        let Some((first, rate)) = word.split_once('+') else { return Some(number(word)) };
        let passed = i64::try_from(now - since).unwrap();
        let more = match rate.strip_prefix("1/") {
            Some(seconds) => passed / number(seconds),
            None => passed * number(rate),
        };
        let grown = number(first) + more;
        Some(if key == "stored" { grown.min(self.number("newest", now)?) } else { grown })
    }
}

/// What a monitor remembers from reading to reading.
#[derive(Default)]
struct Memory {
    ends: EndsHistory,
    started: u64,
    stored: Option<(Offset, u64)>,
    has_moved: bool,
    newest_when_moved: Offset,
    went_back: Option<(Offset, Offset, u64)>,
    beyond: u32,
    nobody_since: Option<u64>,
    unowned_since: Option<u64>,
    stored_read: Option<u64>,
    log: Option<(Offset, Offset, u64)>,
    /// The stored offset that the last reading of the log came after.
    paired: Option<Offset>,
    /// Until when an open transaction held back all that waits.
    held: Option<(bool, u64)>,
}

impl Memory {
    fn read(&mut self, replay: &Replay, now: u64) -> Facts {
        let elapsed = seconds(now - self.started);
        let was_beyond = 2 <= self.beyond;
        if !replay.is("leader", "silent", now)
            && let Some(newest) = replay.number("newest", now)
        {
            self.ends.record(elapsed, newest);
            self.log = Some((replay.number("oldest", now).unwrap_or(0), newest, now));
            let is_beyond = replay.number("stored", now).is_some_and(|stored| newest < stored);
            self.beyond = if is_beyond { self.beyond + 1 } else { 0 };
        }
        if !replay.is("zookeeper", "silent", now) {
            self.stored_read = Some(now);
            self.store(replay, now, was_beyond || replay.is("recreated", "seen", now));
            let members = replay.number("members", now).unwrap_or(1);
            let nobody = replay.is("owner", "nobody", now);
            self.nobody_since = if members == 0 { self.nobody_since.or(Some(now)) } else { None };
            self.unowned_since = if nobody { self.unowned_since.or(Some(now)) } else { None };
        }
        if self.log.is_some_and(|(.., then)| then == now) {
            self.paired = self.stored.map(|(stored, _)| stored);
            let first = self.paired.unwrap_or(0);
            let is_held = replay.number("stable", now).is_some_and(|stable| stable <= first);
            if is_held || self.held.is_some_and(|(was_held, _)| was_held) {
                self.held = Some((is_held, now));
            }
        }
        self.facts(replay, now, elapsed)
    }

    fn store(&mut self, replay: &Replay, now: u64, was_recreated: bool) {
        let newest = self.log.map_or(0, |(_, newest, _)| newest);
        let Some(stored) = replay.number("stored", now) else { return };
        match self.stored {
            Some((before, _)) if before == stored => return,
            Some((before, _)) => {
                self.has_moved = true;
                // A pusher that begins a recreated topic at its beginning repeats nothing.
                if stored < before && !was_recreated {
                    self.went_back = Some((before, stored, now));
                }
            }
            None => {}
        }
        (self.stored, self.newest_when_moved) = (Some((stored, now)), newest);
    }

    fn facts(&self, replay: &Replay, now: u64, elapsed: Duration) -> Facts {
        let since = |then: u64| seconds(now - then);
        let read = self.stored_read.unwrap_or(now);
        let until_read = |then: u64| seconds(read.saturating_sub(then));
        let log = match (replay.is("topic", "gone", now), self.log) {
            (true, _) => LogState::Gone,
            (_, Some((oldest, newest, _))) => LogState::Known { oldest, newest },
            (_, None) => LogState::Unknown(UnknownReason::NotReadYet),
        };
        let (oldest, newest) = self.log.map_or((0, 0), |(oldest, newest, _)| (oldest, newest));
        let was_elected = replay.word("elected", now).is_some_and(|(then, _)| now < then + 30);
        let is_recreated = replay.is("recreated", "yes", now) || 2 <= self.beyond && !was_elected;
        let owner = match (replay.word("owner", now), self.unowned_since) {
            (_, Some(then)) => Owner::Nobody { since: Some(until_read(then)) },
            (Some((_, "unsupported")), _) => Owner::Unsupported,
            (owner, _) => Owner::Named(owner.map_or("host-1", |(_, name)| name).into()),
        };
        let mut facts = Facts {
            stored: self.paired.map_or(Stored::Nothing, Stored::Offset),
            stable: replay.number("stable", now).filter(|stable| *stable < newest),
            stored_age: self.stored_read.map(since),
            stored_unknown: replay.is("zookeeper", "silent", now).then(|| UnknownReason::SourceSilent {
                since: self.stored_read.map_or(elapsed, since),
                cause: "timed out".into(),
            }),
            log,
            log_age: self.log.map(|(.., then)| since(then)),
            log_unknown: replay.is("leader", "silent", now).then_some(UnknownReason::LeaderSilent { broker: 1 }),
            recreated: is_recreated,
            went_back: self.went_back.map(|(from, to, then)| WentBack { from, to, ago: since(then) }),
            moved_ago: self.stored.map(|(_, then)| until_read(then)),
            moved_at_least: !self.has_moved,
            written_ago: self.stored.map(|(_, then)| since(then)),
            unwritten_for: self.stored.map(|(_, then)| until_read(then)),
            came_in: u64::try_from(newest - self.newest_when_moved).unwrap_or(0),
            members: (owner != Owner::Unsupported).then_some(u32::from(self.nobody_since.is_none())),
            nobody_there_for: self.nobody_since.map(until_read),
            owner,
            undeliverable: replay.is("deliverable", "nothing", now),
            left_behind: replay.is("pushes", "another", now),
            ..Facts::unread()
        };
        let first_waiting = self.paired.map_or(oldest, |stored| stored.max(oldest));
        let arrival = self.ends.arrival(elapsed.saturating_sub(seconds(now - read)), first_waiting);
        facts.waiting_for = arrival.map(|arrival| arrival.at_least);
        let free_for = self.held.map(|(_, then)| until_read(then));
        facts.readable_for = facts.waiting_for.map(|time| free_for.map_or(time, |free| free.min(time)));
        facts.behind = behind::behind(facts::counted(&facts), arrival.map(|arrival| (arrival, "history")));
        facts
    }
}

fn changes(replay: &Replay) -> Vec<String> {
    let epoch = Moment::now();
    let (mut memory, mut standing) = (Memory::default(), Standing::unread(epoch));
    let mut changes = Vec::new();
    let cycle = replay.number("cycle", 0).map_or(CYCLE, |cycle| cycle.try_into().unwrap());
    for now in (0..=replay.end).step_by(usize::try_from(cycle).unwrap()) {
        if replay.word("restart", now).is_some_and(|(since, _)| since == now) {
            (memory, standing) = (Memory { started: now, ..Memory::default() }, Standing::unread(epoch));
        }
        let facts = memory.read(replay, now);
        let before = standing.verdict;
        let moment = Moment { at: epoch.at + seconds(now), wall: epoch.wall + seconds(now) };
        standing = judge(&facts, &Limits::default(), &standing, moment).0;
        if standing.verdict != before {
            changes.push(format!("{now} {} {}", standing.verdict, standing.code.word()));
        }
    }
    changes
}

#[test]
fn every_replay_has_its_verdicts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/replays");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(20 <= files.len(), "{} files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let replay = Replay::parse(&fs::read_to_string(&file).unwrap());
        let (found, expected) = (changes(&replay), &replay.expected);
        if found != *expected {
            wrong.push(format!("{}: {found:#?} instead of {expected:#?}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
