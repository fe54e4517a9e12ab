//! The errors of calls, by the codes of the server.

use super::protocol::error;
use crate::keeper::api::KeeperError;

/// Returns the error about the node at `path` that the server returned as `code`.
pub(super) fn node_error(code: i32, path: &str) -> KeeperError {
    match code {
        error::NO_NODE => KeeperError::NoNode(path.to_owned()),
        error::NODE_EXISTS => KeeperError::NodeExists(path.to_owned()),
        error::BAD_VERSION => KeeperError::BadVersion(path.to_owned()),
        error::NOT_EMPTY => KeeperError::NotEmpty(path.to_owned()),
        error::NO_AUTH => KeeperError::NoAuth(path.to_owned()),
        other => KeeperError::Unreachable(format!("request failed with error {other}")),
    }
}

/// The error for a response that cannot be read.
pub(super) fn unreadable() -> KeeperError {
    KeeperError::Unreachable("the response does not have the expected format".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_a_node_become_the_variants_of_the_same_name() {
        let path = || "/a".to_owned();
        for (code, expected) in [
            (error::NO_NODE, KeeperError::NoNode(path())),
            (error::NODE_EXISTS, KeeperError::NodeExists(path())),
            (error::BAD_VERSION, KeeperError::BadVersion(path())),
            (error::NOT_EMPTY, KeeperError::NotEmpty(path())),
            (error::NO_AUTH, KeeperError::NoAuth(path())),
        ] {
            assert_eq!(node_error(code, "/a"), expected);
        }
        assert!(matches!(node_error(-112, "/a"), KeeperError::Unreachable(_)), "the session has expired");
    }
}
