//! Tests of operations on a module that does not run, or whose pauses cannot be stored.

use super::*;
use crossbeam_channel::unbounded;
use prometheus::Opts;
use serde_json::Value;

use crate::ktransfer::pauses::{PauseStore, PauseTable, Pauses};

/// A store that cannot be reached.
struct Unreachable;

impl PauseStore for Unreachable {
    fn read(&self) -> Result<Pauses, String> {
        Err("no answer".to_owned())
    }

    fn change(&self, _: &PauseChange) -> Result<Pauses, PauseStoreError> {
        Err(PauseStoreError::NotStored("no answer".to_owned()))
    }
}

/// Carries out an operation on a module with these pauses that does not run; returns the status and the answer.
fn answer_of_stopped(pauses: &PauseTable, operation: &Operation, is_dry_run: bool) -> (u16, Value) {
    let operations = Operations::default();
    let connect = Arc::new(|| Err("not in this test".to_owned()));
    operations.add(ModuleHandle::new("m".into(), "t".into(), pauses.clone(), connect));
    let (_, tasks) = bounded(1);
    let counter = IntCounterVec::new(Opts::new("n", "n"), &["operation", "result"]).unwrap();
    let (sender, answers) = unbounded();
    let reply = http::Reply::to(move |response| sender.send((response.status, response.body.to_vec())).unwrap());
    let operation = operation.clone();
    let task = Task { module: "m".into(), operation, is_dry_run, by: "ann".into(), peer: None, reply };
    Executor::new(operations, tasks, counter).carry_out(task);
    let (status, body) = answers.try_recv().expect("an answer");
    (status, serde_json::from_slice(&body).unwrap())
}

#[test]
fn a_dry_run_of_a_pause_is_answered_like_the_pause() {
    for (pauses, status, code) in
        [(PauseTable::default(), 200, Value::Null), (PauseTable::stored_in(Unreachable), 503, "not_stored".into())]
    {
        for operation in [Operation::Pause(None), Operation::Resume(None)] {
            let (dry_status, dry) = answer_of_stopped(&pauses, &operation, true);
            assert!(!pauses.is_paused(0) || operation == Operation::Resume(None), "it changes nothing");
            let (real_status, real) = answer_of_stopped(&pauses, &operation, false);
            assert_eq!((dry_status, real_status), (status, status), "{operation:?}: {dry} {real}");
            assert_eq!((&dry["code"], &real["code"]), (&code, &code), "{operation:?}");
            if status == 200 {
                assert_eq!((&dry["result"], &real["result"]), (&"would_be_done".into(), &"done".into()));
            }
        }
    }
    let (status, refused) = answer_of_stopped(&PauseTable::default(), &Operation::Pause(Some(3)), true);
    assert_eq!(status, 503, "a partition must be pushed by this process: {refused}");
}
