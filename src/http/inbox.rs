//! Where the other threads reach a reader.
//!
//! A reader looks here each time before it waits. So only one that waits has to be woken, and only once. Answers that were
//! left here are given in any case, also when the reader ends or panics in the middle of them.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use log::error;

use super::control::Control;
use super::deferred::DeferredResponse;
use super::poller::Poller;
use crate::locks::lock;
use crate::panics::caught;

/// What others want of a reader.
pub(super) enum Message {
    /// A new connection.
    New(TcpStream, SocketAddr),
    /// An answer was given and something is left to do.
    Attend(usize),
}

/// Where a reader is reached.
pub(super) struct Inbox {
    pub(super) poller: Poller,
    pub(super) control: Arc<Control>,
    mail: Mutex<Mail>,
}

#[derive(Default)]
struct Mail {
    here: Letters,
    /// The reader waits or is about to: whoever leaves something here wakes it.
    is_waiting: bool,
    /// Nobody looks here any more.
    has_ended: bool,
}

/// What lies in an inbox, or was taken from there. Answers that are still in it when it is dropped are given then.
#[derive(Default)]
pub(super) struct Letters {
    /// Answers to be put together and given, at most one for each connection.
    pub(super) answers: VecDeque<Box<dyn DeferredResponse>>,
    /// At most three for each connection (its beginning, the end of its one answer, its next turn).
    pub(super) messages: Vec<Message>,
}

impl Letters {
    fn are_none(&self) -> bool {
        self.answers.is_empty() && self.messages.is_empty()
    }

    /// Gives the answers.
    pub(super) fn give_answers(&mut self) {
        while let Some(errand) = self.answers.pop_front() {
            run(errand);
        }
    }
}

impl Drop for Letters {
    fn drop(&mut self) {
        self.give_answers();
    }
}

impl Inbox {
    pub(super) fn new(control: Arc<Control>) -> io::Result<Self> {
        Ok(Inbox { poller: Poller::new()?, control, mail: Mutex::default() })
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        lock(&self.mail)
    }

    /// Leaves a message; nobody reads it once the reader has ended.
    pub(super) fn post(&self, message: Message) {
        let mut mail = self.mail();
        if !mail.has_ended {
            mail.here.messages.push(message);
            self.wake_if_waiting(mail);
        }
    }

    /// Leaves an answer to be given; once the reader has ended it is given here.
    pub(super) fn post_answer(&self, errand: Box<dyn DeferredResponse>) {
        let mut mail = self.mail();
        if mail.has_ended {
            drop(mail);
            run(errand);
        } else {
            mail.here.answers.push_back(errand);
            self.wake_if_waiting(mail);
        }
    }

    fn wake_if_waiting(&self, mut mail: MutexGuard<'_, Mail>) {
        let is_waiting = std::mem::take(&mut mail.is_waiting);
        drop(mail);
        if is_waiting {
            self.wake();
        }
    }

    /// Makes the reader look at its messages and at the control.
    pub(super) fn wake(&self) {
        if let Err(cause) = self.poller.wake() {
            error!("a reader cannot be woken: {cause}");
        }
    }

    /// Whether nothing is here, so that the reader may wait; it is woken then when something comes.
    pub(super) fn may_wait(&self) -> bool {
        let mut mail = self.mail();
        mail.is_waiting = mail.here.are_none();
        mail.is_waiting
    }

    /// The reader is awake and takes what is here. `into` is empty; its memory is used for what comes next.
    pub(super) fn take(&self, into: &mut Letters) {
        let mut mail = self.mail();
        mail.is_waiting = false;
        std::mem::swap(&mut mail.here, into);
    }

    /// The reader looks here no more.
    pub(super) fn end(&self) {
        let mut mail = self.mail();
        mail.has_ended = true;
        let left = std::mem::take(&mut mail.here);
        // Not under the lock: an answer may want to leave a message here.
        drop(mail);
        drop(left);
    }
}

/// Runs an errand; should it panic, its reply is dropped and thereby answered.
fn run(errand: Box<dyn DeferredResponse>) {
    caught("answering a request", || errand.run());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::poller::Events;
    use crate::http::{Reply, Response};
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    struct Answer {
        reply: Reply,
        panics: bool,
    }

    impl DeferredResponse for Answer {
        fn run(self: Box<Self>) {
            assert!(!self.panics, "as asked");
            self.reply.send(Response::text(200, ""));
        }
    }

    fn inbox() -> Inbox {
        Inbox::new(Arc::default()).unwrap()
    }

    /// The waker is no socket, so it is seen only by a wait that is not as long as it may be.
    fn is_woken(inbox: &Inbox, most: Duration) -> bool {
        let started = Instant::now();
        inbox.poller.wait(&mut Events::default(), Some(most)).unwrap();
        started.elapsed() < most
    }

    #[test]
    fn only_a_reader_that_waits_is_woken_and_only_once() {
        const LONG: Duration = Duration::from_secs(60);
        const SHORT: Duration = Duration::from_millis(100);
        let (inbox, mut letters) = (inbox(), Letters::default());
        inbox.post(Message::Attend(1));
        assert!(!is_woken(&inbox, SHORT), "it looks before it waits");
        assert!(!inbox.may_wait());
        inbox.take(&mut letters);
        assert!(matches!(letters.messages[..], [Message::Attend(1)]));
        letters.messages.clear();
        assert!(inbox.may_wait());
        inbox.post(Message::Attend(2));
        assert!(is_woken(&inbox, LONG));
        inbox.post(Message::Attend(3));
        assert!(!is_woken(&inbox, SHORT), "it is awake already");
        inbox.take(&mut letters);
        assert!(matches!(letters.messages[..], [Message::Attend(2), Message::Attend(3)]));
    }

    #[test]
    fn no_answer_is_lost_when_the_reader_ends_nor_when_one_panics() {
        let (inbox, (sender, answers)) = (inbox(), mpsc::channel());
        let post = |panics| {
            let sender = sender.clone();
            let reply = Reply::to(move |response| sender.send(response.status).unwrap());
            inbox.post_answer(Box::new(Answer { reply, panics }));
        };
        let given = || answers.try_iter().collect::<Vec<_>>();
        post(false);
        post(true);
        post(false);
        let mut letters = Letters::default();
        inbox.take(&mut letters);
        post(false);
        assert_eq!(given(), [0; 0], "they wait for the reader");
        drop(letters);
        assert_eq!(given(), [200, 500, 200], "which panicked with them in its hands");
        inbox.end();
        assert_eq!(given(), [200]);
        post(false);
        assert_eq!(given(), [200], "who comes too late gives it");
    }
}
