//! The table `outcomes` of a module: the meaning of each result of an attempt for the message.
//!
//! The table has an outcome for every status from 100 to 999 and for every kind of transport error. Entries that
//! overlap are refused, because the order of a YAML map has no meaning. Gaps are refused, too, because messages with a
//! forgotten status would be retried forever or lost; the entry `default` closes the gaps. All functions are pure.

use std::fmt;
use std::ops::RangeInclusive;

use serde_yaml::Value;

/// The statuses that a table has entries for. HTTP defines those below 600; some backends answer with others.
const STATUSES: RangeInclusive<u16> = 100..=999;
/// The entry for what no other entry names.
const DEFAULT: &str = "default";

/// The meaning of the result of an attempt for the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The message is delivered.
    Ok,
    /// The message is pushed again, as often as `max_retry_times` permits.
    Retry,
    /// The message is given up.
    Drop,
    /// The message is given up, and stored in the dead-letter topic before.
    DeadLetter,
}

impl Outcome {
    const ALL: [Outcome; 4] = [Outcome::Ok, Outcome::Retry, Outcome::Drop, Outcome::DeadLetter];

    fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Retry => "retry",
            Outcome::Drop => "drop",
            Outcome::DeadLetter => "dead_letter",
        }
    }
}

/// Why an attempt got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransportError {
    /// The backend's host refused the connection: nothing listens on the port.
    ConnectRefused,
    /// There was no connection within `conn_timeout_ms`, or within the limit of the operating system.
    ConnectTimeout,
    /// The connection could not be made for another reason: no route to the host, network unreachable.
    ConnectFailed,
    /// The backend's name has no address, or could not be looked up.
    NameLookup,
    /// The TLS handshake failed, or the backend's certificate was refused.
    Tls,
    /// The request was not sent within `write_timeout_ms`.
    WriteTimeout,
    /// No answer came within `read_timeout_ms`.
    ReadTimeout,
    /// The connection was closed, reset or lost before an answer.
    Closed,
    /// What the backend sent is no HTTP response.
    NotHttp,
}

impl TransportError {
    /// All kinds, in the order of their discriminants.
    pub(super) const ALL: [TransportError; 9] = [
        TransportError::ConnectRefused,
        TransportError::ConnectTimeout,
        TransportError::ConnectFailed,
        TransportError::NameLookup,
        TransportError::Tls,
        TransportError::WriteTimeout,
        TransportError::ReadTimeout,
        TransportError::Closed,
        TransportError::NotHttp,
    ];

    /// Returns the name in the configuration, and in dead letters.
    pub(super) fn name(self) -> &'static str {
        match self {
            TransportError::ConnectRefused => "connect_refused",
            TransportError::ConnectTimeout => "connect_timeout",
            TransportError::ConnectFailed => "connect_failed",
            TransportError::NameLookup => "name_lookup",
            TransportError::Tls => "tls",
            TransportError::WriteTimeout => "write_timeout",
            TransportError::ReadTimeout => "read_timeout",
            TransportError::Closed => "closed",
            TransportError::NotHttp => "not_http",
        }
    }
}

/// The outcome of each result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutcomeTable {
    /// First and last status of each range with its outcome, sorted, without gaps from 100 to 999.
    statuses: Vec<(u16, u16, Outcome)>,
    /// By the discriminant of [`TransportError`].
    errors: [Outcome; TransportError::ALL.len()],
}

/// Without a table: 2xx is a delivery, everything else is retried.
impl Default for OutcomeTable {
    fn default() -> Self {
        let statuses = vec![(100, 199, Outcome::Retry), (200, 299, Outcome::Ok), (300, 999, Outcome::Retry)];
        OutcomeTable { statuses, errors: [Outcome::Retry; TransportError::ALL.len()] }
    }
}

/// What is wrong with a table: the entry (empty for the whole table), and the text of the problem.
pub(super) type TableProblem = (String, String);

impl OutcomeTable {
    /// Reads the value of the key `outcomes`. Fails with all problems of the table.
    pub(super) fn from_yaml(table: &Value) -> Result<OutcomeTable, Vec<TableProblem>> {
        let Value::Mapping(entries) = table else {
            return Err(vec![(String::new(), "must be a map, as in \"404: drop\"".to_owned())]);
        };
        let mut reader = TableReader::default();
        for (key, outcome) in entries {
            reader.read(&text_of(key), outcome);
        }
        reader.finish()
    }

    /// Returns the outcome of an answer with this status.
    pub(super) fn of_status(&self, status: u16) -> Outcome {
        let found = self.statuses.iter().find(|(first, last, _)| (*first..=*last).contains(&status));
        // A status below 100 is none of HTTP.
        found.map_or_else(|| self.of_error(TransportError::NotHttp), |(_, _, outcome)| *outcome)
    }

    /// Returns the outcome of an attempt without an answer.
    pub(super) fn of_error(&self, error: TransportError) -> Outcome {
        self.errors[error as usize]
    }

