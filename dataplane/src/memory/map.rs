//! An immutable table of regions and the look-ups in it.

use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, BS};
use vm_memory::VolatileSlice;

use super::mapping::Mapping;
use super::{MemoryError, RegionSpec, MAX_REGIONS};

/// A stretch of guest memory and where it is mapped here. `B` will record what was written.
pub(super) struct Region<B = ()> {
    guest: u64,
    size: u64,
    user: u64,
    mapping: Arc<Mapping<B>>,
}

impl<B> Clone for Region<B> {
    fn clone(&self) -> Self {
        Self {
            mapping: Arc::clone(&self.mapping),
            ..*self
        }
    }
}

impl<B> Region<B> {
    pub(super) fn new(spec: &RegionSpec<'_>, mapping: Arc<Mapping<B>>) -> Self {
        Self {
            guest: spec.guest_address,
            size: spec.size,
            user: spec.user_address,
            mapping,
        }
    }

    /// (guest address, size, user address).
    pub(super) fn key(&self) -> (u64, u64, u64) {
        (self.guest, self.size, self.user)
    }

    /// Cannot overflow: `Mapping::new` refused what wraps around.
    fn end(&self) -> u64 {
        self.guest + self.size
    }

    /// The host's address of guest address `address`, which is in this region.
    fn host(&self, address: u64) -> *mut u8 {
        self.mapping
            .start()
            .wrapping_add((address - self.guest) as usize)
    }

    /// The part of [address, end) in this region, which holds some of it: (address, bytes).
    fn part(&self, address: u64, end: u64) -> (u64, usize) {
        let start = address.max(self.guest);
        (start, (end.min(self.end()) - start) as usize)
    }
}

/// A snapshot of the memory table. Pointers and iovecs that it hands out are good for as long as
/// it lives; what they point to may change under our hands at any time.
#[derive(Clone)]
pub struct MemoryMap<B = ()> {
    /// Sorted by guest address, without overlaps.
    regions: Vec<Region<B>>,
    /// Positions in `regions`, sorted by user address.
    by_user: Vec<u16>,
}

impl<B> Default for MemoryMap<B> {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            by_user: Vec::new(),
        }
    }
}

impl<B> fmt::Debug for MemoryMap<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions()).finish()
    }
}

impl<B> MemoryMap<B> {
    pub(super) fn new(mut regions: Vec<Region<B>>) -> Result<Self, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany {
                count: regions.len(),
                limit: MAX_REGIONS,
            });
        }
        regions.sort_unstable_by_key(|region| region.guest);
        check_overlap("guest", regions.iter().map(|r| (r.guest, r.size)))?;
        let mut by_user: Vec<_> = (0..regions.len() as u16).collect();
        by_user.sort_unstable_by_key(|&at| regions[usize::from(at)].user);
        let users = by_user.iter().map(|&at| &regions[usize::from(at)]);
        check_overlap("user", users.map(|r| (r.user, r.size)))?;
        Ok(Self { regions, by_user })
    }

    pub(super) fn to_vec(&self) -> Vec<Region<B>> {
        self.regions.clone()
    }

    /// (guest address, size, user address) of each region, by guest address.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = (u64, u64, u64)> + '_ {
        self.regions.iter().map(Region::key)
    }

    /// The region that holds a front end's address.
    fn user_region(&self, user: u64) -> Option<&Region<B>> {
        let region = |at: &u16| &self.regions[usize::from(*at)];
        let after = self.by_user.partition_point(|at| region(at).user <= user);
        let found = self.by_user[..after].last().map(region)?;
        (user - found.user < found.size).then_some(found)
    }

    /// Guest address of `length` bytes at a front end's address, if one region holds them all.
    pub fn user_to_guest(&self, user: u64, length: u64) -> Option<u64> {
        let region = self.user_region(user)?;
        let offset = user - region.user;
        (length <= region.size - offset).then(|| region.guest + offset)
    }

    /// As `iovecs`, at a front end's address; what was appended before an error stays.
    pub(super) fn user_iovecs(
        &self,
        user: u64,
        length: u64,
        out: &mut Vec<libc::iovec>,
    ) -> Result<(), MemoryError> {
        let (mut address, mut left) = (user, length);
        while left > 0 {
            let Some(region) = self.user_region(address) else {
                return Err(MemoryError::UserUnmapped { user, length });
            };
            let offset = address - region.user;
            let bytes = left.min(region.size - offset);
            push(out, region.host(region.guest + offset), bytes as usize);
            // No overflow: regions end below 2^64.
            address += bytes;
            left -= bytes;
        }
        Ok(())
    }

    /// Appends the pieces of host memory behind `length` bytes at `address`, which may cross
    /// adjacent regions. What continues the last piece of `out` is joined to it. On error `out` is
    /// as before. Length 0 appends nothing, whatever the address.
    pub fn iovecs(
        &self,
        address: u64,
        length: u64,
        out: &mut Vec<libc::iovec>,
    ) -> Result<(), MemoryError> {
        if length == 0 {
            return Ok(());
        }
        for region in self.covering(address, length)? {
            let (start, bytes) = region.part(address, address + length);
            push(out, region.host(start), bytes);
        }
        Ok(())
    }

    /// Host address of `length` bytes that lie in one region.
    pub fn slice(&self, address: u64, length: u64) -> Result<*mut u8, MemoryError> {
        match self.covering(address, length.max(1))? {
            [region] => Ok(region.host(address)),
            _ => Err(MemoryError::Unmapped { address, length }),
        }
    }

    /// The index, in host byte order, of a ring; `address` must be even.
    pub fn load_u16_acquire(&self, address: u64) -> Result<u16, MemoryError> {
        Ok(self.atomic_u16(address)?.load(Ordering::Acquire))
    }

    fn atomic_u16(&self, address: u64) -> Result<&AtomicU16, MemoryError> {
        let pointer = self.slice(address, 2)?.cast::<u16>();
        // A hostile table can put an even guest address on an odd host address.
        if address % 2 != 0 || !pointer.is_aligned() {
            return Err(MemoryError::Misaligned {
                address,
                alignment: 2,
            });
        }
        // SAFETY: aligned, mapped for as long as `self` lives, and only accessed as bytes that
        // other processes change, for which an atomic is the right type.
        Ok(unsafe { AtomicU16::from_ptr(pointer) })
    }

    /// The run of adjacent regions that holds `length` > 0 bytes at `address`.
    fn covering(&self, address: u64, length: u64) -> Result<&[Region<B>], MemoryError> {
        let unmapped = MemoryError::Unmapped { address, length };
        let Some(end) = address.checked_add(length) else {
            return Err(unmapped);
        };
        let after = self.regions.partition_point(|r| r.guest <= address);
        let Some(first) = after.checked_sub(1) else {
            return Err(unmapped);
        };
        let mut reached = address;
        for (index, region) in self.regions.iter().enumerate().skip(first) {
            if region.guest > reached {
                break;
            }
            reached = region.end();
            if reached >= end {
                return Ok(&self.regions[first..=index]);
            }
        }
        Err(unmapped)
    }
}

