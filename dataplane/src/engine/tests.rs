use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::file::FileEngine;
use super::marked::MarkedEngine;
use super::memory::MemoryEngine;
use super::null::NullEngine;
use super::testing::{drive, file_engine, open, submit, uring, Guest, LoopDevice};
use super::*;

const MIB: u64 = 1 << 20;

const fn io(kind: IoKind, offset: u64, len: u64) -> Io {
    Io {
        kind,
        offset,
        len,
        durable: false,
    }
}

fn durable(kind: IoKind, offset: u64, len: u64) -> Io {
    Io {
        durable: true,
        ..io(kind, offset, len)
    }
}

/// A directory on a disk's file system, where O_DIRECT means something.
fn disk_dir() -> TempDir {
    let test_binary = std::env::current_exe().unwrap();
    tempfile::tempdir_in(test_binary.parent().unwrap()).unwrap()
}

fn tmpfs_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn disk(dir: &TempDir) -> PathBuf {
    dir.path().join("disk")
}

fn write(engine: &dyn Engine, offset: u64, content: &[u8]) {
    let guest = Guest::new(content, &[]);
    let io = io(IoKind::Write, offset, content.len() as u64);
    assert_eq!(engine.run(&io, &guest.iov).unwrap(), io.len);
}

fn read(engine: &dyn Engine, offset: u64, len: usize) -> Vec<u8> {
    let guest = Guest::new(&vec![0xee; len], &[]);
    let io = io(IoKind::Read, offset, len as u64);
    assert_eq!(engine.run(&io, &guest.iov).unwrap(), io.len);
    guest.content(len)
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn errno(result: std::io::Result<u64>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// Fills 4 MiB, frees all but the ends, and looks.
fn holes(engine: &dyn Engine, kind: IoKind) {
    write(engine, 0, &vec![0xa5; 4 * MIB as usize]);
    let range = io(kind, 512, 4 * MIB - 1024);
    assert_eq!(engine.run(&range, &[]).unwrap(), range.len);
    let content = read(engine, 0, 4 * MIB as usize);
    let (start, rest) = content.split_at(512);
    let (middle, end) = rest.split_at(rest.len() - 512);
    assert!(start.iter().chain(end).all(|&byte| byte == 0xa5));
    assert!(middle.iter().all(|&byte| byte == 0));
}

#[test]
fn discard_frees_blocks_of_the_file() {
    for dir in [disk_dir(), tmpfs_dir()] {
        let engine = file_engine(dir.path(), 4 * MIB, false);
        assert!(engine.can_discard());
        holes(&engine, IoKind::Discard);
        engine.run(&io(IoKind::Flush, 0, 4 * MIB), &[]).unwrap();
        let kept = allocated(&disk(&dir));
        assert!(kept <= 64 << 10, "{kept} bytes still allocated in {dir:?}");
    }
}

#[test]
fn zero_reads_as_zeros_on_every_engine_and_file_system() {
    for dir in [disk_dir(), tmpfs_dir()] {
        for direct in [false, true] {
            holes(&file_engine(dir.path(), 4 * MIB, direct), IoKind::Zero);
        }
    }
    holes(&MemoryEngine::new(4 * MIB).unwrap(), IoKind::Zero);
}

#[test]
fn without_discard_zeros_are_written_and_nothing_is_freed() {
    let dir = tmpfs_dir();
    file_engine(dir.path(), 4 * MIB, false);
    let fd = open(&disk(&dir), 0).unwrap();
    let engine = FileEngine::new(fd, None, 4 * MIB, false, false).unwrap();
    assert!(!engine.can_discard());
    holes(&engine, IoKind::Discard);
    assert!(allocated(&disk(&dir)) >= 4 * MIB);
}

#[test]
fn the_probe_leaves_data_alone() {
    let dir = disk_dir();
    let path = disk(&dir);
    fs::write(&path, vec![0x5a; 10_000]).unwrap();
    let engine = FileEngine::new(open(&path, 0).unwrap(), None, 9216, true, false).unwrap();
    assert!(engine.can_discard());
    assert_eq!(fs::read(&path).unwrap(), vec![0x5a; 10_000]);
}

#[test]
fn memory_discard_gives_memory_back() {
    let engine = MemoryEngine::new(64 * MIB).unwrap();
    write(&engine, 0, &vec![1; 8 * MIB as usize]);
    assert!(engine.resident() >= 8 * MIB);
    let range = io(IoKind::Discard, 0, 8 * MIB);
    assert!(
        engine.try_now(&range, &[]).is_none(),
        "too long to do at once"
    );
    engine.run(&range, &[]).unwrap();
    assert_eq!(engine.resident(), 0);
    assert_eq!(read(&engine, 4 * MIB, 4096), vec![0; 4096]);
}

#[test]
fn memory_is_sparse() {
    let engine = MemoryEngine::new(1 << 40).unwrap();
    write(&engine, (1 << 40) - 512, &[7; 512]);
    assert_eq!(read(&engine, (1 << 40) - 512, 512), [7; 512]);
    assert!(engine.resident() <= 4096);
    assert!(MemoryEngine::new(0).is_err());
    assert!(MemoryEngine::new(u64::MAX).is_err());
}

#[test]
fn engines_refuse_what_lies_outside() {
    let dir = disk_dir();
    let file = file_engine(dir.path(), 8192, false);
    let memory = MemoryEngine::new(8192).unwrap();
    let null = NullEngine::new(8192);
    let guest = Guest::zeroed(4096);
    for engine in [&file as &dyn Engine, &memory, &null] {
        for kind in [IoKind::Read, IoKind::Write] {
            for offset in [4097, 8192, u64::MAX, u64::MAX - 4095] {
                let outside = io(kind, offset, 4096);
                assert_eq!(errno(engine.run(&outside, &guest.iov)), Some(libc::EINVAL));
                assert!(engine.sqe(&outside, &guest.iov).is_none());
            }
            // Buffers that do not match the length are not trusted either.
            for len in [4095, 4097] {
                let other = io(kind, 0, len);
                assert_eq!(errno(engine.run(&other, &guest.iov)), Some(libc::EINVAL));
                assert!(engine.sqe(&other, &guest.iov).is_none());
            }
        }
        for kind in [IoKind::Discard, IoKind::Zero] {
            assert_eq!(
                errno(engine.run(&io(kind, 1, 8192), &[])),
                Some(libc::EINVAL)
            );
            assert!(engine.sqe(&io(kind, 1, 8192), &[]).is_none());
        }
    }
    assert_eq!(fs::metadata(disk(&dir)).unwrap().len(), 8192);
}

#[test]
fn null_reads_zeros() {
    let engine = NullEngine::new(1 << 50);
    write(&engine, 4096, &[9; 4096]);
    assert_eq!(read(&engine, 4096, 4096), [0; 4096]);
    assert_eq!(engine.size(), 1 << 50);
}

#[test]
fn a_file_must_hold_what_it_claims() {
    let dir = disk_dir();
    let path = disk(&dir);
    fs::write(&path, [0; 1000]).unwrap();
    let new = |size, direct| FileEngine::new(open(&path, 0).unwrap(), direct, size, true, false);
    let text = |result: io::Result<FileEngine>| result.err().unwrap().to_string();
    assert_eq!(text(new(1024, None)), "has 1000 bytes, not 1024");
    let other = dir.path().join("other");
    fs::write(&other, [0; 1000]).unwrap();
    let other = open(&other, libc::O_DIRECT).unwrap();
    assert_eq!(text(new(512, Some(other))), "direct_fd is another file");
    let null = open(Path::new("/dev/null"), 0).unwrap();
    let error = text(FileEngine::new(null, None, 0, true, false));
    assert_eq!(error, "neither a regular file nor a block device");
}

#[test]
fn a_read_only_engine_writes_nothing() {
    let dir = disk_dir();
    let path = disk(&dir);
    fs::write(&path, [3; 4096]).unwrap();
    // Writable descriptors: the engine itself must refuse.
    let engine = FileEngine::new(open(&path, 0).unwrap(), None, 4096, true, true).unwrap();
    assert!(!engine.can_discard());
    let guest = Guest::zeroed(4096);
    for kind in [IoKind::Write, IoKind::Discard, IoKind::Zero] {
        let io = io(kind, 0, 4096);
        let iov = if io.moves_data() { &guest.iov[..] } else { &[] };
        assert_eq!(errno(engine.run(&io, iov)), Some(libc::EROFS), "{kind:?}");
        assert!(engine.sqe(&io, iov).is_none());
        assert!(engine.try_now(&io, iov).is_none());
    }
    engine.run(&io(IoKind::Flush, 0, 4096), &[]).unwrap();
    engine
        .run(&durable(IoKind::Read, 0, 4096), &guest.iov)
        .unwrap();
    assert_eq!(guest.content(4096), [3; 4096]);
    assert_eq!(fs::read(&path).unwrap(), [3; 4096]);
}

#[test]
fn a_file_cut_short_is_an_error_with_its_position() {
    for direct in [false, true] {
        let dir = disk_dir();
        let engine = file_engine(dir.path(), 16384, direct);
        write(&engine, 0, &[1; 16384]);
        let file = File::options().write(true).open(disk(&dir)).unwrap();
        file.set_len(4096 + 100).unwrap();
        let guest = Guest::zeroed(16384);
        let whole = io(IoKind::Read, 0, 16384);
        let error = engine.run(&whole, &guest.iov).unwrap_err();
        let (done, cause) = Partial::split(&error);
        assert_eq!(cause.kind(), std::io::ErrorKind::UnexpectedEof);
        let exact = if direct { 4096 } else { 4196 };
        assert_eq!(done, Some(exact));
        if let Some(result) = engine.try_now(&whole, &guest.iov) {
            panic!("try_now made up data: {result:?}");
        }
        if let Some(mut ring) = uring() {
            let result = submit(&mut ring, &engine, &whole, &guest.iov).unwrap();
            assert!(!whole.completed_by(result), "{result} is not the whole");
        }
        let beyond = io(IoKind::Read, 8192, 4096);
        let error = engine.run(
            &beyond,
            &guest.iov[..1]
                .iter()
                .map(|v| iovec {
                    iov_len: 4096,
                    ..*v
                })
                .collect::<Vec<_>>(),
        );
        assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn vanished_guest_memory_is_efault() {
    let hole = iovec {
        iov_base: 4096 as *mut _,
        iov_len: 4096,
    };
    let good = Guest::zeroed(4096);
    for direct in [false, true] {
        let dir = disk_dir();
        let engine = file_engine(dir.path(), 65536, direct);
        write(&engine, 0, &[1; 65536]);
        for kind in [IoKind::Read, IoKind::Write] {
            let error = engine.run(&io(kind, 0, 4096), &[hole]).unwrap_err();
            let (_, cause) = Partial::split(&error);
            assert_eq!(
                cause.raw_os_error(),
                Some(libc::EFAULT),
                "{kind:?} {direct}"
            );
            let error = engine
                .run(&io(kind, 0, 8192), &[good.iov[0], hole])
                .unwrap_err();
            let (_, cause) = Partial::split(&error);
            assert_eq!(
                cause.raw_os_error(),
                Some(libc::EFAULT),
                "{kind:?} {direct}"
            );
        }
        assert!(engine
            .try_now(&io(IoKind::Read, 0, 4096), &[hole])
            .is_none());
    }
}

#[test]
fn more_pieces_than_one_call_takes() {
    let content: Vec<u8> = (0..3000 * 512u32).map(|i| (i / 512) as u8).collect();
    let cuts: Vec<_> = (1..3000).map(|i| i * 512).collect();
    for direct in [false, true] {
        let dir = disk_dir();
        let engine = file_engine(dir.path(), content.len() as u64, direct);
        let whole = |kind| io(kind, 0, content.len() as u64);
        let guest = Guest::new(&content, &cuts);
        assert!(engine.sqe(&whole(IoKind::Write), &guest.iov).is_none());
        assert!(engine.try_now(&whole(IoKind::Read), &guest.iov).is_none());
        engine.run(&whole(IoKind::Write), &guest.iov).unwrap();
        let back = Guest::new(&vec![0; content.len()], &cuts);
        engine.run(&whole(IoKind::Read), &back.iov).unwrap();
        assert!(back.content(content.len()) == content);
    }
}

#[test]
fn cached_reads_need_no_waiting_and_uncached_ones_are_left() {
    let dir = disk_dir();
    let engine = file_engine(dir.path(), MIB, false);
    write(&engine, 0, &vec![4; MIB as usize]);
    engine.run(&io(IoKind::Flush, 0, MIB), &[]).unwrap();
    let guest = Guest::zeroed(4096);
    let first = io(IoKind::Read, 0, 4096);
    assert_eq!(engine.try_now(&first, &guest.iov).unwrap().unwrap(), 4096);
    assert_eq!(guest.content(4096), [4; 4096]);
    // FUA must look at the medium.
    assert!(engine
        .try_now(&durable(IoKind::Read, 0, 4096), &guest.iov)
        .is_none());
    let file = File::open(disk(&dir)).unwrap();
    // The kernel begins to read what is asked for without waiting; it may be done before it looks
    // again, but not each time.
    let left = (0..1000).any(|_| {
        // SAFETY: no pointers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        engine.try_now(&first, &guest.iov).is_none()
    });
    assert!(left);
}

#[test]
fn direct_io_bypasses_the_page_cache_and_bounces_what_is_unaligned() {
    let dir = disk_dir();
    let engine = file_engine(dir.path(), 4 * MIB, true);
    let content: Vec<u8> = (0..2 * MIB + 8192).map(|i| (i / 7) as u8).collect();
    let len = content.len();
    // Aligned, then cut at odd places; longer than one bounce.
    for cuts in [vec![], vec![4096], vec![1, 777, 5000]] {
        let guest = Guest::new(&content, &cuts);
        let aligned = cuts.iter().all(|cut| cut % 4096 == 0);
        for io in [
            io(IoKind::Write, 8192, len as u64),
            durable(IoKind::Write, 8192, len as u64),
        ] {
            assert_eq!(engine.sqe(&io, &guest.iov).is_some(), aligned, "{cuts:?}");
            engine.run(&io, &guest.iov).unwrap();
        }
        let back = Guest::new(&vec![0; len], &cuts);
        let read = io(IoKind::Read, 8192, len as u64);
        assert!(engine.try_now(&read, &back.iov).is_none());
        engine.run(&read, &back.iov).unwrap();
        assert!(back.content(len) == content);
    }
    assert!(!is_cached(&disk(&dir), 8192 + MIB));
    assert!(fs::read(disk(&dir)).unwrap()[8192..][..len] == content);
    assert!(is_cached(&disk(&dir), 8192 + MIB));
}

/// Whether the page at `offset` is in memory. Unlike a read, the question does not bring it there.
fn is_cached(path: &Path, offset: u64) -> bool {
    let file = File::open(path).unwrap();
    let (fd, mut resident) = (file.as_raw_fd(), 0u8);
    // SAFETY: a page mapped anew where there is room, and a byte for it.
    unsafe {
        let none = std::ptr::null_mut();
        let page = libc::mmap(none, 4096, 0, libc::MAP_SHARED, fd, offset as i64);
        assert_ne!(page, libc::MAP_FAILED);
        assert_eq!(libc::mincore(page, 4096, &raw mut resident), 0);
        libc::munmap(page, 4096);
    }
    resident & 1 != 0
}

#[test]
fn requests_finer_than_the_device_turn_direct_io_off() {
    let dir = disk_dir();
    let engine = file_engine(dir.path(), MIB, true);
    let guest = Guest::zeroed(4096);
    let aligned = io(IoKind::Read, 0, 4096);
    assert!(engine.try_now(&aligned, &guest.iov).is_none());
    write(&engine, 100, &[8; 50]);
    assert_eq!(read(&engine, 99, 52)[..3], [0, 8, 8]);
    assert_eq!(engine.try_now(&aligned, &guest.iov).unwrap().unwrap(), 4096);
    assert_eq!(
        guest.content(151)[98..],
        [&[0; 2][..], &[8; 50], &[0]].concat()
    );
}

#[test]
fn io_uring_does_every_kind() {
    let Some(mut ring) = uring() else { return };
    let dir = disk_dir();
    for direct in [false, true] {
        let engine = file_engine(dir.path(), 4 * MIB, direct);
        let mut submit = |io: &Io, iov: &[iovec]| submit(&mut ring, &engine, io, iov);
        let content: Vec<u8> = (0..65536u32).map(|i| (i / 3) as u8).collect();
        let guest = Guest::new(&content, &[4096, 12288]);
        for io in [
            io(IoKind::Write, 4096, 65536),
            durable(IoKind::Write, MIB, 65536),
        ] {
            assert!(io.completed_by(submit(&io, &guest.iov).unwrap()));
        }
        assert_eq!(submit(&durable(IoKind::Flush, 0, 4 * MIB), &[]), Some(0));
        let back = Guest::zeroed(65536);
        let read = io(IoKind::Read, MIB, 65536);
        assert!(read.completed_by(submit(&read, &back.iov).unwrap()));
        assert!(back.content(65536) == content);

        for (kind, at) in [(IoKind::Discard, 4096), (IoKind::Zero, MIB)] {
            let range = io(kind, at, 65536);
            assert_eq!(submit(&range, &[]), Some(0), "{kind:?}");
            read_zeros(&engine, at, 65536);
            // A second step, the sync, is not in one submission.
            assert_eq!(submit(&durable(kind, at, 65536), &[]), None);
            engine.run(&durable(kind, at, 65536), &[]).unwrap();
        }
        assert_eq!(submit(&durable(IoKind::Read, 0, 65536), &back.iov), None);
    }
}

fn read_zeros(engine: &dyn Engine, offset: u64, len: usize) {
    assert!(read(engine, offset, len).iter().all(|&byte| byte == 0));
}

/// The flags field of a submission: what the kernel is asked for.
#[test]
fn durable_writes_ask_for_dsync() {
    let dir = disk_dir();
    let engine = file_engine(dir.path(), 8192, false);
    let guest = Guest::zeroed(4096);
    let flags = |io: Io| {
        let entry = engine.sqe(&io, &guest.iov).unwrap();
        // SAFETY: `Entry` is a transparent io_uring_sqe; rw_flags is at byte 28 (io_uring.h).
        unsafe {
            std::ptr::from_ref(&entry)
                .cast::<u8>()
                .add(28)
                .cast::<i32>()
                .read_unaligned()
        }
    };
    assert_eq!(flags(durable(IoKind::Write, 0, 4096)), libc::RWF_DSYNC);
    assert_eq!(flags(io(IoKind::Write, 0, 4096)), 0);
    assert_eq!(flags(io(IoKind::Read, 0, 4096)), 0);
}

#[test]
fn what_must_be_durable_ends_with_fdatasync() {
    use std::sync::atomic::Ordering::Relaxed;
    let dir = disk_dir();
    let engine = file_engine(dir.path(), 1 << 20, false);
    write(&engine, 0, &[7; 65536]);
    for kind in [IoKind::Discard, IoKind::Zero] {
        let io = durable(kind, 0, 4096);
        assert!(
            engine.sqe(&io, &[]).is_none(),
            "one submission is not enough"
        );
        let before = engine.syncs.load(Relaxed);
        drive(uring().as_mut(), &engine, &io, &[]).unwrap();
        assert_eq!(engine.syncs.load(Relaxed), before + 1, "{kind:?}");
        let lazy = Io {
            durable: false,
            ..io
        };
        drive(None, &engine, &lazy, &[]).unwrap();
        assert_eq!(engine.syncs.load(Relaxed), before + 1, "{kind:?}");
    }
}

#[test]
fn tmpfs_without_zero_range_learns_it() {
    let dir = tmpfs_dir();
    let engine = file_engine(dir.path(), MIB, false);
    write(&engine, 0, &[6; 8192]);
    let zero = io(IoKind::Zero, 0, 8192);
    drive(uring().as_mut(), &engine, &zero, &[]).unwrap();
    assert!(engine.sqe(&zero, &[]).is_none());
    read_zeros(&engine, 0, 8192);
}

#[test]
fn tmpfs_moves_data_at_once() {
    let dir = tmpfs_dir();
    let engine = file_engine(dir.path(), 8192, true);
    let content = Guest::new(&[5; 4096], &[10]);
    for io in [
        io(IoKind::Write, 0, 4096),
        durable(IoKind::Write, 4096, 4096),
    ] {
        assert_eq!(engine.try_now(&io, &content.iov).unwrap().unwrap(), 4096);
    }
    let back = Guest::zeroed(4096);
    for io in [io(IoKind::Read, 0, 4096), durable(IoKind::Read, 4096, 4096)] {
        assert_eq!(engine.try_now(&io, &back.iov).unwrap().unwrap(), 4096);
        assert_eq!(back.content(4096), [5; 4096]);
    }
    File::options()
        .write(true)
        .open(disk(&dir))
        .unwrap()
        .set_len(100)
        .unwrap();
    assert!(engine
        .try_now(&io(IoKind::Read, 0, 4096), &back.iov)
        .is_none());
}

#[test]
fn block_devices_discard_zero_and_read_back() {
    let dir = disk_dir();
    let path = disk(&dir);
    for (block_size, direct) in [(512, false), (512, true), (4096, false), (4096, true)] {
        File::create(&path).unwrap().set_len(4 * MIB).unwrap();
        let Some(device) = LoopDevice::new(&path, block_size) else {
            return;
        };
        let direct_fd = direct.then(|| open(&device.0, libc::O_DIRECT).unwrap());
        let fd = open(&device.0, 0).unwrap();
        let engine = FileEngine::new(fd, direct_fd, 4 * MIB, true, false).unwrap();
        assert!(engine.can_discard());
        // On 4096-byte blocks the kernel refuses these ranges: zeros are written.
        holes(&engine, IoKind::Zero);
        holes(&engine, IoKind::Discard);
        let all = durable(IoKind::Discard, 0, 4 * MIB);
        assert_eq!(engine.run(&all, &[]).unwrap(), all.len);
        assert_eq!(allocated(&path), 0, "{block_size} {direct}");
        read_zeros(&engine, 0, 4 * MIB as usize);
        let larger = FileEngine::new(open(&device.0, 0).unwrap(), None, 5 * MIB, true, false);
        assert_eq!(
            larger.err().unwrap().kind(),
            std::io::ErrorKind::InvalidInput
        );
    }
}

#[test]
fn a_last_block_beyond_two_tebibytes() {
    let dir = disk_dir();
    let size = 3 << 40;
    let engine = file_engine(dir.path(), size, false);
    write(&engine, size - 512, &[0x77; 512]);
    assert_eq!(read(&engine, size - 512, 512), [0x77; 512]);
    let mut last = [0; 512];
    File::open(disk(&dir))
        .unwrap()
        .read_exact_at(&mut last, size - 512)
        .unwrap();
    assert_eq!(last, [0x77; 512]);
}

#[test]
fn partial_errors_add_up() {
    let error = Partial::after(0, std::io::Error::from_raw_os_error(libc::EIO));
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(matches!(Partial::split(&error), (None, _)));
    let error = Partial::after(512, Partial::after(4096, error));
    let (done, cause) = Partial::split(&error);
    assert_eq!((done, cause.raw_os_error()), (Some(4608), Some(libc::EIO)));
}

#[test]
fn a_resized_engine_keeps_its_bytes_and_grows_by_zeros() {
    let engine = MemoryEngine::new(MIB).unwrap();
    write(&engine, MIB - 4096, &[0xa5; 4096]);
    write(&engine, 0, &[0x5a; 512]);
    engine.resize(2 * MIB).unwrap();
    assert_eq!(read(&engine, MIB - 512, 512), [0xa5; 512]);
    assert_eq!(read(&engine, MIB, MIB as usize), vec![0; MIB as usize]);
    assert_eq!(engine.extent(MIB).unwrap(), (false, MIB));
    // Cut in the middle of a page: nothing of it comes back.
    engine.resize(MIB - 1024).unwrap();
    let beyond = io(IoKind::Read, MIB - 1024, 512);
    let guest = Guest::new(&[0; 512], &[]);
    assert_eq!(errno(engine.run(&beyond, &guest.iov)), Some(libc::EINVAL));
    engine.resize(3 * MIB).unwrap();
    assert_eq!(read(&engine, MIB - 1536, 512), [0xa5; 512]);
    assert_eq!(read(&engine, MIB - 1024, 1024), [0; 1024]);
    assert_eq!(read(&engine, 0, 512), [0x5a; 512]);
    assert!(engine.resize(0).is_err());
    assert_eq!(engine.size(), 3 * MIB);
}

#[test]
fn an_engine_never_reaches_beyond_its_file() {
    let dir = tmpfs_dir();
    let engine = file_engine(dir.path(), MIB, false);
    assert!(engine.resize(2 * MIB).is_err());
    fs::File::options()
        .write(true)
        .open(disk(&dir))
        .unwrap()
        .set_len(2 * MIB)
        .unwrap();
    engine.resize(2 * MIB).unwrap();
    assert_eq!(read(&engine, 2 * MIB - 512, 512), [0; 512]);
    engine.resize(MIB).unwrap();
    assert_eq!(engine.size(), MIB);
}

#[test]
fn marks_beyond_the_end_are_forgotten() {
    let engine = MarkedEngine::new(std::sync::Arc::new(MemoryEngine::new(MIB).unwrap()));
    for offset in [0, MIB - 512] {
        engine.run(&io(IoKind::Mark, offset, 512), &[]).unwrap();
    }
    engine.resize(MIB / 2).unwrap();
    engine.resize(MIB).unwrap();
    assert_eq!(read(&engine, MIB - 512, 512), [0; 512]);
    let guest = Guest::new(&[0; 512], &[]);
    assert!(engine.run(&io(IoKind::Read, 0, 512), &guest.iov).is_err());
}