    /// Whether a result of an attempt has this outcome.
    pub(super) fn has(&self, outcome: Outcome) -> bool {
        self.errors.contains(&outcome) || self.statuses.iter().any(|(_, _, known)| *known == outcome)
    }
}

/// The key of an entry.
#[derive(Clone, Copy)]
enum Entry {
    Statuses(u16, u16),
    Error(TransportError),
    Default,
}

impl Entry {
    fn parse(text: &str) -> Result<Entry, String> {
        if text == DEFAULT {
            return Ok(Entry::Default);
        }
        if let Some(error) = TransportError::ALL.into_iter().find(|error| error.name() == text) {
            return Ok(Entry::Error(error));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        // A sign is accepted by `parse`, but is none of a status.
        let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            let errors = TransportError::ALL.map(TransportError::name).join(", ");
            return Err(format!(
                "is no entry: it must be a status (404), a range of statuses (400-499), a transport error \
                 ({errors}), or {DEFAULT}"
            ));
        };
        if !STATUSES.contains(&first) || !STATUSES.contains(&last) {
            return Err("must be a status from 100 to 999, or a range of them".to_owned());
        }
        if last < first {
            return Err(format!("is an empty range: {last} is below {first}"));
        }
        Ok(Entry::Statuses(first, last))
    }
}

#[derive(Default)]
struct TableReader {
    statuses: Vec<(u16, u16, Outcome)>,
    errors: [Option<Outcome>; TransportError::ALL.len()],
    default: Option<Outcome>,
    problems: Vec<TableProblem>,
}

impl TableReader {
    fn read(&mut self, key: &str, value: &Value) {
        let name = value.as_str().unwrap_or_default();
        let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.name() == name);
        if outcome.is_none() {
            let names = Outcome::ALL.map(Outcome::name).join(", ");
            self.problems.push((key.to_owned(), format!("is {}, but must be one of {names}", text_of(value))));
        }
        // A wrong outcome must not look like a gap as well.
        let outcome = outcome.unwrap_or(Outcome::Retry);
        match Entry::parse(key) {
            Err(text) => self.problems.push((key.to_owned(), text)),
            Ok(Entry::Default) => self.default = Some(outcome),
            Ok(Entry::Error(error)) => self.errors[error as usize] = Some(outcome),
            Ok(Entry::Statuses(first, last)) => {
                let overlaps =
                    |(other_first, other_last, _): &&(u16, u16, Outcome)| first <= *other_last && *other_first <= last;
                if let Some((other_first, other_last, _)) = self.statuses.iter().find(overlaps) {
                    let other = Statuses(*other_first, *other_last);
                    self.problems.push((key.to_owned(), format!("overlaps with the entry {other}")));
                } else {
                    self.statuses.push((first, last, outcome));
                }
            }
        }
    }

    fn finish(mut self) -> Result<OutcomeTable, Vec<TableProblem>> {
        self.statuses.sort_unstable_by_key(|(first, _, _)| *first);
        let mut gaps = Vec::new();
        let mut next = *STATUSES.start();
        for (first, last, _) in &self.statuses {
            if next < *first {
                gaps.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= *STATUSES.end() {
            gaps.push((next, *STATUSES.end()));
        }
        let unnamed = TransportError::ALL.into_iter().filter(|error| self.errors[*error as usize].is_none());
        let missing: Vec<String> = gaps
            .iter()
            .map(|(first, last)| Statuses(*first, *last).to_string())
            .chain(unnamed.map(|error| error.name().to_owned()))
            .collect();
        if let (None, false) = (self.default, missing.is_empty()) {
            let text = format!("has no entry for {}: add entries, or {DEFAULT}", missing.join(", "));
            self.problems.push((String::new(), text));
        }
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        let default = self.default.unwrap_or(Outcome::Retry);
        self.statuses.extend(gaps.into_iter().map(|(first, last)| (first, last, default)));
        self.statuses.sort_unstable_by_key(|(first, _, _)| *first);
        Ok(OutcomeTable { statuses: self.statuses, errors: self.errors.map(|outcome| outcome.unwrap_or(default)) })
    }
}

/// A range of statuses as it is written in the table.
struct Statuses(u16, u16);

impl fmt::Display for Statuses {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Statuses(first, last) if first == last => write!(formatter, "{first}"),
            Statuses(first, last) => write!(formatter, "{first}-{last}"),
        }
    }
}

