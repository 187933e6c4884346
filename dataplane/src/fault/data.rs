//! Data that goes wrong between a command and the medium: an engine that stands there for the time
//! of one command. What goes wrong without a word is told as done.

use std::io;
use std::sync::Arc;

use io_uring::squeue;
use libc::iovec;

use super::Corrupted;
use crate::engine::python::Refused;
use crate::engine::{trim, AlignedBuffer, Cursor, Engine, Io, IoKind, Partial};
use crate::sbc::{Extent, Touches};
use crate::sense::SenseInfo;

/// The smallest piece that a disk writes in one go.
const SECTOR: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// One bit is wrong: of a change on the medium, of a read for that reader only.
    Flip,
    /// Only the front of a change reaches the medium.
    Torn,
    /// Nothing of it does.
    Lost,
    /// It goes to other blocks.
    Misdirected,
}

/// What is wrong with one command. Places are in bytes; those within a command count through all of
/// its ranges.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    /// This bit of it.
    Flip(u64),
    /// Only so many bytes of it are done.
    Cut(u64),
    /// Each range goes to the place that follows from this.
    Misdirected(u64),
    /// These bytes of the medium, first and last, can be neither read nor written, whichever
    /// `reads` says; what comes before them is done.
    Bad {
        first: u64,
        last: u64,
        reads: bool,
        sense: SenseInfo,
    },
}

impl Wrong {
    /// None: there is nothing to do wrong.
    pub fn corruption(corrupted: &Corrupted, touches: &Touches, block: u64) -> Option<Self> {
        let &Corrupted {
            what,
            blocks: (first, last),
            random,
        } = corrupted;
        let len = touches.len();
        if len == 0 {
            return None;
        }
        Some(match what {
            Corruption::Flip => {
                let first = first.saturating_mul(block);
                let end = last.saturating_add(1).saturating_mul(block);
                Self::Flip(bit_within(touches, first, end, random)?)
            }
            // At a sector's end behind the first one; where there is only one, in its middle.
            Corruption::Torn => {
                let unit = SECTOR.min(len / 2);
                Self::Cut(unit * (1 + random % (len / unit - 1)))
            }
            Corruption::Lost => Self::Cut(0),
            Corruption::Misdirected => Self::Misdirected(random),
        })
    }
}

/// One of the bits that a command touches from byte `first` of the medium to `end`.
fn bit_within(touches: &Touches, first: u64, end: u64, random: u64) -> Option<u64> {
    let mut before = 0;
    // How much of each range is within, and where in the command that begins.
    let parts = touches.extents.iter().map(|extent| {
        let from = first.max(extent.offset);
        let to = end.min(extent.offset + extent.len);
        let part = (
            before + from.saturating_sub(extent.offset),
            to.saturating_sub(from),
        );
        before += extent.len;
        part
    });
    let parts: Vec<_> = parts.collect();
    let total: u64 = parts.iter().map(|(_, len)| len).sum();
    let mut bit = random.checked_rem(total.saturating_mul(8))?;
    for (at, len) in parts {
        if bit < len * 8 {
            return Some(at * 8 + bit);
        }
        bit -= len * 8;
    }
    None
}

pub struct FaultyEngine {
    inner: Arc<dyn Engine>,
    touches: Touches,
    wrong: Wrong,
    block: u64,
}

impl FaultyEngine {
    pub fn new(inner: Arc<dyn Engine>, touches: Touches, wrong: Wrong, block: u64) -> Self {
        Self {
            inner,
            touches,
            wrong,
            block,
        }
    }

    /// Whether a call is of the kind that goes wrong: where a command both reads and changes, what
    /// it changes does, unless reads are meant.
    fn concerns(&self, io: &Io) -> bool {
        let reads = match self.wrong {
            Wrong::Bad { reads: true, .. } => self.touches.reads,
            _ => !self.touches.changes,
        };
        if reads {
            io.kind == IoKind::Read
        } else {
            io.changes()
        }
    }

    /// The range that a call is in, and how many bytes of the command come before the call.
    fn place(&self, io: &Io) -> Option<(Extent, u64)> {
        let mut before = 0;
        for extent in &self.touches.extents {
            let at = io.offset.checked_sub(extent.offset);
            if let Some(at) = at.filter(|at| *at < extent.len) {
                return Some((*extent, before + at));
            }
            before += extent.len;
        }
        None
    }

