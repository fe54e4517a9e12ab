//! The rate charge of a request: announced by its head, corrected by its body.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::access::Credential;
use crate::access::rate::{RateCost, RateMeter};

/// The rate charge of an admitted request. If its body never arrives or is refused, the charge is dropped without
/// [`RateCharge::finalize`]: this refunds the bytes, as far as the rate has not paid them meanwhile, but not the
/// request.
pub(crate) struct RateCharge {
    pub(super) credential: Option<Arc<Credential>>,
    /// The meter of the topic; `None` if the topic has no limit.
    pub(super) topic: Option<Arc<RateMeter>>,
    /// Bytes charged so far.
    pub(super) bytes: u64,
    /// When they were charged, by [`now`].
    pub(super) charged_at: u64,
}

impl RateCharge {
    /// Charges the messages beyond the first and the bytes beyond the announced ones, once the body is known. The
    /// charge may exceed the limit: the excess is a debt, and later requests are refused until the rate has paid it.
    /// Returns the name of the credential, for the log.
    pub(crate) fn finalize(mut self, message_count: usize, bytes: usize) -> Option<Arc<str>> {
        // Set to 0, so that `Drop` refunds nothing.
        let charged = std::mem::take(&mut self.bytes);
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let cost =
            RateCost { requests: wide(message_count).saturating_sub(1), bytes: wide(bytes).saturating_sub(charged) };
        if cost != RateCost::default() && self.meters().next().is_some() {
            let now = now();
            self.meters().for_each(|meter| meter.take_anyway(cost, now));
        }
        self.credential.as_ref().map(|credential| Arc::clone(&credential.name))
    }

    pub(super) fn credential_meter(&self) -> Option<&RateMeter> {
        self.credential.as_ref().and_then(|credential| credential.meter.as_deref())
    }

    fn meters(&self) -> impl Iterator<Item = &RateMeter> {
        self.credential_meter().into_iter().chain(self.topic.as_deref())
    }
}

impl Drop for RateCharge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let cost = RateCost { requests: 0, bytes: self.bytes };
            let age = now().saturating_sub(self.charged_at);
            self.meters().for_each(|meter| meter.give_back(cost, age));
        }
    }
}

/// Returns the current time for the meters: nanoseconds since the first call, plus one second. So it is always later
/// than 0, the time at which a new bucket is full.
pub(super) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
