//! Writes that the medium has not seen, in the order they came.

use std::collections::{BTreeMap, VecDeque};

use libc::iovec;

use super::super::{AlignedBuffer, Cursor, Io, IoKind};

/// Bytes of the smallest logical block: every write begins and ends at a multiple.
pub const LINE: u64 = 512;
/// What the smallest buffer takes.
const PAGE: u64 = 4096;

/// Bytes of memory that a write of `len` bytes takes.
pub fn footprint(len: u64) -> u64 {
    len.next_multiple_of(PAGE)
}

pub struct Write {
    pub offset: u64,
    pub data: AlignedBuffer,
}

impl Write {
    pub fn len(&self) -> u64 {
        self.data.len() as u64
    }

    pub fn as_io(&mut self) -> (Io, iovec) {
        let io = Io {
            kind: IoKind::Write,
            offset: self.offset,
            len: self.len(),
            durable: false,
        };
        let len = self.data.len();
        (io, self.data.iovec(len))
    }

    fn lines(&self) -> std::ops::Range<u64> {
        lines(self.offset, self.len())
    }
}

fn lines(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / LINE..(offset + len).div_ceil(LINE)
}

#[derive(Default)]
pub struct Log {
    writes: VecDeque<Write>,
    /// How many writes were taken out before `writes[0]`: it has this number.
    gone: u64,
    /// Line → number of the newest write that has it.
    newest: BTreeMap<u64, u64>,
    footprint: u64,
}

impl Log {
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    pub fn footprint(&self) -> u64 {
        self.footprint
    }

    pub fn push(&mut self, offset: u64, data: AlignedBuffer) {
        let number = self.gone + self.writes.len() as u64;
        let write = Write { offset, data };
        self.newest.extend(write.lines().map(|line| (line, number)));
        self.footprint += footprint(write.len());
        self.writes.push_back(write);
    }

    pub fn oldest(&mut self) -> Option<&mut Write> {
        self.writes.front_mut()
    }

    /// Takes the oldest write out.
    pub fn pop(&mut self) -> Option<Write> {
        let write = self.writes.pop_front()?;
        for line in write.lines() {
            if self.newest.get(&line) == Some(&self.gone) {
                self.newest.remove(&line);
            }
        }
        self.gone += 1;
        self.footprint -= footprint(write.len());
        Some(write)
    }

    /// How many of the oldest writes it takes to have all that touch the range; 0: none does.
    pub fn up_to(&self, offset: u64, len: u64) -> usize {
        let newest = self
            .newest
            .range(lines(offset, len))
            .map(|(_, number)| number);
        newest
            .max()
            .map_or(0, |number| (number - self.gone) as usize + 1)
    }

    /// Copies what is here of the range over `iov`, which has what the medium has of it.
    pub fn overlay(&self, offset: u64, len: u64, iov: &[iovec]) {
        let mut cursor = Cursor::new(iov);
        let mut at = offset;
        for (line, number) in self.newest.range(lines(offset, len)) {
            let start = line * LINE;
            let write = &self.writes[(number - self.gone) as usize];
            let from = (start - write.offset) as usize;
            cursor.skip((start - at) as usize);
            cursor.write(&write.data[from..from + LINE as usize]);
            at = start + LINE;
        }
    }
}
