//! ORWRITE (SBC-4 5.10). Runs alone on its logical unit.

use libc::iovec;

use super::cdb::Cdb;
use super::{outcome, rw, Buffers, Extent, Job, Outcome, Plan, Refusal};
use crate::engine::{Cursor, Engine, IoKind};
use crate::policy::LunPolicy;

#[derive(Debug)]
pub struct OrWrite {
    extent: Extent,
    pub durable: bool,
}

pub fn plan(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    let extent = rw::transfer_extent(policy, cdb)?;
    rw::check_writable(policy)?;
    if extent.len > buffers.data_out_len {
        return Err(Refusal::Overrun);
    }
    if extent.len == 0 {
        return Ok(Plan::Done(Outcome::good(0)));
    }
    let durable = rw::durable(policy, cdb.fua());
    Ok(Plan::Job(Job::OrWrite(OrWrite { extent, durable })))
}

impl OrWrite {
    pub fn extent(&self) -> Extent {
        self.extent
    }

    pub fn run(
        &self,
        policy: &LunPolicy,
        engine: &dyn Engine,
        data_out: &[iovec],
    ) -> Result<(), Outcome> {
        let Extent { offset, len } = self.extent;
        let chunk = outcome::chunk(policy).min(len);
        let mut medium = outcome::allocate(chunk)?;
        let mut given = outcome::allocate(chunk)?;
        let mut source = Cursor::new(data_out);
        let mut done = 0;
        while done < len {
            let part = Extent {
                offset: offset + done,
                len: chunk.min(len - done),
            };
            let part_len = part.len as usize;
            let piece = medium.iovec(part_len);
            outcome::step(policy, engine, part.io(IoKind::Read, false), &[piece])?;
            source.read(&mut given[..part_len]);
            for (byte, set) in medium[..part_len].iter_mut().zip(&given[..part_len]) {
                *byte |= set;
            }
            let write = part.io(IoKind::Write, self.durable);
            outcome::step(policy, engine, write, &[medium.iovec(part_len)])?;
            done += part.len;
        }
        Ok(())
    }
}
