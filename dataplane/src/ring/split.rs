//! The device's side of a split virtqueue (virtio 2.7). The driver is hostile: whatever is read
//! from the ring is read once, checked, and never read again.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use super::areas::{Areas, Desc, AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY};
use super::walk::Walk;
use super::{passes_event, Chain, Endian, Ring, RingConfig, RingError};
use crate::memory::{GuestMemory, MemoryMap};

/// See [`Ring`].
pub struct SplitRing<E: Endian> {
    memory: Arc<GuestMemory>,
    /// The table that everything below was resolved in.
    shared: Arc<MemoryMap>,
    /// A copy of `shared` for our own chains: rings that all counted references on one Arc would
    /// fight over its cache line.
    map: Arc<MemoryMap>,
    areas: Areas<E>,
    /// `areas` may be used; false while the IOTLB lacks some of them.
    resolved: bool,
    /// `GuestMemory::withdrawals` that `areas` belong to.
    withdrawals: u64,
    config: RingConfig,
    next_avail: u16,
    /// Available index as last read; never re-read while chains up to it are left.
    avail_idx: u16,
    next_used: u16,
    /// `next_used` is known: from `config`, or from the used ring once that was resolved.
    begun: bool,
    /// (head, bytes written) of chains given back while the used ring was not resolved.
    backlog: Vec<(u16, u32)>,
    /// Used index as the driver sees it.
    published: u16,
    /// Chains popped and not pushed.
    in_flight: u16,
    /// What `used.flags` says, if it is known; spares stores to a shared cache line.
    kicks_suppressed: Option<bool>,
    /// The indirect table at hand, copied so that each descriptor is read once.
    table: Vec<Desc>,
}

impl<E: Endian> SplitRing<E> {
    /// Checks the ring's layout, and reads the used index unless `config` has it. A ring that the
    /// IOTLB lacks starts all the same: its first use is a miss.
    pub fn new(memory: Arc<GuestMemory>, config: RingConfig) -> Result<Self, RingError> {
        let shared = memory.load();
        let mut ring = Self {
            map: Arc::new(MemoryMap::clone(&shared)),
            memory,
            shared,
            areas: Areas::unresolved(),
            resolved: false,
            withdrawals: 0,
            config,
            next_avail: config.next_avail,
            avail_idx: config.next_avail,
            next_used: 0,
            begun: false,
            backlog: Vec::new(),
            published: 0,
            in_flight: 0,
            kicks_suppressed: None,
            table: Vec::new(),
        };
        match ring.refresh() {
            Err(error) if error.miss().is_none() => Err(error),
            _ => Ok(ring),
        }
    }

    /// Follows the memory table and the IOMMU. Every public function starts here, so that none uses
    /// a pointer into memory that was gone before it was called.
    fn refresh(&mut self) -> Result<(), RingError> {
        let withdrawn = self.config.translated && self.memory.withdrawals() != self.withdrawals;
        if !self.resolved || withdrawn || !self.memory.is_current(&self.shared) {
            self.resolve()?;
        }
        self.check_alive()
    }

    #[cold]
    fn resolve(&mut self) -> Result<(), RingError> {
        self.resolved = false;
        if !self.memory.is_current(&self.shared) {
            self.shared = self.memory.load();
            self.map = Arc::new(MemoryMap::clone(&self.shared));
        }
        let view = self.memory.view(&self.map, self.config.translated);
        self.areas = Areas::resolve(&view, &self.config)?;
        self.withdrawals = view.withdrawals();
        drop(view);
        self.kicks_suppressed = None;
        self.resolved = true;
        if !self.begun {
            self.next_used = self
                .config
                .next_used
                .unwrap_or_else(|| self.areas.used_idx());
            self.published = self.next_used;
            self.begun = true;
        }
        for (head, len) in std::mem::take(&mut self.backlog) {
            self.put_used(head, len);
        }
        Ok(())
    }

