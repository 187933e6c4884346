//! Reads the whole medium: the extended self-test (SPC-4 5.15.3).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use super::outcome::{self, Outcome};
use crate::engine::{Engine, Io, IoKind};
use crate::policy::LunPolicy;

/// Runs once; others may watch it or end it early meanwhile.
pub struct Scan {
    engine: Arc<dyn Engine>,
    policy: Arc<LunPolicy>,
    done: AtomicU64,
    cancelled: AtomicBool,
}

/// The first block that cannot be read, and why: sense key, ASC and ASCQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBlock {
    pub lba: u64,
    pub key: u8,
    pub code: u16,
}

impl Scan {
    pub fn new(engine: Arc<dyn Engine>, policy: Arc<LunPolicy>) -> Self {
        Self {
            engine,
            policy,
            done: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
        }
    }

    /// PROGRESS INDICATION: parts of 65536 that are done (SPC-6, sense key specific data).
    pub fn progress(&self) -> u16 {
        let done = u128::from(self.done.load(Ordering::Relaxed));
        u16::try_from((done << 16) / u128::from(self.len()).max(1)).unwrap_or(u16::MAX)
    }

    /// `run` ends with `Interrupted` soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Blocks until all is read, or something cannot be.
    pub fn run(&self) -> io::Result<Option<BadBlock>> {
        let block = u64::from(self.policy.block_size);
        let step = outcome::chunk(&self.policy);
        let mut buffer = outcome::allocate(step).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut read = |offset, len: u64| {
            let io = Io {
                kind: IoKind::Read,
                offset,
                len,
                durable: false,
            };
            outcome::step(
                &self.policy,
                &*self.engine,
                io,
                &[buffer.iovec(len as usize)],
            )
        };
        let mut offset = 0;
        while offset < self.len() {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let end = self.len().min(offset + step);
            if read(offset, end - offset).is_err() {
                // Which of them? A block that can be read after all is none.
                for at in (offset..end).step_by(block as usize) {
                    if let Err(outcome) = read(at, block) {
                        return Ok(bad_block(at / block, &outcome));
                    }
                }
            }
            self.done.fetch_add(end - offset, Ordering::Relaxed);
            offset = end;
        }
        Ok(None)
    }

    fn len(&self) -> u64 {
        self.policy.blocks * u64::from(self.policy.block_size)
    }
}

/// None: an outcome without sense, which is worth another try and no verdict.
fn bad_block(lba: u64, outcome: &Outcome) -> Option<BadBlock> {
    let (key, code) = outcome.sense.code()?;
    Some(BadBlock { lba, key, code })
}
