//! Private memory that O_DIRECT takes.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use libc::iovec;

/// Enough for every direct I/O alignment in use: that of a page.
pub const ALIGNMENT: usize = 4096;

/// Zeroed, page-aligned bytes.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// Fails, instead of ending the process, when memory is short.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let error = || io::Error::from_raw_os_error(libc::ENOMEM);
        // The allocator takes no size of 0.
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT).map_err(|_| error())?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(error)?;
        Ok(Self { start, layout })
    }

    /// The first `len` bytes as an engine takes them.
    pub fn iovec(&mut self, len: usize) -> iovec {
        iovec {
            iov_base: self[..len].as_mut_ptr().cast(),
            iov_len: len,
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` owns that many initialised bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` owns that many initialised bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
