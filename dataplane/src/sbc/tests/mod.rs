mod commands;
mod errors;
mod exclusive;
mod lba_status;
mod model;
mod overwrite;
mod parameter_lists;
mod scan;
mod write_long;

use libc::iovec;

use super::cdb::opcode;
use super::{complete, plan, trim, Outcome, Plan};
use crate::engine::testing::{drive, Guest};
use crate::engine::{Engine, Io};
use crate::policy::{LunPolicy, Qerr};

pub(crate) fn policy(block_size: u32, blocks: u64) -> LunPolicy {
    LunPolicy {
        block_size,
        blocks,
        write_protected: false,
        write_cache: true,
        descriptor_sense: false,
        max_transfer_blocks: 0,
        max_write_same_blocks: 0,
        max_unmap_blocks: 0,
        max_unmap_descriptors: 0,
        unmap: true,
        max_compare_and_write_blocks: 255,
        max_atomic_blocks: 32,
        atomic_granularity_blocks: 4,
        qerr: Qerr::Nothing,
        restricted_reordering: false,
    }
}

/// Builds CDBs of each length: opcode, byte 1, LBA and count where the format has them.
fn cdb6(opcode: u8, lba: u32, count: u8) -> Vec<u8> {
    let [_, high, middle, low] = lba.to_be_bytes();
    vec![opcode, high, middle, low, count, 0]
}

fn cdb10(opcode: u8, flags: u8, lba: u32, count: u16) -> Vec<u8> {
    [
        &[opcode, flags][..],
        &lba.to_be_bytes(),
        &[0],
        &count.to_be_bytes(),
        &[0],
    ]
    .concat()
}

fn cdb12(opcode: u8, flags: u8, lba: u32, count: u32) -> Vec<u8> {
    [
        &[opcode, flags][..],
        &lba.to_be_bytes(),
        &count.to_be_bytes(),
        &[0, 0],
    ]
    .concat()
}

fn cdb16(opcode: u8, flags: u8, lba: u64, count: u32) -> Vec<u8> {
    [
        &[opcode, flags][..],
        &lba.to_be_bytes(),
        &count.to_be_bytes(),
        &[0, 0],
    ]
    .concat()
}

/// Expects protection information that no block here has.
fn cdb32(action: u16, flags: u8, lba: u64, count: u32) -> Vec<u8> {
    let [high, low] = action.to_be_bytes();
    [
        &[opcode::VARIABLE_LENGTH_CMD, 0, 0, 0, 0, 0, 0, 0x18][..],
        &[high, low, flags, 0],
        &lba.to_be_bytes(),
        &[0xee; 8],
        &count.to_be_bytes(),
    ]
    .concat()
}

fn compare_and_write(flags: u8, lba: u64, count: u8) -> Vec<u8> {
    let mut cdb = cdb16(opcode::COMPARE_AND_WRITE, flags, lba, 0);
    cdb[13] = count;
    cdb
}

fn write_atomic(flags: u8, lba: u64, count: u16) -> Vec<u8> {
    cdb16(opcode::WRITE_ATOMIC_16, flags, lba, count.into())
}

/// Plans with buffers that are large enough for anything.
fn plan_roomy(policy: &LunPolicy, cdb: &[u8]) -> Plan {
    plan(policy, cdb, &[], u64::MAX, u64::MAX)
}

fn refused(plan: Plan) -> Vec<u8> {
    match plan {
        Plan::Done(outcome) => {
            assert_eq!((outcome.status, outcome.transferred), (2, 0));
            outcome.sense.as_bytes().to_vec()
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Fixed-format ILLEGAL REQUEST that points at a CDB field.
fn illegal(code: u16, byte: u8, bit: Option<u8>) -> Vec<u8> {
    let [asc, ascq] = code.to_be_bytes();
    let flags = 0xc0 | bit.map_or(0, |bit| 8 | bit);
    vec![
        0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, flags, 0, byte,
    ]
}

/// LOGICAL BLOCK ADDRESS OUT OF RANGE of the LBA in byte 2; `first` is the first that is missing.
fn out_of_range(first: u64) -> Vec<u8> {
    with_information(illegal(0x2100, 2, None), first)
}

/// Fixed format has room for 32 bits.
fn with_information(mut sense: Vec<u8>, information: u64) -> Vec<u8> {
    if let Ok(information) = u32::try_from(information) {
        sense[0] |= 0x80;
        sense[3..7].copy_from_slice(&information.to_be_bytes());
    }
    sense
}

fn io(plan: Plan) -> Io {
    match plan {
        Plan::Io(io) => io,
        other => panic!("not one engine call: {other:?}"),
    }
}

/// What a worker does with a command.
fn execute(
    ring: Option<&mut io_uring::IoUring>,
    engine: &dyn Engine,
    policy: &LunPolicy,
    cdb: &[u8],
    data_out: &Guest,
    data_in: &Guest,
) -> Outcome {
    let total = crate::engine::total;
    let (out_len, in_len) = (total(&data_out.iov), total(&data_in.iov));
    match plan(policy, cdb, &data_out.iov, out_len, in_len) {
        Plan::Done(outcome) => outcome,
        Plan::Overrun => panic!("overrun of {cdb:02x?}"),
        Plan::Job(job) => job.run(policy, engine, cdb, &data_out.iov, &data_in.iov),
        Plan::Io(io) => {
            let mut iov: Vec<iovec> = match io.kind {
                crate::engine::IoKind::Read => data_in.iov.clone(),
                crate::engine::IoKind::Write => data_out.iov.clone(),
                _ => Vec::new(),
            };
            trim(&mut iov, io.len);
            complete(policy, cdb, &io, drive(ring, engine, &io, &iov))
        }
    }
}

fn no_data() -> Guest {
    Guest::new(&[], &[])
}
