//! What becomes of writes that a power failure met in the cache.

use std::io;

use super::super::{AlignedBuffer, Engine, Io, IoKind};
use super::log::Write;
use crate::random::Random;

/// How many writes came through whole, in part, and not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    pub survived: u64,
    pub torn: u64,
    pub lost: u64,
}

/// Which writes a failing device had got to. Caches differ, and so do these, by seed.
enum Order {
    /// As they came: all before this one, a part of it, and none after it.
    First(usize),
    /// Any of them: this many of 100 whole, and so many of the others in part.
    Any { whole: u64, part: u64 },
}

pub struct Fates {
    random: Random,
    order: Order,
    tear: u64,
    decided: usize,
    pub losses: Losses,
}

impl Fates {
    pub fn new(seed: u64, writes: usize, tear: u64) -> Self {
        let mut random = Random(seed);
        let order = if random.chance(30) {
            Order::First(random.below(writes as u64 + 1) as usize)
        } else {
            // Nothing at all, everything, and what lies between.
            Order::Any {
                whole: 25 * random.below(5),
                part: 25 * random.below(4),
            }
        };
        Self {
            random,
            order,
            tear,
            decided: 0,
            losses: Losses::default(),
        }
    }

    /// Has the medium have the next write as it is to be found there.
    pub fn decide(&mut self, mut write: Write, medium: &dyn Engine) -> io::Result<()> {
        let (whole, part) = match self.order {
            Order::First(end) => (self.decided < end, self.decided == end),
            Order::Any { whole, part } => (self.random.chance(whole), self.random.chance(part)),
        };
        self.decided += 1;
        if whole {
            self.losses.survived += 1;
        } else if part && self.pieces(&write) > 1 {
            self.losses.torn += 1;
            self.tear(&mut write, medium)?;
        } else {
            self.losses.lost += 1;
            return Ok(());
        }
        let (io, iov) = write.as_io();
        medium.run(&io, &[iov]).map(drop)
    }

    fn pieces(&self, write: &Write) -> u64 {
        let end = write.offset + write.len();
        end.div_ceil(self.tear) - write.offset / self.tear
    }

    /// Some pieces become what the medium has: those from one on, or any.
    fn tear(&mut self, write: &mut Write, medium: &dyn Engine) -> io::Result<()> {
        let len = write.data.len();
        let mut old = AlignedBuffer::zeroed(len)?;
        let io = Io {
            kind: IoKind::Read,
            offset: write.offset,
            len: len as u64,
            durable: false,
        };
        medium.run(&io, &[old.iovec(len)])?;
        let pieces = self.pieces(write);
        let cut = self
            .random
            .chance(50)
            .then(|| 1 + self.random.below(pieces - 1));
        for piece in 0..pieces {
            let arrived = match cut {
                Some(cut) => piece < cut,
                None => self.random.chance(50),
            };
            if !arrived {
                let first = write.offset / self.tear + piece;
                let start = (first * self.tear).saturating_sub(write.offset) as usize;
                let end = ((first + 1) * self.tear - write.offset) as usize;
                let range = start..end.min(len);
                write.data[range.clone()].copy_from_slice(&old[range]);
            }
        }
        Ok(())
    }
}
