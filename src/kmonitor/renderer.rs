//! Serves requests: what is rendered already on the reader threads, what has to be rendered on a thread of its own.
//!
//! Rendering 10,000 partitions for `/v1/delay` takes tens of milliseconds. On a reader thread all other connections of
//! that thread would wait for it, among them those of load balancers that request `/healthz`.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, select};
use log::debug;

use super::handler::DelayAnswers;
use super::refusals::refusal;
use super::report::pages::Pages;
use crate::http::{Admission, Handler, Head, Reply, Request, Response};
use crate::panics;
use crate::shutdown::Stop;

/// Largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Largest number of requests that wait for their answers to be rendered. One more is answered with 503.
pub(super) const MAX_WAITING: usize = 256;

/// A request whose answer has to be rendered.
pub(super) type Waiting = (Request, Reply);

/// Handles the requests to `port`.
pub(super) struct DelayHandler {
    /// Makes the answers.
    pub answers: Arc<DelayAnswers>,
    /// To [`render`].
    pub waiting: Sender<Waiting>,
}

impl Handler for DelayHandler {
    /// Reads the body, which no endpoint uses, so that an incomplete body is answered with 408 and a large one with
    /// 413.
    fn admit(self: Arc<Self>, _: &Head) -> Admission {
        let then = Box::new(move |request: Request, reply: Reply| {
            let pages = self.answers.pages.pages();
            if !DelayAnswers::is_to_be_rendered(&request.head, &pages) {
                return answer(&self.answers, &pages, &request.head, reply);
            }
            if let Err(TrySendError::Full((_, reply)) | TrySendError::Disconnected((_, reply))) =
                self.waiting.try_send((request, reply))
            {
                let message = "too many answers are being rendered: request fewer different ones at a time";
                reply.send(refusal(503, "busy", message).with_header("Retry-After", "1"));
            }
        });
        Admission::Read { max_body_bytes: MAX_BODY_BYTES, then }
    }

    fn refusal(&self, status: u16, reason: &str, _peer: &str) -> Response {
        refusal(status, "bad_request", reason)
    }
}

/// Answers the requests that wait, one after the other, until `ended`. A page that several of them request is rendered
/// once.
pub(super) fn render(answers: &DelayAnswers, waiting: &Receiver<Waiting>, ended: &Stop) {
    loop {
        let (request, reply) = select! {
            recv(waiting) -> next => match next {
                Ok(next) => next,
                Err(_) => return,
            },
            recv(ended.closed()) -> _ => return,
        };
        // A reply that is not sent answers 500.
        panics::caught("an answer", || answer(answers, &answers.pages.pages(), &request.head, reply));
    }
}

fn answer(answers: &DelayAnswers, pages: &Pages, head: &Head, reply: Reply) {
    let response = answers.answer(head, pages);
    debug!("{} {} {}", head.method, head.path, response.status);
    reply.send(response);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::handler::tests::{answers, head};
    use crossbeam_channel::bounded;

    /// Passes a request to the handler; returns where its response arrives.
    fn request(handler: &Arc<DelayHandler>, target: &str) -> Receiver<Response> {
        let (sent, response) = bounded(1);
        let request = Request { head: head("GET", target), body: Vec::new(), lease: Default::default() };
        let Admission::Read { then, .. } = Arc::clone(handler).admit(&request.head) else { panic!("{target}") };
        then(request, Reply::to(move |response| drop(sent.send(response))));
        response
    }

    #[test]
    fn no_reader_renders_and_a_page_that_is_rendered_is_answered_at_once() {
        let answers = Arc::new(answers());
        let (sender, waiting) = bounded(1);
        let handler = Arc::new(DelayHandler { answers: Arc::clone(&answers), waiting: sender });
        for target in ["/delay", "/delay?module=m", "/healthz", "/v1/zabbix", "/v1/zabbix/discovery", "/metrics", "/x"]
        {
            assert!(request(&handler, target).try_recv().is_ok(), "{target}");
        }
        for target in ["/v1/delay", "/v1/delay?partitions=all", "/v1/zabbix?module=m", "/v1/zabbix/discovery?module=m"]
        {
            let response = request(&handler, target);
            assert!(response.try_recv().is_err(), "{target} is rendered by the reader");
            let busy = request(&handler, target).try_recv().unwrap();
            assert_eq!(busy.status, 503, "{target}");
            let (first, reply) = waiting.try_recv().unwrap();
            answer(&answers, &answers.pages.pages(), &first.head, reply);
            let rendered = response.try_recv().unwrap();
            assert_eq!(rendered.status, 200, "{target}");
            let again = request(&handler, target).try_recv().unwrap();
            assert_eq!(again.body, rendered.body, "{target}");
            assert!(matches!(again.body, crate::http::Body::Shared { .. }), "{target}");
        }
        drop(handler);
        // It ends with the last of those who send to it.
        render(&answers, &waiting, &Stop::new());
    }
}
