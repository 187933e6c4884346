//! A RAM disk: a sparse memfd, mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use arc_swap::ArcSwap;
use io_uring::squeue;
use libc::iovec;

use super::pages::Pages;
use super::probe::{check, punch_hole};
use super::{Cursor, Engine, Io, IoKind};

/// Freeing this much takes well under a millisecond; more is left to a pool thread.
const DISCARD_NOW: u64 = 4 << 20;

pub struct MemoryEngine {
    file: File,
    /// Replaced by `resize`: whoever still uses the former one keeps it.
    disk: ArcSwap<Disk>,
}

struct Disk {
    mapping: Arc<Mapping>,
    /// At most that of the mapping.
    size: usize,
    written: Pages,
}

struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: all access to the mapping is by raw copies, while it lives: two commands on the same
// blocks race as they would on a disk.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The file is at least as long, and is never cut shorter.
    fn new(file: &File, size: usize) -> io::Result<Self> {
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
        Ok(Self { start, size })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no copy runs without a reference to it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

fn length(size: u64) -> io::Result<usize> {
    usize::try_from(size)
        .ok()
        .filter(|&size| size > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

impl MemoryEngine {
    /// Takes memory only as it is written.
    pub fn new(size: u64) -> io::Result<Self> {
        let length = length(size)?;
        // SAFETY: the name is a C string; no other pointers.
        let fd = unsafe { libc::memfd_create(c"vscsi-disk".as_ptr(), libc::MFD_CLOEXEC) };
        check(fd.into())?;
        // SAFETY: `fd` is open and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size)?;
        let disk = Disk {
            mapping: Arc::new(Mapping::new(&file, length)?),
            size: length,
            written: Pages::new(size),
        };
        Ok(Self {
            file,
            disk: ArcSwap::from_pointee(disk),
        })
    }

    /// Bytes of memory taken, for reading too.
    #[cfg(test)]
    pub(super) fn resident(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().unwrap().blocks() * 512
    }
}

impl Disk {
    fn read(&self, io: &Io, iov: &[iovec]) {
        // SAFETY: `Io::check` bounds offset and length by the mapping.
        unsafe {
            let from = self.mapping.start.as_ptr().add(io.offset as usize);
            Cursor::new(iov).copy_from(from, io.len as usize);
        }
    }

    fn write(&self, io: &Io, iov: &[iovec]) {
        // SAFETY: `Io::check` bounds offset and length by the mapping.
        unsafe {
            let to = self.mapping.start.as_ptr().add(io.offset as usize);
            Cursor::new(iov).copy_to(to, io.len as usize);
        }
    }
}

impl Engine for MemoryEngine {
    fn size(&self) -> u64 {
        self.disk.load().size as u64
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let length = length(size)?;
        let old = self.disk.load_full();
        let mapping = if length <= old.mapping.size {
            // The file keeps its length: memory that is mapped must not vanish.
            let rest = (old.size as u64).saturating_sub(size);
            punch_hole(&self.file, size, rest)?;
            old.mapping.clone()
        } else {
            self.file.set_len(size)?;
            Arc::new(Mapping::new(&self.file, length)?)
        };
        self.disk.store(Arc::new(Disk {
            mapping,
            size: length,
            written: old.written.resized(size),
        }));
        Ok(())
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn extent(&self, offset: u64) -> io::Result<(bool, u64)> {
        let disk = self.disk.load();
        Ok(disk.written.extent(offset, disk.size as u64))
    }

    fn allocated(&self) -> Option<u64> {
        Some(self.disk.load().written.bytes())
    }

    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        let frees = matches!(io.kind, IoKind::Discard | IoKind::Zero);
        (!frees || io.len <= DISCARD_NOW).then(|| self.run(io, iov))
    }

    fn sqe(&self, _io: &Io, _iov: &[iovec]) -> Option<squeue::Entry> {
        None
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        let disk = self.disk.load();
        io.check(disk.size as u64, iov)?;
        match io.kind {
            IoKind::Read => disk.read(io, iov),
            IoKind::Write => {
                disk.write(io, iov);
                disk.written.set(io.offset, io.len);
            }
            IoKind::Flush | IoKind::Prefetch => (),
            IoKind::Mark => return Err(io::ErrorKind::Unsupported.into()),
            // Partial pages at the ends are zeroed by the kernel.
            IoKind::Discard | IoKind::Zero => {
                disk.written.clear(io.offset, io.len);
                if let Err(error) = punch_hole(&self.file, io.offset, io.len) {
                    disk.written.set(io.offset, io.len);
                    return Err(error);
                }
            }
        }
        Ok(io.len)
    }
}
