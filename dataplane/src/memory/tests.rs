use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use super::{memfd, GuestMemory, MemoryError, RegionSpec, MAX_REGIONS};

const PAGE: u64 = 4096;

/// Tells other threads to end, also when a test fails: a scope waits for them all.
#[derive(Default)]
pub(crate) struct Stop(AtomicBool);

pub(crate) struct StopOnDrop<'a>(&'a Stop);

impl Stop {
    pub(crate) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn on_drop(&self) -> StopOnDrop<'_> {
        StopOnDrop(self)
    }
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0 .0.store(true, Ordering::Relaxed);
    }
}

fn spec(file: &File, guest_address: u64, size: u64, user_address: u64) -> RegionSpec<'_> {
    RegionSpec {
        guest_address,
        size,
        user_address,
        mmap_offset: 0,
        fd: file.as_fd(),
    }
}

/// Two adjacent regions, a gap of a page, a third; each from a file of its own.
fn three_regions() -> GuestMemory {
    let memory = GuestMemory::new();
    for (guest, user) in [
        (PAGE, 0x10_0000),
        (3 * PAGE, 0x20_0000),
        (6 * PAGE, 0x30_0000),
    ] {
        let file = memfd(2 * PAGE).unwrap();
        memory.add(spec(&file, guest, 2 * PAGE, user)).unwrap();
    }
    memory
}

fn total(pieces: &[libc::iovec]) -> usize {
    pieces.iter().map(|piece| piece.iov_len).sum()
}

