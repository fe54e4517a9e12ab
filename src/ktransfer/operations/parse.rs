//! Reads an operation from the path, the query and the JSON body of a request.

use std::sync::Arc;

use serde::Deserialize;

use super::clock_time::parse_time;
use super::operation::{Operation, Refusal, SeekTarget};
use crate::broker::{Offset, PartitionId};
use crate::http::percent_decode;

/// Prefix of the paths of modules.
pub(super) const MODULES: &str = "/v1/modules";

/// The target that a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// All modules.
    All,
    /// One module.
    Module(Arc<str>),
    /// An operation on a module, by the last segment of the path.
    Operation(Arc<str>, OperationName),
}

/// The last segment of the path of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperationName {
    Pause,
    Resume,
    Skip,
    Seek,
}

/// The keys of all bodies.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    partition: Option<PartitionId>,
    offset: Option<Offset>,
    time: Option<Time>,
    to: Option<End>,
    /// Whether a skip stores the dead letter of the message.
    dead_letter: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Time {
    Milliseconds(i64),
    Text(String),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    Earliest,
    End,
}

/// Returns what `path` names; `None` for a path that is not of modules.
pub(super) fn target(path: &str) -> Option<Target> {
    let rest = path.strip_prefix(MODULES)?;
    let mut segments = match rest {
        "" | "/" => return Some(Target::All),
        _ => rest.strip_prefix('/')?.split('/'),
    };
    let name = percent_decode(segments.next()?)?;
    let name = Arc::from(str::from_utf8(&name).ok()?);
    match (segments.next(), segments.next()) {
        (None, _) => Some(Target::Module(name)),
        (Some(operation), None) => {
            let operation = match operation {
                "pause" => OperationName::Pause,
                "resume" => OperationName::Resume,
                "skip" => OperationName::Skip,
                "seek" => OperationName::Seek,
                _ => return None,
            };
            Some(Target::Operation(name, operation))
        }
        (Some(_), Some(_)) => None,
    }
}

/// Returns whether the query requests a dry run.
pub(super) fn is_dry_run(query: Option<&str>) -> Result<bool, Refusal> {
    let mut is_dry_run = false;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        is_dry_run = match pair.split_once('=').unwrap_or((pair, "")) {
            ("dry_run", "1" | "true") => true,
            ("dry_run", "0" | "false") => false,
            ("dry_run", _) => return Err(Refusal::invalid("dry_run must be 0 or 1")),
            (name, _) => return Err(Refusal::invalid(format!("unknown parameter {name:?}: there is dry_run=1"))),
        };
    }
    Ok(is_dry_run)
}

/// Returns the operation with the arguments in `body`, a JSON object; an empty body is an empty object.
pub(super) fn operation(name: OperationName, body: &[u8]) -> Result<Operation, Refusal> {
    let body = match body.trim_ascii() {
        b"" => Body::default(),
        text => serde_json::from_slice(text)
            .map_err(|cause| Refusal::invalid(format!("the body is not a valid JSON object: {cause}")))?,
    };
    if body.partition.is_some_and(|partition| partition < 0) {
        return Err(Refusal::invalid("partition must not be negative"));
    }
    if body.offset.is_some_and(|offset| offset < 0) {
        return Err(Refusal::invalid("offset must not be negative"));
    }
    if body.dead_letter.is_some() && name != OperationName::Skip {
        return Err(Refusal::invalid("dead_letter is for skip only"));
    }
    match name {
        OperationName::Pause | OperationName::Resume => {
            if body.offset.is_some() || body.time.is_some() || body.to.is_some() {
                return Err(Refusal::invalid("the body may have partition only"));
            }
            let is_pause = name == OperationName::Pause;
            Ok(if is_pause { Operation::Pause(body.partition) } else { Operation::Resume(body.partition) })
        }
        OperationName::Skip => match body {
            Body { partition: Some(partition), offset: Some(offset), time: None, to: None, dead_letter } => {
                Ok(Operation::Skip { partition, offset, stores_letter: dead_letter.unwrap_or(true) })
            }
            _ => Err(Refusal::invalid("the body must have partition and offset, and may have dead_letter")),
        },
        OperationName::Seek => Ok(Operation::Seek { partition: body.partition, to: seek_target(&body)? }),
    }
}

