//! Data that goes wrong without a word: the command ends well, the medium says something else.

use std::io;

use libc::iovec;

use crate::engine::{trim, AlignedBuffer, Cursor, Engine, Io, IoKind};

/// The smallest piece that a disk writes in one go.
const SECTOR: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// One bit is wrong: of a write on the medium, of a read in the guest's buffer only.
    Flip,
    /// Only the front of a write reaches the medium.
    Torn,
    /// Nothing of it does.
    Lost,
    /// It goes to other blocks.
    Misdirected,
}

impl Corruption {
    /// Does the engine call `io`, wrongly; its result says that all is well. `random` decides
    /// where.
    pub fn run(
        self,
        random: u64,
        block: u64,
        engine: &dyn Engine,
        io: &Io,
        iov: &[iovec],
    ) -> io::Result<u64> {
        match (self, io.kind) {
            _ if io.len == 0 || !io.moves_data() => engine.run(io, iov),
            (Self::Flip, IoKind::Read) => {
                engine.run(io, iov)?;
                flip(&mut Cursor::new(iov), random % (io.len * 8));
                Ok(io.len)
            }
            (Self::Flip, _) => {
                engine.run(io, iov)?;
                let bit = random % (io.len * 8);
                let at = bit / 8 / block * block;
                rewrite(engine, &part(io, at, block), |bytes| {
                    let mut new = Cursor::new(iov);
                    new.skip(at as usize);
                    new.read(bytes);
                    bytes[(bit / 8 - at) as usize] ^= 1 << (bit % 8);
                })?;
                Ok(io.len)
            }
            (Self::Torn, IoKind::Write) => tear(random, block, engine, io, iov),
            (Self::Lost, IoKind::Write) => Ok(io.len),
            (Self::Misdirected, IoKind::Write) => {
                let places = (engine.size() - io.len) / block + 1;
                if places > 1 {
                    let place = (io.offset / block + 1 + random % (places - 1)) % places;
                    let offset = place * block;
                    engine.run(&Io { offset, ..*io }, iov)?;
                }
                Ok(io.len)
            }
            _ => engine.run(io, iov),
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

fn flip(cursor: &mut Cursor<'_>, bit: u64) {
    let mut byte = [0];
    cursor.skip((bit / 8) as usize);
    cursor.clone().read(&mut byte);
    cursor.write(&[byte[0] ^ (1 << (bit % 8))]);
}

/// Writes what `change` makes of what is there.
fn rewrite(engine: &dyn Engine, io: &Io, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
    let mut buffer = AlignedBuffer::zeroed(io.len as usize)?;
    let read = Io {
        kind: IoKind::Read,
        durable: false,
        ..*io
    };
    let iov = [buffer.iovec(io.len as usize)];
    engine.run(&read, &iov)?;
    change(&mut buffer);
    engine.run(io, &iov)?;
    Ok(())
}

/// At a sector's end behind the first one; where there is only one, in its middle.
fn tear(random: u64, block: u64, engine: &dyn Engine, io: &Io, iov: &[iovec]) -> io::Result<u64> {
    let unit = SECTOR.min(io.len / 2);
    let cut = unit * (1 + random % (io.len / unit - 1));
    let whole = cut / block * block;
    if whole > 0 {
        let mut front = iov.to_vec();
        trim(&mut front, whole);
        engine.run(&part(io, 0, whole), &front)?;
    }
    if cut > whole {
        rewrite(engine, &part(io, whole, block), |bytes| {
            let mut new = Cursor::new(iov);
            new.skip(whole as usize);
            new.read(&mut bytes[..(cut - whole) as usize]);
        })?;
    }
    Ok(io.len)
}
