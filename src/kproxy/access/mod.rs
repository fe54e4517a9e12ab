//! Access control: which client may write to which topic, and at what rate.
//!
//! | key | decision | refusal |
//! |---|---|---|
//! | `credentials_file` | the client's credential: [`AccessControl::authenticate`] | 401 `unauthorized` |
//! | `allowed_topics`, `topics` of a credential | its topics: [`AccessControl::authorize`] | 403 `topic_not_allowed` |
//! | `rate_limits`, rates of a credential | its rate: [`AccessControl::charge`] | 429 `rate_limited` |
//!
//! All three decide from the head of a request, before any of its body is read. [`RateCharge::finalize`] charges the
//! actual size of the body afterwards. Reading order: `topics`, `rate` and `authorization` (pure), `secret`,
//! `credentials`, `reload`, `topic_rates`, `charge`, `control`. Without `credentials_file`, `allowed_topics` and
//! `rate_limits` there is no [`AccessControl`].
//!
//! Invariant: no secret of `credentials_file`, and no `Authorization` header of a client, is kept in plain text,
//! logged, or part of an answer. TLS client certificates do not identify a client here; they could become a kind of
//! credential.

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
