//! Messages that failed for the size of their batch, and how their topic goes on.
//!
//! librdkafka fails a whole batch (up to a megabyte) when it is larger than its topic takes. A message that failed so, was
//! not stored and may have had company is sent again, and from then on its topic is *narrow*: at that level of acks no more
//! of it is given to librdkafka at one time than the topic takes in one batch, and what could be too large by itself goes
//! alone. So only what the broker refused when it was alone is told to be too large. How much a topic takes is asked for;
//! until that is known, each message goes alone.
//!
//! Invariant: the appends of a key (or to a chosen partition) are stored in the order of the calls. When a topic becomes
//! narrow, all that librdkafka has of it is waited for; then what failed goes first, then what arrived meanwhile. A message
//! that failed and was overtaken by a later one of its key (which went in the next batch, before anybody knew) is not sent
//! again: it is answered 503, nothing stored. Messages without a key have no order.
//!
//! Bounds: what waits here counts in the producer's `max_in_flight` (beyond it appends are refused as `Full`) and is
//! answered at its deadline.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use crate::broker::metadata_gate::{DeadlineCompletion, FailedAppend, PendingAppend, not_stored};
use crate::broker::{AppendError, AppendFailure, Completion, PartitionId, Record, Stored};
use crate::locks::{lock, read, write};

/// What librdkafka puts into one batch at most, unless one message alone is larger.
pub(super) const BATCH_BYTES: usize = 1_000_000;
/// More than the framing of one message, and of a batch of one.
const FRAMING: usize = 100;
/// A narrow topic whose limit nobody tells is tried in the ordinary way again after so long; a known limit is asked for anew.
const NARROW_FOR: Duration = Duration::from_secs(600);
/// A limit that nobody told is asked for again so often.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Topics remembered; when full, those with nothing under way are forgotten.
const MAX_LIMITED_TOPICS: usize = 10_000;

/// What one message takes of a batch, rather more than less.
pub(super) fn size_of(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|header| header_size(&header.name, header.value.as_deref())).sum();
    record.value.len() + record.key.as_ref().map_or(0, Vec::len) + headers + FRAMING
}

fn header_size(name: &str, value: Option<&[u8]>) -> usize {
    name.len() + value.map_or(0, <[u8]>::len) + 10
}

/// One topic at one level of acks.
pub(super) struct Book<C> {
    pub(super) topic: Arc<str>,
    /// Messages that librdkafka has.
    outstanding: AtomicUsize,
    is_narrow: AtomicBool,
    narrow: Mutex<Narrow<PendingAppend<C>>>,
}

/// All topics of one level.
pub(super) struct Desk<C> {
    books: RwLock<HashMap<Arc<str>, Arc<Book<C>>>>,
    /// The narrow ones, and what is to be told at its deadline; looked through a few times a second.
    narrow: Mutex<Vec<Arc<Book<C>>>>,
    reminders: Mutex<Vec<(Instant, DeadlineCompletion<C>)>>,
    /// What failed where it could not be told at once.
    untold: Mutex<Vec<FailedAppend<C>>>,
    most_parked: usize,
    /// Nothing more is sent.
    ended: AtomicBool,
}

/// What is known of a message that librdkafka has, besides whom to tell.
pub(super) struct Sent {
    /// Its part of the window of a narrow topic; `None` while the topic is not narrow.
    pub(super) bytes: Option<usize>,
    /// Nothing else of its topic was with it.
    pub(super) is_alone: bool,
    /// Its partition was chosen, so that it has an order without a key.
    pub(super) is_chosen: bool,
}

impl Sent {
    fn ordinary(record: &Record) -> Self {
        Sent { bytes: None, is_alone: size_of(record) > BATCH_BYTES + FRAMING, is_chosen: record.partition.is_some() }
    }
}

/// What to do with an append.
pub(super) enum Entered<C> {
    /// To be given to librdkafka; it has been counted.
    Send(PendingAppend<C>, Sent),
    /// It waits in the book; [`Desk::pump`] sends it.
    Parked,
    /// Too much waits.
    Full(FailedAppend<C>),
}

