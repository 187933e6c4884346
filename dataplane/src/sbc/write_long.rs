//! WRITE LONG (SBC-4 5.50): marks a block as containing a pseudo unrecovered error.

use super::cdb::{flag, Cdb};
use super::{rw, Plan, Refusal};
use crate::engine::IoKind;
use crate::policy::LunPolicy;

/// There is no longer form of a block to write, so WR_UNCOR is a must. Nothing is corrected
/// here, with COR_DIS or without.
pub fn plan(policy: &LunPolicy, cdb: &Cdb) -> Result<Plan, Refusal> {
    if !cdb.flag(flag::WRITE_LONG_WR_UNCOR) {
        return Err(cdb.invalid_flag(6).into());
    }
    let extent = rw::extent(policy, cdb, 1)?;
    rw::check_writable(policy)?;
    Ok(Plan::Io(extent.io(IoKind::Mark, false)))
}
