//! A request is checked, from its head alone, and becomes a message for Kafka.
//!
//! The connection travels with the message ([`Commit`] carries the [`Reply`]). Bounds: `req_pool_size` commits and
//! `max_in_flight_bytes`; beyond them a client is told 503 at once.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use log::Level;

use super::access::{Access, Permit};
use super::answer::Failure;
use super::batch::{Bounds, Format};
use super::headers;
use super::in_flight::{Commit, Delivery, Places};
use super::lanes::Lanes;
use super::metrics::{Metrics, Topic};
use super::query::parse;
use super::shown::{Peer, shown, shown_query};
use crate::admin::Admin;
use crate::broker::{Acks, Header, PartitionId, Record};
use crate::http::{Admission, Handler, Head, Reply, Request, Response};
use crate::log_limited;

/// What serves `/commit` and, on the same port, the endpoints of operations.
pub(super) struct CommitHandler {
    pub(super) lanes: Lanes<Delivery>,
    pub(super) admin: Admin,
    pub(super) metrics: Arc<Metrics>,
    /// `None` where everybody may write anything.
    pub(super) access: Option<Access>,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) max_commits: usize,
    pub(super) max_message_bytes: usize,
    pub(super) batches: Bounds,
    /// What the engine can carry.
    pub(super) has_headers_and_timestamps: bool,
}

/// What can be asked for by POST, by path. Everything else is the endpoints of operations', or 404.
const WAYS: [(&str, Way); 2] = [("/commit", Way::One), ("/commit_batch", Way::Batch)];

/// How messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The body is one message.
    One,
    /// The body holds many.
    Batch,
}

/// What the head of an admitted request says; the message follows in its body.
pub(super) struct AdmittedCommit {
    /// `None`: the body is one message. Else the rest is for those messages of the batch that do not say it themselves.
    format: Option<Format>,
    pub(super) topic: Topic,
    pub(super) key: Option<Vec<u8>>,
    pub(super) acks: Acks,
    /// `None` where everybody may write anything.
    pub(super) permit: Option<Permit>,
    pub(super) partition: Option<PartitionId>,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) headers: Vec<Header>,
}