impl<C: Completion> Book<C> {
    fn new(topic: &Arc<str>) -> Arc<Self> {
        let (outstanding, is_narrow) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Book { topic: Arc::clone(topic), outstanding, is_narrow, narrow: Mutex::new(Narrow::new()) })
    }

    fn lock(&self) -> MutexGuard<'_, Narrow<PendingAppend<C>>> {
        lock(&self.narrow)
    }

    /// Whether the topic is narrow.
    pub(super) fn is_narrow(&self) -> bool {
        self.is_narrow.load(Ordering::SeqCst)
    }

    /// A message that librdkafka had, with this part of the window, is with it no more. Then [`Desk::pump`], where the topic is
    /// narrow.
    pub(super) fn leave(&self, bytes: Option<usize>) {
        if let Some(bytes) = bytes {
            self.lock().out_bytes -= bytes;
        }
        self.outstanding.fetch_sub(1, Ordering::SeqCst);
    }

    /// A message of this key was stored in `partition`, while others wait to be sent again.
    pub(super) fn overtake(&self, partition: PartitionId, key: Option<&[u8]>) {
        self.lock().overtake(partition, key);
    }

    /// The topic takes batches of so many bytes.
    pub(super) fn learn(&self, limit: usize) {
        let mut narrow = self.lock();
        (narrow.limit, narrow.asked) = (Some(limit), Instant::now());
    }
}

impl<C: Completion> Desk<C> {
    /// Nothing known; at most `most_parked` wait in all narrow topics.
    pub(super) fn new(most_parked: usize) -> Arc<Self> {
        Arc::new(Desk {
            books: RwLock::default(),
            narrow: Mutex::default(),
            reminders: Mutex::default(),
            untold: Mutex::default(),
            most_parked,
            ended: AtomicBool::new(false),
        })
    }

    /// The book of a topic.
    pub(super) fn book(&self, topic: &Arc<str>) -> Arc<Book<C>> {
        if let Some(book) = read(&self.books).get(topic) {
            return Arc::clone(book);
        }
        let mut books = write(&self.books);
        if books.len() >= MAX_LIMITED_TOPICS {
            books.retain(|_, book| Arc::strong_count(book) > 1);
        }
        Arc::clone(books.entry(Arc::clone(topic)).or_insert_with(|| Book::new(topic)))
    }

    /// The book of a topic, if it is narrow.
    pub(super) fn narrow_book(&self, topic: &str) -> Option<Arc<Book<C>>> {
        self.narrow().iter().find(|book| &*book.topic == topic).map(Arc::clone)
    }

    /// Whether an append may go on at once.
    pub(super) fn enter(&self, book: &Book<C>, waiting: PendingAppend<C>) -> Entered<C> {
        // Counted before the look: who makes the topic narrow sees either the count or the append coming back here.
        book.outstanding.fetch_add(1, Ordering::SeqCst);
        if !book.is_narrow() {
            let sent = Sent::ordinary(&waiting.record);
            return Entered::Send(waiting, sent);
        }
        book.outstanding.fetch_sub(1, Ordering::SeqCst);
        let mut narrow = book.lock();
        if !book.is_narrow() {
            book.outstanding.fetch_add(1, Ordering::SeqCst);
            let sent = Sent::ordinary(&waiting.record);
            return Entered::Send(waiting, sent);
        }
        if narrow.parked_count() >= self.most_parked {
            let reason = "the producer's queue is full".to_owned();
            return Entered::Full((waiting.completion, not_stored(AppendFailure::Full, reason)));
        }
        let size = size_of(&waiting.record);
        narrow.waiting.push_back((PendingAppend { has_waited: true, ..waiting }, size));
        Entered::Parked
    }

    /// A message that failed for the size of its batch waits to be sent again. True if the topic was not narrow before.
    pub(super) fn send_again(&self, book: &Arc<Book<C>>, waiting: PendingAppend<C>, sent: &Sent) -> bool {
        let mut narrow = book.lock();
        let partition = waiting.record.partition.unwrap_or(-1);
        let key = waiting.record.key.clone();
        let size = size_of(&waiting.record);
        narrow.fail(Again { what: waiting, size, partition, key, is_chosen: sent.is_chosen, is_overtaken: false });
        let is_new = !book.is_narrow.swap(true, Ordering::SeqCst);
        drop(narrow);
        let mut all = self.narrow();
        if !all.iter().any(|known| Arc::ptr_eq(known, book)) {
            all.push(Arc::clone(book));
        }
        is_new
    }