#[test]
fn iovecs_cross_adjacent_regions_and_nothing_else() {
    let map = three_regions().load();
    let mut out = Vec::new();
    map.iovecs(2 * PAGE, 3 * PAGE, &mut out).unwrap();
    assert_eq!(total(&out), 3 * PAGE as usize);

    let before: Vec<_> = out.iter().map(|p| (p.iov_base, p.iov_len)).collect();
    for (address, length) in [
        (0, 1),
        (PAGE - 1, 2),
        (5 * PAGE - 1, 2),
        (4 * PAGE, 3 * PAGE),
        (5 * PAGE, 1),
        (8 * PAGE - 1, 2),
        (8 * PAGE, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (PAGE, u64::MAX),
        (PAGE, u64::MAX - PAGE + 1),
    ] {
        let error = map.iovecs(address, length, &mut out).unwrap_err();
        assert!(matches!(error, MemoryError::Unmapped { .. }), "{error}");
        let after: Vec<_> = out.iter().map(|p| (p.iov_base, p.iov_len)).collect();
        assert_eq!(after, before);
    }
}

#[test]
fn iovecs_join_what_continues_in_host_memory() {
    let map = GuestMemory::anonymous(0, 4 * PAGE).unwrap().load();
    let mut out = Vec::new();
    map.iovecs(0, 100, &mut out).unwrap();
    map.iovecs(100, 28, &mut out).unwrap();
    assert_eq!((out.len(), total(&out)), (1, 128));
    map.iovecs(129, 1, &mut out).unwrap();
    map.iovecs(128, 1, &mut out).unwrap();
    assert_eq!((out.len(), total(&out)), (3, 130));
}

#[test]
fn zero_bytes_are_fine_anywhere() {
    let map = three_regions().load();
    let mut out = Vec::new();
    for address in [0, PAGE, 5 * PAGE, u64::MAX] {
        map.iovecs(address, 0, &mut out).unwrap();
        map.read(address, &mut []).unwrap();
        map.write(address, &[]).unwrap();
    }
    assert!(out.is_empty());
}

#[test]
fn slice_stays_in_one_region() {
    let map = three_regions().load();
    assert!(map.slice(PAGE, 2 * PAGE).is_ok());
    assert!(map.slice(3 * PAGE - 1, 1).is_ok());
    assert!(map.slice(3 * PAGE - 1, 2).is_err());
    assert!(map.slice(5 * PAGE, 0).is_err());
}

#[test]
fn read_and_write_cross_adjacent_regions_all_or_nothing() {
    let map = three_regions().load();
    let data: Vec<u8> = (0..3 * PAGE).map(|i| (i % 251) as u8).collect();
    map.write(2 * PAGE - 7, &data).unwrap();
    let mut back = vec![0; data.len()];
    map.read(2 * PAGE - 7, &mut back).unwrap();
    assert_eq!(back, data);

    assert!(map.write(5 * PAGE - 1, &[9, 9]).is_err());
    let mut last = [9];
    map.read(5 * PAGE - 1, &mut last).unwrap();
    assert_eq!(last, [0]);
    let mut two = [7, 7];
    assert!(map.read(5 * PAGE - 1, &mut two).is_err());
    assert_eq!(two, [7, 7]);
}

#[test]
fn user_addresses_resolve_within_one_region() {
    let map = three_regions().load();
    assert_eq!(map.user_to_guest(0x10_0000, 2 * PAGE), Some(PAGE));
    assert_eq!(map.user_to_guest(0x20_0010, 1), Some(3 * PAGE + 0x10));
    assert_eq!(map.user_to_guest(0x10_0000, 2 * PAGE + 1), None);
    assert_eq!(map.user_to_guest(0x10_0001, 2 * PAGE), None);
    assert_eq!(map.user_to_guest(0x10_2000, 0), None);
    assert_eq!(map.user_to_guest(0xf_ffff, 1), None);
    assert_eq!(map.user_to_guest(0x10_0001, u64::MAX), None);
}

#[test]
fn indices_are_aligned_and_stored_as_they_are() {
    let file = memfd(2 * PAGE).unwrap();
    let memory = GuestMemory::new();
    memory.add(spec(&file, 0, PAGE, 0)).unwrap();
    let odd = RegionSpec {
        mmap_offset: 1,
        ..spec(&file, 2 * PAGE, PAGE, 2 * PAGE)
    };
    memory.add(odd).unwrap();
    let map = memory.load();
    map.store_u16_release(2, 0xa55a).unwrap();
    assert_eq!(map.load_u16_acquire(2).unwrap(), 0xa55a);
    let mut bytes = [0; 2];
    map.read(2, &mut bytes).unwrap();
    assert_eq!(bytes, 0xa55a_u16.to_ne_bytes());
    // Odd in the guest, odd in the host, both.
    for address in [1, 2 * PAGE, 2 * PAGE + 1] {
        let error = map.load_u16_acquire(address).unwrap_err();
        assert!(matches!(error, MemoryError::Misaligned { .. }), "{error}");
        assert!(map.store_u16_release(address, 1).is_err());
    }
    assert!(map.load_u16_acquire(PAGE).is_err());
    assert!(map.load_u16_acquire(PAGE - 1).is_err());
}

#[test]
fn offsets_need_not_be_page_aligned() {
    let file = memfd(0).unwrap();
    file.write_all_at(b"needle", 3 * PAGE + 123).unwrap();
    let memory = GuestMemory::new();
    let inside = RegionSpec {
        mmap_offset: 2 * PAGE + 100,
        ..spec(&file, 0x7000_0005, PAGE + 29, 0)
    };
    memory.add(inside).unwrap();
    let mut found = [0; 6];
    memory
        .load()
        .read(0x7000_0005 + PAGE + 23, &mut found)
        .unwrap();
    assert_eq!(&found, b"needle");
    assert!(memory
        .load()
        .read(0x7000_0005 + PAGE + 24, &mut found)
        .is_err());
}

#[test]
fn tables_that_no_front_end_may_send_are_refused_and_change_nothing() {
    let memory = three_regions();
    let before = memory.load();
    let file = memfd(PAGE).unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let good = spec(&file, 0x100_0000, PAGE, 0x100_0000);
    let high = i64::MAX as u64;
    let bad: [(&str, RegionSpec); 9] = [
        ("size 0", RegionSpec { size: 0, ..good }),
        (
            "guest address 0x",
            RegionSpec {
                guest_address: u64::MAX - PAGE + 1,
                ..good
            },
        ),
        (
            "user address 0x",
            RegionSpec {
                user_address: u64::MAX - PAGE + 1,
                ..good
            },
        ),
        (
            "mmap offset 0x",
            RegionSpec {
                mmap_offset: high - PAGE + 1,
                ..good
            },
        ),
        (
            "cannot map",
            RegionSpec {
                mmap_offset: high - PAGE,
                ..good
            },
        ),
        (
            "cannot map",
            RegionSpec {
                guest_address: 0,
                user_address: 0,
                size: high,
                ..good
            },
        ),
        (
            "cannot map",
            RegionSpec {
                fd: socket.as_fd(),
                ..good
            },
        ),
        (
            "overlap in guest",
            RegionSpec {
                guest_address: 8 * PAGE - 1,
                ..good
            },
        ),
        (
            "overlap in user",
            RegionSpec {
                user_address: 0x10_0001 - PAGE,
                ..good
            },
        ),
    ];
    for (expected, region) in bad {
        let error = memory.add(region).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(memory.is_current(&before));
    }
    for twice in [
        [
            good,
            RegionSpec {
                user_address: 0,
                ..good
            },
        ],
        [
            good,
            RegionSpec {
                guest_address: 0,
                ..good
            },
        ],
        [good, RegionSpec { size: 0, ..good }],
    ] {
        assert!(memory.replace(twice.to_vec()).is_err());
        assert!(memory.is_current(&before));
    }
    let many = (0..=MAX_REGIONS as u64).map(|i| spec(&file, i * PAGE, PAGE, i * PAGE));
    let error = memory.replace(many.collect()).unwrap_err();
    assert!(matches!(error, MemoryError::TooMany { .. }), "{error}");
    assert!(memory.is_current(&before));
    // Nothing of it was the good region's fault.
    memory.add(good).unwrap();
}

#[test]
fn a_read_only_file_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ram");
    File::create(&path).unwrap().set_len(PAGE).unwrap();
    let file = File::open(&path).unwrap();
    let error = GuestMemory::new().add(spec(&file, 0, PAGE, 0)).unwrap_err();
    assert!(error.to_string().contains("Permission denied"), "{error}");
}

