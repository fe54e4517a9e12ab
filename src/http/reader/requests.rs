//! From the bytes of a client to handed-over requests: parsing, admission, memory, refusals.

use std::sync::Arc;

use super::Reader;
use super::clients::OnComplete;
use crate::http::budget::ByteLease;
use crate::http::connection::Phase;
use crate::http::encode::EncodeOptions;
use crate::http::handler::Admission;
use crate::http::head::Framing;
use crate::http::inbox::InboxMessage;
use crate::http::message::{Request, Response};
use crate::http::parser::{Parser, Progress};
use crate::http::refusal::{Refusal, SHUTTING_DOWN};
use crate::http::reply::Reply;
use crate::panics::{self, caught};

/// A body up to this size is read and discarded when its request is refused, so that the connection is kept.
const MAX_DISCARDED_BODY_BYTES: usize = 64 * 1024;
/// Requests of one connection that are answered in a row before other connections are served.
const MAX_REQUESTS_PER_TURN: usize = 32;

const TOO_MANY_BYTES: Refusal =
    Refusal::over_limit("in_flight_bytes", 503, "too many request bytes in flight, retry later");

/// Why the body of a request is not read.
enum Rejection {
    /// The server refuses the request.
    Server(Refusal),
    /// The handler refuses the request, and the body is too large to be discarded or not sent yet.
    Handler(Response),
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Rejection::Server(refusal)
    }
}

impl Reader {
    /// Handles bytes from a client in phase `Reading`.
    pub(super) fn on_bytes(&mut self, index: usize, input: &[u8]) {
        if self.parse(index, input) {
            self.apply_phase(index);
        }
    }

    /// Parses bytes of a client in phase `Reading`, and hands requests over as long as each is answered at once; the
    /// rest is kept in `pending`. Returns whether the phase must be applied.
    pub(super) fn parse(&mut self, index: usize, mut input: &[u8]) -> bool {
        let mut requests = 0;
        loop {
            let now = self.now;
            let client = self.client(index);
            if client.parser.is_idle() && !input.is_empty() {
                client.started = now;
                self.clients.schedule(index, now + self.limits.read_timeout);
            }
            let client = self.client(index);
            let (taken, progress) = match client.parser.advance(input) {
                Ok(step) => step,
                Err(refusal) => return self.refuse(index, refusal),
            };
            input = &input[taken..];
            match progress {
                Progress::NeedsMore => {
                    if !client.lease_request() {
                        return self.refuse(index, TOO_MANY_BYTES);
                    }
                    client.pending_lease.set_to(0);
                    return false;
                }
                Progress::Head => match self.admit(index, input.is_empty()) {
                    Ok(()) => {}
                    Err(Rejection::Server(refusal)) => return self.refuse(index, refusal),
                    Err(Rejection::Handler(response)) => return self.answer_and_close(index, response),
                },
                Progress::Complete => {
                    // A request that is refused already needs no lease: /healthz and /metrics work also when the budget
                    // is exhausted.
                    let fits = client.is_refused() || client.lease_request();
                    // Leased before the hand-over, after which the request cannot be refused.
                    if !fits || !client.pending_lease.set_to(input.len()) {
                        return self.refuse(index, TOO_MANY_BYTES);
                    }
                    requests += 1;
                    let is_answered = self.hand_over(index, !input.is_empty()) == Phase::Reading;
                    let turn_is_over = requests == MAX_REQUESTS_PER_TURN && !input.is_empty();
                    if !is_answered || turn_is_over {
                        let client = self.client(index);
                        client.pending = input.to_vec();
                        if is_answered {
                            let key = client.connection.key;
                            self.inbox.post(InboxMessage::Recheck(key));
                        }
                        return !is_answered;
                    }
                }
            }
        }
    }

