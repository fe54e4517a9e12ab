//! Random faults from a seed, for long runs against a misbehaving cluster.

use std::time::Duration;

use kafka_protocol::messages::ApiKey;

use super::codes;
use super::fault::{Fault, ResponseFault, Scope};

/// A generator of pseudo-random numbers (SplitMix64): the same seed yields the same numbers.
#[derive(Clone, Debug)]
pub struct Generator(u64);

impl Generator {
    /// Returns the generator of a seed.
    pub fn new(seed: u64) -> Self {
        Generator(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// Returns true with a probability of `permille` in 1000.
    pub fn chance(&mut self, permille: u16) -> bool {
        self.below(1000) < u64::from(permille)
    }
}

/// How often each fault occurs, in 1000 requests (error codes: in 1000 partitions).
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// A retriable error code instead of carrying out the request.
    pub error: u16,
    /// The request is carried out and answered with an error code that leaves the outcome open; Produce only.
    pub error_after: u16,
    /// A delay before the request is carried out.
    pub delay: u16,
    /// The longest delay.
    pub max_delay: Duration,
    /// The connection is closed before the request is carried out.
    pub close_before: u16,
    /// The request is carried out and the connection closed without response.
    pub close_unanswered: u16,
    /// The connection is closed within the response.
    pub close_within: u16,
    /// The request is carried out and never answered.
    pub never: u16,
    /// The response is truncated.
    pub truncated: u16,
    /// The response has a throttle time of up to `max_delay`.
    pub throttle: u16,
    /// The request types with faults; empty for all.
    pub apis: Vec<ApiKey>,
}

impl Rates {
    /// Each fault but [`never`](Self::never) and [`throttle`](Self::throttle) at the same rate, with delays of up to
    /// 20 ms.
    pub fn all(permille: u16) -> Rates {
        Rates {
            error: permille,
            error_after: permille,
            delay: permille,
            max_delay: Duration::from_millis(20),
            close_before: permille,
            close_unanswered: permille,
            close_within: permille,
            never: 0,
            truncated: permille,
            throttle: 0,
            apis: Vec::new(),
        }
    }

    /// Draws the faults of one request.
    pub(super) fn draw(
        &self,
        generator: &mut Generator,
        api: ApiKey,
        targets: &[(String, i32)],
    ) -> Vec<(Scope, Fault)> {
        if !self.apis.is_empty() && !self.apis.contains(&api) {
            return Vec::new();
        }
        let whole = Scope::api(api);
        let mut faults = Vec::new();
        let max_ms = self.max_delay.as_millis() as u64 + 1;
        if generator.chance(self.delay) {
            faults.push((whole.clone(), Fault::delay(Duration::from_millis(generator.below(max_ms)))));
        }
        if generator.chance(self.throttle) {
            faults.push((whole.clone(), Fault::throttle(generator.below(max_ms) as i32)));
        }
        let responses = [
            (self.close_before, Fault::close_before()),
            (self.close_unanswered, Fault::close_unanswered()),
            (self.close_within, Fault::response(ResponseFault::CloseWithin(generator.below(40) as usize))),
            (self.never, Fault::response(ResponseFault::Never)),
            (self.truncated, Fault::response(ResponseFault::Truncated(1 + generator.below(20) as usize))),
        ];
        faults.extend(
            responses.into_iter().filter(|(rate, _)| generator.chance(*rate)).map(|(_, fault)| (whole.clone(), fault)),
        );
        let (before, after) = error_codes(api);
        let mut pick = |rate: u16, codes: &[i16]| {
            let is_hit = generator.chance(rate) && !codes.is_empty();
            is_hit.then(|| codes[generator.below(codes.len() as u64) as usize])
        };
        if targets.is_empty() {
            faults.extend(pick(self.error, before).map(|code| (whole.clone(), Fault::error(code))));
        }
        for (topic, partition) in targets {
            let scope = whole.clone().partition(topic, *partition);
            faults.extend(pick(self.error, before).map(|code| (scope.clone(), Fault::error(code))));
            faults.extend(pick(self.error_after, after).map(|code| (scope, Fault::error_after(code))));
        }
        faults
    }
}

/// Returns the error codes that a healthy cluster answers at times: those of requests that were not carried out, and
/// those that leave the outcome open.
fn error_codes(api: ApiKey) -> (&'static [i16], &'static [i16]) {
    match api {
        ApiKey::Produce => (
            &[
                codes::NOT_LEADER_OR_FOLLOWER,
                codes::NOT_ENOUGH_REPLICAS,
                codes::UNKNOWN_TOPIC_OR_PARTITION,
                codes::KAFKA_STORAGE_ERROR,
            ],
            &[codes::REQUEST_TIMED_OUT, codes::NOT_ENOUGH_REPLICAS_AFTER_APPEND],
        ),
        ApiKey::Fetch | ApiKey::ListOffsets | ApiKey::OffsetForLeaderEpoch => {
            (&[codes::NOT_LEADER_OR_FOLLOWER, codes::UNKNOWN_TOPIC_OR_PARTITION, codes::KAFKA_STORAGE_ERROR], &[])
        }
        ApiKey::Metadata => (&[codes::LEADER_NOT_AVAILABLE], &[]),
        ApiKey::InitProducerId | ApiKey::FindCoordinator => {
            (&[codes::COORDINATOR_LOAD_IN_PROGRESS, codes::COORDINATOR_NOT_AVAILABLE], &[])
        }
        ApiKey::OffsetFetch | ApiKey::OffsetCommit => {
            (&[codes::COORDINATOR_LOAD_IN_PROGRESS, codes::NOT_COORDINATOR], &[])
        }
        _ => (&[], &[]),
    }
}
