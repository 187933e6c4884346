//! The whole medium at once: what SANITIZE and FORMAT UNIT do (SBC-4 4.11, 4.33).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use crate::engine::{AlignedBuffer, Engine, Io, IoKind, CHUNK};

/// Bytes freed at once, so that there is progress to report.
const ERASE_STEP: u64 = 256 << 20;

/// How the medium is filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It reads as zeros afterwards, and takes no space where the engine can free it.
    Erase,
    /// Every block is this one, in all of `passes`; with `invert` each pass has the opposite bits
    /// of the next one.
    Pattern {
        block: Vec<u8>,
        passes: u32,
        invert: bool,
    },
}

/// Runs once; others may watch it or end it early meanwhile.
pub struct Overwrite {
    engine: Arc<dyn Engine>,
    len: u64,
    fill: Fill,
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl Overwrite {
    /// Of the first `len` bytes, a multiple of the pattern's length.
    pub fn new(engine: Arc<dyn Engine>, len: u64, fill: Fill) -> Self {
        Self {
            engine,
            len,
            fill,
            done: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
        }
    }

    /// PROGRESS INDICATION: parts of 65536 that are done (SPC-6, sense key specific data).
    pub fn progress(&self) -> u16 {
        let total = u128::from(self.len) * u128::from(self.passes());
        let done = u128::from(self.done.load(Ordering::Relaxed));
        u16::try_from((done << 16) / total.max(1)).unwrap_or(u16::MAX)
    }

    /// `run` ends with `Interrupted` soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Blocks until all is on stable storage.
    pub fn run(&self) -> io::Result<()> {
        match &self.fill {
            Fill::Erase => self.in_steps(ERASE_STEP, |io| {
                let kind = IoKind::Discard;
                self.engine.run(&Io { kind, ..io }, &[])
            })?,
            Fill::Pattern {
                block,
                passes,
                invert,
            } => {
                let len = (CHUNK / block.len()).max(1) * block.len();
                let mut buffer = AlignedBuffer::zeroed(len)?;
                for pass in 0..*passes {
                    // The last pass writes the pattern as it is.
                    let mask = match *invert && (passes - pass) % 2 == 0 {
                        true => 0xff,
                        false => 0,
                    };
                    for (byte, pattern) in buffer.iter_mut().zip(block.iter().cycle()) {
                        *byte = pattern ^ mask;
                    }
                    self.in_steps(len as u64, |io| {
                        let piece = buffer.iovec(io.len as usize);
                        self.engine.run(&io, &[piece])
                    })?;
                    self.flush()?;
                }
            }
        }
        self.flush()
    }

    fn passes(&self) -> u32 {
        match self.fill {
            Fill::Erase => 1,
            Fill::Pattern { passes, .. } => passes,
        }
    }

    fn in_steps(&self, step: u64, mut act: impl FnMut(Io) -> io::Result<u64>) -> io::Result<()> {
        let mut offset = 0;
        while offset < self.len {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = step.min(self.len - offset);
            act(Io {
                kind: IoKind::Write,
                offset,
                len,
                durable: false,
            })?;
            offset += len;
            self.done.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let flush = Io {
            kind: IoKind::Flush,
            offset: 0,
            len: self.len,
            durable: true,
        };
        self.engine.run(&flush, &[]).map(drop)
    }
}