    /// Gives to librdkafka what may go now.
    pub(super) fn pump(&self, book: &Book<C>, send: impl Fn(PendingAppend<C>, Sent) -> Result<(), FailedAppend<C>>) {
        let mut failed = Vec::new();
        let mut narrow = book.lock();
        if self.ended.load(Ordering::SeqCst) {
            failed.extend(narrow.drain().map(|waiting| (waiting.completion, closed())));
        }
        loop {
            match narrow.next(book.outstanding.load(Ordering::SeqCst)) {
                Next::Send(waiting, mut sent) => {
                    sent.is_chosen = waiting.record.partition.is_some();
                    book.outstanding.fetch_add(1, Ordering::SeqCst);
                    let bytes = sent.bytes.unwrap_or_default();
                    if let Err(refused) = send(waiting, sent) {
                        book.outstanding.fetch_sub(1, Ordering::SeqCst);
                        narrow.out_bytes -= bytes;
                        failed.push(refused);
                    }
                }
                Next::Overtaken(waiting) => failed.push((waiting.completion, overtaken(&book.topic))),
                Next::Nothing => break,
            }
        }
        if narrow.may_end(Instant::now()) && book.outstanding.load(Ordering::SeqCst) == 0 {
            book.is_narrow.store(false, Ordering::SeqCst);
            *narrow = Narrow::new();
        }
        drop(narrow);
        self.untold().extend(failed);
    }

    /// Lets an append be answered at its deadline even if librdkafka gives it more time.
    pub(super) fn remind(&self, at: Instant, reminder: DeadlineCompletion<C>) {
        lock(&self.reminders).push((at, reminder));
    }

    /// To be called a few times a second: tells what is due to be told, and sends what may be sent. Gives the topics
    /// whose limit may have changed.
    pub(super) fn tend(
        &self,
        send: impl Fn(&Arc<Book<C>>, PendingAppend<C>, Sent) -> Result<(), FailedAppend<C>>,
    ) -> Vec<Arc<str>> {
        let now = Instant::now();
        let books: Vec<_> = self.narrow().clone();
        let mut old = Vec::new();
        for book in &books {
            let expired = book.lock().expire(now);
            self.untold().extend(expired.into_iter().map(|waiting| {
                let reason = format!("not sent to topic {} before the deadline", book.topic);
                (waiting.completion, not_stored(AppendFailure::TimedOut, reason))
            }));
            self.pump(book, |waiting, sent| send(book, waiting, sent));
            old.extend(book.lock().grew_old(now).then(|| Arc::clone(&book.topic)));
        }
        if !books.is_empty() {
            self.narrow().retain(|book| book.is_narrow());
        }
        let due: Vec<_> = {
            let mut reminders = lock(&self.reminders);
            reminders.extract_if(.., |(at, reminder)| *at <= now || reminder.is_done()).collect()
        };
        for (_, reminder) in due {
            let reason = "no acknowledgement before the deadline (the message was sent shortly before it)".to_owned();
            reminder.complete(Err(AppendError { kind: AppendFailure::TimedOut, stored: Stored::Unknown, reason }));
        }
        self.tell();
        old
    }

    /// Completes what failed under a lock.
    pub(super) fn tell(&self) {
        let untold = std::mem::take(&mut *self.untold());
        for (completion, error) in untold {
            completion.complete(Err(error));
        }
    }

    /// What waits is not sent but told `error`, by [`Desk::tell`].
    pub(super) fn give_up(&self, error: &AppendError) {
        for book in self.narrow().iter() {
            let waiting: Vec<_> = book.lock().drain().collect();
            self.untold().extend(waiting.into_iter().map(|waiting| (waiting.completion, error.clone())));
        }
    }

    /// Nothing more is sent.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.give_up(&closed());
        self.tell();
    }

    /// Whether the producer has ended, so that nothing can be sent again.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn narrow(&self) -> MutexGuard<'_, Vec<Arc<Book<C>>>> {
        lock(&self.narrow)
    }

    fn untold(&self) -> MutexGuard<'_, Vec<FailedAppend<C>>> {
        lock(&self.untold)
    }
}

fn closed() -> AppendError {
    not_stored(AppendFailure::Closed, "the producer was closed before the message was sent".to_owned())
}

fn overtaken(topic: &str) -> AppendError {
    let reason = format!(
        "its batch was larger than the limit of topic {topic} (max.message.bytes), and a later message with the same \
         key was stored before the retry"
    );
    not_stored(AppendFailure::Full, reason)
}

/// What waits for a narrow topic and how much of it librdkafka has. Pure.
struct Narrow<W> {
    /// What failed, in order; it goes before `waiting`.
    failed: VecDeque<Again<W>>,
    /// With the size of each.
    waiting: VecDeque<(W, usize)>,
    /// Nothing is sent until librdkafka has nothing left.
    is_draining: bool,
    /// The sizes of what librdkafka has of `waiting`.
    out_bytes: usize,
    /// What the topic takes in one batch; `None` while nobody knows.
    limit: Option<usize>,
    /// When a message failed last.
    since: Instant,
    /// When the limit was last asked for, or learned.
    asked: Instant,
}

