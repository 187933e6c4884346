//! Regular files and block devices.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use io_uring::{opcode, squeue, types};
use libc::iovec;

use super::probe::{self, check, extent, fallocate, punch_hole, Alignment, PUNCH_HOLE, ZERO_RANGE};
use super::{AlignedBuffer, Cursor, Engine, Io, IoKind, NotFlushed, Partial, CHUNK};

/// Entries that one readv or writev takes (UIO_MAXIOV).
const IOV_MAX: usize = 1024;
/// Bytes that one readv or writev moves at most (MAX_RW_COUNT).
const RW_MAX: u64 = 0x7fff_f000;

pub struct FileEngine {
    fd: OwnedFd,
    direct: Option<Direct>,
    size: AtomicU64,
    can_discard: bool,
    read_only: bool,
    /// On tmpfs, which knows neither RWF_NOWAIT nor waiting, and for which io_uring needs threads.
    in_memory: bool,
    /// Cleared when the file system turns out not to know RWF_NOWAIT.
    nowait: AtomicBool,
    /// Cleared when the file system turns out not to know ZERO_RANGE.
    zero_range: AtomicBool,
    #[cfg(test)]
    pub(super) syncs: std::sync::atomic::AtomicU32,
}

/// The same file, opened with O_DIRECT.
struct Direct {
    fd: OwnedFd,
    alignment: Alignment,
    /// Set by the first request finer than the device's blocks. Such requests must go through the
    /// page cache, and there a page could be written back over a direct write beside them; so from
    /// then on everything does.
    given_up: AtomicBool,
}

/// How one transfer reaches the file.
enum Way<'a> {
    Cached,
    Direct(&'a Direct),
    /// Direct, but through aligned memory of ours.
    Bounced(&'a Direct),
}

impl Direct {
    fn takes(&self, iov: &[iovec]) -> bool {
        let Alignment { memory, offset } = self.alignment;
        iov.iter()
            .all(|v| (v.iov_base as usize) % memory == 0 && v.iov_len % offset == 0)
    }
}

impl FileEngine {
    /// `direct_fd` is the same file opened with O_DIRECT: data then bypasses the page cache.
    /// `discard` allows freeing space, where that works. Fails with `InvalidInput` if the file is
    /// shorter than `size` bytes, of the wrong type, or not that of `direct_fd`.
    pub fn new(
        fd: OwnedFd,
        direct_fd: Option<OwnedFd>,
        size: u64,
        discard: bool,
        read_only: bool,
    ) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let medium = probe::medium(&fd)?;
        if medium.size < size {
            return Err(invalid(format!("has {} bytes, not {size}", medium.size)));
        }
        // A block device's node lies on devtmpfs, its data does not.
        let in_memory = medium.block_device.is_none() && probe::in_memory(&fd)?;
        let direct = match direct_fd {
            None => None,
            Some(direct_fd) => {
                if probe::medium(&direct_fd)?.inode != medium.inode {
                    return Err(invalid("direct_fd is another file".into()));
                }
                let alignment = probe::direct_alignment(&direct_fd)?;
                alignment.filter(|_| !in_memory).map(|alignment| Direct {
                    fd: direct_fd,
                    alignment,
                    given_up: AtomicBool::new(false),
                })
            }
        };
        Ok(Self {
            can_discard: discard && !read_only && probe::can_discard(&fd, &medium),
            fd,
            direct,
            size: AtomicU64::new(size),
            read_only,
            in_memory,
            nowait: AtomicBool::new(true),
            zero_range: AtomicBool::new(true),
            #[cfg(test)]
            syncs: Default::default(),
        })
    }

    fn way(&self, io: &Io, iov: &[iovec]) -> Way<'_> {
        let Some(direct) = &self.direct else {
            return Way::Cached;
        };
        let grain = direct.alignment.offset as u64;
        if io.offset % grain != 0 || io.len % grain != 0 {
            direct.given_up.store(true, Relaxed);
        }
        if direct.given_up.load(Relaxed) {
            Way::Cached
        } else if direct.takes(iov) {
            Way::Direct(direct)
        } else {
            Way::Bounced(direct)
        }
    }

    fn check(&self, io: &Io, iov: &[iovec]) -> io::Result<()> {
        io.check(self.size(), iov)?;
        if self.read_only && !matches!(io.kind, IoKind::Read | IoKind::Flush | IoKind::Prefetch) {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        Ok(())
    }

    fn transfer(&self, io: &Io, iov: &[iovec]) -> io::Result<()> {
        match self.way(io, iov) {
            Way::Cached => transfer_all(&self.fd, io, iov, 1),
            Way::Direct(direct) => transfer_all(&direct.fd, io, iov, direct.alignment.offset),
            Way::Bounced(direct) => bounce(direct, io, iov),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        #[cfg(test)]
        self.syncs.fetch_add(1, Relaxed);
        loop {
            // SAFETY: no pointers.
            match check(unsafe { libc::fdatasync(self.fd.as_raw_fd()) }.into()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => return result.map(drop),
            }
        }
    }

    fn prefetch(&self, io: &Io) {
        // SAFETY: no pointers.
        let _ = unsafe {
            libc::posix_fadvise64(
                self.fd.as_raw_fd(),
                io.offset as libc::off64_t,
                io.len as libc::off64_t,
                libc::POSIX_FADV_WILLNEED,
            )
        };
    }

    fn discard(&self, io: &Io) -> io::Result<()> {
        if self.can_discard {
            match punch_hole(&self.fd, io.offset, io.len) {
                Err(error) if declined(&error) => (),
                result => return result,
            }
        }
        // Freeing is optional, reading as zeros is not.
        self.zero(io)
    }

    fn zero(&self, io: &Io) -> io::Result<()> {
        if self.zero_range.load(Relaxed) {
            match fallocate(&self.fd, ZERO_RANGE, io.offset, io.len) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.zero_range.store(false, Relaxed);
                }
                Err(error) if declined(&error) => (),
                result => return result,
            }
        }
        if self.can_discard {
            match punch_hole(&self.fd, io.offset, io.len) {
                Err(error) if declined(&error) => (),
                result => return result,
            }
        }
        self.write_zeros(io)
    }

    fn write_zeros(&self, io: &Io) -> io::Result<()> {
        let chunk = io.len.min(CHUNK as u64);
        let mut zeros = AlignedBuffer::zeroed(chunk as usize)?;
        let mut done = 0;
        while done < io.len {
            let len = chunk.min(io.len - done);
            let write = Io {
                kind: IoKind::Write,
                offset: io.offset + done,
                len,
                durable: false,
            };
            self.transfer(&write, &[zeros.iovec(len as usize)])
                .map_err(|error| Partial::after(done, error))?;
            done += len;
        }
        Ok(())
    }
}