fn seek_target(body: &Body) -> Result<SeekTarget, Refusal> {
    match body {
        Body { offset: Some(offset), time: None, to: None, .. } => Ok(SeekTarget::Offset(*offset)),
        Body { offset: None, time: Some(time), to: None, .. } => match time {
            Time::Milliseconds(time_ms) if *time_ms < 0 => Err(Refusal::invalid("time must not be negative")),
            Time::Milliseconds(time_ms) => Ok(SeekTarget::TimeMs(*time_ms)),
            Time::Text(text) => {
                parse_time(text).filter(|time_ms| *time_ms >= 0).map(SeekTarget::TimeMs).ok_or_else(|| {
                    let example = "2026-01-31T08:00:00Z";
                    Refusal::invalid(format!("time is {text:?}, but must be milliseconds since 1970 or like {example}"))
                })
            }
        },
        Body { offset: None, time: None, to: Some(end), .. } => Ok(match end {
            End::Earliest => SeekTarget::Earliest,
            End::End => SeekTarget::End,
        }),
        _ => Err(Refusal::invalid("the body must have one of offset, time and to (earliest or end)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_all_modules_one_module_or_an_operation() {
        let module = |name: &str| Some(Target::Module(name.into()));
        for (path, expected) in [
            ("/v1/modules", Some(Target::All)),
            ("/v1/modules/", Some(Target::All)),
            ("/v1/modules/a", module("a")),
            ("/v1/modules/a%2Bb", module("a+b")),
            ("/v1/modules/a/seek", Some(Target::Operation("a".into(), OperationName::Seek))),
            ("/v1/modules/a/stop", None),
            ("/v1/modules/a/seek/b", None),
            ("/v1/modules/%ff", None),
            ("/v1/modules/%", None),
            ("/v1/modulesx", None),
            ("/v2/modules", None),
        ] {
            assert_eq!(target(path), expected, "{path}");
        }
    }

    #[test]
    fn the_query_may_ask_for_a_dry_run() {
        for (query, expected) in [
            (None, Some(false)),
            (Some(""), Some(false)),
            (Some("dry_run=1"), Some(true)),
            (Some("dry_run=0"), Some(false)),
        ] {
            assert_eq!(is_dry_run(query).ok(), expected, "{query:?}");
        }
        for query in ["dry_run", "dry_run=yes", "dryrun=1", "dry_run=1&partition=3"] {
            assert!(is_dry_run(Some(query)).is_err(), "{query}");
        }
    }

    #[test]
    fn bodies_are_operations_or_refused() {
        use OperationName::{Pause, Resume, Seek, Skip};
        let seek = |partition, to| Operation::Seek { partition, to };
        let skip = |stores_letter| Operation::Skip { partition: 3, offset: 7, stores_letter };
        for (name, body, expected) in [
            (Pause, "", Operation::Pause(None)),
            (Pause, " {} ", Operation::Pause(None)),
            (Resume, r#"{"partition":3}"#, Operation::Resume(Some(3))),
            (Skip, r#"{"partition":3,"offset":7}"#, skip(true)),
            (Skip, r#"{"partition":3,"offset":7,"dead_letter":true}"#, skip(true)),
            (Skip, r#"{"partition":3,"offset":7,"dead_letter":false}"#, skip(false)),
            (Seek, r#"{"offset":0}"#, seek(None, SeekTarget::Offset(0))),
            (Seek, r#"{"partition":1,"time":1700000000000}"#, seek(Some(1), SeekTarget::TimeMs(1_700_000_000_000))),
            (Seek, r#"{"time":"1970-01-01T00:00:01Z"}"#, seek(None, SeekTarget::TimeMs(1_000))),
            (Seek, r#"{"to":"earliest"}"#, seek(None, SeekTarget::Earliest)),
            (Seek, r#"{"to":"end"}"#, seek(None, SeekTarget::End)),
        ] {
            assert_eq!(operation(name, body.as_bytes()), Ok(expected), "{body}");
        }
        for (name, body) in [
            (Pause, "[]"),
            (Pause, "null"),
            (Pause, "{"),
            (Pause, r#"{"partition":-1}"#),
            (Pause, r#"{"partition":3000000000}"#),
            (Pause, r#"{"partition":"3"}"#),
            (Pause, r#"{"partition":1.5}"#),
            (Pause, r#"{"offset":1}"#),
            (Resume, r#"{"module":"a"}"#),
            (Skip, ""),
            (Skip, r#"{"offset":7}"#),
            (Skip, r#"{"partition":3}"#),
            (Skip, r#"{"partition":3,"offset":-1}"#),
            (Skip, r#"{"partition":3,"offset":7,"to":"end"}"#),
            (Skip, r#"{"partition":3,"offset":7,"dead_letter":"no"}"#),
            (Pause, r#"{"dead_letter":false}"#),
            (Seek, r#"{"to":"end","dead_letter":false}"#),
            (Seek, ""),
            (Seek, r#"{"offset":1,"to":"end"}"#),
            (Seek, r#"{"offset":-1}"#),
            (Seek, r#"{"offset":99999999999999999999}"#),
            (Seek, r#"{"time":-1}"#),
            (Seek, r#"{"time":"tomorrow"}"#),
            (Seek, r#"{"to":"latest"}"#),
            (Seek, "\u{0}"),
        ] {
            let refused = operation(name, body.as_bytes());
            assert!(refused.as_ref().is_err_and(|refusal| refusal.status == 400), "{body}: {refused:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(operation(Seek, deep.as_bytes()).is_err());
    }
}
