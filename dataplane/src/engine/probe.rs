//! What a file or block device can do, found out without changing a byte of it.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use super::AlignedBuffer;

/// Turns -1 into the error it stands for.
pub fn check(result: i64) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

pub fn fallocate(fd: &impl AsFd, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off64_t::try_from(offset).map_err(too_large)?;
    let len = libc::off64_t::try_from(len).map_err(too_large)?;
    loop {
        // SAFETY: no pointers.
        let result = unsafe { libc::fallocate64(fd.as_fd().as_raw_fd(), mode, offset, len) };
        match check(result.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => return result.map(drop),
        }
    }
}

pub const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
pub const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

pub fn punch_hole(fd: &impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    fallocate(fd, PUNCH_HOLE, offset, len)
}

/// Whether the file's bytes from `offset` on are data (else a hole), and how many up to `size` are
/// alike. Where holes cannot be told, all is data.
pub fn extent(fd: &impl AsFd, offset: u64, size: u64) -> io::Result<(bool, u64)> {
    let seek = |whence| -> io::Result<u64> {
        let offset = libc::off64_t::try_from(offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: no pointers. The file position is nobody's: transfers name their offset.
        check(unsafe { libc::lseek64(fd.as_fd().as_raw_fd(), offset, whence) })
    };
    let up_to = |end: u64| end.min(size).saturating_sub(offset);
    match seek(libc::SEEK_DATA) {
        Ok(data) if data > offset => Ok((false, up_to(data))),
        Ok(_) => Ok((true, up_to(seek(libc::SEEK_HOLE)?))),
        Err(error) => match error.raw_os_error() {
            // No data from here to the end.
            Some(libc::ENXIO) => Ok((false, up_to(size))),
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Ok((true, up_to(size))),
            _ => Err(error),
        },
    }
}

/// Identity and capacity of what a descriptor stands for.
#[derive(Debug, PartialEq, Eq)]
pub struct Medium {
    /// Device number of a block device, else `None`.
    pub block_device: Option<libc::dev_t>,
    /// Device and inode of the file, so that two descriptors can be compared.
    pub inode: (libc::dev_t, libc::ino64_t),
    pub size: u64,
}

/// Fails with `InvalidInput` for anything but regular files and block devices.
pub fn medium(fd: &impl AsFd) -> io::Result<Medium> {
    // `_IOR(0x12, 114, size_t)`, include/uapi/linux/fs.h.
    const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<usize>(0x12, 114);
    let raw = fd.as_fd().as_raw_fd();
    let stat = status(fd)?;
    let (block_device, size) = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => (None, stat.st_size as u64),
        libc::S_IFBLK => {
            let mut size = 0u64;
            // SAFETY: the ioctl writes a u64.
            check(unsafe { libc::ioctl(raw, BLKGETSIZE64, &mut size) }.into())?;
            (Some(stat.st_rdev), size)
        }
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a regular file nor a block device",
            ))
        }
    };
    Ok(Medium {
        block_device,
        inode: (stat.st_dev, stat.st_ino),
        size,
    })
}

fn status(fd: &impl AsFd) -> io::Result<libc::stat64> {
    let mut stat = MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: `stat` has room for the answer.
    check(unsafe { libc::fstat64(fd.as_fd().as_raw_fd(), stat.as_mut_ptr()) }.into())?;
    // SAFETY: filled in on success.
    Ok(unsafe { stat.assume_init() })
}

/// Bytes that a regular file takes from its file system; a device takes none.
pub fn allocated(fd: &impl AsFd) -> io::Result<Option<u64>> {
    let stat = status(fd)?;
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok(regular.then_some(stat.st_blocks as u64 * 512))
}

/// Whether the file's data is memory, so that no transfer waits for a disk (but for swap).
pub fn in_memory(fd: &impl AsFd) -> io::Result<bool> {
    let mut statfs = MaybeUninit::<libc::statfs64>::uninit();
    // SAFETY: `statfs` has room for the answer.
    check(unsafe { libc::fstatfs64(fd.as_fd().as_raw_fd(), statfs.as_mut_ptr()) }.into())?;
    // SAFETY: filled in on success.
    let kind = unsafe { statfs.assume_init() }.f_type;
    Ok(kind == libc::TMPFS_MAGIC)
}

/// Whether punching a hole frees space.
pub fn can_discard(fd: &impl AsFd, medium: &Medium) -> bool {
    match medium.block_device {
        // A block device turns PUNCH_HOLE into write-zeroes-with-unmap, or refuses it.
        Some(device) => ["discard_max_bytes", "write_zeroes_max_bytes"]
            .iter()
            .all(|limit| queue_limit(device, limit).is_some_and(|bytes| bytes > 0)),
        // Beyond the end of a file there is no data to lose.
        None => punch_hole(fd, medium.size, super::aligned::ALIGNMENT as u64).is_ok(),
    }
}

/// A number from the device's sysfs `queue` directory; a partition has its disk's.
fn queue_limit(device: libc::dev_t, name: &str) -> Option<u64> {
    let device = format!(
        "/sys/dev/block/{}:{}",
        libc::major(device),
        libc::minor(device)
    );
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| fs::read_to_string(format!("{device}/{queue}/{name}")).ok())
        .and_then(|text| text.trim().parse().ok())
}

/// Alignment that direct I/O needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    pub memory: usize,
    /// Of file offsets and of segment lengths.
    pub offset: usize,
}

/// Of a descriptor open with O_DIRECT; `None` if this file does no direct I/O.
pub fn direct_alignment(fd: &impl AsFd) -> io::Result<Option<Alignment>> {
    let mut statx = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string and `statx` has room for the answer.
    check(i64::from(unsafe {
        libc::statx(
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            statx.as_mut_ptr(),
        )
    }))?;
    // SAFETY: plain integers, zeroed before.
    let statx = unsafe { statx.assume_init() };
    if statx.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(try_direct(fd));
    }
    let offset = statx.stx_dio_offset_align as usize;
    let memory = (statx.stx_dio_mem_align as usize).max(1);
    Ok((offset != 0).then_some(Alignment { memory, offset }))
}

/// The smallest alignment at which a direct read works, for kernels and file systems that cannot
/// say (Linux before 6.1).
fn try_direct(fd: &impl AsFd) -> Option<Alignment> {
    let mut buffer = AlignedBuffer::zeroed(2 * super::aligned::ALIGNMENT).ok()?;
    [512, super::aligned::ALIGNMENT]
        .into_iter()
        .find_map(|grain| {
            let piece = buffer[grain..][..grain].as_mut_ptr();
            // SAFETY: `piece` has `grain` bytes to write to.
            let result = unsafe {
                libc::pread64(
                    fd.as_fd().as_raw_fd(),
                    piece.cast(),
                    grain,
                    grain as libc::off64_t,
                )
            };
            (result >= 0).then_some(Alignment {
                memory: grain,
                offset: grain,
            })
        })
}
