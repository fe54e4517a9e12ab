//! Tests of several calls at once, with a thread that takes the place of the sender and of the server.

use super::*;
use std::net::{Ipv4Addr, TcpListener};
use std::thread::JoinHandle;

/// A link with a connection that carries nothing, and a thread that takes the calls.
struct Rig {
    link: Link,
    server: JoinHandle<usize>,
    _peer: TcpStream,
}

impl Rig {
    /// Calls `serve` with each call and its number; the thread ends when it returns false. Returns the number of calls.
    fn start(session_timeout: Duration, mut serve: impl FnMut(usize, Call) -> bool + Send + 'static) -> Rig {
        let (calls, queued) = bounded(MAX_QUEUED_CALLS);
        let link = Link::new(config(session_timeout), calls);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = listener.accept().unwrap().0;
        link.attach(Arc::new(stream), SessionKey::default(), session_timeout, BootTime::now()).unwrap();
        let server = std::thread::spawn(move || {
            let mut n_served = 0;
            for call in queued {
                n_served += 1;
                if !serve(n_served, call) {
                    break;
                }
            }
            n_served
        });
        Rig { link, server, _peer: peer }
    }

    /// Makes `count` reads of `/0`, `/1`, …
    fn call_all(&self, count: usize) -> Vec<Result<Response, KeeperError>> {
        let requests = (0..count).map(|number| Request::get_data(&format!("/{number}")));
        self.link.call_all(requests, CallKind::Read, MAX_QUEUED_CALLS)
    }

    /// Drops the link, and returns the number of calls that arrived.
    fn end(self) -> usize {
        drop(self.link);
        self.server.join().unwrap()
    }
}

fn config(session_timeout: Duration) -> KeeperConfig {
    let hosts = vec!["127.0.0.1:1".to_owned()];
    KeeperConfig { hosts, chroot: String::new(), session_timeout, connect_timeout: session_timeout }
}

/// Answers with the request itself.
fn echo(call: Call) {
    let _ = call.response.send(Response { error: error::OK, body: call.request.frame(1) });
}

fn is_answer_to(result: &Result<Response, KeeperError>, number: usize) -> bool {
    result.as_ref().is_ok_and(|response| response.body == Request::get_data(&format!("/{number}")).frame(1))
}

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn responses_have_the_order_of_the_requests_and_the_calls_in_flight_are_bounded() {
    // The server answers only when as many calls as possible wait, the latest first.
    let count = 3 * MAX_QUEUED_CALLS;
    let mut waiting: Vec<Call> = Vec::new();
    let rig = Rig::start(PATIENCE, move |number, call| {
        waiting.push(call);
        if waiting.len() == MAX_QUEUED_CALLS || number == count {
            waiting.drain(..).rev().for_each(echo);
        }
        true
    });
    let results = rig.call_all(count);
    let wrong = (0..count).find(|number| !is_answer_to(&results[*number], *number));
    assert_eq!((results.len(), wrong), (count, None));
    assert_eq!(rig.call_all(0).len(), 0);
    assert_eq!(rig.end(), count);
}

#[test]
fn after_the_first_call_without_a_response_all_later_ones_fail_at_once() {
    let rig = Rig::start(PATIENCE, |number, call| {
        if number == 5 {
            // As when the connection is lost.
            drop(call);
        } else {
            echo(call);
        }
        true
    });
    let count = 2 * MAX_QUEUED_CALLS;
    let results = rig.call_all(count);
    assert!((0..4).all(|number| is_answer_to(&results[number], number)));
    assert!(results[4..].iter().all(|result| matches!(result, Err(KeeperError::Unreachable(_)))));
    assert_eq!(results.len(), count);
    let n_served = rig.end();
    assert!(n_served <= MAX_QUEUED_CALLS + 4, "{n_served} calls: none is begun after the failure");
}

#[test]
fn a_server_that_answers_nothing_costs_one_call_timeout() {
    let mut silent = Vec::new();
    let rig = Rig::start(Duration::from_millis(30), move |_, call| {
        silent.push(call);
        true
    });
    let results = rig.call_all(10);
    assert!(results.iter().all(|result| matches!(result, Err(KeeperError::Unreachable(_)))), "{}", results.len());
    assert_eq!(results[0].as_ref().err().unwrap().to_string(), results_text("no response by the deadline"));
    assert_eq!(results[1].as_ref().err().unwrap().to_string(), results_text("an earlier request got no response"));
    rig.end();
}

fn results_text(reason: &str) -> String {
    KeeperError::Unreachable(reason.to_owned()).to_string()
}

#[test]
fn without_a_connection_every_call_has_its_error_and_none_is_queued() {
    let (calls, queued) = bounded(MAX_QUEUED_CALLS);
    let link = Link::new(config(PATIENCE), calls);
    let results = link.call_all((0..3).map(|_| Request::ping()), CallKind::Read, MAX_QUEUED_CALLS);
    assert_eq!(results.len(), 3);
    assert_eq!(results[0].as_ref().err().unwrap().to_string(), results_text("not connected yet"));
    assert_eq!((results.iter().filter(|result| result.is_err()).count(), queued.len()), (3, 0));
}
