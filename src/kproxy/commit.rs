//! A request becomes a message for Kafka, and its outcome becomes the answer.
//!
//! The connection travels with the message ([`Commit`] carries the [`Reply`]); whichever thread learns the outcome
//! answers. Bounds: `req_pool_size` commits and `max_in_flight_bytes`; beyond them a client is told 503 at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use log::{Level, info};

use super::answer::{Failure, stored};
use super::lanes::Lanes;
use super::metrics::{Metrics, Topic};
use super::query::{Query, parse};
use crate::admin::Admin;
use crate::broker::{Acks, AppendResult, Completion, Record};
use crate::http::{Admission, Handler, Head, Lease, Reply, Request, Response};
use crate::log_limited;

/// Longest part of a query in a log line.
const LOGGED_QUERY: usize = 300;

/// What serves `/commit` and, on the same port, the endpoints of operations.
pub(super) struct Commits {
    pub(super) lanes: Lanes<Commit>,
    pub(super) admin: Admin,
    pub(super) metrics: Arc<Metrics>,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) max_commits: usize,
    pub(super) max_message_bytes: usize,
}

/// A message on its way to Kafka, with whoever waits for the outcome.
pub(super) struct Commit {
    reply: Reply,
    topic: Topic,
    acks: Acks,
    query: String,
    bytes: usize,
    peer: Option<SocketAddr>,
    started: Instant,
    metrics: Arc<Metrics>,
    place: Place,
    /// The message's bytes within the budget.
    lease: Lease,
}

/// One of the `req_pool_size` places; given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Commits {
    fn take_place(&self) -> Result<Place, Failure> {
        let place = Place(Arc::clone(&self.in_flight));
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if before < self.max_commits { Ok(place) } else { Err(self.pool_is_full()) }
    }

    fn pool_is_full(&self) -> Failure {
        self.metrics.pool_full.inc();
        Failure::overloaded(format!("{} commits are in flight, which is req_pool_size", self.max_commits))
    }

    /// What can be told from the head alone.
    fn check<'a>(&self, head: &'a Head) -> Result<Query<'a>, Failure> {
        let query = parse(head.query.as_deref().unwrap_or_default())?;
        if self.in_flight.load(Ordering::Relaxed) >= self.max_commits {
            return Err(self.pool_is_full());
        }
        Ok(query)
    }

    fn refuse(&self, head: &Head, failure: &Failure) -> Response {
        self.metrics.refused(failure.status);
        let query = shown(head.query.as_deref().unwrap_or_default());
        log_limited!(
            Level::Warn,
            "{} {} {query} refused status={} error={} peer={}: {}",
            shown(&head.method),
            shown(&head.path),
            failure.status,
            failure.code,
            Peer(head.peer),
            failure.message
        );
        failure.response()
    }
}

impl Handler for Commits {
    fn admit(&self, head: &Head) -> Admission {
        if head.path != "/commit" {
            if let Some(response) = self.admin.answer(head) {
                return Admission::Refuse(response);
            }
            return Admission::Refuse(match &*head.method {
                "OPTIONS" if head.path == "*" => {
                    Response::new(200, "", "").with_header("Allow", "GET, HEAD, POST, OPTIONS")
                }
                _ => self.refuse(head, &Failure::unknown_path()),
            });
        }
        match &*head.method {
            "POST" => match self.check(head) {
                Ok(_) => Admission::Read { most: self.max_message_bytes },
                Err(failure) => Admission::Refuse(self.refuse(head, &failure)),
            },
            "OPTIONS" => Admission::Refuse(Response::new(200, "", "").with_header("Allow", "POST, OPTIONS")),
            _ => Admission::Refuse(self.refuse(head, &Failure::not_post())),
        }
    }

    fn handle(&self, request: Request, reply: Reply) {
        let started = Instant::now();
        let Request { mut head, body, lease } = request;
        let prepared = self.check(&head).and_then(|query| {
            if body.is_empty() {
                return Err(Failure::bad("empty_body", "the body is the message and must not be empty"));
            }
            let place = self.take_place()?;
            Ok((self.metrics.topic(&query.topic), query.key.map(|key| key.into_owned()), query.acks, place))
        });
        let (topic, key, acks, place) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return reply.send(self.refuse(&head, &failure)),
        };
        let bytes = body.len();
        let record = Record {
            topic: Arc::clone(&topic.name),
            partition: None,
            key,
            value: body,
            headers: Vec::new(),
            timestamp_ms: None,
        };
        let commit = Commit {
            reply,
            topic,
            acks,
            query: head.query.take().unwrap_or_default(),
            bytes,
            peer: head.peer,
            started,
            metrics: Arc::clone(&self.metrics),
            place,
            lease,
        };
        self.lanes.append(record, acks, commit);
    }

    fn refusal(&self, status: u16, reason: &str) -> Response {
        log_limited!(Level::Warn, "a request was refused status={status}: {reason}");
        Failure::of_server(status, reason).response()
    }
}

