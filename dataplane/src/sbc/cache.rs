//! SYNCHRONIZE CACHE and PRE-FETCH.

use super::cdb::Cdb;
use super::{rw, Extent, Plan, Refusal};
use crate::engine::IoKind;
use crate::policy::LunPolicy;
use crate::sense::SenseInfo;

/// No blocks in the CDB means all to the end of the medium.
fn extent(policy: &LunPolicy, cdb: &Cdb) -> Result<Extent, SenseInfo> {
    let count = match cdb.count {
        0 => policy.blocks.saturating_sub(cdb.lba),
        count => count,
    };
    rw::extent(policy, cdb, count)
}

/// IMMED allows to answer early, and is as well served by an answer when all is done.
pub fn plan(policy: &LunPolicy, cdb: &Cdb) -> Result<Plan, Refusal> {
    let extent = extent(policy, cdb)?;
    Ok(Plan::Io(extent.io(IoKind::Flush, true)))
}

/// GOOD, not CONDITION MET: nobody promises here that all of it stays cached.
pub fn plan_prefetch(policy: &LunPolicy, cdb: &Cdb) -> Result<Plan, Refusal> {
    let extent = extent(policy, cdb)?;
    Ok(Plan::Io(extent.io(IoKind::Prefetch, false)))
}
