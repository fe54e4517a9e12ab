//! A request of an operator that a dispatcher carries out.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::{Offset, PartitionId};
use crate::ktransfer::group::Generation;
use crate::ktransfer::job::SkipOrder;
use crate::ktransfer::operations::Request;

/// A request that is carried out and not answered.
pub(super) struct PendingRequest {
    pub(super) request: Request,
    /// The claims that are concerned, with their commit points before.
    pub(super) claims: BTreeMap<PartitionId, (Generation, Option<Offset>)>,
    pub(super) skip: Option<Arc<SkipOrder>>,
}