#[test]
fn regions_come_and_go_and_snapshots_stay() {
    let memory = three_regions();
    let old = memory.load();
    assert!(memory.is_current(&old));
    old.write(PAGE, b"still here").unwrap();

    let error = memory.remove(PAGE, 0x10_0000, PAGE).unwrap_err();
    assert!(matches!(error, MemoryError::NoSuchRegion { .. }), "{error}");
    memory.remove(PAGE, 0x10_0000, 2 * PAGE).unwrap();
    assert!(!memory.is_current(&old));
    let keys: Vec<_> = memory.load().regions().collect();
    let rest = [
        (3 * PAGE, 2 * PAGE, 0x20_0000),
        (6 * PAGE, 2 * PAGE, 0x30_0000),
    ];
    assert_eq!(keys, rest);
    assert!(memory.load().slice(PAGE, 1).is_err());
    let mut data = [0; 10];
    old.read(PAGE, &mut data).unwrap();
    assert_eq!(&data, b"still here");

    memory.replace(Vec::new()).unwrap();
    assert_eq!(memory.load().regions().len(), 0);
    old.read(6 * PAGE, &mut data).unwrap();
}

#[test]
fn removal_unmaps_once_nobody_uses_the_region() {
    let file = memfd(PAGE).unwrap();
    let memory = GuestMemory::new();
    memory.add(spec(&file, 0, PAGE, 0)).unwrap();
    let snapshot = memory.load();
    let address = snapshot.slice(0, 1).unwrap();
    memory.remove(0, 0, PAGE).unwrap();
    assert!(is_mapped(address, &file));
    drop(snapshot);
    assert!(!is_mapped(address, &file));
}

/// Whether `file` is what /proc/self/maps has at `address`.
fn is_mapped(address: *mut u8, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let start = format!("{:x}-", address.addr());
    maps.lines()
        .any(|line| line.starts_with(&start) && line.split_whitespace().nth(4) == Some(&inode))
}

