//! GET LBA STATUS (SBC-4 5.6): which blocks are mapped.

use libc::iovec;

use super::cdb::Cdb;
use super::{outcome, rw, Buffers, Job, Outcome, Plan, Refusal};
use crate::engine::{Cursor, Engine, Io, IoKind};
use crate::policy::LunPolicy;

const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;
/// More are cut off; the next command goes on behind them.
const MAX_DESCRIPTORS: usize = 4096;
/// Questions to the engine in one command.
const MAX_STEPS: usize = 16 * MAX_DESCRIPTORS;

const DEALLOCATED: u8 = 1;

#[derive(Debug)]
pub struct GetLbaStatus {
    lba: u64,
    /// Bytes of parameter data that may be returned.
    allocation: usize,
}

/// Blocks in a row of the same state.
struct Run {
    lba: u64,
    blocks: u64,
    mapped: bool,
}

pub fn plan(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    rw::extent(policy, cdb, 0)?;
    let most = HEADER_LEN + MAX_DESCRIPTORS * DESCRIPTOR_LEN;
    let allocation = cdb.count.min(buffers.data_in_len).min(most as u64) as usize;
    Ok(match allocation {
        0 => Plan::Done(Outcome::good(0)),
        _ => Plan::Job(Job::GetLbaStatus(GetLbaStatus {
            lba: cdb.lba,
            allocation,
        })),
    })
}

impl GetLbaStatus {
    pub fn run(&self, policy: &LunPolicy, engine: &dyn Engine, data_in: &[iovec]) -> Outcome {
        let data = match self.parameter_data(policy, engine) {
            Ok(data) => data,
            Err(outcome) => return outcome,
        };
        let written = Cursor::new(data_in).write(&data[..data.len().min(self.allocation)]);
        Outcome::good(written as u64)
    }

    /// At least one descriptor, cut to the allocation length by the caller.
    fn parameter_data(&self, policy: &LunPolicy, engine: &dyn Engine) -> Result<Vec<u8>, Outcome> {
        let room = (self.allocation.saturating_sub(HEADER_LEN) / DESCRIPTOR_LEN).max(1);
        let mut runs: Vec<Run> = Vec::new();
        let mut lba = self.lba;
        for _ in 0..MAX_STEPS {
            if lba >= policy.blocks {
                break;
            }
            let next = run_at(policy, engine, lba)?;
            lba += next.blocks;
            let full = runs.len() == room;
            match runs.last_mut() {
                Some(last) if last.mapped == next.mapped => last.blocks += next.blocks,
                _ if full => break,
                _ => runs.push(next),
            }
        }
        let mut data = vec![0; HEADER_LEN];
        for Run {
            lba,
            blocks,
            mapped,
        } in runs
        {
            data.extend_from_slice(&lba.to_be_bytes());
            let count = u32::try_from(blocks).unwrap_or(u32::MAX);
            data.extend_from_slice(&count.to_be_bytes());
            data.extend_from_slice(&[if mapped { 0 } else { DEALLOCATED }, 0, 0, 0]);
            if blocks > u64::from(count) {
                // The next descriptor would have to begin where this one ends.
                break;
            }
        }
        let rest = (data.len() - 4) as u32;
        data[..4].copy_from_slice(&rest.to_be_bytes());
        Ok(data)
    }
}

/// From `lba` on. A block that is partly a hole is mapped.
fn run_at(policy: &LunPolicy, engine: &dyn Engine, lba: u64) -> Result<Run, Outcome> {
    let block = u64::from(policy.block_size);
    let offset = lba * block;
    let left = policy.blocks - lba;
    let (mapped, len) = engine.extent(offset).map_err(|error| {
        let io = Io {
            kind: IoKind::Read,
            offset,
            len: left * block,
            durable: false,
        };
        outcome::failed(policy, &io, &error)
    })?;
    let (mapped, blocks) = match mapped {
        true => (true, len.div_ceil(block)),
        false if len < block => (true, 1),
        false => (false, len / block),
    };
    Ok(Run {
        lba,
        blocks: blocks.clamp(1, left),
        mapped,
    })
}
