//! COMPARE AND WRITE (SBC-4 5.3). Runs alone on its logical unit.

use libc::iovec;

use super::cdb::Cdb;
use super::verify::compare;
use super::{outcome, rw, Buffers, Extent, Job, Outcome, Plan, Refusal};
use crate::engine::{Cursor, Engine, IoKind};
use crate::policy::LunPolicy;

#[derive(Debug)]
pub struct CompareAndWrite {
    extent: Extent,
    pub durable: bool,
}

pub fn plan(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    cdb.check_protect()?;
    let extent = rw::extent(policy, cdb, cdb.count)?;
    if cdb.count > u64::from(policy.max_compare_and_write_blocks) {
        return Err(cdb.invalid_count().into());
    }
    rw::check_writable(policy)?;
    if cdb.parameter_len(policy) > buffers.data_out_len {
        return Err(Refusal::Overrun);
    }
    if extent.len == 0 {
        return Ok(Plan::Done(Outcome::good(0)));
    }
    let durable = rw::durable(policy, cdb.fua());
    Ok(Plan::Job(Job::CompareAndWrite(CompareAndWrite {
        extent,
        durable,
    })))
}

impl CompareAndWrite {
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Data-out holds what the medium is compared with, then what is written there.
    pub fn run(
        &self,
        policy: &LunPolicy,
        engine: &dyn Engine,
        data_out: &[iovec],
    ) -> Result<(), Outcome> {
        let Extent { len, .. } = self.extent;
        let mut medium = outcome::allocate(len)?;
        let mut given = outcome::allocate(len)?;
        let mut source = Cursor::new(data_out);
        source.read(&mut given);
        let read = self.extent.io(IoKind::Read, false);
        outcome::step(policy, engine, read, &[medium.iovec(len as usize)])?;
        compare(policy, &medium, &given, 0)?;
        source.read(&mut given);
        let write = self.extent.io(IoKind::Write, self.durable);
        outcome::step(policy, engine, write, &[given.iovec(len as usize)])
    }
}
