//! READ and WRITE, and the checks that commands on a range of blocks share.

use super::cdb::Cdb;
use super::outcome::WRITE_PROTECTED;
use super::{Buffers, Extent, Outcome, Plan, Refusal};
use crate::engine::IoKind;
use crate::policy::LunPolicy;
use crate::sense::SenseInfo;

/// `count` blocks from the CDB's LBA on. The LBA must exist even if `count` is 0; else INFORMATION
/// is the first that does not (SBC-4 4.18.1).
pub fn extent(policy: &LunPolicy, cdb: &Cdb, count: u64) -> Result<Extent, SenseInfo> {
    let end = cdb.lba.checked_add(count.max(1));
    end.filter(|&end| end <= policy.blocks)
        .and_then(|_| byte_extent(policy, cdb.lba, count))
        .ok_or_else(|| cdb.lba_out_of_range(cdb.lba.max(policy.blocks)))
}

/// `None` beyond 2^64 bytes.
pub fn byte_extent(policy: &LunPolicy, lba: u64, count: u64) -> Option<Extent> {
    let block = u64::from(policy.block_size);
    Some(Extent {
        offset: lba.checked_mul(block)?,
        len: count.checked_mul(block)?,
    })
}

/// The range of a command that moves or reads every block of it.
pub fn transfer_extent(policy: &LunPolicy, cdb: &Cdb) -> Result<Extent, SenseInfo> {
    cdb.check_protect()?;
    let extent = extent(policy, cdb, cdb.count)?;
    let limit = u64::from(policy.max_transfer_blocks);
    if limit != 0 && cdb.count > limit {
        return Err(cdb.invalid_count());
    }
    Ok(extent)
}

pub fn check_writable(policy: &LunPolicy) -> Result<(), SenseInfo> {
    if policy.write_protected {
        return Err(WRITE_PROTECTED);
    }
    Ok(())
}

/// Whether the command's data may not stay in a volatile cache.
pub fn durable(policy: &LunPolicy, fua: bool) -> bool {
    fua || !policy.write_cache
}

pub fn plan_read(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    let extent = transfer_extent(policy, cdb)?;
    if extent.len > buffers.data_in_len {
        return Err(Refusal::Overrun);
    }
    if extent.len == 0 {
        return Ok(Plan::Done(Outcome::good(0)));
    }
    // Without a write cache all that can be read is on the medium already.
    let durable = cdb.fua() && policy.write_cache;
    Ok(Plan::Io(extent.io(IoKind::Read, durable)))
}

pub fn plan_write(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    let extent = transfer_extent(policy, cdb)?;
    check_writable(policy)?;
    if extent.len > buffers.data_out_len {
        return Err(Refusal::Overrun);
    }
    if extent.len == 0 {
        return Ok(Plan::Done(Outcome::good(0)));
    }
    let durable = durable(policy, cdb.fua());
    Ok(Plan::Io(extent.io(IoKind::Write, durable)))
}
