//! WRITE ATOMIC (SBC-4 5.48): all of it or nothing. Runs alone on its logical unit.

use libc::iovec;

use super::cdb::{Cdb, INVALID_OPCODE};
use super::{outcome, rw, Buffers, Extent, Job, Outcome, Plan, Refusal};
use crate::engine::{trim, Engine, IoKind};
use crate::policy::LunPolicy;

#[derive(Debug)]
pub struct WriteAtomic {
    extent: Extent,
    pub durable: bool,
}

pub fn plan(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    if policy.max_atomic_blocks == 0 {
        return Err(INVALID_OPCODE.cdb_field(0, None).into());
    }
    let extent = rw::transfer_extent(policy, cdb)?;
    let granularity = u64::from(policy.atomic_granularity_blocks.max(1));
    if cdb.lba % granularity != 0 {
        return Err(cdb.invalid_lba().into());
    }
    if cdb.count % granularity != 0 || cdb.count > u64::from(policy.max_atomic_blocks) {
        return Err(cdb.invalid_count().into());
    }
    rw::check_writable(policy)?;
    if extent.len > buffers.data_out_len {
        return Err(Refusal::Overrun);
    }
    if extent.len == 0 {
        return Ok(Plan::Done(Outcome::good(0)));
    }
    let durable = rw::durable(policy, cdb.fua());
    Ok(Plan::Job(Job::WriteAtomic(WriteAtomic { extent, durable })))
}

impl WriteAtomic {
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// A write that fails half-way (no space, a bad block) is taken back.
    pub fn run(
        &self,
        policy: &LunPolicy,
        engine: &dyn Engine,
        data_out: &[iovec],
    ) -> Result<(), Outcome> {
        let len = self.extent.len;
        let mut before = outcome::allocate(len)?;
        let before = [before.iovec(len as usize)];
        outcome::step(policy, engine, self.extent.io(IoKind::Read, false), &before)?;
        let mut after = data_out.to_vec();
        trim(&mut after, len);
        let write = self.extent.io(IoKind::Write, self.durable);
        outcome::step(policy, engine, write, &after).inspect_err(|_| {
            // If this fails too, the sense data of the first error is all there is to say.
            let _ = engine.run(&write, &before);
        })
    }
}
