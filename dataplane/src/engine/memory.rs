//! A RAM disk: a sparse memfd, mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;

use io_uring::squeue;
use libc::iovec;

use super::pages::Pages;
use super::probe::{check, punch_hole};
use super::{Cursor, Engine, Io, IoKind};

/// Freeing this much takes well under a millisecond; more is left to a pool thread.
const DISCARD_NOW: u64 = 4 << 20;

pub struct MemoryEngine {
    file: File,
    start: NonNull<u8>,
    size: usize,
    written: Pages,
}

// SAFETY: the mapping lives as long as the engine, and all access to it is by raw copies: two
// commands on the same blocks race as they would on a disk.
unsafe impl Send for MemoryEngine {}
// SAFETY: as above.
unsafe impl Sync for MemoryEngine {}

impl MemoryEngine {
    /// Takes memory only as it is written.
    pub fn new(size: u64) -> io::Result<Self> {
        let size = usize::try_from(size)
            .ok()
            .filter(|&size| size > 0)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the name is a C string; no other pointers.
        let fd = unsafe { libc::memfd_create(c"vscsi-disk".as_ptr(), libc::MFD_CLOEXEC) };
        check(fd.into())?;
        // SAFETY: `fd` is open and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size as u64)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        let written = Pages::new(size as u64);
        Ok(Self {
            file,
            start,
            size,
            written,
        })
    }

    /// Bytes of memory taken, for reading too.
    #[cfg(test)]
    pub(super) fn resident(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().unwrap().blocks() * 512
    }

    fn read(&self, io: &Io, iov: &[iovec]) {
        // SAFETY: `Io::check` bounds offset and length by the mapping.
        unsafe {
            let from = self.start.as_ptr().add(io.offset as usize);
            Cursor::new(iov).copy_from(from, io.len as usize);
        }
    }

    fn write(&self, io: &Io, iov: &[iovec]) {
        // SAFETY: `Io::check` bounds offset and length by the mapping.
        unsafe {
            let to = self.start.as_ptr().add(io.offset as usize);
            Cursor::new(iov).copy_to(to, io.len as usize);
        }
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no copy runs without a reference to the engine.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

impl Engine for MemoryEngine {
    fn size(&self) -> u64 {
        self.size as u64
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn extent(&self, offset: u64) -> io::Result<(bool, u64)> {
        Ok(self.written.extent(offset, self.size()))
    }

    fn allocated(&self) -> Option<u64> {
        Some(self.written.bytes())
    }

    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        let frees = matches!(io.kind, IoKind::Discard | IoKind::Zero);
        (!frees || io.len <= DISCARD_NOW).then(|| self.run(io, iov))
    }

    fn sqe(&self, _io: &Io, _iov: &[iovec]) -> Option<squeue::Entry> {
        None
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        io.check(self.size(), iov)?;
        match io.kind {
            IoKind::Read => self.read(io, iov),
            IoKind::Write => {
                self.write(io, iov);
                self.written.set(io.offset, io.len);
            }
            IoKind::Flush | IoKind::Prefetch => (),
            IoKind::Mark => return Err(io::ErrorKind::Unsupported.into()),
            // Partial pages at the ends are zeroed by the kernel.
            IoKind::Discard | IoKind::Zero => {
                self.written.clear(io.offset, io.len);
                if let Err(error) = punch_hole(&self.file, io.offset, io.len) {
                    self.written.set(io.offset, io.len);
                    return Err(error);
                }
            }
        }
        Ok(io.len)
    }
}
