//! A ZooKeeper session through the library's keeper, as a daemon has one.

use std::time::Duration;

use kafka_http_wrapper::keeper::{self, KeeperConfig, SharedKeeper};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::{Ended, Supervisor};

/// The session timeout of a [`KeeperSession`].
pub(crate) const SESSION: Duration = Duration::from_secs(3);

const CLOSE_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct KeeperSession {
    pub(crate) keeper: SharedKeeper,
    supervisor: Supervisor,
}

impl KeeperSession {
    pub(crate) fn connect(hosts: &[String], chroot: &str) -> KeeperSession {
        let supervisor = Supervisor::new("keeper", Stop::new());
        let config = KeeperConfig {
            hosts: hosts.to_vec(),
            chroot: chroot.into(),
            session_timeout: SESSION,
            connect_timeout: Duration::from_secs(1),
        };
        KeeperSession { keeper: keeper::connect(config, &supervisor), supervisor }
    }

    /// Closes the session and joins its threads, as a daemon does when it stops.
    pub(crate) fn close(&self) {
        self.keeper.close(Duration::from_secs(5));
        self.supervisor.stop().trigger();
        assert_eq!(self.supervisor.join(CLOSE_DEADLINE), Ended::Stopped);
    }
}
