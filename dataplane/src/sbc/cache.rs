//! SYNCHRONIZE CACHE.

use super::cdb::Cdb;
use super::{rw, Plan, Refusal};
use crate::engine::IoKind;
use crate::policy::LunPolicy;

/// IMMED allows to answer early, and is as well served by an answer when all is done.
pub fn plan(policy: &LunPolicy, cdb: &Cdb) -> Result<Plan, Refusal> {
    let count = match cdb.count {
        0 => policy.blocks.saturating_sub(cdb.lba),
        count => count,
    };
    let extent = rw::extent(policy, cdb, count)?;
    Ok(Plan::Io(extent.io(IoKind::Flush, true)))
}
