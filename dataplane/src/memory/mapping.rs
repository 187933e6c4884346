//! One shared mapping of a front end's file, guarded against truncation.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, NewBitmap, BS};

use super::sigbus::Guard;
use super::{MemoryError, RegionSpec};

/// A mapped region; unmapped when dropped.
pub(super) struct Mapping<B = ()> {
    base: NonNull<u8>,
    /// Bytes mapped from `base` on: whole pages (whole huge pages on hugetlbfs).
    length: usize,
    /// Where the region starts in them.
    offset: usize,
    bitmap: B,
    /// None only until `new` ends and once `drop` begins.
    guard: Option<Guard>,
}

// SAFETY: the pointer is to a mapping that is bound to no thread, and is only handed out raw.
unsafe impl<B: Send> Send for Mapping<B> {}
// SAFETY: see above; nothing here changes behind a shared reference.
unsafe impl<B: Sync> Sync for Mapping<B> {}

impl<B: NewBitmap> Mapping<B> {
    /// Maps what `spec` describes, refusing every range that wraps around. `dead` is set when the
    /// file turns out to be shorter than the region.
    pub(super) fn new(spec: &RegionSpec<'_>, dead: Arc<AtomicBool>) -> Result<Self, MemoryError> {
        if spec.size == 0 {
            return Err(MemoryError::Empty {
                guest_address: spec.guest_address,
            });
        }
        check_range("guest address", spec.guest_address, spec.size, u64::MAX)?;
        check_range("user address", spec.user_address, spec.size, u64::MAX)?;
        check_range("mmap offset", spec.mmap_offset, spec.size, i64::MAX as u64)?;
        let failed = |source| MemoryError::Map {
            guest_address: spec.guest_address,
            size: spec.size,
            source,
        };

        let page = page_size(spec.fd).map_err(failed)?;
        let offset = spec.mmap_offset % page;
        let length = (offset + spec.size)
            .checked_next_multiple_of(page)
            .and_then(|length| usize::try_from(length).ok())
            .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                spec.fd.as_raw_fd(),
                (spec.mmap_offset - offset) as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let mut mapping = Self {
            // SAFETY: mmap never returns null for an address of its own choice.
            base: unsafe { NonNull::new_unchecked(base.cast()) },
            length,
            offset: offset as usize,
            bitmap: B::with_len(spec.size as usize),
            guard: None,
        };
        mapping.guard = Some(Guard::new(mapping.base, length, dead).map_err(failed)?);
        Ok(mapping)
    }
}

impl<B> Mapping<B> {
    /// Host address of the region's first byte.
    pub(super) fn start(&self) -> *mut u8 {
        self.base.as_ptr().wrapping_add(self.offset)
    }
}

impl<B: Bitmap> Mapping<B> {
    /// What records writes from `offset` bytes into the region on.
    pub(super) fn dirty(&self, offset: usize) -> BS<'_, B> {
        self.bitmap.slice_at(offset)
    }
}

impl<B> Drop for Mapping<B> {
    fn drop(&mut self) {
        // First the guard: once unmapped, the range may become somebody else's.
        self.guard = None;
        // SAFETY: our own mapping, and the last to hold it is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

fn check_range(space: &'static str, address: u64, size: u64, last: u64) -> Result<(), MemoryError> {
    match address.checked_add(size) {
        Some(end) if end <= last => Ok(()),
        _ => Err(MemoryError::Wraps {
            space,
            address,
            size,
        }),
    }
}

/// What offset and length of a mapping of `fd` must be multiples of: on hugetlbfs, its huge page.
fn page_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `stat` has room for what the kernel writes.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in, as the call succeeded.
    let stat = unsafe { stat.assume_init() };
    if stat.f_type == libc::HUGETLBFS_MAGIC {
        return Ok(stat.f_bsize as u64);
    }
    // SAFETY: no memory is involved.
    Ok(unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64)
}
