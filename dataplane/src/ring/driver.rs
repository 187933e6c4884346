//! The driver's side of a split virtqueue (virtio 2.7.13, 2.7.14): the other end of
//! [`SplitRing`](super::SplitRing), for tests and benchmarks.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::areas::{
    Areas, Desc, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY,
};
use super::{passes_event, Endian, RingConfig, RingError};
use crate::memory::{GuestMemory, MemoryError, MemoryMap, View};

/// One descriptor's worth of buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Device-writable; these come last in a chain.
    pub writable: bool,
}

/// What went wrong on the driver's side.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("a chain of {needed} descriptors, but {free} are free")]
    Full { needed: usize, free: usize },
    #[error("a chain has at least one descriptor, an indirect table 1 to 65536")]
    Length,
    #[error("the device used id {0}, which is no chain in flight")]
    Id(u32),
    #[error("the device's used index {index} is past what is in flight after {next_used}")]
    UsedIndex { index: u16, next_used: u16 },
}

impl RingConfig {
    /// A ring of `size` whose parts follow one another from guest address `base` on, a multiple of
    /// 16; without features.
    pub fn contiguous(base: u64, size: u16) -> Self {
        let driver = base + 16 * u64::from(size);
        let device = (driver + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self {
            size,
            desc: base,
            driver,
            device,
            next_avail: 0,
            next_used: None,
            event_idx: false,
            indirect: false,
            translated: false,
        }
    }

    /// First guest address behind the used ring.
    pub fn end(&self) -> u64 {
        self.device + 6 + 8 * u64::from(self.size)
    }
}

/// A driver's ring in guest memory.
pub struct DriverRing<E: Endian> {
    areas: Areas<E>,
    map: Arc<MemoryMap>,
    config: RingConfig,
    /// Next available index; the device sees those below `published`.
    next_avail: u16,
    published: u16,
    next_used: u16,
    free: Vec<u16>,
    /// Descriptors of each chain in flight, by its head.
    chains: Vec<Vec<u16>>,
}

impl<E: Endian> DriverRing<E> {
    /// Lays out an empty ring at the addresses of `config`, its indices starting where `config`
    /// says, which are guest addresses here even if the device's are translated. Keeps to the
    /// memory table of now.
    pub fn new(memory: &GuestMemory, config: RingConfig) -> Result<Self, DriverError> {
        let map = memory.load();
        let areas = Areas::<E>::resolve(&View::physical(&map), &config)?;
        let next_used = config.next_used.unwrap_or(config.next_avail);
        for index in 0..config.size {
            areas.set_desc(index, Desc::default());
            areas.set_avail_entry(index, 0);
            areas.set_used_entry(index, 0, 0);
        }
        areas.set_avail_flags(0);
        areas.set_avail_idx(config.next_avail);
        areas.set_used_flags(0);
        areas.set_used_idx(next_used);
        if config.event_idx {
            areas.set_used_event(next_used);
            areas.set_avail_event(config.next_avail);
        }
        Ok(Self {
            areas,
            map,
            config,
            next_avail: config.next_avail,
            published: config.next_avail,
            next_used,
            free: (0..config.size).rev().collect(),
            chains: vec![Vec::new(); config.size.into()],
        })
    }

    /// Descriptors that no chain uses.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Adds a chain of one descriptor a buffer and returns its head. `publish` shows it.
    pub fn add(&mut self, buffers: &[Buffer]) -> Result<u16, DriverError> {
        self.add_all(buffers, None)
    }

    /// As `add`, with the descriptors in an indirect table, 16 bytes each at guest address `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Result<u16, DriverError> {
        self.add_mixed(&[], table, buffers)
    }

