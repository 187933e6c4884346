//! Media commands (SBC-5): all that this crate knows of operation codes lives here.
//!
//! [`plan`] checks a command and says what it takes; the caller has an engine do it and asks
//! [`complete`] for the outcome, or lets a [`Job`] run to its end on a pool thread.

mod atomic;
mod cache;
pub(crate) mod cdb;
mod compare_and_write;
mod lba_status;
mod orwrite;
mod outcome;
pub mod overwrite;
mod rw;
pub mod scan;
#[cfg(test)]
pub(crate) mod tests;
mod unmap;
mod verify;
mod write_long;
mod write_same;

use std::io;

use libc::iovec;

use crate::cache::{Cache, Use};
use crate::engine::{Engine, Io, IoKind};
use crate::policy::LunPolicy;
use crate::sense::SenseInfo;
use crate::turn::Turn;
use cdb::{flag, Cdb, Command};

pub use crate::engine::trim;
pub use outcome::{status, Outcome};

/// What failed, where a command did not end well through no fault of its initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Write,
    Read,
    Verify,
    /// Not the medium.
    Other,
}

/// A block that an application client has marked bad is no fault (SBC-4 4.18.2).
pub fn fault(cdb: &[u8], outcome: &Outcome) -> Option<Fault> {
    match outcome.sense.code()? {
        outcome::WRITE_ERROR_CODE => Some(Fault::Write),
        outcome::UNRECOVERED_READ_ERROR_CODE => match Cdb::parse(cdb).ok()?.command {
            Command::Verify | Command::WriteAndVerify => Some(Fault::Verify),
            _ => Some(Fault::Read),
        },
        outcome::INTERNAL_TARGET_FAILURE_CODE => Some(Fault::Other),
        _ => None,
    }
}

/// What a command takes.
#[derive(Debug)]
pub enum Plan {
    /// Refused, or nothing to do.
    Done(Outcome),
    /// One engine call, on the guest's buffers where it moves data; [`trim`] them to `len`.
    Io(Io),
    /// Several steps that block.
    Job(Job),
    /// The CDB asks for more data than the buffers hold (virtio response OVERRUN); not executed.
    Overrun,
}

impl Plan {
    /// Whether what it writes may stay in a volatile cache for now.
    fn fills_cache(&self) -> bool {
        match self {
            Self::Io(io) => io.changes() && !io.durable,
            Self::Job(job) => !match job {
                Job::WriteSame(job) => job.durable,
                Job::Unmap(job) => job.durable,
                Job::CompareAndWrite(job) => job.durable,
                Job::OrWrite(job) => job.durable,
                Job::WriteAtomic(job) => job.durable,
                // What it writes, if anything, is durable.
                Job::Verify(_) | Job::GetLbaStatus(_) => true,
            },
            Self::Done(_) | Self::Overrun => false,
        }
    }

    /// What it does to the unit's cache; a flush begins now.
    pub fn cache_use(&self, cache: &Cache) -> Use {
        match self {
            Self::Io(io) if io.kind == IoKind::Flush => Use::Flushes(cache.begin()),
            _ if self.fills_cache() => Use::Fills,
            _ => Use::None,
        }
    }
}

/// A command of several steps. Holds at most a few [`crate::engine::CHUNK`]s of memory.
#[derive(Debug)]
pub enum Job {
    Verify(verify::Verify),
    WriteSame(write_same::WriteSame),
    Unmap(unmap::Unmap),
    CompareAndWrite(compare_and_write::CompareAndWrite),
    OrWrite(orwrite::OrWrite),
    WriteAtomic(atomic::WriteAtomic),
    GetLbaStatus(lba_status::GetLbaStatus),
}

/// Why a command ends before it begins.
enum Refusal {
    Check(SenseInfo),
    Overrun,
}

impl From<SenseInfo> for Refusal {
    fn from(info: SenseInfo) -> Self {
        Self::Check(info)
    }
}

/// A range of the medium in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len: u64,
}

impl Extent {
    fn io(self, kind: IoKind, durable: bool) -> Io {
        Io {
            kind,
            offset: self.offset,
            len: self.len,
            durable,
        }
    }
}

/// What the buffers of a command hold, in bytes.
struct Buffers<'a> {
    data_out: &'a [iovec],
    data_out_len: u64,
    data_in_len: u64,
}

/// Checks a command. Lengths are those of the whole buffers, in bytes. A parameter list or pattern
/// block in data-out is copied here, once.
pub fn plan(
    policy: &LunPolicy,
    cdb: &[u8],
    data_out: &[iovec],
    data_out_len: u64,
    data_in_len: u64,
) -> Plan {
    let buffers = Buffers {
        data_out,
        data_out_len,
        data_in_len,
    };
    let planned = Cdb::parse(cdb)
        .map_err(Refusal::Check)
        .and_then(|cdb| match cdb.command {
            Command::Read => rw::plan_read(policy, &cdb, &buffers),
            Command::Write => rw::plan_write(policy, &cdb, &buffers),
            Command::WriteAndVerify => verify::plan_write_and_verify(policy, &cdb, &buffers),
            Command::Verify => verify::plan(policy, &cdb, &buffers),
            Command::SynchronizeCache => cache::plan(policy, &cdb),
            Command::WriteSame => write_same::plan(policy, &cdb, &buffers),
            Command::Unmap => unmap::plan(policy, &cdb, &buffers),
            Command::CompareAndWrite => compare_and_write::plan(policy, &cdb, &buffers),
            Command::OrWrite => orwrite::plan(policy, &cdb, &buffers),
            Command::WriteAtomic => atomic::plan(policy, &cdb, &buffers),
            Command::WriteLong => write_long::plan(policy, &cdb),
            Command::PreFetch => cache::plan_prefetch(policy, &cdb),
            Command::GetLbaStatus => lba_status::plan(policy, &cdb, &buffers),
        });
    match planned {
        Ok(plan) => plan,
        Err(Refusal::Check(info)) => Plan::Done(Outcome::check(policy, &info, 0)),
        Err(Refusal::Overrun) => Plan::Overrun,
    }
}

