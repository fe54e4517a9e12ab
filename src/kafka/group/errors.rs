//! How a member handles the error codes of each response: in the same way as the Java client (`AbstractCoordinator`).

use crate::kafka::error_code::{
    COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, ILLEGAL_GENERATION, MEMBER_ID_REQUIRED, NOT_COORDINATOR,
    REBALANCE_IN_PROGRESS, UNKNOWN_MEMBER_ID, is_retriable,
};

/// The handling of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handling {
    /// Send the request again after a back-off.
    Retry,
    /// Look the coordinator up, then send the request again.
    FindCoordinator,
    /// Join again, with the held partitions as claims.
    Rejoin,
    /// Everything held is lost; join again with the same member id.
    ResetGeneration,
    /// Everything held is lost; join again as a new member.
    ResetMember,
    /// Fatal: a retry cannot succeed, or would disturb another member.
    Fail,
}

/// Returns the handling of the error code of a join.
pub(super) fn of_join(code: i16) -> Handling {
    match code {
        // The coordinator cannot complete the join now.
        REBALANCE_IN_PROGRESS | MEMBER_ID_REQUIRED => Handling::Retry,
        ILLEGAL_GENERATION => Handling::ResetGeneration,
        code => of_any(code),
    }
}

/// Returns the handling of the error code of a sync.
pub(super) fn of_sync(code: i16) -> Handling {
    match code {
        REBALANCE_IN_PROGRESS => Handling::Rejoin,
        ILLEGAL_GENERATION => Handling::ResetGeneration,
        code => of_any(code),
    }
}

/// Returns the handling of the error code of a heartbeat.
pub(super) fn of_heartbeat(code: i16) -> Handling {
    of_sync(code)
}

fn of_any(code: i16) -> Handling {
    match code {
        COORDINATOR_LOAD_IN_PROGRESS => Handling::Retry,
        COORDINATOR_NOT_AVAILABLE | NOT_COORDINATOR => Handling::FindCoordinator,
        UNKNOWN_MEMBER_ID => Handling::ResetMember,
        // The rest is fatal in the Java client, too: FENCED_INSTANCE_ID (another process has the same instance id),
        // GROUP_AUTHORIZATION_FAILED, GROUP_MAX_SIZE_REACHED, INCONSISTENT_GROUP_PROTOCOL, INVALID_GROUP_ID,
        // INVALID_SESSION_TIMEOUT, and codes that it does not expect here.
        code if is_retriable(code) => Handling::Retry,
        _ => Handling::Fail,
    }
}
