//! Blocks that a guest has marked bad: they read as errors until they are written again (pseudo
//! unrecovered errors, SBC-4 4.18.2). Wraps the engine that holds the bytes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::squeue;
use libc::iovec;

use crate::passthrough::Passthrough;

use super::{trim, Engine, Io, IoKind, Partial};

/// Ranges marked at a time: more is no test but an attack on our memory.
const MAX_MARKS: usize = 1 << 16;

/// Why such a read fails.
#[derive(Debug, thiserror::Error)]
#[error("marked bad by its user")]
pub struct MarkedBad;

pub struct MarkedEngine {
    inner: Arc<dyn Engine>,
    /// Marks there are, so that without any nobody takes the lock.
    count: AtomicUsize,
    /// Offset → length, in bytes; they do not overlap.
    marks: Mutex<BTreeMap<u64, u64>>,
}

impl MarkedEngine {
    pub fn new(inner: Arc<dyn Engine>) -> Self {
        Self {
            inner,
            count: AtomicUsize::new(0),
            marks: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_marks(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Offset of the first marked byte in the range.
    fn first(&self, io: &Io) -> Option<u64> {
        if !self.has_marks() {
            return None;
        }
        let marks = self.lock();
        let before = marks.range(..=io.offset).next_back();
        let inside = before.filter(|(at, len)| *at + *len > io.offset);
        let (at, _) = inside.or_else(|| {
            let behind = (
                Bound::Excluded(io.offset),
                Bound::Excluded(io.offset + io.len),
            );
            marks.range(behind).next()
        })?;
        Some((*at).max(io.offset)).filter(|_| io.len > 0)
    }

    fn mark(&self, io: &Io) -> io::Result<u64> {
        let mut marks = self.lock();
        if marks.len() >= MAX_MARKS {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        marks.insert(io.offset, io.len);
        self.count.store(marks.len(), Ordering::Release);
        Ok(io.len)
    }

    /// What is written whole is good again.
    fn forget(&self, io: &Io) {
        let changes = matches!(io.kind, IoKind::Write | IoKind::Discard | IoKind::Zero);
        if changes && self.has_marks() {
            let mut marks = self.lock();
            let end = io.offset + io.len;
            marks.retain(|at, len| *at < io.offset || *at + *len > end);
            self.count.store(marks.len(), Ordering::Release);
        }
    }

    /// Reads up to the first mark, so that what is in front of it arrives.
    fn read_up_to(&self, mark: u64, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        let done = mark - io.offset;
        if done > 0 {
            let mut front = iov.to_vec();
            trim(&mut front, done);
            self.inner.run(&Io { len: done, ..*io }, &front)?;
        }
        let source = io::Error::other(MarkedBad);
        Err(io::Error::other(Partial { done, source }))
    }
}

impl Engine for MarkedEngine {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.inner.resize(size)?;
        let mut marks = self.lock();
        marks.retain(|at, len| *at + *len <= size);
        self.count.store(marks.len(), Ordering::Release);
        Ok(())
    }

    fn can_discard(&self) -> bool {
        self.inner.can_discard()
    }

    fn passthrough(&self) -> Option<&Arc<Passthrough>> {
        self.inner.passthrough()
    }

    fn extent(&self, offset: u64) -> io::Result<(bool, u64)> {
        self.inner.extent(offset)
    }

    fn allocated(&self) -> Option<u64> {
        self.inner.allocated()
    }

    fn counts_space(&self) -> bool {
        self.inner.counts_space()
    }

    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        if io.kind == IoKind::Mark || self.first(io).is_some() {
            return None;
        }
        self.inner.try_now(io, iov)
    }

    fn sqe(&self, io: &Io, iov: &[iovec]) -> Option<squeue::Entry> {
        if io.kind == IoKind::Mark || self.first(io).is_some() {
            return None;
        }
        self.inner.sqe(io, iov)
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        if io.kind == IoKind::Mark {
            io.check(self.size(), iov)?;
            return self.mark(io);
        }
        match self.first(io) {
            Some(mark) if io.kind == IoKind::Read => self.read_up_to(mark, io, iov),
            marked => {
                let result = self.inner.run(io, iov)?;
                if marked.is_some() {
                    self.forget(io);
                }
                Ok(result)
            }
        }
    }
}
