//! Turns the bytes of a client into requests for the handler: parsing, admission, memory budget, refusals.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Reader;
use super::clients::OnComplete;
use crate::http::budget::ByteLease;
use crate::http::connection::Phase;
use crate::http::encode::EncodeOptions;
use crate::http::handler::{Admission, Handler};
use crate::http::head::Framing;
use crate::http::inbox::InboxMessage;
use crate::http::message::{Head, Request, Response};
use crate::http::parser::{Parser, Progress};
use crate::http::refusal::{Refusal, SHUTTING_DOWN};
use crate::http::reply::Reply;
use crate::panics::{self, caught};

/// When the handler refuses a request, a body of at most this many bytes is read and discarded, so that the connection
/// can stay open.
const MAX_DISCARDED_BODY_BYTES: usize = 64 * 1024;
/// Number of pipelined requests of one connection that are answered before other connections are served.
const MAX_REQUESTS_PER_TURN: usize = 32;
/// Duration after which other connections are served. Most requests take microseconds, `/metrics` milliseconds.
const MAX_TURN: Duration = Duration::from_millis(1);

const TOO_MANY_BYTES: Refusal =
    Refusal::over_limit("in_flight_bytes", 503, "too many request bytes in flight, retry later");

/// A refusal of a request whose body is not read.
enum Rejection {
    /// The server refuses the request.
    Server(Refusal),
    /// The handler refuses the request. The body is too large to be discarded, or the client sends it only after a
    /// 100 Continue.
    Handler(Response),
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Rejection::Server(refusal)
    }
}

impl Reader {
    /// Handles bytes that a client in phase `Reading` has sent.
    pub(super) fn on_bytes(&mut self, index: usize, input: &[u8]) {
        if self.parse(index, input) {
            self.apply_phase(index);
        }
    }

