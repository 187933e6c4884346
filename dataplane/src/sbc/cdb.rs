//! Command descriptor blocks: which bytes mean what (SBC-4 clause 5).

use crate::policy::LunPolicy;
use crate::sense::{key, SenseInfo};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    WriteAndVerify,
    Verify,
    SynchronizeCache,
    WriteSame,
    Unmap,
    CompareAndWrite,
    OrWrite,
    WriteAtomic,
    PreFetch,
    GetLbaStatus,
    WriteLong,
}

/// Where a CDB of one length keeps its two numbers, first byte and bytes of each, and its flags.
#[derive(Clone, Copy, Debug)]
struct Format {
    len: usize,
    flags: u8,
    lba: (u8, u8),
    /// TRANSFER LENGTH, VERIFICATION LENGTH, NUMBER OF LOGICAL BLOCKS, PARAMETER LIST LENGTH,
    /// ALLOCATION LENGTH.
    count: (u8, u8),
}

const SIX: Format = Format {
    len: 6,
    flags: 1,
    lba: (1, 3),
    count: (4, 1),
};
const TEN: Format = Format {
    len: 10,
    flags: 1,
    lba: (2, 4),
    count: (7, 2),
};
const TWELVE: Format = Format {
    len: 12,
    flags: 1,
    lba: (2, 4),
    count: (6, 4),
};
const SIXTEEN: Format = Format {
    len: 16,
    flags: 1,
    lba: (2, 8),
    count: (10, 4),
};

/// Of variable length. Between LBA and count is what protection information is to say.
const THIRTY_TWO: Format = Format {
    len: 32,
    flags: 10,
    lba: (12, 8),
    count: (28, 4),
};
const REFERENCE_TAG: usize = 20;

const COMPARE_AND_WRITE_FORMAT: Format = Format {
    count: (13, 1),
    ..SIXTEEN
};
const WRITE_LONG_16_FORMAT: Format = Format {
    count: (12, 2),
    ..SIXTEEN
};
/// ATOMIC BOUNDARY stands before the length.
const WRITE_ATOMIC_FORMAT: Format = Format {
    count: (12, 2),
    ..SIXTEEN
};

/// Names as in Linux's scsi_proto.h.
pub mod opcode {
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const WRITE_VERIFY: u8 = 0x2e;
    pub const VERIFY: u8 = 0x2f;
    pub const PRE_FETCH: u8 = 0x34;
    pub const SYNCHRONIZE_CACHE: u8 = 0x35;
    pub const WRITE_LONG: u8 = 0x3f;
    pub const WRITE_SAME: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const VARIABLE_LENGTH_CMD: u8 = 0x7f;
    pub const READ_16: u8 = 0x88;
    pub const COMPARE_AND_WRITE: u8 = 0x89;
    pub const WRITE_16: u8 = 0x8a;
    pub const ORWRITE_16: u8 = 0x8b;
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const PRE_FETCH_16: u8 = 0x90;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const WRITE_ATOMIC_16: u8 = 0x9c;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const SERVICE_ACTION_OUT_16: u8 = 0x9f;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
}

/// SERVICE ACTIONs, names as there.
pub mod action {
    /// Of SERVICE ACTION IN (16).
    pub const SAI_GET_LBA_STATUS: u16 = 0x12;
    /// Of SERVICE ACTION OUT (16).
    pub const SAO_WRITE_LONG: u16 = 0x11;
    /// Of variable-length CDBs.
    pub const READ_32: u16 = 0x09;
    pub const VERIFY_32: u16 = 0x0a;
    pub const WRITE_32: u16 = 0x0b;
    pub const WRITE_VERIFY_32: u16 = 0x0c;
    pub const WRITE_SAME_32: u16 = 0x0d;
}

/// Where a variable-length CDB says how many bytes follow, and has its SERVICE ACTION.
pub const ADDITIONAL_CDB_LENGTH: u8 = 7;
const VARIABLE_LENGTH_ACTION: usize = 8;

/// Bytes of a variable-length CDB, by its own account.
pub fn variable_len(cdb: &[u8]) -> usize {
    let at = usize::from(ADDITIONAL_CDB_LENGTH);
    at + 1 + usize::from(cdb.get(at).copied().unwrap_or_default())
}

/// SERVICE ACTION of a variable-length CDB; None for one of another kind, or cut short.
pub fn variable_action(cdb: &[u8]) -> Option<u16> {
    let variable = cdb.first() == Some(&opcode::VARIABLE_LENGTH_CMD);
    let action = cdb.get(VARIABLE_LENGTH_ACTION..VARIABLE_LENGTH_ACTION + 2)?;
    variable.then(|| u16::from_be_bytes([action[0], action[1]]))
}

/// SERVICE ACTION of a CDB of either kind, if it has one.
fn service_action(cdb: &[u8]) -> u16 {
    let byte1 = cdb.get(1).copied().unwrap_or_default();
    variable_action(cdb).unwrap_or(u16::from(byte1 & 0x1f))
}