impl<B: Bitmap> MemoryMap<B> {
    /// Copies guest memory at `address` into `data`; all or nothing. Not atomic.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = data;
        for slice in self.slices(address, rest.len())? {
            let (now, later) = rest.split_at_mut(slice.len());
            slice.copy_to(now);
            rest = later;
        }
        Ok(())
    }

    /// Copies `data` to guest memory at `address`; all or nothing. Not atomic.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let mut rest = data;
        for slice in self.slices(address, rest.len())? {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    /// Stores an index of a ring, in host byte order; `address` must be even.
    pub fn store_u16_release(&self, address: u64, value: u16) -> Result<(), MemoryError> {
        self.atomic_u16(address)?.store(value, Ordering::Release);
        for slice in self.slices(address, 2)? {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        Ok(())
    }

    fn slices(
        &self,
        address: u64,
        length: usize,
    ) -> Result<impl Iterator<Item = VolatileSlice<'_, BS<'_, B>>>, MemoryError> {
        let regions = match length {
            0 => &[],
            _ => self.covering(address, length as u64)?,
        };
        let end = address.saturating_add(length as u64);
        Ok(regions.iter().map(move |region| {
            let (start, bytes) = region.part(address, end);
            let dirty = region.mapping.dirty((start - region.guest) as usize);
            // SAFETY: `part` lies in the region, which stays mapped while `self` is borrowed.
            unsafe { VolatileSlice::with_bitmap(region.host(start), bytes, dirty, None) }
        }))
    }
}

/// Appends a piece, or lengthens the last one that it continues.
fn push(out: &mut Vec<libc::iovec>, base: *mut u8, bytes: usize) {
    match out.last_mut() {
        Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => {
            last.iov_len += bytes;
        }
        _ => out.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: bytes,
        }),
    }
}

/// `ranges`: (start, size), sorted by start; sizes are not 0 and nothing wraps around.
fn check_overlap(
    space: &'static str,
    ranges: impl Iterator<Item = (u64, u64)> + Clone,
) -> Result<(), MemoryError> {
    for ((first, first_size), (second, _)) in ranges.clone().zip(ranges.skip(1)) {
        if second - first < first_size {
            return Err(MemoryError::Overlap {
                space,
                first,
                first_size,
                second,
            });
        }
    }
    Ok(())
}