impl Completion for Commit {
    fn complete(self, outcome: AppendResult) {
        let Commit { reply, topic, acks, query, bytes, peer, started, metrics, place, lease } = self;
        // Before the answer: who gets it may send the next request at once.
        drop((place, lease));
        let took = started.elapsed();
        let (query, peer, cost) = (shown(&query), Peer(peer), took.as_micros());
        match outcome {
            Ok(appended) => {
                reply.send(stored(&topic.name, appended));
                metrics.stored(&topic, acks, took);
                let (partition, offset) = (appended.partition, appended.offset.unwrap_or(-1));
                info!(
                    "commit {query} stored partition={partition} offset={offset} bytes={bytes} cost_us={cost} peer={peer}"
                );
            }
            Err(error) => {
                let failure = Failure::of_append(&error);
                reply.send(failure.response());
                metrics.not_stored(&topic, acks, failure.status, took);
                log_limited!(
                    Level::Warn,
                    "commit {query} failed status={} error={} stored={:?} bytes={bytes} cost_us={cost} peer={peer}: {}",
                    failure.status,
                    failure.code,
                    failure.stored,
                    failure.message
                );
            }
        }
    }
}

/// The beginning of a query; as sent it is visible ASCII, so that it can neither break a line nor a character.
fn shown(query: &str) -> &str {
    query.get(..LOGGED_QUERY).unwrap_or(query)
}

/// A client's address, or `-`.
struct Peer(Option<SocketAddr>);