/// The file system cannot do this to this range, but zeros can still be written.
fn declined(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

/// One preadv2 or pwritev2.
fn transfer_once(
    fd: &OwnedFd,
    kind: IoKind,
    offset: u64,
    iov: &[iovec],
    flags: i32,
) -> io::Result<u64> {
    let call = match kind {
        IoKind::Read => libc::preadv2,
        _ => libc::pwritev2,
    };
    let count = iov.len().min(IOV_MAX) as i32;
    // SAFETY: `iov` describes mapped memory (its promise); the count is within it.
    let moved = unsafe {
        call(
            fd.as_raw_fd(),
            iov.as_ptr(),
            count,
            offset as libc::off_t,
            flags,
        )
    };
    check(moved as i64)
}

fn write_flags(io: &Io) -> i32 {
    match io.kind {
        IoKind::Write if io.durable => libc::RWF_DSYNC,
        _ => 0,
    }
}

/// Until all is moved. Transfers that stop inside a `grain` are taken up again at its start.
fn transfer_all(fd: &OwnedFd, io: &Io, iov: &[iovec], grain: usize) -> io::Result<()> {
    let mut cursor = Cursor::new(iov);
    let mut done = 0;
    while done < io.len {
        let batch = cursor.batch(IOV_MAX);
        let moved = match transfer_once(fd, io.kind, io.offset + done, &batch, write_flags(io)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Partial::after(done, error)),
            Ok(moved) => moved - moved % grain as u64,
        };
        if moved == 0 {
            // The file was cut short behind our back: zeros here would be made up.
            return Err(Partial::after(done, io::ErrorKind::UnexpectedEof.into()));
        }
        cursor.skip(moved as usize);
        done += moved;
    }
    Ok(())
}