    fn flip(&self, bit: u64, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        self.inner.run(io, iov)?;
        let before = self.place(io).map_or(0, |(_, before)| before);
        let Some(at) = (bit / 8).checked_sub(before).filter(|at| *at < io.len) else {
            return Ok(io.len);
        };
        let mask = 1 << (bit % 8);
        if io.kind == IoKind::Read {
            let mut byte = [0];
            let mut cursor = Cursor::new(iov);
            cursor.skip(at as usize);
            cursor.clone().read(&mut byte);
            cursor.write(&[byte[0] ^ mask]);
        } else {
            let first = at / self.block * self.block;
            self.rewrite(&part(io, first, self.block), |block| {
                block[(at - first) as usize] ^= mask;
            })?;
        }
        Ok(io.len)
    }

    fn cut(&self, most: u64, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        let before = self.place(io).map_or(0, |(_, before)| before);
        let len = most.saturating_sub(before).min(io.len);
        let whole = len / self.block * self.block;
        self.front(whole, io, iov)?;
        if len > whole && io.changes() {
            self.rewrite(&part(io, whole, self.block), |block| {
                let new = &mut block[..(len - whole) as usize];
                // What is not written is to read as zeros.
                new.fill(0);
                let mut cursor = Cursor::new(iov);
                cursor.skip(whole as usize);
                cursor.read(new);
            })?;
        }
        Ok(io.len)
    }

    fn misdirect(&self, random: u64, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        let Some((extent, _)) = self.place(io) else {
            return self.inner.run(io, iov);
        };
        let places = (self.size() - extent.len) / self.block + 1;
        if places > 1 {
            let here = extent.offset / self.block;
            let there = (here + 1 + random % (places - 1)) % places;
            let offset = there * self.block + (io.offset - extent.offset);
            self.inner.run(&Io { offset, ..*io }, iov)?;
        }
        Ok(io.len)
    }

    fn fail(&self, bad: u64, sense: SenseInfo, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        let done = bad.saturating_sub(io.offset);
        self.front(done, io, iov)?;
        let sense = sense.information((io.offset + done) / self.block);
        let source = io::Error::other(Refused(sense));
        Err(io::Error::other(Partial { done, source }))
    }

    /// Does the first `len` bytes.
    fn front(&self, len: u64, io: &Io, iov: &[iovec]) -> io::Result<()> {
        if len > 0 {
            let mut front = iov.to_vec();
            trim(&mut front, len);
            self.inner.run(&part(io, 0, len), &front)?;
        }
        Ok(())
    }

    /// Writes what `change` makes of what is there.
    fn rewrite(&self, io: &Io, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut buffer = AlignedBuffer::zeroed(io.len as usize)?;
        let iov = [buffer.iovec(io.len as usize)];
        let read = Io {
            kind: IoKind::Read,
            durable: false,
            ..*io
        };
        self.inner.run(&read, &iov)?;
        change(&mut buffer);
        let write = Io {
            kind: IoKind::Write,
            ..*io
        };
        self.inner.run(&write, &iov)?;
        Ok(())
    }
}

impl Engine for FaultyEngine {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn can_discard(&self) -> bool {
        self.inner.can_discard()
    }

    fn try_now(&self, _io: &Io, _iov: &[iovec]) -> Option<io::Result<u64>> {
        None
    }

    fn sqe(&self, _io: &Io, _iov: &[iovec]) -> Option<squeue::Entry> {
        None
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        if !self.concerns(io) || io.len == 0 {
            return self.inner.run(io, iov);
        }
        match self.wrong {
            Wrong::Flip(bit) => self.flip(bit, io, iov),
            Wrong::Cut(most) => self.cut(most, io, iov),
            Wrong::Misdirected(random) => self.misdirect(random, io, iov),
            Wrong::Bad {
                first, last, sense, ..
            } if first < io.offset + io.len && last >= io.offset => {
                self.fail(first, sense, io, iov)
            }
            Wrong::Bad { .. } => self.inner.run(io, iov),
        }
    }
}

fn part(io: &Io, at: u64, len: u64) -> Io {
    Io {
        offset: io.offset + at,
        len,
        ..*io
    }
}