    /// As `add` for `direct`, continued by `indirect` in an indirect table at `table`.
    pub fn add_mixed(
        &mut self,
        direct: &[Buffer],
        table: u64,
        indirect: &[Buffer],
    ) -> Result<u16, DriverError> {
        if indirect.is_empty() || indirect.len() > 1 << 16 {
            return Err(DriverError::Length);
        }
        let last = indirect.len() - 1;
        let entries = indirect.iter().enumerate().map(|(index, &buffer)| {
            let next = (index < last).then_some((index + 1) as u16);
            describe(buffer, next).swap::<E>()
        });
        let entries: Vec<Desc> = entries.collect();
        self.map.write(table, entries.as_bytes())?;
        let pointer = Desc {
            addr: table,
            len: entries.as_bytes().len() as u32,
            flags: DESC_F_INDIRECT,
            next: 0,
        };
        self.add_all(direct, Some(pointer))
    }

    fn add_all(&mut self, buffers: &[Buffer], last: Option<Desc>) -> Result<u16, DriverError> {
        let needed = buffers.len() + usize::from(last.is_some());
        let free = self.free.len();
        let first = free
            .checked_sub(needed)
            .ok_or(DriverError::Full { needed, free })?;
        let indices = self.free.split_off(first);
        let Some(&head) = indices.first() else {
            return Err(DriverError::Length);
        };
        for (position, &buffer) in buffers.iter().enumerate() {
            let next = indices.get(position + 1).copied();
            self.areas
                .set_desc(indices[position], describe(buffer, next));
        }
        if let Some(last) = last {
            self.areas.set_desc(indices[needed - 1], last);
        }
        self.chains[usize::from(head)] = indices;
        self.areas.set_avail_entry(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    /// Shows the device all that was added; true: it wants a kick for that.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.areas.set_avail_idx(new);
        self.published = new;
        // The device stores its event (or flag), then loads the index; we the other way round.
        fence(Ordering::SeqCst);
        if self.config.event_idx {
            passes_event(self.areas.avail_event(), new, old)
        } else {
            self.areas.used_flags() & USED_F_NO_NOTIFY == 0
        }
    }

    /// The next chain that the device gave back: (head, bytes written). Frees its descriptors.
    pub fn pop_used(&mut self) -> Result<Option<(u16, u32)>, DriverError> {
        let index = self.areas.used_idx();
        if index == self.next_used {
            return Ok(None);
        }
        if index.wrapping_sub(self.next_used) > self.published.wrapping_sub(self.next_used) {
            return Err(DriverError::UsedIndex {
                index,
                next_used: self.next_used,
            });
        }
        let (id, len) = self.areas.used_entry(self.next_used);
        let descriptors = usize::try_from(id)
            .ok()
            .and_then(|id| self.chains.get_mut(id))
            .map(std::mem::take)
            .filter(|descriptors| !descriptors.is_empty())
            .ok_or(DriverError::Id(id))?;
        self.free.extend(descriptors);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some((id as u16, len)))
    }

    /// Asks the device not to notify (a hint).
    pub fn suppress_notifications(&mut self) {
        if !self.config.event_idx {
            self.areas.set_avail_flags(AVAIL_F_NO_INTERRUPT);
        }
    }

    /// Asks for a notification with the next used entry; true: entries are there already.
    pub fn want_notifications(&mut self) -> bool {
        self.want_notification_at(self.next_used)
    }

    /// As `want_notifications`, but with VIRTIO_F_EVENT_IDX only once an entry is used at `index`.
    pub fn want_notification_at(&mut self, index: u16) -> bool {
        if self.config.event_idx {
            self.areas.set_used_event(index);
        } else {
            self.areas.set_avail_flags(0);
        }
        fence(Ordering::SeqCst);
        self.areas.used_idx() != self.next_used
    }
}

fn describe(buffer: Buffer, next: Option<u16>) -> Desc {
    let write = if buffer.writable { DESC_F_WRITE } else { 0 };
    let more = if next.is_some() { DESC_F_NEXT } else { 0 };
    Desc {
        addr: buffer.addr,
        len: buffer.len,
        flags: write | more,
        next: next.unwrap_or(0),
    }
}