/// Blocks that a command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    pub lba: u64,
    pub count: u64,
}

impl Blocks {
    /// The LBA behind the last one.
    pub fn end(&self) -> u64 {
        self.lba.saturating_add(self.count)
    }
}

/// Those of its CDB, or of UNMAP's parameter list in `data_out`; none: not a media command.
pub fn blocks(cdb: &[u8], data_out: &[iovec]) -> Vec<Blocks> {
    let Ok(cdb) = Cdb::parse(cdb) else {
        return Vec::new();
    };
    let to_the_end = match cdb.command {
        Command::Unmap => return unmap::blocks(&cdb, data_out),
        Command::SynchronizeCache | Command::PreFetch | Command::WriteSame => cdb.count == 0,
        Command::GetLbaStatus => true,
        _ => false,
    };
    let count = match cdb.command {
        _ if to_the_end => u64::MAX,
        // The count is of bytes.
        Command::WriteLong => 1,
        _ => cdb.count,
    };
    vec![Blocks {
        lba: cdb.lba,
        count,
    }]
}

/// What a command does to the medium.
#[derive(Clone, Debug, Default)]
pub struct Touches {
    /// In the command's order.
    pub extents: Vec<Extent>,
    pub reads: bool,
    pub changes: bool,
}

impl Touches {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        let lens = self.extents.iter().map(|extent| extent.len);
        lens.fold(0, u64::saturating_add)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Plan {
    pub fn touches(&self) -> Touches {
        let (extents, reads, changes) = match self {
            Self::Io(io) if io.changes() || io.kind == IoKind::Read => {
                let &Io { offset, len, .. } = io;
                (vec![Extent { offset, len }], !io.changes(), io.changes())
            }
            Self::Job(job) => job.touches(),
            _ => return Touches::default(),
        };
        Touches {
            extents,
            reads,
            changes,
        }
    }
}

/// Whether a command runs beside others of its logical unit or alone. `counts_space`: of
/// [`Engine::counts_space`].
pub fn turn(cdb: &[u8], counts_space: bool) -> Turn {
    let Ok(cdb) = Cdb::parse(cdb) else {
        return Turn::Shared;
    };
    let alone = match cdb.command {
        Command::CompareAndWrite | Command::OrWrite | Command::WriteAtomic => true,
        Command::Unmap => counts_space,
        Command::WriteSame => counts_space && cdb.flag(flag::WRITE_SAME_UNMAP),
        _ => false,
    };
    match alone {
        true => Turn::Exclusive,
        false => Turn::Shared,
    }
}

/// The outcome of a [`Plan::Io`] whose engine call ended with `result`.
pub fn complete(policy: &LunPolicy, cdb: &[u8], io: &Io, result: io::Result<u64>) -> Outcome {
    match result {
        Ok(moved) if io.moves_data() && moved < io.len => {
            outcome::failed(policy, io, &io::ErrorKind::UnexpectedEof.into())
        }
        Ok(_) if io.moves_data() => Outcome::good(io.len),
        Ok(_) => Outcome::good(Cdb::parse(cdb).map_or(0, |cdb| cdb.parameter_len(policy))),
        Err(error) => outcome::failed(policy, io, &error),
    }
}

impl Job {
    /// Its ranges, and whether what it reads of them and what it changes there matters to anybody.
    fn touches(&self) -> (Vec<Extent>, bool, bool) {
        match self {
            Self::Verify(job) => (vec![job.extent()], true, job.writes()),
            Self::WriteSame(job) => (vec![job.extent()], false, true),
            Self::Unmap(job) => (job.extents().to_vec(), false, true),
            Self::CompareAndWrite(job) => (vec![job.extent()], true, true),
            Self::OrWrite(job) => (vec![job.extent()], true, true),
            Self::WriteAtomic(job) => (vec![job.extent()], false, true),
            Self::GetLbaStatus(_) => (Vec::new(), false, false),
        }
    }

    /// Runs to the end, blocking. The buffers are those that [`plan`] saw.
    pub fn run(
        &self,
        policy: &LunPolicy,
        engine: &dyn Engine,
        cdb: &[u8],
        data_out: &[iovec],
        data_in: &[iovec],
    ) -> Outcome {
        let result = match self {
            Self::Verify(verify) => verify.run(policy, engine, data_out),
            Self::WriteSame(write_same) => write_same.run(policy, engine),
            Self::Unmap(unmap) => unmap.run(policy, engine),
            Self::CompareAndWrite(job) => job.run(policy, engine, data_out),
            Self::OrWrite(job) => job.run(policy, engine, data_out),
            Self::WriteAtomic(job) => job.run(policy, engine, data_out),
            Self::GetLbaStatus(job) => return job.run(policy, engine, data_in),
        };
        match result {
            Ok(()) => Outcome::good(Cdb::parse(cdb).map_or(0, |cdb| cdb.parameter_len(policy))),
            Err(outcome) => outcome,
        }
    }
}
