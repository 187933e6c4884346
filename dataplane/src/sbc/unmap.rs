//! UNMAP.

use super::cdb::{flag, Cdb, INVALID_OPCODE, LBA_OUT_OF_RANGE};
use super::{outcome, rw, Blocks, Buffers, Extent, Job, Outcome, Plan, Refusal};
use crate::engine::{Cursor, Engine, IoKind};
use crate::policy::LunPolicy;
use crate::sense::{key, SenseInfo};
use libc::iovec;

const PARAMETER_LIST_LENGTH_ERROR: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x1a00);
const INVALID_FIELD_IN_PARAMETER_LIST: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x2600);

const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// Several ranges to free, all of them checked.
#[derive(Debug)]
pub struct Unmap {
    extents: Vec<Extent>,
    pub durable: bool,
}

pub fn plan(policy: &LunPolicy, cdb: &Cdb, buffers: &Buffers) -> Result<Plan, Refusal> {
    if !policy.unmap {
        return Err(INVALID_OPCODE.cdb_field(0, None).into());
    }
    if cdb.flag(flag::UNMAP_ANCHOR) {
        return Err(cdb.invalid_flag(0).into());
    }
    rw::check_writable(policy)?;
    if cdb.count == 0 {
        return Ok(Plan::Done(Outcome::good(0)));
    }
    if cdb.count < HEADER_LEN as u64 {
        let info = PARAMETER_LIST_LENGTH_ERROR.cdb_field(7, None);
        return Err(info.into());
    }
    if cdb.count > buffers.data_out_len {
        return Err(Refusal::Overrun);
    }
    let mut list = vec![0; cdb.count as usize];
    Cursor::new(buffers.data_out).read(&mut list);
    let extents = parse(policy, &list)?;

    let durable = rw::durable(policy, false);
    Ok(match extents[..] {
        [] => Plan::Done(Outcome::good(cdb.count)),
        [extent] => Plan::Io(extent.io(IoKind::Discard, durable)),
        _ => Plan::Job(Job::Unmap(Unmap { extents, durable })),
    })
}

/// What a parameter list names, whether or not it may be freed.
pub fn blocks(cdb: &Cdb, data_out: &[iovec]) -> Vec<Blocks> {
    let mut list = vec![0; (cdb.count as usize).max(HEADER_LEN)];
    Cursor::new(data_out).read(&mut list[..cdb.count as usize]);
    descriptors(&list).collect()
}

/// The shortest of a list's three lengths counts, and a descriptor that is not whole is none (SBC-5
/// UNMAP parameter list).
fn descriptors(list: &[u8]) -> impl ExactSizeIterator<Item = Blocks> + '_ {
    let (header, descriptors) = list.split_at(HEADER_LEN);
    let number = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let (data_len, descriptors_len) = (number(0), number(2));
    let whole = descriptors_len
        .min((data_len + 2).saturating_sub(HEADER_LEN))
        .min(descriptors.len())
        / DESCRIPTOR_LEN;
    let descriptors = descriptors.chunks_exact(DESCRIPTOR_LEN).take(whole);
    descriptors.map(|descriptor| {
        let number = |range: std::ops::Range<usize>| {
            descriptor[range]
                .iter()
                .fold(0, |number: u64, &byte| (number << 8) | u64::from(byte))
        };
        Blocks {
            lba: number(0..8),
            count: number(8..12),
        }
    })
}

/// The ranges of a parameter list, without empty ones.
fn parse(policy: &LunPolicy, list: &[u8]) -> Result<Vec<Extent>, SenseInfo> {
    let descriptors = descriptors(list);
    let max_descriptors = policy.max_unmap_descriptors as usize;
    if max_descriptors != 0 && descriptors.len() > max_descriptors {
        return Err(INVALID_FIELD_IN_PARAMETER_LIST.parameter_field(2));
    }
    let mut extents = Vec::with_capacity(descriptors.len());
    let mut blocks = 0;
    for (index, Blocks { lba, count }) in descriptors.enumerate() {
        let at = (HEADER_LEN + index * DESCRIPTOR_LEN) as u16;
        let out_of_range = || {
            let first = lba.max(policy.blocks);
            LBA_OUT_OF_RANGE.parameter_field(at).information(first)
        };
        let end = lba.checked_add(count).ok_or_else(out_of_range)?;
        if end > policy.blocks {
            return Err(out_of_range());
        }
        blocks += count;
        if policy.max_unmap_blocks != 0 && blocks > u64::from(policy.max_unmap_blocks) {
            return Err(INVALID_FIELD_IN_PARAMETER_LIST.parameter_field(at + 8));
        }
        if count > 0 {
            extents.push(rw::byte_extent(policy, lba, count).ok_or_else(out_of_range)?);
        }
    }
    Ok(extents)
}

impl Unmap {
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    pub fn run(&self, policy: &LunPolicy, engine: &dyn Engine) -> Result<(), Outcome> {
        for extent in &self.extents {
            outcome::step(policy, engine, extent.io(IoKind::Discard, false), &[])?;
        }
        if self.durable {
            outcome::step(policy, engine, self.extents[0].io(IoKind::Flush, true), &[])?;
        }
        Ok(())
    }
}
