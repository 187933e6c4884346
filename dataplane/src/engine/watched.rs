//! Who keeps a promise about blocks (a ROD token) learns when they change. Wraps the other engines.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use io_uring::squeue;
use libc::iovec;

use super::{Engine, Io, IoKind};
use crate::passthrough::Passthrough;

/// Ranges of bytes, each with its length, and whether one of them was changed since.
pub struct Watch {
    ranges: Vec<(u64, u64)>,
    changed: AtomicBool,
}

impl Watch {
    pub fn new(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.retain(|(_, len)| *len > 0);
        ranges.sort_unstable();
        Self {
            ranges,
            changed: AtomicBool::new(false),
        }
    }

    /// What was read before this call, while it says false, was as at the beginning.
    pub fn changed(&self) -> bool {
        self.changed.load(Ordering::SeqCst)
    }

    fn overlaps(&self, io: &Io) -> bool {
        let end = io.offset.saturating_add(io.len);
        let behind = self.ranges.partition_point(|(at, _)| *at < end);
        self.ranges[..behind]
            .iter()
            .rev()
            .any(|(at, len)| at.saturating_add(*len) > io.offset)
    }
}

pub struct WatchedEngine {
    inner: Arc<dyn Engine>,
    /// Watches there may be, so that without any nobody takes the lock.
    count: AtomicUsize,
    watches: Mutex<Vec<Weak<Watch>>>,
}

impl WatchedEngine {
    pub fn new(inner: Arc<dyn Engine>) -> Self {
        Self {
            inner,
            count: AtomicUsize::new(0),
            watches: Mutex::default(),
        }
    }

    /// Before a change begins.
    fn tell(&self, io: &Io) {
        if !io.changes() || self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|watch| {
            watch.upgrade().is_some_and(|watch| {
                if watch.overlaps(io) {
                    watch.changed.store(true, Ordering::SeqCst);
                }
                !watch.changed()
            })
        });
        self.count.store(watches.len(), Ordering::SeqCst);
    }
}

impl Engine for WatchedEngine {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let (before, end) = (self.size(), size.min(self.size()));
        self.tell(&Io {
            kind: IoKind::Discard,
            offset: end,
            len: before - end,
            durable: false,
        });
        self.inner.resize(size)
    }

    fn passthrough(&self) -> Option<&Arc<Passthrough>> {
        self.inner.passthrough()
    }

    fn can_discard(&self) -> bool {
        self.inner.can_discard()
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

    /// Changes that began before may not be noticed: wait for them.
    fn watch(&self, watch: &Arc<Watch>) -> bool {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(watch));
        self.count.store(watches.len(), Ordering::SeqCst);
        true
    }

    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        self.tell(io);
        self.inner.try_now(io, iov)
    }

    /// After `try_now`, which has told of the change.
    fn sqe(&self, io: &Io, iov: &[iovec]) -> Option<squeue::Entry> {
        self.inner.sqe(io, iov)
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        self.tell(io);
        self.inner.run(io, iov)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryEngine;
    use super::super::testing::{drive, Guest};
    use super::*;

    fn engine() -> WatchedEngine {
        WatchedEngine::new(Arc::new(MemoryEngine::new(1 << 20).unwrap()))
    }

    fn act(engine: &WatchedEngine, kind: IoKind, offset: u64, len: usize) {
        let guest = Guest::zeroed(len);
        let io = Io {
            kind,
            offset,
            len: len as u64,
            durable: false,
        };
        // What cannot be done here changes nothing, but was announced.
        let _ = drive(None, engine, &io, &guest.iov);
    }

    #[test]
    fn only_changes_of_its_ranges_are_noticed() {
        let ranges = vec![(8192, 4096), (1024, 512), (100, 0)];
        for (kind, offset, len, changed) in [
            (IoKind::Read, 1024, 512, false),
            (IoKind::Flush, 0, 1 << 20, false),
            (IoKind::Prefetch, 0, 1 << 20, false),
            (IoKind::Write, 0, 1024, false),
            (IoKind::Write, 1536, 6656, false),
            (IoKind::Write, 12288, 512, false),
            (IoKind::Write, 1535, 1, true),
            (IoKind::Write, 0, 1 << 20, true),
            (IoKind::Write, 9000, 10, true),
            (IoKind::Discard, 12287, 512, true),
            (IoKind::Zero, 1000, 25, true),
            (IoKind::Mark, 8192, 512, true),
        ] {
            let (engine, watch) = (engine(), Arc::new(Watch::new(ranges.clone())));
            assert!(engine.watch(&watch));
            act(&engine, kind, offset, len);
            assert_eq!(watch.changed(), changed, "{kind:?} {offset} {len}");
        }
    }

    #[test]
    fn blocks_that_are_cut_off_change() {
        let (engine, first, last) = (
            engine(),
            Arc::new(Watch::new(vec![(0, 512)])),
            Arc::new(Watch::new(vec![((1 << 20) - 512, 512)])),
        );
        engine.watch(&first);
        engine.watch(&last);
        engine.resize(2 << 20).unwrap();
        assert!(!last.changed());
        engine.resize(512 << 10).unwrap();
        assert!(last.changed() && !first.changed());
    }

    #[test]
    fn who_is_gone_or_knows_costs_nothing() {
        let engine = engine();
        let first = Arc::new(Watch::new(vec![(0, 512)]));
        engine.watch(&first);
        engine.watch(&Arc::new(Watch::new(vec![(0, 512)])));
        act(&engine, IoKind::Write, 512, 512);
        assert_eq!(engine.count.load(Ordering::SeqCst), 1);
        act(&engine, IoKind::Write, 0, 512);
        assert!(first.changed());
        assert_eq!(engine.count.load(Ordering::SeqCst), 0);
    }
}
