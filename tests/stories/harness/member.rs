//! One instance of ktransfer with a link of its own to ZooKeeper, for stories about one module on the shared cluster.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::fleet::INSTANCE_HEADER;
use super::{Cluster, ConfigFile, Ktransfer, Link, configs};

/// A running instance; dropping the value kills it and closes its link.
pub(crate) struct Member {
    ktransfer: Ktransfer,
    /// The link between the instance and ZooKeeper.
    pub(crate) zookeeper: Link,
}

impl Member {
    /// Starts an instance with one module, and waits until it is ready. Its pushes have `name` in [`INSTANCE_HEADER`].
    #[track_caller]
    pub(crate) fn start(cluster: &Cluster, module: &str, name: &str, file: ConfigFile) -> Member {
        Member::start_with(cluster, module, name, file, |config| config)
    }

    /// As [`Member::start`], with changes to `ktransfer.yaml`, whose session timeout is 3 s.
    #[track_caller]
    pub(crate) fn start_with(
        cluster: &Cluster,
        module: &str,
        name: &str,
        file: ConfigFile,
        change: impl FnOnce(ConfigFile) -> ConfigFile,
    ) -> Member {
        let zookeeper = Link::to(&cluster.zookeeper);
        let config = change(configs::ktransfer(cluster).set("zk_hosts", [zookeeper.address()]));
        let file = file.set("protocol.headers", [BTreeMap::from([(INSTANCE_HEADER, name)])]);
        let mut ktransfer = Ktransfer::start(config, &[(module, file)]);
        ktransfer.wait_until_ready();
        Member { ktransfer, zookeeper }
    }
}

impl Deref for Member {
    type Target = Ktransfer;

    fn deref(&self) -> &Ktransfer {
        &self.ktransfer
    }
}

impl DerefMut for Member {
    fn deref_mut(&mut self) -> &mut Ktransfer {
        &mut self.ktransfer
    }
}