    /// Parses bytes of a client in phase `Reading`, and hands its requests over until one is not answered at once, or
    /// the connection's turn ends; the remaining bytes are kept in `pending`. Returns whether the caller must call
    /// `apply_phase`.
    pub(super) fn parse(&mut self, index: usize, mut input: &[u8]) -> bool {
        let (mut requests, mut turn_began) = (0, None);
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
                    Err(Rejection::Handler(response)) => {
                        let head_only = self.client(index).parser.is_head_method();
                        let headers = self.headers_of_current(index);
                        return self.answer_and_close(index, response, headers, head_only);
                    }
                },
                Progress::Complete => {
                    // A request that the handler answers in `admit` needs no lease, so that /healthz and /metrics work
                    // also when the budget is exhausted.
                    let fits = client.is_refused() || client.lease_request();
                    // The pending bytes are leased before the hand-over, since the request cannot be refused after it.
                    if !fits || !client.pending_lease.set_to(input.len()) {
                        return self.refuse(index, TOO_MANY_BYTES);
                    }
                    requests += 1;
                    let phase = self.hand_over(index, !input.is_empty());
                    let is_answered = phase == Phase::Reading;
                    let turn_is_over = !input.is_empty() && {
                        let now = Instant::now();
                        let turn_began = *turn_began.get_or_insert(now);
                        requests == MAX_REQUESTS_PER_TURN || now.duration_since(turn_began) >= MAX_TURN
                    };
                    if !is_answered || turn_is_over {
                        let client = self.client(index);
                        client.pending = input.to_vec();
                        if is_answered {
                            let key = client.connection.key;
                            self.inbox.post(InboxMessage::Recheck(key));
                        }
                        // A request that is answered from now on causes a message if it leaves work for this reader.
                        return phase != Phase::Reading && phase != Phase::Answering;
                    }
                }
            }
        }
    }

    /// Asks the handler for its decision on a complete head, and prepares the parser for the body. Fails if the body is
    /// not to be read.
    fn admit(&mut self, index: usize, nothing_follows: bool) -> Result<(), Rejection> {
        if self.is_draining {
            return Err(Refusal::new(503, SHUTTING_DOWN).into());
        }
        let handler = Arc::clone(&self.handler);
        let client = self.client(index);
        let peer = Arc::clone(&client.connection.peer_text);
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
                client.parser.skip_body(MAX_DISCARDED_BODY_BYTES, OnComplete::Respond(Box::new(response)))?;
                Ok(())
            }
        }
    }

    /// Passes a complete request to the handler, or sends the response with which the handler refused its head. Returns
    /// the phase after that.
    fn hand_over(&mut self, index: usize, has_more: bool) -> Phase {
        let next_lease = self.limits.lease();
        let keep_alive_seconds = self.limits.keep_alive_seconds();
        let client = self.client(index);
        let (connection, peer_closed) = (Arc::clone(&client.connection), client.peer_closed);
        let Some((parsed, body, then)) = client.parser.take() else { return connection.phase().0 };
        let lease = std::mem::replace(&mut client.request_lease, next_lease);
        let options = EncodeOptions {
            head_only: parsed.head.method == "HEAD",
            keep_alive: parsed.keep_alive,
            keep_alive_seconds,
            is_http10: parsed.is_http10,
        };
        let headers = response_headers(&*self.handler, Some(&parsed.head));
        connection.begin_hand_over();
        match then {
            OnComplete::Respond(response) => connection.answer(*response, headers, options),
            OnComplete::Handle(then) => {
                let reply = Reply::on(Arc::clone(&connection), options, headers);
                let request = Request { head: parsed.head, body, lease };
                // A panic drops the reply, which answers 500.
                caught("handling a request", || then(request, reply));
            }
        }
        connection.end_hand_over(has_more || peer_closed)
    }

    /// Sends the server's own error response and closes the connection. Always returns true: the caller
    /// must call `apply_phase`.
    pub(super) fn refuse(&mut self, index: usize, refusal: Refusal) -> bool {
        // Read before `take`, after which the parser no longer has the head.
        let headers = self.headers_of_current(index);
        let client = self.client(index);
        let (head_only, peer) = (client.parser.is_head_method(), Arc::clone(&client.connection.peer_text));
        // If the handler has refused this request before, its response is sent instead.
        if client.is_refused()
            && let Some((_, _, OnComplete::Respond(response))) = client.parser.take()
        {
            return self.answer_and_close(index, *response, headers, head_only);
        }
        self.metrics.refused(refusal.status);
        if let Some(limit) = refusal.limit {
            self.metrics.limit_reached(limit);
        }
        let response = panics::catch(|| self.handler.refusal(refusal.status, refusal.reason, &peer))
            .unwrap_or_else(|_| Response::text(refusal.status, refusal.reason));
        self.answer_and_close(index, response, headers, head_only)
    }

    /// Returns the header fields that the response to the current request gets in addition.
    fn headers_of_current(&mut self, index: usize) -> Vec<(&'static str, String)> {
        let handler = Arc::clone(&self.handler);
        response_headers(&*handler, self.client(index).parser.head().map(|parsed| &parsed.head))
    }

    /// Sends the last response of a connection. Always returns true: the caller must call `apply_phase`.
    fn answer_and_close(
        &mut self,
        index: usize,
        response: Response,
        headers: Vec<(&'static str, String)>,
        head_only: bool,
    ) -> bool {
        let head_limits = self.limits.head;
        let client = self.client(index);
        client.parser = Parser::new(head_limits);
        client.pending = Vec::new();
        client.request_lease = ByteLease::default();
        client.pending_lease = ByteLease::default();
        let connection = Arc::clone(&client.connection);
        connection.begin_hand_over();
        let options = EncodeOptions { head_only, keep_alive: false, keep_alive_seconds: 0, is_http10: false };
        connection.answer(response.closing(), headers, options);
        connection.end_hand_over(false);
        true
    }
}

fn response_headers(handler: &dyn Handler, head: Option<&Head>) -> Vec<(&'static str, String)> {
    caught("choosing response headers", || handler.response_headers(head)).unwrap_or_default()
}