fn bounce(direct: &Direct, io: &Io, iov: &[iovec]) -> io::Result<()> {
    let chunk = io.len.min(CHUNK as u64);
    let mut buffer = AlignedBuffer::zeroed(chunk as usize)?;
    let mut cursor = Cursor::new(iov);
    let mut done = 0;
    while done < io.len {
        let len = chunk.min(io.len - done);
        let part = Io {
            offset: io.offset + done,
            len,
            ..*io
        };
        let piece = buffer.iovec(len as usize);
        if io.kind == IoKind::Write {
            cursor.read(&mut buffer[..len as usize]);
        }
        transfer_all(&direct.fd, &part, &[piece], direct.alignment.offset)
            .map_err(|error| Partial::after(done, error))?;
        if io.kind == IoKind::Read {
            cursor.write(&buffer[..len as usize]);
        }
        done += len;
    }
    Ok(())
}

impl Engine for FileEngine {
    fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let there = probe::medium(&self.fd)?.size;
        if there < size {
            let text = format!("has {there} bytes, not {size}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.size.store(size, Relaxed);
        Ok(())
    }

    fn can_discard(&self) -> bool {
        self.can_discard
    }

    fn extent(&self, offset: u64) -> io::Result<(bool, u64)> {
        extent(&self.fd, offset, self.size())
    }

    fn allocated(&self) -> Option<u64> {
        probe::allocated(&self.fd).ok().flatten()
    }

    /// Reads of cached pages, and transfers on tmpfs. All else may wait for a disk or a lock.
    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        let flags = match io.kind {
            // Nothing would be read from a cache.
            IoKind::Prefetch if self.in_memory || self.direct.is_some() => {
                return Some(Ok(io.len));
            }
            IoKind::Read | IoKind::Write if self.in_memory => 0,
            IoKind::Read if !io.durable && self.nowait.load(Relaxed) => libc::RWF_NOWAIT,
            _ => return None,
        };
        let possible = iov.len() <= IOV_MAX
            && self.check(io, iov).is_ok()
            && matches!(self.way(io, iov), Way::Cached);
        if !possible {
            return None;
        }
        match transfer_once(&self.fd, io.kind, io.offset, iov, flags) {
            Ok(moved) if moved == io.len => Some(Ok(moved)),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.nowait.store(false, Relaxed);
                None
            }
            // Not all cached, or an error: `run` finds out.
            _ => None,
        }
    }

    fn sqe(&self, io: &Io, iov: &[iovec]) -> Option<squeue::Entry> {
        self.check(io, iov).ok()?;
        let fd = types::Fd(self.fd.as_raw_fd());
        let allocate = |mode| {
            // Durable needs a second step.
            (!io.durable).then(|| {
                opcode::Fallocate::new(fd, io.len)
                    .offset(io.offset)
                    .mode(mode)
                    .build()
            })
        };
        match io.kind {
            IoKind::Read | IoKind::Write => {
                let fits = iov.len() <= IOV_MAX && io.len <= RW_MAX;
                let synced_first = io.kind == IoKind::Read && io.durable;
                let fd = match self.way(io, iov) {
                    _ if !fits || synced_first => return None,
                    Way::Cached => fd,
                    Way::Direct(direct) => types::Fd(direct.fd.as_raw_fd()),
                    Way::Bounced(_) => return None,
                };
                Some(match io.kind {
                    IoKind::Read => opcode::Readv::new(fd, iov.as_ptr(), iov.len() as u32)
                        .offset(io.offset)
                        .build(),
                    _ => opcode::Writev::new(fd, iov.as_ptr(), iov.len() as u32)
                        .offset(io.offset)
                        .rw_flags(write_flags(io))
                        .build(),
                })
            }
            IoKind::Prefetch | IoKind::Mark => None,
            IoKind::Flush if self.read_only => None,
            IoKind::Flush => Some(
                opcode::Fsync::new(fd)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build(),
            ),
            IoKind::Discard if self.can_discard => allocate(PUNCH_HOLE),
            IoKind::Zero if self.zero_range.load(Relaxed) => allocate(ZERO_RANGE),
            IoKind::Discard | IoKind::Zero => None,
        }
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        self.check(io, iov)?;
        match io.kind {
            IoKind::Read => {
                if io.durable {
                    self.sync().map_err(|_| io::Error::other(NotFlushed))?;
                }
                self.transfer(io, iov)?;
            }
            IoKind::Write => self.transfer(io, iov)?,
            IoKind::Flush => self.sync()?,
            IoKind::Prefetch => self.prefetch(io),
            IoKind::Mark => return Err(io::ErrorKind::Unsupported.into()),
            IoKind::Discard | IoKind::Zero => {
                match io.kind {
                    IoKind::Discard => self.discard(io)?,
                    _ => self.zero(io)?,
                }
                if io.durable {
                    self.sync()?;
                }
            }
        }
        Ok(io.len)
    }
}
