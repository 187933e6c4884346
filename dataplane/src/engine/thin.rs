//! Counts the space that a unit's blocks take, and refuses writes that need more than there is.
//! Wraps the engine that holds the bytes.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use io_uring::squeue;
use libc::iovec;

use super::pages::{Pages, PAGE};
use super::space::Space;
use super::{Engine, Io, IoKind};

/// Space is taken before a write begins and given back when a discard has ended: never too little
/// is counted, as long as no discard meets a write to its blocks (`counts_space`).
pub struct ThinEngine {
    inner: Arc<dyn Engine>,
    space: Arc<Space>,
    mapped: ArcSwap<Pages>,
}

impl ThinEngine {
    /// What `inner` holds now is counted, whatever the limit.
    pub fn new(inner: Arc<dyn Engine>, space: Arc<Space>) -> io::Result<Self> {
        let (mapped, size) = (Pages::new(inner.size()), inner.size());
        let mut offset = 0;
        while offset < size {
            let (data, len) = inner.extent(offset)?;
            let len = len.clamp(1, size - offset);
            if data {
                space.adopt(mapped.set(offset, len));
            }
            offset += len;
        }
        Ok(Self {
            inner,
            space,
            mapped: ArcSwap::from_pointee(mapped),
        })
    }

    /// Takes the space that `io` needs, once.
    fn take(&self, io: &Io) -> io::Result<()> {
        if !matches!(io.kind, IoKind::Write | IoKind::Zero) {
            return Ok(());
        }
        let mapped = self.mapped.load();
        let missing = mapped.missing(io.offset, io.len);
        if missing > 0 {
            self.space.take(missing)?;
            // Others may have written to the same pages meanwhile.
            self.space.give(missing - mapped.set(io.offset, io.len));
        }
        Ok(())
    }

    fn discard(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        self.space.freeing(|| match self.inner.run(io, iov) {
            Ok(done) => (self.mapped.load().clear(io.offset, io.len), Ok(done)),
            Err(error) => (0, Err(error)),
        })
    }
}

impl Drop for ThinEngine {
    fn drop(&mut self) {
        let size = self.inner.size().next_multiple_of(PAGE);
        self.space.give(self.mapped.load().clear(0, size));
    }
}

