//! How a command ends: status, sense, and what an engine's errors mean to an initiator.

use std::io;

use libc::iovec;

use crate::engine::marked::MarkedBad;
use crate::engine::python::Refused;
use crate::engine::space::SpaceSoon;
use crate::engine::{AlignedBuffer, Engine, Io, IoKind, NotFlushed, Partial, CHUNK};
use crate::policy::LunPolicy;
use crate::sense::{self, key, Sense, SenseInfo};

/// Status codes (SAM-6).
pub mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const BUSY: u8 = 0x08;
}

pub const WRITE_PROTECTED: SenseInfo = SenseInfo::new(key::DATA_PROTECT, 0x2700);
/// SPACE ALLOCATION IN PROGRESS: a temporary lack of space (SBC-5 4.7.3.6.1).
const SPACE_SOON: SenseInfo = SenseInfo::new(key::NOT_READY, 0x0414);
/// A persistent one.
const SPACE_ALLOCATION_FAILED: SenseInfo = SenseInfo::new(key::DATA_PROTECT, 0x2707);
pub const UNRECOVERED_READ_ERROR_CODE: (u8, u16) = (key::MEDIUM_ERROR, 0x1100);
const UNRECOVERED_READ_ERROR: SenseInfo = SenseInfo::of(UNRECOVERED_READ_ERROR_CODE);
/// READ ERROR - LBA MARKED BAD BY APPLICATION CLIENT.
const MARKED_BAD: SenseInfo = SenseInfo::new(key::MEDIUM_ERROR, 0x1114);
pub const WRITE_ERROR_CODE: (u8, u16) = (key::MEDIUM_ERROR, 0x0c00);
const WRITE_ERROR: SenseInfo = SenseInfo::of(WRITE_ERROR_CODE);
pub const INTERNAL_TARGET_FAILURE_CODE: (u8, u16) = (key::HARDWARE_ERROR, 0x4400);
const INTERNAL_TARGET_FAILURE: SenseInfo = SenseInfo::of(INTERNAL_TARGET_FAILURE_CODE);
const DATA_PHASE_ERROR: SenseInfo = SenseInfo::new(key::ABORTED_COMMAND, 0x4b00);

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// SAM status.
    pub status: u8,
    pub sense: Sense,
    /// Bytes of data-out consumed or of data-in produced.
    pub transferred: u64,
    /// [`Io::loses_cache`].
    pub loses_cache: bool,
}

impl Outcome {
    pub fn good(transferred: u64) -> Self {
        Self {
            status: status::GOOD,
            sense: Sense::NONE,
            transferred,
            loses_cache: false,
        }
    }

    /// CHECK CONDITION, in the sense format that the initiator chose (D_SENSE).
    pub fn check(policy: &LunPolicy, info: &SenseInfo, transferred: u64) -> Self {
        Self {
            status: status::CHECK_CONDITION,
            sense: sense::build(info, policy.descriptor_sense),
            transferred,
            loses_cache: false,
        }
    }

    /// GOOD is not what a flush has to say while its initiator does not know of a loss.
    pub fn write_error(policy: &LunPolicy) -> Self {
        Self::check(policy, &WRITE_ERROR, 0)
    }

    /// Worth another try; a status without sense.
    fn busy() -> Self {
        Self {
            status: status::BUSY,
            ..Self::good(0)
        }
    }
}

/// What an engine's error means.
pub fn failed(policy: &LunPolicy, io: &Io, error: &io::Error) -> Outcome {
    Outcome {
        loses_cache: io.loses_cache(error),
        ..told(policy, io, error)
    }
}

fn told(policy: &LunPolicy, io: &Io, error: &io::Error) -> Outcome {
    let (done, error) = Partial::split(error);
    let transferred = done.filter(|_| io.moves_data()).unwrap_or(0);
    if let Some(Refused(info)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return Outcome::check(policy, info, transferred);
    }
    let info = match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM | libc::EINTR) => return Outcome::busy(),
        Some(libc::ENOSPC | libc::EDQUOT) => SPACE_ALLOCATION_FAILED,
        Some(libc::EROFS) => WRITE_PROTECTED,
        // The guest's buffer is no longer there.
        Some(libc::EFAULT) => DATA_PHASE_ERROR,
        // What the kernel calls a medium error or failed integrity check besides EIO.
        Some(libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EUCLEAN) => {
            medium_error(policy, io, done)
        }
        None if is::<SpaceSoon>(error) => SPACE_SOON,
        None if is::<NotFlushed>(error) => WRITE_ERROR,
        None if is::<MarkedBad>(error) => {
            let block = u64::from(policy.block_size);
            MARKED_BAD.information((io.offset + transferred) / block)
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => medium_error(policy, io, done),
        _ => INTERNAL_TARGET_FAILURE,
    };
    Outcome::check(policy, &info, transferred)
}

fn is<E: std::error::Error + 'static>(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<E>())
}

/// With the failing LBA, where it is known: behind the bytes that went well, or the only one.
fn medium_error(policy: &LunPolicy, io: &Io, done: Option<u64>) -> SenseInfo {
    let block = u64::from(policy.block_size);
    let info = match io.kind {
        IoKind::Read => UNRECOVERED_READ_ERROR,
        _ => WRITE_ERROR,
    };
    let done = done.or((io.len == block).then_some(0));
    match done.filter(|_| io.kind != IoKind::Flush) {
        Some(done) => info.information((io.offset + done) / block),
        None => info,
    }
}

/// One engine call of a job.
pub fn step(policy: &LunPolicy, engine: &dyn Engine, io: Io, iov: &[iovec]) -> Result<(), Outcome> {
    match engine.run(&io, iov) {
        Ok(_) => Ok(()),
        Err(error) => Err(Outcome {
            transferred: 0,
            ..failed(policy, &io, &error)
        }),
    }
}

/// Bytes that a job moves at once: whole blocks.
pub fn chunk(policy: &LunPolicy) -> u64 {
    let block = u64::from(policy.block_size);
    (CHUNK as u64 / block).max(1) * block
}

/// Memory of a job.
pub fn allocate(len: u64) -> Result<AlignedBuffer, Outcome> {
    AlignedBuffer::zeroed(len as usize).map_err(|_| Outcome::busy())
}
