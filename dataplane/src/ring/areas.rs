//! The three parts of a split ring in host memory (virtio 2.7.5, 2.7.6, 2.7.8).
//!
//! Both sides read and write them through these functions only. Each field is accessed with one
//! untearable load or store; the other side may change any of them at any time.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Endian, RingConfig, RingError, MAX_SIZE};
use crate::memory::{Access, View};

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

/// A part of a ring: contiguous for the driver, in one or more pieces of host memory.
struct Part {
    first: Piece,
    /// Where an IOMMU or a border of regions scatters it.
    others: Vec<Piece>,
}

#[derive(Clone, Copy)]
struct Piece {
    /// Offset in the part where the next piece begins.
    end: usize,
    /// Host address of offset 0, had this piece begun there.
    origin: *mut u8,
}

impl Part {
    const UNRESOLVED: Self = Self {
        first: Piece {
            end: 0,
            origin: std::ptr::null_mut(),
        },
        others: Vec::new(),
    };

    /// Host address of `offset`, which is inside the part.
    fn at(&self, offset: usize) -> *mut u8 {
        let piece = if offset < self.first.end {
            &self.first
        } else {
            let index = self.others.partition_point(|piece| piece.end <= offset);
            &self.others[index]
        };
        piece.origin.wrapping_add(offset)
    }
}

/// Resolved parts of one ring; valid while the map they were resolved in lives and the IOMMU has
/// not withdrawn their translation.
pub(super) struct Areas<E> {
    size: u16,
    desc: Part,
    /// flags, idx, ring[size], used_event
    avail: Part,
    /// flags, idx, ring[size] of (id: u32, len: u32), avail_event
    used: Part,
    order: PhantomData<E>,
}

// SAFETY: plain addresses of memory that belongs to no thread.
unsafe impl<E: Endian> Send for Areas<E> {}

impl<E: Endian> Areas<E> {
    /// Nowhere yet: nothing may be read or written before `resolve`.
    pub(super) fn unresolved() -> Self {
        Self {
            size: 0,
            desc: Part::UNRESOLVED,
            avail: Part::UNRESOLVED,
            used: Part::UNRESOLVED,
            order: PhantomData,
        }
    }

    /// Checks size, alignment and extent of all parts.
    pub(super) fn resolve(view: &View<'_>, config: &RingConfig) -> Result<Self, RingError> {
        if !config.size.is_power_of_two() || config.size > MAX_SIZE {
            return Err(RingError::Size(config.size));
        }
        let (desc, avail, used) = sizes(config);
        let parts = [
            ("descriptor table", config.desc, desc, 16, Access::READ),
            ("available ring", config.driver, avail, 2, Access::READ),
            ("used ring", config.device, used, 4, Access::WRITE),
        ];
        // All alignments first: a ring that is wrong is refused before the IOMMU is asked.
        for (area, address, _, alignment, _) in parts {
            check_alignment(area, address, address, alignment)?;
        }
        let [desc, avail, used] = parts;
        Ok(Self {
            size: config.size,
            desc: resolve(view, desc)?,
            avail: resolve(view, avail)?,
            used: resolve(view, used)?,
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
        unsafe { self.u16_at(self.avail.at(2 * index).cast()) }
    }

    fn used_field(&self, index: usize) -> &AtomicU16 {
        // SAFETY: indices are 0, 1, or 2 + 4 * size where the event field is mapped.
        unsafe { self.u16_at(self.used.at(2 * index).cast()) }
    }

    fn desc_at(&self, index: u16) -> *mut Desc {
        debug_assert!(index < self.size);
        self.desc.at(Desc::SIZE * usize::from(index)).cast()
    }

    /// One read of descriptor `index`, which is below the size.
    pub(super) fn desc(&self, index: u16) -> Desc {
        // SAFETY: inside the table and aligned. Volatile: the driver may change the descriptor
        // meanwhile, so what is checked must be what is used and never be read again.
        unsafe { self.desc_at(index).read_volatile() }.swap::<E>()
    }

    pub(super) fn set_desc(&self, index: u16, desc: Desc) {
        // SAFETY: inside the table and aligned.
        unsafe { self.desc_at(index).write_volatile(desc.swap::<E>()) }
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
        let entry = 4 + 8 * self.slot(index);
        // SAFETY: inside the used ring; every piece of it is aligned to 4.
        unsafe {
            [
                AtomicU32::from_ptr(self.used.at(entry).cast()),
                AtomicU32::from_ptr(self.used.at(entry + 4).cast()),
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
    view: &View<'_>,
    (area, address, length, alignment, access): (&'static str, u64, u64, usize, Access),
) -> Result<Part, RingError> {
    let mut found = Vec::new();
    view.iovecs(address, length, access, &mut found)
        .map_err(|source| RingError::Unmapped { area, source })?;
    let mut part = Part::UNRESOLVED;
    let mut offset = 0;
    for (index, piece) in found.into_iter().enumerate() {
        // A field lies in one piece, and on a host address that suits it, unless the table of
        // regions or mappings is hostile.
        let base = piece.iov_base.cast::<u8>();
        check_alignment(area, address, offset as u64 | base.addr() as u64, alignment)?;
        let origin = base.wrapping_sub(offset);
        offset += piece.iov_len;
        let end = offset;
        match index {
            0 => part.first = Piece { end, origin },
            _ => part.others.push(Piece { end, origin }),
        }
    }
    Ok(part)
}

fn check_alignment(
    area: &'static str,
    address: u64,
    bits: u64,
    alignment: usize,
) -> Result<(), RingError> {
    if bits % alignment as u64 != 0 {
        return Err(RingError::Misaligned {
            area,
            address,
            alignment,
        });
    }
    Ok(())
}