impl Engine for ThinEngine {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.inner.resize(size)?;
        let before = self.mapped.load();
        let after = before.resized(size);
        self.space.give(before.bytes() - after.bytes());
        self.mapped.store(Arc::new(after));
        Ok(())
    }

    fn can_discard(&self) -> bool {
        self.inner.can_discard()
    }

    fn extent(&self, offset: u64) -> io::Result<(bool, u64)> {
        Ok(self.mapped.load().extent(offset, self.size()))
    }

    fn allocated(&self) -> Option<u64> {
        Some(self.mapped.load().bytes())
    }

    fn counts_space(&self) -> bool {
        true
    }

    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        if io.kind == IoKind::Discard || io.check(self.size(), iov).is_err() {
            return None;
        }
        match self.take(io) {
            Ok(()) => self.inner.try_now(io, iov),
            Err(error) => Some(Err(error)),
        }
    }

    /// After `try_now`, which has taken the space.
    fn sqe(&self, io: &Io, iov: &[iovec]) -> Option<squeue::Entry> {
        if io.kind == IoKind::Discard || io.check(self.size(), iov).is_err() {
            return None;
        }
        self.take(io).ok()?;
        self.inner.sqe(io, iov)
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        io.check(self.size(), iov)?;
        if io.kind == IoKind::Discard {
            return self.discard(io, iov);
        }
        self.take(io)?;
        self.inner.run(io, iov)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryEngine;
    use super::super::testing::{drive, uring, Guest};
    use super::super::{Partial, CHUNK};
    use super::*;

    const SIZE: u64 = 64 * PAGE;

    fn disk(space: &Arc<Space>) -> ThinEngine {
        let memory = Arc::new(MemoryEngine::new(SIZE).unwrap());
        ThinEngine::new(memory, space.clone()).unwrap()
    }

    fn act(engine: &dyn Engine, kind: IoKind, offset: u64, len: u64) -> io::Result<u64> {
        let guest = Guest::new(&vec![0x5a; len as usize], &[]);
        let io = Io {
            kind,
            offset,
            len,
            durable: false,
        };
        let iov = if io.moves_data() { &guest.iov[..] } else { &[] };
        drive(uring().as_mut(), engine, &io, iov)
    }

    fn refused(result: io::Result<u64>) {
        let error = result.unwrap_err();
        let (_, error) = Partial::split(&error);
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_write_that_needs_too_much_changes_nothing() {
        let space = Arc::new(Space::new(4 * PAGE));
        let disk = disk(&space);
        act(&disk, IoKind::Write, 512, 3 * PAGE).unwrap();
        assert_eq!((space.used(), disk.allocated()), (4 * PAGE, Some(4 * PAGE)));
        refused(act(&disk, IoKind::Write, 3 * PAGE, 2 * PAGE));
        assert_eq!(disk.inner.extent(0).unwrap(), (true, 4 * PAGE));
        act(&disk, IoKind::Write, 0, 4 * PAGE).unwrap();
        act(&disk, IoKind::Read, 0, SIZE).unwrap();
        refused(act(&disk, IoKind::Zero, 8 * PAGE, PAGE));
        assert_eq!(space.used(), 4 * PAGE);
        assert_eq!(disk.extent(0).unwrap(), (true, 4 * PAGE));
    }

    #[test]
    fn what_is_freed_can_be_taken_again() {
        let space = Arc::new(Space::new(4 * PAGE));
        let disk = disk(&space);
        act(&disk, IoKind::Write, 0, 4 * PAGE).unwrap();
        act(&disk, IoKind::Discard, PAGE - 512, PAGE).unwrap();
        refused(act(&disk, IoKind::Write, 10 * PAGE, 512));
        act(&disk, IoKind::Discard, PAGE, 2 * PAGE).unwrap();
        act(&disk, IoKind::Discard, PAGE, 2 * PAGE).unwrap();
        assert_eq!(space.used(), 2 * PAGE);
        assert_eq!(disk.extent(0).unwrap(), (true, PAGE));
        assert_eq!(disk.extent(PAGE).unwrap(), (false, 2 * PAGE));
        act(&disk, IoKind::Write, 10 * PAGE, 2 * PAGE).unwrap();
    }

    #[test]
    fn a_pool_is_shared_until_a_unit_goes() {
        let space = Arc::new(Space::new(4 * PAGE));
        let (one, two) = (disk(&space), disk(&space));
        act(&one, IoKind::Write, 0, 3 * PAGE).unwrap();
        refused(act(&two, IoKind::Write, 0, 2 * PAGE));
        assert_eq!(
            (one.allocated(), two.allocated()),
            (Some(3 * PAGE), Some(0))
        );
        drop(one);
        act(&two, IoKind::Write, 0, 2 * PAGE).unwrap();
        assert_eq!(space.used(), 2 * PAGE);
    }

    #[test]
    fn what_is_cut_off_is_given_back() {
        let space = Arc::new(Space::new(4 * PAGE));
        let disk = disk(&space);
        act(&disk, IoKind::Write, 0, 2 * PAGE).unwrap();
        act(&disk, IoKind::Write, SIZE - 2 * PAGE, 2 * PAGE).unwrap();
        disk.resize(PAGE).unwrap();
        assert_eq!((space.used(), disk.allocated()), (PAGE, Some(PAGE)));
        disk.resize(2 * SIZE).unwrap();
        act(&disk, IoKind::Write, 2 * SIZE - 3 * PAGE, 3 * PAGE).unwrap();
        refused(act(&disk, IoKind::Write, SIZE, 512));
    }

    #[test]
    fn what_the_storage_holds_already_is_counted() {
        let memory = Arc::new(MemoryEngine::new(SIZE - 512).unwrap());
        act(memory.as_ref(), IoKind::Write, 2 * PAGE, 2 * PAGE).unwrap();
        act(memory.as_ref(), IoKind::Write, SIZE - 1024, 512).unwrap();
        let space = Arc::new(Space::new(2 * PAGE));
        let disk = ThinEngine::new(memory, space.clone()).unwrap();
        assert_eq!(space.used(), 3 * PAGE);
        refused(act(&disk, IoKind::Write, 0, 512));
        act(&disk, IoKind::Discard, 0, SIZE - 512).unwrap();
        assert_eq!(space.used(), PAGE, "the last page is not whole");
        act(&disk, IoKind::Write, 0, 512).unwrap();
    }

    #[test]
    fn a_file_is_counted_on_every_way() {
        let dir = tempfile::tempdir().unwrap();
        let size = 4 * CHUNK as u64;
        let file = super::super::testing::file_engine(dir.path(), size, false);
        let space = Arc::new(Space::new(CHUNK as u64));
        let disk = ThinEngine::new(Arc::new(file), space.clone()).unwrap();
        act(&disk, IoKind::Write, 512, CHUNK as u64 - PAGE).unwrap();
        refused(act(&disk, IoKind::Write, 2 * CHUNK as u64, 512));
        refused(act(&disk, IoKind::Zero, 2 * CHUNK as u64, PAGE));
        act(&disk, IoKind::Discard, 0, size).unwrap();
        assert_eq!(space.used(), 0);
        act(&disk, IoKind::Zero, 0, CHUNK as u64).unwrap();
        assert_eq!(space.used(), CHUNK as u64);
    }
}