    /// Lets the handler decide on a complete head, and prepares the parser for the body.
    fn admit(&mut self, index: usize, nothing_follows: bool) -> Result<(), Rejection> {
        if self.is_draining {
            return Err(Refusal::new(503, SHUTTING_DOWN).into());
        }
        let handler = Arc::clone(&self.handler);
        let client = self.client(index);
        let peer = client.connection.peer;
        let Some(head) = client.parser.head_mut() else { return Ok(()) };
        head.head.peer = Some(peer);
        // A client that has sent body bytes already does not wait for 100 Continue (RFC 9110 10.1.1).
        let (framing, awaits_continue) = (head.framing, head.expects_continue && nothing_follows);
        let admission = caught("admitting a request", move || handler.admit(&head.head));
        let admission = admission.ok_or(Refusal::new(500, "internal error"))?;
        match admission {
            Admission::Read { max_body_bytes, then } => {
                client.parser.read_body(max_body_bytes, OnComplete::Handle(then))?;
                if awaits_continue {
                    client.connection.send_continue();
                }
                Ok(())
            }
            Admission::Refuse(response) => {
                let is_large = matches!(framing, Framing::Length(length) if length > MAX_DISCARDED_BODY_BYTES as u64);
                if is_large || awaits_continue {
                    return Err(Rejection::Handler(response));
                }
                client.parser.skip_body(MAX_DISCARDED_BODY_BYTES, OnComplete::Answer(response))?;
                Ok(())
            }
        }
    }

    /// Passes a complete request to the handler. Returns the phase afterwards.
    fn hand_over(&mut self, index: usize, has_more: bool) -> Phase {
        let next_lease = self.limits.lease();
        let client = self.client(index);
        let (connection, peer_closed) = (Arc::clone(&client.connection), client.peer_closed);
        let Some((parsed, body, then)) = client.parser.take() else { return connection.phase().0 };
        let lease = std::mem::replace(&mut client.request_lease, next_lease);
        let options = EncodeOptions {
            head_only: parsed.head.method == "HEAD",
            keep_alive: parsed.keep_alive,
            is_http10: parsed.is_http10,
        };
        connection.begin_hand_over();
        match then {
            OnComplete::Answer(response) => connection.answer(&response, options),
            OnComplete::Handle(then) => {
                let reply = Reply::on(Arc::clone(&connection), options);
                let request = Request { head: parsed.head, body, lease };
                // A panic drops the reply, which answers 500.
                caught("handling a request", || then(request, reply));
            }
        }
        connection.end_hand_over(has_more || peer_closed)
    }

    /// Answers for the server and closes the connection. Returns true: the phase must be applied.
    pub(super) fn refuse(&mut self, index: usize, refusal: Refusal) -> bool {
        // If the handler refused the request already, its response is sent.
        let client = self.client(index);
        if client.is_refused()
            && let Some((_, _, OnComplete::Answer(response))) = client.parser.take()
        {
            return self.answer_and_close(index, response);
        }
        self.metrics.refused(refusal.status);
        if let Some(limit) = refusal.limit {
            self.metrics.limit_reached(limit);
        }
        let response = panics::catch(|| self.handler.refusal(refusal.status, refusal.reason))
            .unwrap_or_else(|_| Response::text(refusal.status, refusal.reason));
        self.answer_and_close(index, response)
    }

    /// Sends the last response of a connection. Returns true: the phase must be applied.
    fn answer_and_close(&mut self, index: usize, response: Response) -> bool {
        let head_limits = self.limits.head;
        let client = self.client(index);
        let head_only = client.parser.is_head_method();
        client.parser = Parser::new(head_limits);
        client.pending = Vec::new();
        client.request_lease = ByteLease::default();
        client.pending_lease = ByteLease::default();
        let connection = Arc::clone(&client.connection);
        connection.begin_hand_over();
        connection.answer(&response.closing(), EncodeOptions { head_only, keep_alive: false, is_http10: false });
        connection.end_hand_over(false);
        true
    }
}
