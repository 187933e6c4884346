//! The three parts of a split ring in host memory (virtio 2.7.5, 2.7.6, 2.7.8).
//!
//! Both sides read and write them through these functions only. Each field is accessed with one
//! untearable load or store; the other side may change any of them at any time.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Endian, RingConfig, RingError, MAX_SIZE};
use crate::memory::MemoryMap;

/// The buffer continues at `next`.
pub(super) const DESC_F_NEXT: u16 = 1;
/// Device-writable, else device-readable.
pub(super) const DESC_F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub(super) const DESC_F_INDIRECT: u16 = 4;
/// `flags` of the used ring: do not kick.
pub(super) const USED_F_NO_NOTIFY: u16 = 1;
/// `flags` of the available ring: do not notify.
pub(super) const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// `struct virtq_desc`, in the ring's byte order or, after `Desc::swap`, in the host's.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Desc {
    /// Bytes of a descriptor.
    pub(super) const SIZE: usize = size_of::<Self>();

    /// Between the ring's byte order and the host's, either way.
    pub(super) fn swap<E: Endian>(self) -> Self {
        Self {
            addr: E::u64(self.addr),
            len: E::u32(self.len),
            flags: E::u16(self.flags),
            next: E::u16(self.next),
        }
    }
}

/// Bytes of the parts, without the event fields that only VIRTIO_F_EVENT_IDX adds.
fn sizes(config: &RingConfig) -> (u64, u64, u64) {
    let size = u64::from(config.size);
    let event = if config.event_idx { 2 } else { 0 };
    (16 * size, 4 + 2 * size + event, 4 + 8 * size + event)
}

/// Resolved parts of one ring; valid while the map they were resolved in lives.
pub(super) struct Areas<E> {
    size: u16,
    desc: *mut Desc,
    /// flags, idx, ring[size], used_event
    avail: *mut u16,
    /// flags, idx, ring[size] of (id: u32, len: u32), avail_event
    used: *mut u16,
    order: PhantomData<E>,
}

// SAFETY: plain addresses of memory that belongs to no thread.
unsafe impl<E: Endian> Send for Areas<E> {}

impl<E: Endian> Areas<E> {
    /// Checks size, alignment and extent of all parts.
    pub(super) fn resolve(map: &MemoryMap, config: &RingConfig) -> Result<Self, RingError> {
        if !config.size.is_power_of_two() || config.size > MAX_SIZE {
            return Err(RingError::Size(config.size));
        }
        let (desc, avail, used) = sizes(config);
        Ok(Self {
            size: config.size,
            desc: resolve(map, "descriptor table", config.desc, desc, 16)?.cast(),
            avail: resolve(map, "available ring", config.driver, avail, 2)?.cast(),
            used: resolve(map, "used ring", config.device, used, 4)?.cast(),
            order: PhantomData,
        })
    }

    /// Position of a free-running index in a ring of `size`, a power of two.
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// SAFETY: `pointer` is aligned and inside one of the parts, which the owner of `self` keeps
    /// mapped. Others write there, so all accesses are atomic.
    unsafe fn u16_at(&self, pointer: *mut u16) -> &AtomicU16 {
        AtomicU16::from_ptr(pointer)
    }