impl std::fmt::Display for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => std::fmt::Display::fmt(&address, formatter),
            None => formatter.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Health;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{AppendFailure, Message, Stored};
    use crate::http::ByteBudget;
    use crate::metrics::Registry;
    use std::borrow::Cow;
    use std::sync::mpsc;

    struct Fixture {
        commits: Commits,
        broker: MemoryBroker,
        registry: Registry,
    }

    fn fixture() -> Fixture {
        let (registry, broker) = (Registry::new(), MemoryBroker::new());
        broker.create_topic("t", 4);
        let commits = Commits {
            lanes: Lanes::new(vec![Arc::new(broker.producer())]),
            admin: Admin::new(registry.clone(), Health::new()),
            metrics: Arc::new(Metrics::new(&registry)),
            in_flight: Arc::default(),
            max_commits: 2,
            max_message_bytes: 100,
        };
        Fixture { commits, broker, registry }
    }

    impl Fixture {
        fn head(method: &'static str, target: &str) -> Head {
            let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
            let method = Cow::Borrowed(method);
            Head { method, path: path.to_owned(), query: query.map(str::to_owned), ..Head::default() }
        }

        /// What the server would do; `None` while the answer is still to come.
        fn request(&self, method: &'static str, target: &str, body: &[u8]) -> mpsc::Receiver<Response> {
            let (sender, answers) = mpsc::channel();
            let deliver = move |response| sender.send(response).unwrap();
            let head = Self::head(method, target);
            match self.commits.admit(&head) {
                Admission::Refuse(response) => deliver(response),
                Admission::Read { most } => {
                    assert!(body.len() <= most);
                    let request = Request { head, body: body.to_vec(), lease: Lease::default() };
                    self.commits.handle(request, Reply::to(deliver));
                }
            }
            answers
        }

        fn answer(&self, method: &'static str, target: &str, body: &[u8]) -> (u16, String) {
            let response = self.request(method, target, body).try_recv().unwrap();
            (response.status, String::from_utf8(response.body).unwrap())
        }

        fn messages(&self) -> Vec<Message> {
            (0..4).flat_map(|partition| self.broker.messages("t", partition)).collect()
        }
    }

    #[test]
    fn a_message_is_stored_verbatim_with_its_key() {
        let fixture = fixture();
        let (status, body) = fixture.answer("POST", "/commit?topic=t&key=%00k&acks=-1", b"\x81\xa6method");
        let [message] = &fixture.messages()[..] else { panic!("one message") };
        assert_eq!(
            (message.key.as_deref(), message.value.as_deref()),
            (Some(&b"\0k"[..]), Some(&b"\x81\xa6method"[..]))
        );
        let expected = format!(r#"{{"topic":"t","partition":{},"offset":0}}"#, message.from.partition);
        assert_eq!((status, body), (200, expected));

        let (status, body) = fixture.answer("POST", "/commit?topic=t&acks=0", b"x");
        assert!(status == 200 && body.ends_with(r#""offset":null}"#), "{body}");
        let text = String::from_utf8(fixture.registry.render()).unwrap();
        assert!(text.contains(r#"kproxy_commits_total{acks="-1",code="200",topic="t"} 1"#), "{text}");
        assert!(text.contains(r#"kproxy_commit_seconds_count{acks="0"} 1"#), "{text}");
    }

    #[test]
    fn what_cannot_be_stored_is_told_and_nothing_is_stored() {
        let fixture = fixture();
        for (method, target, body, status, code) in [
            ("POST", "/commit", "x", 400, "no_topic"),
            ("POST", "/commit?topic=a/b", "x", 400, "bad_topic"),
            ("POST", "/commit?topic=t&acks=7", "x", 400, "bad_acks"),
            ("POST", "/commit?topic=t&topic=t", "x", 400, "repeated_parameter"),
            ("POST", "/commit?topic=t", "", 400, "empty_body"),
            ("POST", "/commit?topic=absent", "x", 404, "unknown_topic"),
            ("POST", "/Commit?topic=t", "x", 404, "unknown_path"),
            ("GET", "/", "", 404, "unknown_path"),
            ("GET", "/commit?topic=t", "", 405, "not_post"),
            ("HEAD", "/commit?topic=t", "", 405, "not_post"),
            ("PUT", "/commit?topic=t", "x", 405, "not_post"),
        ] {
            let (seen, answer) = fixture.answer(method, target, body.as_bytes());
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(
                (seen, &answer["error"], &answer["stored"]),
                (status, &code.into(), &"no".into()),
                "{method} {target}"
            );
        }
        assert_eq!(fixture.messages(), []);
        assert_eq!(fixture.answer("OPTIONS", "/commit", b"").0, 200);
        assert_eq!(fixture.answer("OPTIONS", "*", b"").0, 200);
        assert_eq!(fixture.answer("GET", "/healthz", b"").0, 200);
        assert_eq!(fixture.answer("GET", "/metrics", b"").0, 200);
    }

    #[test]
    fn a_broker_that_fails_is_answered_honestly() {
        let fixture = fixture();
        fixture.broker.fail_next(AppendFailure::TimedOut, Stored::Unknown);
        let (status, body) = fixture.answer("POST", "/commit?topic=t", b"x");
        assert!(status == 504 && body.contains(r#""stored":"unknown""#), "{body}");
        fixture.broker.fail_next(AppendFailure::Unreachable, Stored::No);
        let response = fixture.request("POST", "/commit?topic=t", b"x").try_recv().unwrap();
        assert_eq!((response.status, response.headers[0].0), (503, "Retry-After"));
    }

    #[test]
    fn beyond_the_pool_a_client_is_told_at_once_and_places_come_back() {
        let fixture = fixture();
        fixture.broker.hold_completions();
        let waiting: Vec<_> = (0..2).map(|_| fixture.request("POST", "/commit?topic=t", b"x")).collect();
        let (status, body) = fixture.answer("POST", "/commit?topic=t", b"x");
        assert!(status == 503 && body.contains("req_pool_size"), "{body}");
        assert_eq!(fixture.commits.metrics.pool_full.get(), 1);
        assert!(waiting.iter().all(|answers| answers.try_recv().is_err()));
        fixture.broker.release_completions();
        assert!(waiting.iter().all(|answers| answers.try_recv().unwrap().status == 200));
        assert_eq!(fixture.commits.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!(fixture.messages().len(), 2);
    }

    #[test]
    fn who_is_answered_can_have_the_place_and_the_bytes_at_once() {
        let fixture = fixture();
        let budget = ByteBudget::new(100);
        for (target, status) in [("/commit?topic=t", 200), ("/commit?topic=absent", 404)] {
            let mut lease = budget.lease();
            assert!(lease.grow_to(1));
            let (seen, in_flight) = (budget.clone(), Arc::clone(&fixture.commits.in_flight));
            let (sender, answers) = mpsc::channel();
            let reply = Reply::to(move |response| {
                sender.send((response.status, in_flight.load(Ordering::Relaxed), seen.used())).unwrap();
            });
            let request = Request { head: Fixture::head("POST", target), body: b"x".to_vec(), lease };
            fixture.commits.handle(request, reply);
            assert_eq!(answers.try_recv().unwrap(), (status, 0, 0));
        }
    }
}
