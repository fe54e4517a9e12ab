//! Access control: which client may write to which topic, and at what rate.
//!
//! | key | decision | refusal |
//! |---|---|---|
//! | `credentials_file` | the client's credential: [`AccessControl::authenticate`] | 401 `unauthorized` |
//! | `allowed_topics`, `topics` of a credential | its topics: [`AccessControl::authorize`] | 403 `topic_not_allowed` |
//! | `rate_limits`, rates of a credential | its rate: [`AccessControl::charge`] | 429 `rate_limited` |
//!
//! All three decide from the head of a request, before a byte of its body is read. What the body turns out to be is
//! charged afterwards by [`RateCharge::finalize`]. Reading order: `topics`, `rate` and `authorization` (pure),
//! `secret`, `credentials`, `reload`, `topic_rates`, `charge`, `control`. Where none of the keys is configured there is
//! no [`AccessControl`].
//!
//! Invariant: no secret, and nothing a client presented as one, is kept, logged or answered. TLS client certificates
//! do not identify a client here; they could be one more kind of credential.

mod authorization;
mod charge;
mod control;
mod credentials;
mod rate;
mod reload;
mod secret;
#[cfg(test)]
mod tests;
mod topic_rates;
mod topics;

pub(super) use charge::RateCharge;
pub(super) use control::{AccessConfig, AccessControl};