    fn avail_field(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < usize::from(self.size) + 3);
        // SAFETY: indices are 0, 1, 2 + slot, or 2 + size where the event field is mapped.
        unsafe { self.u16_at(self.avail.add(index)) }
    }

    fn used_field(&self, index: usize) -> &AtomicU16 {
        // SAFETY: indices are 0, 1, or 2 + 4 * size where the event field is mapped.
        unsafe { self.u16_at(self.used.add(index)) }
    }

    /// One read of descriptor `index`, which is below the size.
    pub(super) fn desc(&self, index: u16) -> Desc {
        debug_assert!(index < self.size);
        // SAFETY: inside the table and aligned. Volatile: the driver may change the descriptor
        // meanwhile, so what is checked must be what is used and never be read again.
        unsafe { self.desc.add(index.into()).read_volatile() }.swap::<E>()
    }

    pub(super) fn set_desc(&self, index: u16, desc: Desc) {
        debug_assert!(index < self.size);
        // SAFETY: inside the table and aligned.
        unsafe { self.desc.add(index.into()).write_volatile(desc.swap::<E>()) }
    }

    pub(super) fn avail_flags(&self) -> u16 {
        E::u16(self.avail_field(0).load(Ordering::Relaxed))
    }

    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.avail_field(0).store(E::u16(flags), Ordering::Relaxed);
    }

    /// Acquire: entries and descriptors up to this index are read after it.
    pub(super) fn avail_idx(&self) -> u16 {
        E::u16(self.avail_field(1).load(Ordering::Acquire))
    }

    /// Release: entries and descriptors up to this index are visible before it.
    pub(super) fn set_avail_idx(&self, index: u16) {
        self.avail_field(1).store(E::u16(index), Ordering::Release);
    }

    /// Relaxed is enough: `avail_idx` was read with acquire before.
    pub(super) fn avail_entry(&self, index: u16) -> u16 {
        E::u16(
            self.avail_field(2 + self.slot(index))
                .load(Ordering::Relaxed),
        )
    }

    pub(super) fn set_avail_entry(&self, index: u16, head: u16) {
        let entry = self.avail_field(2 + self.slot(index));
        entry.store(E::u16(head), Ordering::Relaxed);
    }

    /// Only with VIRTIO_F_EVENT_IDX, else it need not be mapped.
    pub(super) fn used_event(&self) -> u16 {
        E::u16(
            self.avail_field(2 + usize::from(self.size))
                .load(Ordering::Relaxed),
        )
    }

    pub(super) fn set_used_event(&self, index: u16) {
        let event = self.avail_field(2 + usize::from(self.size));
        event.store(E::u16(index), Ordering::Relaxed);
    }

    pub(super) fn used_flags(&self) -> u16 {
        E::u16(self.used_field(0).load(Ordering::Relaxed))
    }

    pub(super) fn set_used_flags(&self, flags: u16) {
        self.used_field(0).store(E::u16(flags), Ordering::Relaxed);
    }

    /// Acquire: entries and data up to this index are read after it.
    pub(super) fn used_idx(&self) -> u16 {
        E::u16(self.used_field(1).load(Ordering::Acquire))
    }

    /// Release: entries and data up to this index are visible before it.
    pub(super) fn set_used_idx(&self, index: u16) {
        self.used_field(1).store(E::u16(index), Ordering::Release);
    }

    /// (id, len)
    pub(super) fn used_entry(&self, index: u16) -> (u32, u32) {
        let [id, len] = self.used_pair(index);
        (
            E::u32(id.load(Ordering::Relaxed)),
            E::u32(len.load(Ordering::Relaxed)),
        )
    }

    /// Relaxed is enough: `set_used_idx` releases it.
    pub(super) fn set_used_entry(&self, index: u16, id: u32, len: u32) {
        let [entry_id, entry_len] = self.used_pair(index);
        entry_id.store(E::u32(id), Ordering::Relaxed);
        entry_len.store(E::u32(len), Ordering::Relaxed);
    }

    fn used_pair(&self, index: u16) -> [&AtomicU32; 2] {
        // SAFETY: inside the used ring; entries start 4 bytes into an area aligned to 4.
        unsafe {
            let entry = self.used.cast::<u32>().add(1 + 2 * self.slot(index));
            [
                AtomicU32::from_ptr(entry),
                AtomicU32::from_ptr(entry.add(1)),
            ]
        }
    }

    /// Only with VIRTIO_F_EVENT_IDX, else it need not be mapped.
    pub(super) fn avail_event(&self) -> u16 {
        E::u16(
            self.used_field(2 + 4 * usize::from(self.size))
                .load(Ordering::Relaxed),
        )
    }

    pub(super) fn set_avail_event(&self, index: u16) {
        let event = self.used_field(2 + 4 * usize::from(self.size));
        event.store(E::u16(index), Ordering::Relaxed);
    }
}

fn resolve(
    map: &MemoryMap,
    area: &'static str,
    address: u64,
    length: u64,
    alignment: usize,
) -> Result<*mut u8, RingError> {
    let unmapped = |source| RingError::Unmapped { area, source };
    let pointer = map.slice(address, length).map_err(unmapped)?;
    // The driver aligns guest addresses; a hostile table can still put them on odd host addresses.
    if address % alignment as u64 != 0 || pointer.addr() % alignment != 0 {
        return Err(RingError::Misaligned {
            area,
            address,
            alignment,
        });
    }
    Ok(pointer)
}