/// One line an operation code, or operation code and service action.
const fn table(opcode: u8, action: u16) -> Option<(Command, Format)> {
    use action::*;
    use opcode::*;
    Some(match opcode {
        READ_6 => (Command::Read, SIX),
        READ_10 => (Command::Read, TEN),
        READ_12 => (Command::Read, TWELVE),
        READ_16 => (Command::Read, SIXTEEN),
        WRITE_6 => (Command::Write, SIX),
        WRITE_10 => (Command::Write, TEN),
        WRITE_12 => (Command::Write, TWELVE),
        WRITE_16 => (Command::Write, SIXTEEN),
        WRITE_VERIFY => (Command::WriteAndVerify, TEN),
        WRITE_VERIFY_12 => (Command::WriteAndVerify, TWELVE),
        WRITE_VERIFY_16 => (Command::WriteAndVerify, SIXTEEN),
        VERIFY => (Command::Verify, TEN),
        VERIFY_12 => (Command::Verify, TWELVE),
        VERIFY_16 => (Command::Verify, SIXTEEN),
        SYNCHRONIZE_CACHE => (Command::SynchronizeCache, TEN),
        SYNCHRONIZE_CACHE_16 => (Command::SynchronizeCache, SIXTEEN),
        WRITE_SAME => (Command::WriteSame, TEN),
        WRITE_SAME_16 => (Command::WriteSame, SIXTEEN),
        UNMAP => (Command::Unmap, TEN),
        COMPARE_AND_WRITE => (Command::CompareAndWrite, COMPARE_AND_WRITE_FORMAT),
        ORWRITE_16 => (Command::OrWrite, SIXTEEN),
        WRITE_ATOMIC_16 => (Command::WriteAtomic, WRITE_ATOMIC_FORMAT),
        PRE_FETCH => (Command::PreFetch, TEN),
        PRE_FETCH_16 => (Command::PreFetch, SIXTEEN),
        SERVICE_ACTION_IN_16 if action == SAI_GET_LBA_STATUS => (Command::GetLbaStatus, SIXTEEN),
        WRITE_LONG => (Command::WriteLong, TEN),
        SERVICE_ACTION_OUT_16 if action == SAO_WRITE_LONG => {
            (Command::WriteLong, WRITE_LONG_16_FORMAT)
        }
        VARIABLE_LENGTH_CMD => {
            let command = match action {
                READ_32 => Command::Read,
                VERIFY_32 => Command::Verify,
                WRITE_32 => Command::Write,
                WRITE_VERIFY_32 => Command::WriteAndVerify,
                WRITE_SAME_32 => Command::WriteSame,
                _ => return None,
            };
            (command, THIRTY_TWO)
        }
        _ => return None,
    })
}

pub const INVALID_OPCODE: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x2000);
pub const INVALID_FIELD_IN_CDB: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x2400);
pub const LBA_OUT_OF_RANGE: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x2100);

/// Flags; several commands give one bit different meanings.
pub mod flag {
    pub const DPO_FUA_FUA: u8 = 1 << 3;
    pub const WRITE_SAME_ANCHOR: u8 = 1 << 4;
    pub const WRITE_SAME_UNMAP: u8 = 1 << 3;
    pub const WRITE_SAME_PBDATA: u8 = 1 << 2;
    pub const WRITE_SAME_LBDATA: u8 = 1 << 1;
    pub const WRITE_SAME_NDOB: u8 = 1 << 0;
    pub const UNMAP_ANCHOR: u8 = 1 << 0;
    pub const WRITE_LONG_WR_UNCOR: u8 = 1 << 6;
}

/// A parsed CDB.
#[derive(Clone, Copy, Debug)]
pub struct Cdb {
    pub command: Command,
    pub lba: u64,
    /// The number in the length field; what 0 means is the command's business, except that
    /// READ (6) and WRITE (6) have 256 here.
    pub count: u64,
    opcode: u8,
    /// The byte of flags, which 6-byte CDBs have not.
    flags: u8,
    format: Format,
}

impl Cdb {
    pub fn parse(cdb: &[u8]) -> Result<Self, SenseInfo> {
        let opcode = *cdb.first().ok_or(INVALID_OPCODE)?;
        let (command, format) =
            table(opcode, service_action(cdb)).ok_or(INVALID_OPCODE.cdb_field(0, None))?;
        // The driver may have made the CDB field of its requests shorter than this command.
        let cdb = cdb.get(..format.len).ok_or(INVALID_FIELD_IN_CDB)?;
        let number = |(at, bytes): (u8, u8)| {
            cdb[usize::from(at)..][..usize::from(bytes)]
                .iter()
                .fold(0, |number: u64, &byte| (number << 8) | u64::from(byte))
        };
        if opcode == opcode::VARIABLE_LENGTH_CMD && variable_len(cdb) != format.len {
            return Err(INVALID_FIELD_IN_CDB.cdb_field(ADDITIONAL_CDB_LENGTH.into(), None));
        }
        let (mut lba, mut count) = (number(format.lba), number(format.count));
        let mut flags = cdb[usize::from(format.flags)];
        if format.len == SIX.len {
            lba &= 0x1f_ffff;
            flags = 0;
            if count == 0 {
                count = 256;
            }
        }
        Ok(Self {
            command,
            lba,
            count,
            opcode,
            flags,
            format,
        })
    }

