//! VERIFY, and WRITE AND VERIFY.

use libc::iovec;

use super::cdb::{Cdb, Command};
use super::{outcome, rw, Buffers, Extent, Job, Outcome, Plan, Refusal};
use crate::engine::{Cursor, Engine, IoKind};
use crate::policy::LunPolicy;
use crate::sense::{key, SenseInfo};

const MISCOMPARE_DURING_VERIFY: SenseInfo = SenseInfo::new(key::MISCOMPARE, 0x1d00);

/// What the medium is held against (BYTCHK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    /// Only that it can be read.
    Nothing,
    /// As many blocks of data-out.
    Blocks,
    /// One block of data-out, again and again.
    OneBlock,
}

#[derive(Debug)]
pub struct Verify {
    extent: Extent,
    against: Against,
    write_first: bool,
}

pub fn plan(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    let extent = rw::transfer_extent(policy, cdb)?;
    let against = against(cdb)?;
    job(
        cdb.parameter_len(policy),
        buffers,
        Verify {
            extent,
            against,
            write_first: false,
        },
    )
}

pub fn plan_write_and_verify(
    policy: &LunPolicy,
    cdb: &Cdb,
    buffers: &Buffers,
) -> Result<Plan, Refusal> {
    let extent = rw::transfer_extent(policy, cdb)?;
    let against = against(cdb)?;
    rw::check_writable(policy)?;
    job(
        extent.len,
        buffers,
        Verify {
            extent,
            against,
            write_first: true,
        },
    )
}

fn against(cdb: &Cdb) -> Result<Against, SenseInfo> {
    match (cdb.bytchk(), cdb.command) {
        (0, _) => Ok(Against::Nothing),
        (1, _) => Ok(Against::Blocks),
        (3, Command::Verify) => Ok(Against::OneBlock),
        _ => Err(cdb.invalid_flag(2)),
    }
}

fn job(data_out: u64, buffers: &Buffers, verify: Verify) -> Result<Plan, Refusal> {
    if verify.extent.len == 0 {
        return Ok(Plan::Done(Outcome::good(0)));
    }
    if data_out > buffers.data_out_len {
        return Err(Refusal::Overrun);
    }
    Ok(Plan::Job(Job::Verify(verify)))
}

impl Verify {
    pub fn extent(&self) -> Extent {
        self.extent
    }

    pub fn writes(&self) -> bool {
        self.write_first
    }

    /// In chunks; the guest may change data-out meanwhile, so each byte of it is copied once and
    /// the copy is what is written and compared.
    pub fn run(
        &self,
        policy: &LunPolicy,
        engine: &dyn Engine,
        data_out: &[iovec],
    ) -> Result<(), Outcome> {
        let Extent { offset, len } = self.extent;
        let chunk = outcome::chunk(policy).min(len);
        let mut medium = outcome::allocate(chunk)?;
        let mut wanted = outcome::allocate(match self.against {
            Against::Nothing if !self.write_first => 0,
            Against::OneBlock => u64::from(policy.block_size),
            _ => chunk,
        })?;
        let mut source = Cursor::new(data_out);
        if self.against == Against::OneBlock {
            source.read(&mut wanted);
        }
        if policy.write_cache && !self.write_first {
            // What is verified is the medium: VERIFY implies FUA (SBC-5, caches).
            outcome::step(policy, engine, self.extent.io(IoKind::Flush, true), &[])?;
        }
        let mut done = 0;
        while done < len {
            let part = Extent {
                offset: offset + done,
                len: chunk.min(len - done),
            };
            let part_len = part.len as usize;
            if self.write_first || self.against == Against::Blocks {
                source.read(&mut wanted[..part_len]);
            }
            if self.write_first {
                // Again the medium, not a cache.
                let write = part.io(IoKind::Write, true);
                outcome::step(policy, engine, write, &[wanted.iovec(part_len)])?;
            }
            let read = part.io(IoKind::Read, false);
            outcome::step(policy, engine, read, &[medium.iovec(part_len)])?;
            match self.against {
                Against::Nothing => (),
                Against::Blocks => {
                    compare(policy, &medium[..part_len], &wanted[..part_len], done)?;
                }
                Against::OneBlock => medium[..part_len]
                    .chunks(wanted.len())
                    .try_for_each(|block| compare(policy, block, &wanted, 0))?,
            }
            done += part.len;
        }
        Ok(())
    }
}

/// MISCOMPARE with the offset of the first differing byte, if there is one; `wanted` begins
/// `before` bytes into data-out.
pub fn compare(
    policy: &LunPolicy,
    medium: &[u8],
    wanted: &[u8],
    before: u64,
) -> Result<(), Outcome> {
    if medium == wanted {
        return Ok(());
    }
    let same = medium.iter().zip(wanted).take_while(|(a, b)| a == b);
    let info = MISCOMPARE_DURING_VERIFY.information(before + same.count() as u64);
    Err(Outcome::check(policy, &info, 0))
}
