//! The fields of the log lines about attempts.

use std::fmt;
use std::time::Duration;

use crate::ktransfer::job::Job;
use crate::ktransfer::policy::AttemptOutcome;

/// The fields of an attempt's log line, with the names that the original uses.
pub(super) struct AttemptFields<'a> {
    pub(super) job: &'a Job,
    pub(super) url: &'a str,
    pub(super) attempt: u32,
    pub(super) outcome: &'a AttemptOutcome,
    pub(super) took: Duration,
}

impl fmt::Display for AttemptFields<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AttemptFields { job, url, attempt, outcome, took } = self;
        let message = &job.message;
        write!(
            formatter,
            "url={url}, topic={}, partition={}, transid={}, method={}, datalen={}, attempt={attempt}, \
             {outcome}, proctime={}ms",
            message.from.topic,
            message.from.partition,
            message.offset,
            job.method.as_deref().unwrap_or("*"),
            message.value.as_ref().map_or(0, Vec::len),
            took.as_millis()
        )
    }
}
