//! Posts messages with random keys to kproxy, and records the positions that kproxy confirms.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::fault_oracle::Position;
use super::super::faults::SplitMix;
use super::super::http::Client;

const N_POSTERS: u64 = 3;
/// Pause of a poster after a post that was not answered with 200.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The posts of a run.
#[derive(Default)]
pub(crate) struct Posts {
    pub(crate) confirmed: Vec<Position>,
    /// Posts that were refused or not answered; their messages may be in the topic all the same.
    pub(crate) n_unconfirmed: usize,
}

/// Running posters; dropping the value ends them.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    posts: Arc<Mutex<Posts>>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Posts `per_second` messages to the kproxy at `address`, with `n_keys` keys; one message in ten has no key.
    pub(crate) fn start(address: &str, topic: &str, per_second: u32, n_keys: u64, seed: u64) -> Traffic {
        let (stop, posts) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Posts::default())));
        let poster = |number| {
            let (address, topic) = (address.to_owned(), topic.to_owned());
            let (stop, posts) = (Arc::clone(&stop), Arc::clone(&posts));
            let pause = Duration::from_secs(N_POSTERS) / per_second;
            let random = SplitMix(seed.wrapping_mul(N_POSTERS).wrapping_add(number));
            std::thread::spawn(move || post_until(&stop, &posts, &address, &topic, pause, n_keys, random))
        };
        let threads = (0..N_POSTERS).map(poster).collect();
        Traffic { stop, posts, threads }
    }

    /// Returns traffic without posters.
    pub(crate) fn none() -> Traffic {
        Traffic { stop: Arc::default(), posts: Arc::default(), threads: Vec::new() }
    }

    pub(crate) fn n_confirmed(&self) -> usize {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner).confirmed.len()
    }

    /// Ends the posters; returns what they posted.
    pub(crate) fn finish(mut self) -> Posts {
        self.end();
        std::mem::take(&mut *self.posts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn post_until(
    stop: &AtomicBool,
    posts: &Mutex<Posts>,
    address: &str,
    topic: &str,
    pause: Duration,
    n_keys: u64,
    mut random: SplitMix,
) {
    let mut client = None;
    let mut due = Instant::now();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = random.below(n_keys * 10 / 9 + 1);
        let key = if key < n_keys { format!("&key=k{key}") } else { String::new() };
        let path = format!("/commit?topic={topic}{key}&acks=-1");
        let position = post(&mut client, address, &path, format!("message {number}").as_bytes());
        let mut posts = posts.lock().unwrap_or_else(PoisonError::into_inner);
        match position {
            Some(position) => posts.confirmed.push(position),
            None => posts.n_unconfirmed += 1,
        }
        drop(posts);
        due = (due + pause).max(Instant::now() - Duration::from_secs(1));
        let wait = due.saturating_duration_since(Instant::now());
        std::thread::sleep(if position.is_some() { wait } else { wait.max(PAUSE_AFTER_FAILURE) });
    }
}

/// Posts a message; returns its position if the answer is 200. After a failure the next post uses a new connection.
fn post(client: &mut Option<Client>, address: &str, path: &str, body: &[u8]) -> Option<Position> {
    if client.is_none() {
        *client = Client::connect(address).ok();
    }
    let answer = client.as_mut()?.post(path, body);
    let Ok(answer) = answer else {
        *client = None;
        return None;
    };
    if answer.status != 200 {
        return None;
    }
    let body = answer.json();
    Some((body["partition"].as_i64()? as i32, body["offset"].as_i64()?))
}