impl CommitHandler {
    /// So many places, or none.
    pub(super) fn take_places(&self, count: usize) -> Result<Places, Failure> {
        let grown = |used: usize| used.checked_add(count).filter(|used| *used <= self.max_commits);
        match self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) {
            Ok(_) => Ok(Places::taken(&self.in_flight, count)),
            Err(used) => Err(self.pool_is_full(used)),
        }
    }

    fn pool_is_full(&self, used: usize) -> Failure {
        self.metrics.pool_full.inc();
        Failure::overloaded(format!("{used} commits are in flight, req_pool_size is {}", self.max_commits))
    }

    /// Everything that a head alone can be refused for, before a byte of the body is read.
    fn check(&self, way: Way, head: &Head, most: usize) -> Result<AdmittedCommit, Failure> {
        // First who is asking, so that strangers learn nothing,
        let access = self.access.as_ref();
        let who = access.map_or(Ok(None), |access| access.identify(head))?;
        let query = parse(head.query.as_deref().unwrap_or_default())?;
        // then whether they may do that, and whether it can be done,
        access.map_or(Ok(()), |access| access.allow(who.as_deref(), &query.topic))?;
        let (format, headers) = match way {
            Way::One => (None, self.record_headers(head)?),
            Way::Batch => (Some(Format::of(head)?), self.trace_of_batch(head)?),
        };
        if query.timestamp_ms.is_some() && !self.has_headers_and_timestamps {
            return Err(Failure::unsupported());
        }
        self.has_room()?;
        // and at last how often, so that nothing else that is refused is charged.
        let permit = access.map(|access| access.charge(who, &query.topic, head, most)).transpose()?;
        Ok(AdmittedCommit {
            permit,
            format,
            topic: self.metrics.topic(&query.topic),
            key: query.key.map(Cow::into_owned),
            acks: query.acks,
            partition: query.partition,
            timestamp_ms: query.timestamp_ms,
            headers,
        })
    }

    fn record_headers(&self, head: &Head) -> Result<Vec<Header>, Failure> {
        if !headers::are_there(&head.headers) {
            return Ok(Vec::new());
        }
        let mut chosen = headers::chosen(&head.headers)?;
        if self.has_headers_and_timestamps {
            headers::add_trace(&mut chosen, &headers::trace_context(&head.headers));
        } else if !chosen.is_empty() {
            // A trace alone is no reason: many clients send it without having been told to.
            return Err(Failure::unsupported());
        }
        Ok(chosen)
    }

    /// Spares a client from sending a body in vain; the place itself is taken when the body is there.
    fn has_room(&self) -> Result<(), Failure> {
        let used = self.in_flight.load(Ordering::Relaxed);
        if used < self.max_commits { Ok(()) } else { Err(self.pool_is_full(used)) }
    }

    fn trace_of_batch(&self, head: &Head) -> Result<Vec<Header>, Failure> {
        if !headers::are_there(&head.headers) {
            return Ok(Vec::new());
        }
        if !headers::chosen(&head.headers)?.is_empty() {
            let reason = "X-Kafka-Header- is for /commit; the messages of a batch bring their own headers";
            return Err(Failure::bad("bad_header", reason));
        }
        Ok(if self.has_headers_and_timestamps { headers::trace_context(&head.headers) } else { Vec::new() })
    }

    /// Hands the body of a request to the broker as one message.
    fn commit(&self, notes: AdmittedCommit, request: Request, reply: Reply) {
        let started = Instant::now();
        let Request { mut head, body, lease, .. } = request;
        let place = match self.take_place_for(&body) {
            Ok(place) => place,
            Err(failure) => return reply.send(self.refuse(&head, Some(Way::One), &failure)),
        };
        let AdmittedCommit { topic, key, acks, permit, partition, timestamp_ms, headers, .. } = notes;
        let bytes = body.len();
        let peer = Peer::settled(head.peer, permit, 1, bytes);
        let record = Record { topic: Arc::clone(&topic.name), partition, key, value: body, headers, timestamp_ms };
        let commit = Box::new(Commit {
            reply,
            topic,
            acks,
            query: head.query.take().unwrap_or_default(),
            bytes,
            peer,
            started,
            metrics: Arc::clone(&self.metrics),
            place,
            lease,
            outcome: None,
        });
        self.lanes.append(record, acks, Delivery::One(commit));
    }

    fn take_place_for(&self, body: &[u8]) -> Result<Places, Failure> {
        if body.is_empty() {
            return Err(Failure::bad("empty_body", "the body is the message and must not be empty"));
        }
        self.take_places(1)
    }

    /// What is not one of the [`WAYS`].
    fn elsewhere(&self, head: &Head) -> Response {
        // It tells the names of topics. Who watches the process (/healthz, /readyz) has no credentials.
        if head.path == "/metrics"
            && let Some(Err(failure)) = self.access.as_ref().map(|access| access.identify(head))
        {
            return self.refuse(head, None, &failure);
        }
        if let Some(response) = self.admin.answer(head) {
            return response;
        }
        match &*head.method {
            "OPTIONS" if head.path == "*" => {
                Response::new(200, "", "").with_header("Allow", "GET, HEAD, POST, OPTIONS")
            }
            _ => self.refuse(head, None, &Failure::unknown_path()),
        }
    }

    /// The answer to what has not been given to Kafka.
    pub(super) fn refuse(&self, head: &Head, way: Option<Way>, failure: &Failure) -> Response {
        match way {
            Some(Way::Batch) => self.metrics.batch(failure.status),
            Some(Way::One) | None => self.metrics.refused(failure.status),
        }
        let query = shown_query(head.query.as_deref().unwrap_or_default());
        log_limited!(
            Level::Warn,
            "{} {} {query} refused status={} error={} peer={}: {}",
            shown(&head.method),
            shown(&head.path),
            failure.status,
            failure.code,
            Peer(head.peer, None),
            failure.message
        );
        failure.response()
    }
}

