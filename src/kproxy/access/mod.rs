//! Access control: which client may write to which topic, and at what rate.
//!
//! | key | decision | refusal |
//! |---|---|---|
//! | `credentials_file` | the client's credential: [`AccessControl::authenticate`] | 401 `unauthorized` |
//! | `allowed_topics`, `topics` of a credential | its topics: [`AccessControl::authorize`] | 403 `topic_not_allowed` |
//! | `rate_limits`, rates of a credential | its rate: [`AccessControl::charge`] | 429 `rate_limited` |
//!
//! All three decide from the head of a request, before any of its body is read. [`RateCharge::finalize`] charges the
//! actual size of the body afterwards. Credentials, globs and rates are in `access`; reading order here: `topic_rates`,
//! `charge`, `control`. Without `credentials_file`, `allowed_topics` and `rate_limits` there is no [`AccessControl`].

mod charge;
mod control;
#[cfg(test)]
mod tests;
mod topic_rates;

pub(super) use charge::RateCharge;
pub(super) use control::{AccessConfig, AccessControl};
