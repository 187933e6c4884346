//! The device's side of a split virtqueue (virtio 2.7). The driver is hostile: whatever is read
//! from the ring is read once, checked, and never read again.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::areas::{
    Areas, Desc, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY,
};
use super::{passes_event, Chain, Endian, Ring, RingConfig, RingError};
use crate::memory::{GuestMemory, MemoryMap};

/// A chain describes at most this many bytes (virtio 2.7.5.2).
const MAX_BYTES: u64 = 1 << 32;

/// See [`Ring`].
pub struct SplitRing<E: Endian> {
    memory: Arc<GuestMemory>,
    /// The table that everything below was resolved in.
    shared: Arc<MemoryMap>,
    /// A copy of `shared` for our own chains: rings that all counted references on one Arc would
    /// fight over its cache line.
    map: Arc<MemoryMap>,
    areas: Areas<E>,
    config: RingConfig,
    next_avail: u16,
    /// Available index as last read; never re-read while chains up to it are left.
    avail_idx: u16,
    next_used: u16,
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
    /// Checks the ring's layout, and reads the used index unless `config` has it.
    pub fn new(memory: Arc<GuestMemory>, config: RingConfig) -> Result<Self, RingError> {
        let shared = memory.load();
        let areas = Areas::<E>::resolve(&shared, &config)?;
        let next_used = config.next_used.unwrap_or_else(|| areas.used_idx());
        let ring = Self {
            map: Arc::new(MemoryMap::clone(&shared)),
            memory,
            shared,
            areas,
            config,
            next_avail: config.next_avail,
            avail_idx: config.next_avail,
            next_used,
            published: next_used,
            in_flight: 0,
            kicks_suppressed: None,
            table: Vec::new(),
        };
        ring.check_alive()?;
        Ok(ring)
    }

    /// Follows the memory table. Every public function starts here, so that none uses a pointer
    /// into memory that was gone before it was called.
    fn refresh(&mut self) -> Result<(), RingError> {
        if !self.memory.is_current(&self.shared) {
            let shared = self.memory.load();
            self.areas = Areas::resolve(&shared, &self.config)?;
            self.map = Arc::new(MemoryMap::clone(&shared));
            self.shared = shared;
            self.kicks_suppressed = None;
        }
        self.check_alive()
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

    /// Collects the chain of `head`, through at most one indirect table at its end.
    fn walk(&mut self, head: u16, chain: &mut Chain) -> Result<(), RingError> {
        let limit = self.config.size;
        // Honest buffers do not overlap, so each region border is crossed at most once.
        let pieces = usize::from(limit) + self.map.regions().len();
        let mut indirect = false;
        let mut index = head;
        let mut count = 0;
        loop {
            let desc = match indirect {
                true => self.table[usize::from(index)].swap::<E>(),
                false => self.areas.desc(index),
            };
            if desc.flags & DESC_F_INDIRECT != 0 {
                self.load_table(head, desc, indirect)?;
                indirect = true;
                index = 0;
                continue;
            }
            count += 1;
            if count > limit {
                return Err(RingError::TooLong { head, limit });
            }
            self.append(head, desc, chain)?;
            if chain.readable.len() + chain.writable.len() > pieces {
                return Err(RingError::Scattered {
                    head,
                    limit: pieces,
                });
            }
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            let length = match indirect {
                true => self.table.len(),
                false => limit.into(),
            };
            index = desc.next;
            if usize::from(index) >= length {
                return Err(RingError::Next {
                    head,
                    next: index,
                    length,
                });
            }
        }
    }

    /// Copies the table that `desc` points to; its WRITE flag means nothing (virtio 2.7.5.3.2).
    fn load_table(&mut self, head: u16, desc: Desc, nested: bool) -> Result<(), RingError> {
        if nested {
            return Err(RingError::NestedIndirect { head });
        }
        if !self.config.indirect {
            return Err(RingError::IndirectNotNegotiated { head });
        }
        if desc.flags & DESC_F_NEXT != 0 {
            return Err(RingError::IndirectWithNext { head });
        }
        if desc.len == 0 || desc.len % Desc::SIZE as u32 != 0 {
            return Err(RingError::IndirectLength {
                head,
                length: desc.len,
            });
        }
        let entries = desc.len / Desc::SIZE as u32;
        if entries > self.config.size.into() {
            return Err(RingError::IndirectTooLong {
                head,
                entries,
                limit: self.config.size,
            });
        }
        self.table.resize_with(entries as usize, Desc::new_zeroed);
        self.map
            .read(desc.addr, self.table.as_mut_bytes())
            .map_err(|source| RingError::IndirectUnmapped { head, source })
    }

    fn append(&self, head: u16, desc: Desc, chain: &mut Chain) -> Result<(), RingError> {
        if desc.len == 0 {
            return Ok(());
        }
        let writable = desc.flags & DESC_F_WRITE != 0;
        let (pieces, bytes) = if writable {
            (&mut chain.writable, &mut chain.writable_len)
        } else {
            (&mut chain.readable, &mut chain.readable_len)
        };
        self.map
            .iovecs(desc.addr, desc.len.into(), pieces)
            .map_err(|source| RingError::DataUnmapped { head, source })?;
        *bytes += u64::from(desc.len);
        if !writable && chain.writable_len > 0 {
            return Err(RingError::ReadableAfterWritable { head });
        }
        if chain.readable_len + chain.writable_len > MAX_BYTES {
            return Err(RingError::TooManyBytes { head });
        }
        Ok(())
    }

    fn take(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        self.refresh()?;
        let Some(head) = self.next_head()? else {
            return Ok(false);
        };
        let walked = self.walk(head, chain);
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
        self.refresh()?;
        self.areas.set_used_entry(self.next_used, head.into(), len);
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(())
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
