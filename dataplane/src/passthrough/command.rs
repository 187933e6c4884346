//! What a CDB says of its own length and of its data's.

use super::limits::Limits;
use super::node::Direction;
use super::Rule;
use crate::sbc::cdb::opcode::VARIABLE_LENGTH_CMD;
use crate::sbc::cdb::{
    variable_len, Cdb, Command, ADDITIONAL_CDB_LENGTH, INVALID_FIELD_IN_CDB, INVALID_OPCODE,
};
use crate::sense::SenseInfo;

/// Bytes of protection information that follow a block's data (SBC-5 4.21).
const PROTECTION_LEN: u64 = 8;

/// The CDB without the padding that virtio gives it. An error: the host cannot take it.
pub fn exact(limits: &Limits, cdb: &[u8]) -> Result<Vec<u8>, SenseInfo> {
    let opcode = cdb.first().copied().unwrap_or_default();
    let len = match opcode >> 5 {
        _ if opcode == VARIABLE_LENGTH_CMD => variable_len(cdb),
        0 => 6,
        4 => 16,
        5 => 12,
        // Vendor specific: as long as it looks.
        6 | 7 => match cdb.iter().rposition(|&byte| byte != 0) {
            Some(last @ 10..) => (last + 1).next_multiple_of(4),
            _ => 10,
        },
        _ => 10,
    };
    match cdb.get(..len) {
        Some(cdb) if len <= limits.max_cdb as usize => Ok(cdb.to_vec()),
        _ if opcode == VARIABLE_LENGTH_CMD => {
            Err(INVALID_FIELD_IN_CDB.cdb_field(ADDITIONAL_CDB_LENGTH.into(), None))
        }
        _ => Err(INVALID_OPCODE.cdb_field(0, None)),
    }
}

/// Bytes of data of a block: with protection information, where the CDB asks for some and the
/// guest's buffer has room for it.
pub fn unit(cdb: &Cdb, block_size: u64, given: u64) -> u64 {
    let blocks = match cdb.command {
        Command::WriteSame => 1,
        Command::CompareAndWrite => 2 * cdb.count,
        _ => cdb.count,
    };
    let protected = block_size + PROTECTION_LEN;
    match cdb.check_protect().is_err() && blocks * protected == given {
        true => protected,
        false => block_size,
    }
}

/// Which data a block command has, and how much. `None`: that does not follow from its CDB.
pub fn data(cdb: &Cdb, unit: u64) -> Option<(Direction, u64)> {
    let blocks = cdb.count * unit;
    Some(match cdb.command {
        Command::Read => (Direction::FromDevice, blocks),
        Command::Write | Command::WriteAndVerify | Command::OrWrite | Command::WriteAtomic => {
            (Direction::ToDevice, blocks)
        }
        Command::CompareAndWrite => (Direction::ToDevice, 2 * blocks),
        Command::Verify => match cdb.bytchk() {
            0 => (Direction::None, 0),
            1 => (Direction::ToDevice, blocks),
            _ => (Direction::ToDevice, unit),
        },
        Command::WriteSame if cdb.no_data_out() => (Direction::None, 0),
        Command::WriteSame => (Direction::ToDevice, unit),
        Command::Unmap => (Direction::ToDevice, cdb.count),
        Command::SynchronizeCache | Command::PreFetch => (Direction::None, 0),
        Command::GetLbaStatus | Command::WriteLong => return None,
    })
}

/// The number in a CDB's length field, if it has one in bytes.
pub fn length(cdb: &[u8], rule: &Rule) -> Option<u64> {
    let field = rule.length.filter(|field| field.size > 0)?;
    let bytes = cdb.get(usize::from(field.at)..)?;
    let bytes = bytes.get(..usize::from(field.size))?;
    Some(
        bytes
            .iter()
            .fold(0, |number, &byte| (number << 8) | u64::from(byte)),
    )
}

/// INVALID FIELD IN CDB for the length; where none is declared, where CDBs of that size have it.
pub fn invalid_length(cdb: &[u8], rule: &Rule) -> SenseInfo {
    let at = match (rule.length, cdb.len()) {
        (Some(field), _) => field.at,
        (None, 6) => 4,
        (None, 10) => 7,
        (None, 12) => 6,
        (None, 16) => 10,
        (None, _) => 28,
    };
    INVALID_FIELD_IN_CDB.cdb_field(at.into(), None)
}
