//! Replaces lost clients, with pauses, and keeps the session of the present one young.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};

use super::incarnation::{Incarnation, Outcome};
use super::probe::{Server, find_server, random};
use super::{Client, Current};
use crate::keeper::Keeper;
use crate::shutdown::Stop;
use crate::supervise::spawn_expendable;

/// Pauses between tries: they double up to the longest, and each is shortened by up to a half at random.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// While the trouble stays the same it is logged only so often.
const SAME_TROUBLE: Duration = Duration::from_secs(60);

/// The loop of the one thread of a keeper.
pub(super) struct Manager {
    client: Arc<Client>,
    woken: Receiver<()>,
    stop: Stop,
    pause: Duration,
    /// When the present client, or the last one, was made.
    begun: Option<Instant>,
    said: Option<Instant>,
}

impl Manager {
    pub(super) fn new(client: Arc<Client>, woken: Receiver<()>, stop: Stop) -> Manager {
        Manager { client, woken, stop, pause: FIRST_PAUSE, begun: None, said: None }
    }

    pub(super) fn run(mut self) {
        while !self.stop.is_triggered() {
            let (current, closed) = {
                let state = self.client.lock();
                (state.current.clone(), state.closed)
            };
            match current {
                _ if closed => self.stop.wait(),
                Some(current) => self.watch(&current),
                None => self.replace(),
            }
        }
        self.client.close(self.client.call_timeout());
    }

    /// Sleeps until something may be amiss or the session needs a sign of life, and gives it.
    fn watch(&mut self, current: &Current) {
        let session = self.client.session_timeout();
        if self.begun.is_some_and(|begun| begun.elapsed() >= session) {
            self.pause = FIRST_PAUSE;
        }
        if current.incarnation.is_lost() {
            self.client.give_up(current.epoch, "the connection was lost".into());
            return;
        }
        let age = self.client.last_good().map_or(Duration::ZERO, |good| good.elapsed());
        match (session / 6).checked_sub(age) {
            Some(left) if !left.is_zero() => self.rest(left),
            // A good or bad answer is noted by the call itself.
            _ => drop(self.client.read("/")),
        }
    }

    /// Tries once to make a client. Pauses after a failure, and before if the last client did not last: a server that takes
    /// sessions and drops them again is no better than one that is away.
    fn replace(&mut self) {
        if self.begun.take().is_some_and(|begun| begun.elapsed() < self.client.session_timeout()) {
            self.back_off();
        }
        match self.search().and_then(|server| self.begin(server)) {
            Ok(()) => (self.begun, self.said) = (Some(Instant::now()), None),
            Err(trouble) => {
                self.say(trouble);
                self.back_off();
            }
        }
    }

    fn back_off(&mut self) {
        let shortened = self.pause.mul_f64(1.0 - 0.5 * (random() % 1000) as f64 / 1000.0);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let until = Instant::now() + shortened;
        while !self.is_ending() && Instant::now() < until {
            self.rest(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Looks for a server on a thread of its own, since resolving a name has no deadline.
    fn search(&self) -> Result<Server, String> {
        let config = &self.client.config;
        let (found, answer) = bounded(1);
        let (hosts, session, connect) = (config.hosts.clone(), config.session_timeout, config.connect_timeout);
        let body = move || drop(found.send(find_server(&hosts, session, connect)));
        spawn_expendable("zk-search", body).map_err(|cause| format!("no thread: {cause}"))?;
        // One search at a time: the next begins when this one has ended, so at the end of a daemon at most one is left behind.
        loop {
            select! {
                recv(answer) -> server => return server.unwrap_or_else(|_| Err("the search failed".into())),
                recv(self.woken) -> _ => if self.is_ending() { return Err("closed".into()) },
                recv(self.stop.closed()) -> _ => return Err("stopped".into()),
            }
        }
    }

    /// Makes a client of `server`; it becomes the current one when its first call has succeeded.
    fn begin(&self, server: Server) -> Result<(), String> {
        let asked = self.client.config.session_timeout;
        let session = asked.min(server.granted);
        let begun = Incarnation::begin(server.address, asked, &self.client.living, self.client.wake.clone())?;
        let sent = match begun.call(Instant::now() + session / 3, |client| client.exists("/", false)) {
            Outcome::Answered(sent, Ok(Some(_))) if !begun.is_lost() => sent,
            Outcome::Answered(_, outcome) => return Err(format!("{}: first call: {outcome:?}", server.address)),
            Outcome::None(reason) => return Err(format!("{}: first call: {reason}", server.address)),
        };
        let incarnation = Arc::new(begun);
        let mut state = self.client.lock();
        if state.closed {
            return Err("closed".into());
        }
        state.epoch += 1;
        state.last_good = Some(sent);
        state.granted = Some(server.granted);
        let epoch = state.epoch;
        state.current = Some(Current { epoch, incarnation });
        drop(state);
        log::info!("ZooKeeper session {epoch} with {}, timeout {} ms", server.address, session.as_millis());
        if server.granted < asked {
            log::warn!(
                "ZooKeeper grants a session timeout of {} ms at most, {} were asked for",
                server.granted.as_millis(),
                asked.as_millis()
            );
        }
        Ok(())
    }

    fn rest(&self, pause: Duration) {
        select! {
            recv(self.woken) -> _ => {}
            recv(self.stop.closed()) -> _ => {}
            default(pause) => {}
        }
    }

    fn is_ending(&self) -> bool {
        self.stop.is_triggered() || self.client.lock().closed
    }

    /// Makes the trouble known to callers, and to the log when it is new or long.
    fn say(&mut self, trouble: String) {
        if self.is_ending() {
            return;
        }
        if self.said.is_none_or(|said| said.elapsed() >= SAME_TROUBLE) {
            self.said = Some(Instant::now());
            log::warn!("no ZooKeeper can be reached, trying on: {trouble}");
        }
        self.client.lock().trouble = trouble;
    }
}