    fn put_used(&mut self, head: u16, len: u32) {
        self.areas.set_used_entry(self.next_used, head.into(), len);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// What is read from truncated memory are zeros of our own, not the driver's words.
    fn check_alive(&self) -> Result<(), RingError> {
        if self.memory.is_dead() {
            return Err(RingError::Truncated);
        }
        Ok(())
    }

    /// Chains waiting, by a fresh look at the available index.
    fn look(&mut self) -> Result<u16, RingError> {
        let index = self.areas.avail_idx();
        self.check_alive()?;
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > self.config.size {
            return Err(RingError::AvailIndex {
                index,
                next_avail: self.next_avail,
                size: self.config.size,
            });
        }
        self.avail_idx = index;
        Ok(waiting)
    }

    /// The head of the next chain, if there is one.
    fn next_head(&mut self) -> Result<Option<u16>, RingError> {
        if self.avail_idx == self.next_avail && self.look()? == 0 {
            return Ok(None);
        }
        let size = self.config.size;
        // A chain has at least one descriptor, so no honest driver has more chains out than that;
        // it bounds what a guest can have us keep.
        if self.in_flight == size {
            return Err(RingError::Overcommitted { size });
        }
        let head = self.areas.avail_entry(self.next_avail);
        if head >= size {
            return Err(RingError::Head { head, size });
        }
        Ok(Some(head))
    }

    fn take(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        self.refresh()?;
        let Some(head) = self.next_head()? else {
            return Ok(false);
        };
        let walk = Walk {
            view: self.memory.view(&self.map, self.config.translated),
            areas: &self.areas,
            config: &self.config,
            table: &mut self.table,
        };
        let walked = walk.collect(head, chain);
        self.check_alive()?;
        walked?;
        chain.head = head;
        chain.map = Some(Arc::clone(&self.map));
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        Ok(true)
    }

    fn set_used_flags(&mut self, suppress: bool) {
        if self.kicks_suppressed != Some(suppress) {
            let flags = if suppress { USED_F_NO_NOTIFY } else { 0 };
            self.areas.set_used_flags(flags);
            self.kicks_suppressed = Some(suppress);
        }
    }
}

impl<E: Endian> Ring for SplitRing<E> {
    fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        chain.clear();
        let taken = self.take(chain);
        if taken.is_err() {
            // Pieces without the map that keeps them would dangle.
            chain.clear();
        }
        taken
    }

    fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        match self.refresh() {
            Ok(()) => self.put_used(head, len),
            Err(error) if error.miss().is_some() => self.backlog.push((head, len)),
            Err(error) => return Err(error),
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(())
    }

    fn skip_used(&mut self, by: u16) {
        self.next_used = self.next_used.wrapping_add(by);
    }

    fn publish(&mut self) -> Result<bool, RingError> {
        self.refresh()?;
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return Ok(false);
        }
        // Entries, and the data that this thread moved, come before the index.
        self.areas.set_used_idx(new);
        self.published = new;
        // The driver stores its event (or flag), then loads the index; we store the index, then
        // load the event. Only a full barrier on both sides keeps both from missing the other.
        fence(Ordering::SeqCst);
        Ok(if self.config.event_idx {
            passes_event(self.areas.used_event(), new, old)
        } else {
            self.areas.avail_flags() & AVAIL_F_NO_INTERRUPT == 0
        })
    }

    fn suppress_kicks(&mut self) -> Result<(), RingError> {
        self.refresh()?;
        // With EVENT_IDX flags stay 0 (virtio 2.7.10.2), and an event index left behind is enough.
        if !self.config.event_idx {
            self.set_used_flags(true);
        }
        Ok(())
    }

    fn want_kicks(&mut self) -> Result<bool, RingError> {
        self.refresh()?;
        if self.config.event_idx {
            self.areas.set_avail_event(self.next_avail);
        } else {
            self.set_used_flags(false);
        }
        // As in `publish`, sides exchanged: we store the event, then load the index.
        fence(Ordering::SeqCst);
        Ok(self.look()? > 0)
    }

    fn next_avail(&self) -> u16 {
        self.next_avail
    }

    fn next_used(&self) -> u16 {
        self.next_used
    }

    fn available(&mut self) -> Result<u16, RingError> {
        self.refresh()?;
        self.look()
    }
}
