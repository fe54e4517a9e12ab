//! Where the other threads reach a reader.
//!
//! A reader looks here each time before it waits. So only one that waits has to be woken, and only once.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::error;

use super::Errand;
use super::control::Control;
use super::poller::Poller;
use crate::supervise::panic_text;

/// What others want of a reader.
pub(super) enum Message {
    /// A new connection.
    New(TcpStream, SocketAddr),
    /// An answer was given and something is left to do.
    Attend(usize),
    /// An answer is to be put together and given.
    Answer(Box<dyn Errand>),
}

/// Where a reader is reached.
pub(super) struct Inbox {
    pub(super) poller: Poller,
    pub(super) control: Arc<Control>,
    mail: Mutex<Mail>,
}

#[derive(Default)]
struct Mail {
    /// At most four for each connection (its beginning, its one answer, the end of that answer, its next turn), and
    /// connections are limited.
    messages: Vec<Message>,
    /// The reader waits or is about to: whoever leaves something here wakes it.
    is_waiting: bool,
    /// Nobody looks here any more.
    has_ended: bool,
}

impl Inbox {
    pub(super) fn new(control: Arc<Control>) -> io::Result<Self> {
        Ok(Inbox { poller: Poller::new()?, control, mail: Mutex::default() })
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message. Once the reader has ended, an answer is given here and the rest is dropped.
    pub(super) fn post(&self, message: Message) {
        let mut mail = self.mail();
        if mail.has_ended {
            drop(mail);
            return give(message);
        }
        mail.messages.push(message);
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
        mail.is_waiting = mail.messages.is_empty();
        mail.is_waiting
    }

    /// The reader is awake and takes what is here. `into` is empty; its memory is used for what comes next.
    pub(super) fn take(&self, into: &mut Vec<Message>) {
        let mut mail = self.mail();
        mail.is_waiting = false;
        std::mem::swap(&mut mail.messages, into);
    }

    /// The reader looks here no more. Answers that are left are given now.
    pub(super) fn end(&self) {
        let mut mail = self.mail();
        mail.has_ended = true;
        let messages = std::mem::take(&mut mail.messages);
        drop(mail);
        messages.into_iter().for_each(give);
    }
}

fn give(message: Message) {
    if let Message::Answer(errand) = message {
        run(errand);
    }
}

/// Runs an errand; should it panic, its reply is dropped and thereby answered.
pub(super) fn run(errand: Box<dyn Errand>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| errand.run())) {
        error!("answering a request panicked: {}", panic_text(panic.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::poller::Events;
    use crate::http::{Reply, Response};
    use std::sync::mpsc;
    use std::time::Duration;

    struct Answer {
        reply: Reply,
        panics: bool,
    }

    impl Errand for Answer {
        fn reply(&self) -> &Reply {
            &self.reply
        }

        fn run(self: Box<Self>) {
            assert!(!self.panics, "as asked");
            self.reply.send(Response::text(200, ""));
        }
    }

    fn inbox() -> Inbox {
        Inbox::new(Arc::default()).unwrap()
    }

    fn is_woken(inbox: &Inbox) -> bool {
        // The waker is no socket, so it is seen only by how long a wait takes.
        let started = std::time::Instant::now();
        inbox.poller.wait(&mut Events::default(), Some(Duration::from_millis(200))).unwrap();
        started.elapsed() < Duration::from_millis(200)
    }

    #[test]
    fn only_a_reader_that_waits_is_woken_and_only_once() {
        let (inbox, mut messages) = (inbox(), Vec::new());
        inbox.post(Message::Attend(1));
        assert!(!is_woken(&inbox), "it looks before it waits");
        assert!(!inbox.may_wait());
        inbox.take(&mut messages);
        assert!(matches!(messages[..], [Message::Attend(1)]));
        messages.clear();
        assert!(inbox.may_wait());
        inbox.post(Message::Attend(2));
        assert!(is_woken(&inbox));
        inbox.post(Message::Attend(3));
        assert!(!is_woken(&inbox), "it is awake already");
        inbox.take(&mut messages);
        assert!(matches!(messages[..], [Message::Attend(2), Message::Attend(3)]));
    }

    #[test]
    fn no_answer_is_lost_when_the_reader_ends_nor_when_one_panics() {
        let (inbox, (sender, answers)) = (inbox(), mpsc::channel());
        let post = |panics| {
            let sender = sender.clone();
            let reply = Reply::to(move |response| sender.send(response.status).unwrap());
            inbox.post(Message::Answer(Box::new(Answer { reply, panics })));
        };
        post(true);
        post(false);
        assert!(answers.try_recv().is_err(), "they wait for the reader");
        inbox.end();
        post(false);
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), [500, 200, 200]);
    }
}