impl Handler for CommitHandler {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        let Some(&(_, way)) = WAYS.iter().find(|(path, _)| *path == head.path) else {
            return Admission::Refuse(self.elsewhere(head));
        };
        let most = match way {
            Way::One => self.max_message_bytes,
            Way::Batch => self.batches.bytes,
        };
        match &*head.method {
            "POST" => match self.check(way, head, most) {
                Ok(notes) => {
                    let then = Box::new(move |request, reply| match notes.format {
                        None => self.commit(notes, request, reply),
                        Some(format) => self.commit_batch(format, notes, request, reply),
                    });
                    Admission::Read { max_body_bytes: most, then }
                }
                Err(failure) => Admission::Refuse(self.refuse(head, Some(way), &failure)),
            },
            "OPTIONS" => Admission::Refuse(Response::new(200, "", "").with_header("Allow", "POST, OPTIONS")),
            _ => Admission::Refuse(self.refuse(head, Some(way), &Failure::not_post())),
        }
    }

    fn refusal(&self, status: u16, reason: &str) -> Response {
        log_limited!(Level::Warn, "a request was refused status={status}: {reason}");
        Failure::of_server(status, reason).response()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::Health;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{AppendFailure, Message, Stored};
    use crate::http::{ByteBudget, ByteLease};
    use crate::metrics::Registry;
    use std::sync::mpsc;

    pub(in crate::kproxy) struct Fixture {
        pub(in crate::kproxy) commits: Arc<CommitHandler>,
        pub(in crate::kproxy) broker: MemoryBroker,
        pub(in crate::kproxy) registry: Registry,
    }

    pub(in crate::kproxy) fn fixture() -> Fixture {
        let (registry, broker) = (Registry::new(), MemoryBroker::new());
        broker.create_topic("t", 4);
        let commits = CommitHandler {
            lanes: Lanes::new(vec![Arc::new(broker.producer())]),
            admin: Admin::new(registry.clone(), Health::new()),
            metrics: Arc::new(Metrics::new(&registry)),
            access: None,
            in_flight: Arc::default(),
            max_commits: 2,
            max_message_bytes: 100,
            batches: Bounds { messages: 4, bytes: 1000, value_bytes: 100, places: 2 },
            has_headers_and_timestamps: true,
        };
        Fixture { commits: Arc::new(commits), broker, registry }
    }

    impl Fixture {
        fn head(method: &'static str, target: &str) -> Head {
            let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
            let method = Cow::Borrowed(method);
            Head { method, path: path.to_owned(), query: query.map(str::to_owned), ..Head::default() }
        }

        /// For a change before the first request.
        pub(in crate::kproxy) fn commits(&mut self) -> &mut CommitHandler {
            Arc::get_mut(&mut self.commits).unwrap()
        }

        /// What the server would do; `None` while the answer is still to come.
        fn request(&self, method: &'static str, target: &str, body: &[u8]) -> mpsc::Receiver<Response> {
            self.request_with(method, target, &[], body)
        }

        pub(in crate::kproxy) fn request_with(
            &self,
            method: &'static str,
            target: &str,
            fields: &[(&str, &str)],
            body: &[u8],
        ) -> mpsc::Receiver<Response> {
            let (sender, answers) = mpsc::channel();
            let deliver = move |response| sender.send(response).unwrap();
            let mut head = Self::head(method, target);
            fields.iter().for_each(|(name, value)| head.headers.push(name, value.as_bytes()));
            match Arc::clone(&self.commits).admit(&head) {
                Admission::Refuse(response) => deliver(response),
                Admission::Read { max_body_bytes, then } => {
                    assert!(body.len() <= max_body_bytes);
                    let request = Request { head, body: body.to_vec(), lease: ByteLease::default() };
                    then(request, Reply::to(deliver));
                }
            }
            answers
        }

        fn answer(&self, method: &'static str, target: &str, body: &[u8]) -> (u16, String) {
            let response = self.request(method, target, body).try_recv().unwrap();
            (response.status, String::from_utf8(response.body).unwrap())
        }

        pub(in crate::kproxy) fn messages(&self) -> Vec<Message> {
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
    fn partition_timestamp_and_headers_go_into_the_record() {
        let mut fixture = fixture();
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let fields = [("X-Kafka-Header-Tenant", "blue"), ("Traceparent", parent)];
        let target = "/commit?topic=t&partition=2&timestamp=1700000000123";
        let answers = fixture.request_with("POST", target, &fields, b"x");
        assert_eq!(answers.try_recv().unwrap().body, br#"{"topic":"t","partition":2,"offset":0}"#);
        let [message] = &fixture.broker.messages("t", 2)[..] else { panic!("one message") };
        let headers: Vec<_> = message.headers.iter().map(|header| (&*header.name, header.value.as_deref())).collect();
        let expected = [("tenant", Some(&b"blue"[..])), ("traceparent", Some(parent.as_bytes()))];
        assert_eq!((&headers[..], message.timestamp_ms), (&expected[..], Some(1_700_000_000_123)));

        let (status, body) = fixture.answer("POST", "/commit?topic=t&partition=4", b"x");
        assert!(status == 404 && body.contains("unknown_partition"), "{body}");

        fixture.commits().has_headers_and_timestamps = false;
        for (target, fields) in [("/commit?topic=t&timestamp=1", &fields[1..]), ("/commit?topic=t", &fields[..])] {
            let response = fixture.request_with("POST", target, fields, b"x").try_recv().unwrap();
            let body = String::from_utf8(response.body).unwrap();
            assert!(response.status == 400 && body.contains("unsupported"), "{body}");
        }
        let answers = fixture.request_with("POST", "/commit?topic=t&partition=3", &fields[1..], b"x");
        assert_eq!(answers.try_recv().unwrap().status, 200, "a trace nobody asked for is left out");
        assert_eq!(fixture.broker.messages("t", 3)[0].headers, []);
        assert_eq!(fixture.messages().len(), 2);
    }

    #[test]
    fn what_cannot_be_stored_is_told_and_nothing_is_stored() {
        let fixture = fixture();
        for (method, target, body, status, code) in [
            ("POST", "/commit", "x", 400, "no_topic"),
            ("POST", "/commit?topic=a/b", "x", 400, "bad_topic"),
            ("POST", "/commit?topic=t&acks=7", "x", 400, "bad_acks"),
            ("POST", "/commit?topic=t&partition=x", "x", 400, "bad_partition"),
            ("POST", "/commit?topic=t&timestamp=x", "x", 400, "bad_timestamp"),
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
    fn what_access_refuses_is_refused_before_anything_else_is_said() {
        let mut fixture = fixture();
        let (lines, credentials) = (
            "rate_limits: [{topics: [t], requests_per_second: 2}]\n",
            "credentials: [{name: n, token: s3cret, topics: [t]}]\n",
        );
        fixture.commits().access = Some(Access::for_tests(lines, credentials, &fixture.registry));
        let good = [("authorization", "Bearer s3cret")];
        for (method, target, fields, status) in [
            ("POST", "/commit?topic=t", &[][..], 401),
            ("POST", "/commit?topic=a/b", &[], 401),
            ("POST", "/commit?topic=t", &[("authorization", "Bearer other")], 401),
            ("GET", "/metrics", &[], 401),
            ("GET", "/metrics", &good, 200),
            ("GET", "/healthz", &[], 200),
            ("GET", "/commit", &[], 405),
            ("POST", "/commit?topic=absent", &good, 403),
            ("POST", "/commit?topic=t&acks=7", &good, 400),
            ("POST", "/commit?topic=t", &good, 200),
            ("POST", "/commit?topic=t", &good, 200),
            ("POST", "/commit?topic=t", &good, 429),
        ] {
            let response = fixture.request_with(method, target, fields, b"x").try_recv().unwrap();
            let text = String::from_utf8(response.body).unwrap();
            assert_eq!(response.status, status, "{method} {target} {fields:?}: {text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
        assert_eq!(fixture.messages().len(), 2);
        assert_eq!(Peer(None, Some("n".into())).to_string(), "- credential=n");
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
            let head = Fixture::head("POST", target);
            let Admission::Read { then, .. } = Arc::clone(&fixture.commits).admit(&head) else {
                panic!("it is admitted")
            };
            let request = Request { head, body: b"x".to_vec(), lease };
            then(request, reply);
            assert_eq!(answers.try_recv().unwrap(), (status, 0, 0));
        }
    }
}