/// A message that failed and is sent again.
struct Again<W> {
    what: W,
    size: usize,
    partition: PartitionId,
    key: Option<Vec<u8>>,
    is_chosen: bool,
    is_overtaken: bool,
}

enum Next<W> {
    Send(W, Sent),
    Overtaken(W),
    Nothing,
}

impl<W> Narrow<W> {
    fn new() -> Self {
        Narrow {
            failed: VecDeque::new(),
            waiting: VecDeque::new(),
            is_draining: false,
            out_bytes: 0,
            limit: None,
            since: Instant::now(),
            asked: Instant::now(),
        }
    }

    fn parked_count(&self) -> usize {
        self.failed.len() + self.waiting.len()
    }

    fn fail(&mut self, again: Again<W>) {
        // What was known of the limit was wrong, or this is the first that is heard of it.
        (self.limit, self.is_draining) = (None, true);
        (self.since, self.asked) = (Instant::now(), Instant::now());
        self.failed.push_back(again);
    }

    fn overtake(&mut self, partition: PartitionId, key: Option<&[u8]>) {
        for again in self.failed.iter_mut().filter(|again| again.partition == partition) {
            again.is_overtaken |= again.is_chosen || (again.key.is_some() && again.key.as_deref() == key);
        }
    }

    fn next(&mut self, outstanding: usize) -> Next<W> {
        if self.is_draining {
            if outstanding > 0 {
                return Next::Nothing;
            }
            if let Some(at) = self.failed.iter().position(|again| again.is_overtaken)
                && let Some(again) = self.failed.remove(at)
            {
                return Next::Overtaken(again.what);
            }
            self.is_draining = false;
            while let Some(again) = self.failed.pop_back() {
                self.waiting.push_front((again.what, again.size));
            }
        }
        let Some(&(_, size)) = self.waiting.front() else { return Next::Nothing };
        let fits = self.limit.is_some_and(|limit| self.out_bytes + size <= limit);
        if outstanding > 0 && !fits {
            return Next::Nothing;
        }
        let Some((what, _)) = self.waiting.pop_front() else { return Next::Nothing };
        self.out_bytes += size;
        Next::Send(what, Sent { bytes: Some(size), is_alone: !fits, is_chosen: false })
    }

    fn drain(&mut self) -> impl Iterator<Item = W> {
        let failed = std::mem::take(&mut self.failed).into_iter().map(|again| again.what);
        failed.chain(std::mem::take(&mut self.waiting).into_iter().map(|(what, _)| what))
    }

    /// Whether the limit is to be asked for: it was learned long ago, or it could not be learned. Where nobody tells it for
    /// long, the topic is taken to be wide again, so that it does not go one by one for ever.
    fn grew_old(&mut self, now: Instant) -> bool {
        if self.limit.is_none() && now.duration_since(self.since) >= NARROW_FOR {
            (self.limit, self.asked) = (Some(BATCH_BYTES + FRAMING), now);
        }
        let every = if self.limit.is_some() { NARROW_FOR } else { ASK_EVERY };
        let is_old = now.duration_since(self.asked) >= every;
        if is_old {
            self.asked = now;
        }
        is_old
    }

    /// Whether the topic need not be narrow any longer, once nothing is under way.
    fn may_end(&self, now: Instant) -> bool {
        let is_wide = match self.limit {
            Some(limit) => limit >= BATCH_BYTES + FRAMING,
            None => now.duration_since(self.since) >= NARROW_FOR,
        };
        self.parked_count() == 0 && is_wide
    }
}