    /// Makes `cdb`, which this was parsed from, the same command on another range.
    pub fn set_range(&self, cdb: &mut [u8], lba: u64, count: u64) {
        let mut set = |(at, bytes): (u8, u8), keep: u8, number: u64| {
            let (at, bytes) = (usize::from(at), usize::from(bytes));
            let first = cdb[at] & keep;
            cdb[at..at + bytes].copy_from_slice(&number.to_be_bytes()[8 - bytes..]);
            cdb[at] |= first;
        };
        // Three bits of the first byte of a 6-byte CDB's LBA are another field; 256 blocks are 0.
        let six = self.format.len == SIX.len;
        if self.format.lba.1 > 0 {
            set(self.format.lba, if six { 0xe0 } else { 0 }, lba);
        }
        set(self.format.count, 0, count);
        if self.format.len == THIRTY_TWO.len {
            // EXPECTED INITIAL LOGICAL BLOCK REFERENCE TAG, of the first block; each has one more.
            let mut tag = [0; 4];
            tag.copy_from_slice(&cdb[REFERENCE_TAG..][..4]);
            let tag = u32::from_be_bytes(tag).wrapping_add(lba.wrapping_sub(self.lba) as u32);
            cdb[REFERENCE_TAG..][..4].copy_from_slice(&tag.to_be_bytes());
        }
    }

    pub fn flag(&self, mask: u8) -> bool {
        self.flags & mask != 0
    }

    /// FUA of READ and WRITE.
    pub fn fua(&self) -> bool {
        self.flag(flag::DPO_FUA_FUA)
    }

    /// BYTCHK of VERIFY and WRITE AND VERIFY.
    pub fn bytchk(&self) -> u8 {
        (self.flags >> 1) & 3
    }

    /// NDOB, which WRITE SAME (10) has not.
    pub fn no_data_out(&self) -> bool {
        self.command == Command::WriteSame
            && self.opcode != opcode::WRITE_SAME
            && self.flag(flag::WRITE_SAME_NDOB)
    }

    /// Data-out of commands that do not write it to the medium block for block, and of VERIFY.
    pub fn parameter_len(&self, policy: &LunPolicy) -> u64 {
        let block = u64::from(policy.block_size);
        match self.command {
            Command::Read
            | Command::Write
            | Command::SynchronizeCache
            | Command::PreFetch
            | Command::GetLbaStatus
            | Command::WriteLong => 0,
            Command::WriteAndVerify | Command::OrWrite | Command::WriteAtomic => self.count * block,
            Command::CompareAndWrite => 2 * self.count * block,
            Command::Verify => match self.bytchk() {
                0 => 0,
                1 => self.count * block,
                _ => block,
            },
            Command::WriteSame if self.no_data_out() => 0,
            Command::WriteSame => block,
            Command::Unmap => self.count,
        }
    }

    /// INVALID FIELD IN CDB for a flag or a field of flags; `bit` is its highest.
    pub fn invalid_flag(&self, bit: u8) -> SenseInfo {
        INVALID_FIELD_IN_CDB.cdb_field(self.format.flags.into(), Some(bit))
    }

    /// INVALID FIELD IN CDB for the length field.
    pub fn invalid_count(&self) -> SenseInfo {
        INVALID_FIELD_IN_CDB.cdb_field(self.format.count.0.into(), None)
    }

    /// INVALID FIELD IN CDB for the LBA.
    pub fn invalid_lba(&self) -> SenseInfo {
        INVALID_FIELD_IN_CDB.cdb_field(self.format.lba.0.into(), None)
    }

    /// `first`: the first LBA that the medium does not have.
    pub fn lba_out_of_range(&self, first: u64) -> SenseInfo {
        // The LBA of a 6-byte CDB shares its first byte.
        let bit = (self.format.len == SIX.len).then_some(4);
        LBA_OUT_OF_RANGE
            .cdb_field(self.format.lba.0.into(), bit)
            .information(first)
    }

    /// RDPROTECT, WRPROTECT and VRPROTECT must be 0: the medium has no protection information.
    pub fn check_protect(&self) -> Result<(), SenseInfo> {
        match self.flags >> 5 {
            0 => Ok(()),
            _ => Err(self.invalid_flag(7)),
        }
    }
}