#[test]
fn anonymous_memory_is_shared_through_its_descriptor() {
    let memory = GuestMemory::anonymous(0x4000_0000, 3 * PAGE).unwrap();
    let other = GuestMemory::new();
    assert!(other.fd().is_none());
    let fd = memory.fd().unwrap();
    other
        .replace(vec![RegionSpec {
            guest_address: 0,
            size: 3 * PAGE,
            user_address: 0x1234_5000,
            mmap_offset: 0,
            fd,
        }])
        .unwrap();
    memory.load().write(0x4000_1000, b"hello").unwrap();
    let mut data = [0; 5];
    other.load().read(0x1000, &mut data).unwrap();
    assert_eq!(&data, b"hello");
    let map = memory.load();
    assert_eq!(map.user_to_guest(0x4000_0001, 1), Some(0x4000_0001));
    assert!(GuestMemory::anonymous(0, 0).is_err());
    assert!(GuestMemory::anonymous(u64::MAX, PAGE).is_err());
}

#[test]
fn truncation_reads_as_zeros_and_marks_only_its_session() {
    let file = memfd(4 * PAGE).unwrap();
    let memory = GuestMemory::new();
    let bystander = three_regions();
    memory.add(spec(&file, 0, 4 * PAGE, 0)).unwrap();
    let map = memory.load();
    map.write(0, &[0xff; 4 * PAGE as usize]).unwrap();
    assert!(!memory.is_dead());

    file.set_len(PAGE).unwrap();
    let mut data = [0xee; 4];
    map.read(2 * PAGE, &mut data).unwrap();
    assert_eq!(data, [0; 4]);
    assert!(memory.is_dead());
    assert!(!bystander.is_dead());
    // The whole region is ours now, and writes reach nobody.
    map.write(0, &[1; 4 * PAGE as usize]).unwrap();
    let mut first = [0; 1];
    file.read_at(&mut first, 0).unwrap();
    assert_eq!(first, [0xff]);
    bystander.load().write(PAGE, &[1]).unwrap();
}

#[test]
fn a_file_that_was_always_too_short_is_found_out_on_access() {
    let file = memfd(PAGE).unwrap();
    let memory = GuestMemory::new();
    let beyond = RegionSpec {
        mmap_offset: 16 * PAGE,
        ..spec(&file, 0, 4 * PAGE, 0)
    };
    memory.add(beyond).unwrap();
    assert!(!memory.is_dead());
    memory.load().write(PAGE, &[1, 2, 3]).unwrap();
    assert!(memory.is_dead());
}

#[test]
fn many_threads_survive_truncation_while_regions_come_and_go() {
    let stop = Stop::default();
    thread::scope(|scope| {
        let _stop = stop.on_drop();
        scope.spawn(|| {
            // Slots of the handler's list are taken and freed all the time.
            let file = memfd(PAGE).unwrap();
            while !stop.asked() {
                let memory = GuestMemory::new();
                for i in 0..8 {
                    memory.add(spec(&file, i * PAGE, PAGE, i * PAGE)).unwrap();
                }
                assert!(!memory.is_dead());
            }
        });
        for _ in 0..25 {
            let file = memfd(16 * PAGE).unwrap();
            let memory = GuestMemory::new();
            memory.add(spec(&file, 0, 16 * PAGE, 0)).unwrap();
            memory.load().write(0, &[0xff; 16 * PAGE as usize]).unwrap();
            thread::scope(|scope| {
                for thread in 0..4 {
                    let memory = &memory;
                    scope.spawn(move || {
                        let map = memory.load();
                        let mut byte = [0xff];
                        while !memory.is_dead() {
                            for page in 0..16 {
                                map.read((page ^ thread) * PAGE, &mut byte).unwrap();
                                assert!(byte == [0xff] || memory.is_dead());
                            }
                        }
                    });
                }
                file.set_len(0).unwrap();
            });
        }
    });
}

#[test]
fn huge_pages_are_mapped_whole() {
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB;
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
    if fd < 0 {
        eprintln!("skipped: no hugetlbfs here: {}", io::Error::last_os_error());
        return;
    }
    // SAFETY: just created.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(16 << 20).unwrap();
    let memory = GuestMemory::new();
    // Neither offset nor end are multiples of a huge page.
    let odd = RegionSpec {
        mmap_offset: 3 * PAGE,
        ..spec(&file, 0, 5 * PAGE, 0)
    };
    memory.add(odd).unwrap();
    let map = memory.load();
    let address = map.slice(0, 1).unwrap().wrapping_sub(3 * PAGE as usize);
    assert!(is_mapped(address, &file));
    // Without huge pages to give, the access faults: also then the process lives.
    map.write(5 * PAGE - 3, b"abc").unwrap();
    let mut data = [0; 3];
    map.read(5 * PAGE - 3, &mut data).unwrap();
    assert_eq!(&data, b"abc");
    memory.replace(Vec::new()).unwrap();
    drop(map);
    assert!(!is_mapped(address, &file));
}