impl<C> Narrow<PendingAppend<C>> {
    fn expire(&mut self, now: Instant) -> Vec<PendingAppend<C>> {
        let is_due = |waiting: &PendingAppend<C>| waiting.deadline <= now;
        let mut expired = Vec::new();
        if self.failed.iter().any(|again| is_due(&again.what)) {
            let (due, left) = std::mem::take(&mut self.failed).into_iter().partition(|again| is_due(&again.what));
            self.failed = left;
            expired.extend(VecDeque::into_iter(due).map(|again: Again<_>| again.what));
        }
        if self.waiting.iter().any(|(waiting, _)| is_due(waiting)) {
            let (due, left) = std::mem::take(&mut self.waiting).into_iter().partition(|(waiting, _)| is_due(waiting));
            self.waiting = left;
            expired.extend(VecDeque::into_iter(due).map(|(waiting, _)| waiting));
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(what: u32, key: Option<&[u8]>) -> Again<u32> {
        let key = key.map(<[u8]>::to_vec);
        Again { what, size: 10, partition: 0, key, is_chosen: false, is_overtaken: false }
    }

    /// All that may go now, each with whether it goes alone; `outstanding` grows by it.
    fn go(narrow: &mut Narrow<u32>, outstanding: &mut usize) -> Vec<(u32, bool)> {
        let mut gone = Vec::new();
        loop {
            match narrow.next(*outstanding) {
                Next::Send(what, sent) => {
                    *outstanding += 1;
                    gone.push((what, sent.is_alone));
                }
                Next::Overtaken(what) => panic!("{what}"),
                Next::Nothing => return gone,
            }
        }
    }

    #[test]
    fn what_failed_goes_first_and_alone_when_all_else_is_through() {
        let mut narrow = Narrow::new();
        let mut outstanding = 2;
        narrow.fail(again(1, None));
        narrow.fail(again(2, None));
        narrow.waiting.push_back((4, 10));
        assert_eq!(go(&mut narrow, &mut outstanding), [], "librdkafka has two yet");
        narrow.fail(again(3, None));
        for expected in 1..=4 {
            outstanding = 0;
            assert_eq!(go(&mut narrow, &mut outstanding), [(expected, true)]);
        }
        outstanding = 0;
        assert_eq!(go(&mut narrow, &mut outstanding), []);
        assert!(!narrow.may_end(narrow.since) && narrow.may_end(narrow.since + NARROW_FOR));
    }

    #[test]
    fn no_more_than_the_topic_takes_is_under_way_and_what_exceeds_it_goes_alone() {
        let mut narrow = Narrow::new();
        narrow.limit = Some(100);
        for (what, size) in [(1, 40), (2, 60), (3, 1), (4, 101), (5, 10), (6, 10)] {
            narrow.waiting.push_back((what, size));
        }
        let mut outstanding = 0;
        assert_eq!(go(&mut narrow, &mut outstanding), [(1, false), (2, false)]);
        (outstanding, narrow.out_bytes) = (1, 60);
        assert_eq!(go(&mut narrow, &mut outstanding), [(3, false)]);
        assert_eq!(go(&mut narrow, &mut outstanding), []);
        (outstanding, narrow.out_bytes) = (0, 0);
        assert_eq!(go(&mut narrow, &mut outstanding), [(4, true)], "and nothing goes with it");
        (outstanding, narrow.out_bytes) = (0, 0);
        assert_eq!(go(&mut narrow, &mut outstanding), [(5, false), (6, false)]);
        assert!(!narrow.may_end(narrow.since + NARROW_FOR));
        narrow.limit = Some(BATCH_BYTES + FRAMING);
        assert!(narrow.may_end(narrow.since));
    }

    #[test]
    fn a_limit_that_nobody_tells_is_asked_for_often_and_taken_for_wide_in_the_end() {
        let mut narrow = Narrow::new();
        narrow.fail(again(1, None));
        narrow.asked = narrow.since;
        let failed = narrow.since;
        for (after_ms, asks) in [(4_999, false), (5_000, true), (9_999, false), (10_000, true), (10_001, false)] {
            assert_eq!(narrow.grew_old(failed + Duration::from_millis(after_ms)), asks, "{after_ms}");
        }
        assert_eq!(narrow.limit, None, "each message goes alone");
        assert!(!narrow.grew_old(failed + NARROW_FOR));
        assert_eq!(narrow.limit, Some(BATCH_BYTES + FRAMING), "else it would for ever");
        assert!(narrow.grew_old(failed + NARROW_FOR * 2), "a limit is asked for anew, too");
    }

    #[test]
    fn who_was_overtaken_by_its_own_key_is_not_sent_again() {
        let mut narrow = Narrow::new();
        for (what, key) in [(1, Some(&b"a"[..])), (2, Some(b"b")), (3, None), (4, None)] {
            narrow.fail(Again { is_chosen: what == 4, ..again(what, key) });
        }
        narrow.overtake(1, Some(b"a"));
        narrow.overtake(0, Some(b"b"));
        // It fails after the other was stored, so it is later.
        narrow.fail(again(5, Some(b"b")));
        for expected in [2, 4] {
            let Next::Overtaken(what) = narrow.next(0) else { panic!("{expected} was overtaken") };
            assert_eq!(what, expected);
        }
        for expected in [1, 3, 5] {
            assert_eq!(go(&mut narrow, &mut 0), [(expected, true)]);
        }
    }
}