/// Returns a key or value as it is in the file; YAML reads a status without quotes as a number.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => serde_yaml::to_string(other).unwrap_or_default().trim().replace('\n', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<OutcomeTable, Vec<String>> {
        let problems = |problems: Vec<TableProblem>| {
            problems.into_iter().map(|(entry, text)| format!("{entry}: {text}")).collect()
        };
        OutcomeTable::from_yaml(&serde_yaml::from_str(text).unwrap()).map_err(problems)
    }

    #[test]
    fn without_a_table_2xx_is_ok_and_everything_else_is_retried() {
        let table = OutcomeTable::default();
        for (status, outcome) in [(42, Outcome::Retry), (101, Outcome::Retry), (199, Outcome::Retry)] {
            assert_eq!(table.of_status(status), outcome, "{status}");
        }
        for status in 200..=299 {
            assert_eq!(table.of_status(status), Outcome::Ok, "{status}");
        }
        assert!((300..=999).all(|status| table.of_status(status) == Outcome::Retry));
        assert!(TransportError::ALL.into_iter().all(|error| table.of_error(error) == Outcome::Retry));
        assert!(!table.has(Outcome::DeadLetter) && !table.has(Outcome::Drop));
    }

    #[test]
    fn the_discriminants_are_the_places_in_the_list() {
        for (place, error) in TransportError::ALL.into_iter().enumerate() {
            assert_eq!(error as usize, place);
        }
    }

    #[test]
    fn entries_are_statuses_ranges_errors_and_a_default() {
        let table = table(
            "{200-299: ok, '409': ok, 400-408: dead_letter, 410-499: dead_letter, 503: retry, closed: drop, \
             default: retry, tls: dead_letter}",
        )
        .unwrap();
        for (status, outcome) in [
            (100, Outcome::Retry),
            (204, Outcome::Ok),
            (302, Outcome::Retry),
            (400, Outcome::DeadLetter),
            (408, Outcome::DeadLetter),
            (409, Outcome::Ok),
            (410, Outcome::DeadLetter),
            (499, Outcome::DeadLetter),
            (500, Outcome::Retry),
            (999, Outcome::Retry),
            (99, Outcome::Retry),
        ] {
            assert_eq!(table.of_status(status), outcome, "{status}");
        }
        assert_eq!(table.of_error(TransportError::Closed), Outcome::Drop);
        assert_eq!(table.of_error(TransportError::Tls), Outcome::DeadLetter);
        assert_eq!(table.of_error(TransportError::ReadTimeout), Outcome::Retry);
        assert!(table.has(Outcome::DeadLetter));
    }

    #[test]
    fn a_table_without_default_must_name_everything() {
        let errors = TransportError::ALL.map(|error| format!("{}: drop", error.name())).join(", ");
        let whole = table(&format!("{{100-199: retry, 200-299: ok, 300-999: drop, {errors}}}")).unwrap();
        assert_eq!((whole.of_status(404), whole.of_status(7)), (Outcome::Drop, Outcome::Drop));
        let all_errors = TransportError::ALL.map(TransportError::name).join(", ");
        for (text, missing) in [
            ("{}".to_owned(), format!("100-999, {all_errors}")),
            ("{100-999: retry}".to_owned(), all_errors.clone()),
            (format!("{{200-299: ok, 404: drop, {errors}}}"), "100-199, 300-403, 405-999".to_owned()),
            (format!("{{101-998: ok, {errors}}}"), "100, 999".to_owned()),
        ] {
            let expected = format!(": has no entry for {missing}: add entries, or default");
            assert_eq!(table(&text), Err(vec![expected]), "{text}");
        }
    }

    #[test]
    fn overlaps_and_wrong_entries_are_refused_with_the_entry() {
        for (text, problem) in [
            ("{400-499: drop, 404: ok, default: retry}", "404: overlaps with the entry 400-499"),
            ("{404: ok, '404': ok, default: retry}", "404: overlaps with the entry 404"),
            ("{300-400: drop, 400-499: ok, default: retry}", "400-499: overlaps with the entry 300-400"),
            ("{499-400: drop, default: retry}", "499-400: is an empty range: 400 is below 499"),
            ("{404: retyr, default: retry}", "404: is retyr, but must be one of ok, retry, drop, dead_letter"),
            ("{404: 1, default: retry}", "404: is 1, but must be one of ok, retry, drop, dead_letter"),
            ("{404: [ok], default: retry}", "404: is - ok, but must be one of ok, retry, drop, dead_letter"),
            ("{default: rety}", "default: is rety, but must be one of ok, retry, drop, dead_letter"),
            ("{099-200: ok, default: retry}", "099-200: must be a status from 100 to 999, or a range of them"),
            ("{900-1000: ok, default: retry}", "900-1000: must be a status from 100 to 999, or a range of them"),
        ] {
            assert_eq!(table(text), Err(vec![problem.to_owned()]), "{text}");
        }
        for wrong in ["4xx", "40", "4040", "'4 0 4'", "400-", "-400", "400-499-500", "'+404'", "timeout", "''", "null"]
        {
            let problems = table(&format!("{{{wrong}: drop, default: retry}}")).unwrap_err();
            let is_named = problems[0].contains("is no entry") || problems[0].contains("must be a status");
            assert!(problems.len() == 1 && is_named, "{wrong}: {problems:?}");
        }
        assert_eq!(table("[404]"), Err(vec![": must be a map, as in \"404: drop\"".to_owned()]));
    }
}