/// Set in the process that a test starts to see it die.
const CHILD: &str = "VSCSI_TEST_SIGBUS_CHILD";

/// Runs `test` of this module in a process of its own and returns the signal that ended it.
fn in_child(test: &str) -> (Option<i32>, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("memory::tests::{test}"))
        .env(CHILD, test)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.signal(), text)
}

fn is_child(test: &str) -> bool {
    std::env::var_os(CHILD).is_some_and(|name| name == test)
}

/// With our handler installed, faults on a truncated file that is no guest memory.
fn foreign_fault() {
    let _memory = three_regions();
    let file = memfd(PAGE).unwrap();
    // SAFETY: a mapping that nobody else knows of and that is never unmapped.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            PAGE as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(address, libc::MAP_FAILED);
        file.set_len(0).unwrap();
        address.cast::<u8>().read_volatile();
    }
}

#[test]
fn a_fault_elsewhere_still_kills() {
    let name = "a_fault_elsewhere_still_kills";
    if is_child(name) {
        foreign_fault();
        return;
    }
    assert_eq!(in_child(name).0, Some(libc::SIGBUS));
}

#[test]
fn a_signal_that_was_sent_still_kills() {
    let name = "a_signal_that_was_sent_still_kills";
    if is_child(name) {
        // Rust's own handler would swallow the first; Python, the real host, has none.
        // SAFETY: the default disposition, and a signal to ourselves.
        unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            let _memory = three_regions();
            libc::raise(libc::SIGBUS);
        }
        return;
    }
    assert_eq!(in_child(name).0, Some(libc::SIGBUS));
}

/// A sender can put any address into a signal; only the kernel's word on an access counts.
#[test]
fn a_signal_that_pretends_to_be_a_fault_still_kills() {
    let name = "a_signal_that_pretends_to_be_a_fault_still_kills";
    if is_child(name) {
        // SAFETY: the default disposition, before ours.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let memory = three_regions();
        let address = memory.load().slice(PAGE, 1).unwrap();
        let mut info = [0_u64; size_of::<libc::siginfo_t>() / 8];
        // si_code is the third int, si_addr follows the first three and a padding.
        info[1] = u64::from(libc::SI_QUEUE as u32);
        info[2] = address.addr() as u64;
        // SAFETY: a signal to ourselves with a whole siginfo.
        unsafe {
            let pid = libc::getpid();
            libc::syscall(libc::SYS_rt_sigqueueinfo, pid, libc::SIGBUS, info.as_ptr());
        }
        return;
    }
    assert_eq!(in_child(name).0, Some(libc::SIGBUS));
}

static CALLS: AtomicU32 = AtomicU32::new(0);

extern "C" fn earlier_handler(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: as the kernel, or whoever chains to us, passed it.
    let code = unsafe { (*info).si_code };
    if code == libc::BUS_ADRERR && CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
        // SAFETY: makes the faulting page readable, so that the test goes on.
        unsafe {
            libc::mmap(
                (*info).si_addr(),
                PAGE as usize,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
    }
}

#[test]
fn a_handler_that_was_there_before_is_called() {
    let name = "a_handler_that_was_there_before_is_called";
    if is_child(name) {
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = earlier_handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
        foreign_fault();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        // Ours is ours: the earlier handler hears nothing of it.
        let file = memfd(0).unwrap();
        let memory = GuestMemory::new();
        memory.add(spec(&file, 0, PAGE, 0)).unwrap();
        memory.load().write(0, &[1]).unwrap();
        assert!(memory.is_dead());
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        io::stdout().write_all(b"survived\n").unwrap();
        return;
    }
    let (signal, output) = in_child(name);
    assert_eq!(signal, None);
    assert!(output.contains("survived"), "{output}");
}
