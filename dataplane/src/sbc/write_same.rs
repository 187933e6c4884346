//! WRITE SAME.

use super::cdb::{flag, Cdb};
use super::{outcome, rw, Buffers, Extent, Outcome, Plan, Refusal};
use crate::engine::{Cursor, Engine, IoKind};
use crate::policy::LunPolicy;

/// Writes one block that is not all zeros again and again.
#[derive(Debug)]
pub struct WriteSame {
    extent: Extent,
    block: Vec<u8>,
    pub durable: bool,
}

pub fn plan(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    cdb.check_protect()?;
    for (unsupported, bit) in [
        // Blocks are mapped or deallocated here, never anchored.
        (cdb.flag(flag::WRITE_SAME_ANCHOR), 4),
        (cdb.flag(flag::WRITE_SAME_UNMAP) && !policy.unmap, 3),
        // Obsolete, but a device that ignored them would write other data than asked.
        (cdb.flag(flag::WRITE_SAME_PBDATA), 2),
        (cdb.flag(flag::WRITE_SAME_LBDATA), 1),
    ] {
        if unsupported {
            return Err(cdb.invalid_flag(bit).into());
        }
    }
    // WSNZ = 0: no number means all blocks to the end of the medium.
    let count = match cdb.count {
        0 => policy.blocks.saturating_sub(cdb.lba),
        count => count,
    };
    let extent = rw::extent(policy, cdb, count)?;
    let limit = policy.max_write_same_blocks;
    if limit != 0 && count > limit {
        return Err(cdb.invalid_count().into());
    }
    rw::check_writable(policy)?;

    let durable = rw::durable(policy, false);
    let block = pattern(policy, cdb, buffers)?;
    if block.iter().any(|&byte| byte != 0) {
        return Ok(Plan::Job(super::Job::WriteSame(WriteSame {
            extent,
            block,
            durable,
        })));
    }
    // A deallocated block reads as the zeros that were to be written (SBC-4 4.7.3.4.4).
    let kind = match cdb.flag(flag::WRITE_SAME_UNMAP) {
        true => IoKind::Discard,
        false => IoKind::Zero,
    };
    Ok(Plan::Io(extent.io(kind, durable)))
}

/// A private copy of the block to write; empty stands for zeros.
fn pattern(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Vec<u8>, Refusal> {
    if cdb.no_data_out() {
        return Ok(Vec::new());
    }
    let block = u64::from(policy.block_size);
    // No field of the CDB asks for a length that the transport could find missing.
    if buffers.data_out_len != block {
        return Err(super::cdb::INVALID_FIELD_IN_CDB.into());
    }
    let mut block = vec![0; block as usize];
    Cursor::new(buffers.data_out).read(&mut block);
    Ok(block)
}

impl WriteSame {
    pub fn extent(&self) -> Extent {
        self.extent
    }

    pub fn run(&self, policy: &LunPolicy, engine: &dyn Engine) -> Result<(), Outcome> {
        let Extent { offset, len } = self.extent;
        let chunk = outcome::chunk(policy).min(len);
        let mut buffer = outcome::allocate(chunk)?;
        for block in buffer.chunks_mut(self.block.len()) {
            block.copy_from_slice(&self.block);
        }
        let mut done = 0;
        while done < len {
            let part = Extent {
                offset: offset + done,
                len: chunk.min(len - done),
            };
            let piece = buffer.iovec(part.len as usize);
            outcome::step(policy, engine, part.io(IoKind::Write, false), &[piece])?;
            done += part.len;
        }
        if self.durable {
            outcome::step(policy, engine, self.extent.io(IoKind::Flush, true), &[])?;
        }
        Ok(())
    }
}
