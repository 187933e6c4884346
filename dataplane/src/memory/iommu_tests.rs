use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;

use super::iotlb::{Iotlb, Refusal};
use super::tests::Stop;
use super::{memfd, Access, Fault, GuestMemory, MemoryError, RegionSpec, MAX_MAPPINGS};

const PAGE: u64 = 4096;
const RW: u8 = 3;
const DEADLINE: Duration = Duration::from_secs(10);

fn access(bits: u8) -> Access {
    Access::from_bits(bits).unwrap()
}

/// Two regions, adjacent for the front end and apart for the guest: 2 pages at guest 0x10000, 2 at
/// 0x40000; user addresses from 0x7000_0000 on.
fn memory() -> GuestMemory {
    let memory = GuestMemory::new();
    for (guest, user) in [(0x4_0000, 0x7000_2000), (0x1_0000, 0x7000_0000)] {
        let file = memfd(2 * PAGE).unwrap();
        memory
            .add(RegionSpec {
                guest_address: guest,
                size: 2 * PAGE,
                user_address: user,
                mmap_offset: 0,
                fd: file.as_fd(),
            })
            .unwrap();
    }
    memory
}

fn look(
    memory: &GuestMemory,
    iova: u64,
    length: u64,
    access: Access,
) -> Result<usize, MemoryError> {
    let map = memory.load();
    let mut pieces = Vec::new();
    memory
        .view(&map, true)
        .iovecs(iova, length, access, &mut pieces)?;
    Ok(pieces.len())
}

fn assert_miss(memory: &GuestMemory, iova: u64, length: u64, at: u64) {
    let fault = Fault {
        iova: at,
        access: Access::READ,
    };
    match look(memory, iova, length, Access::READ) {
        Err(MemoryError::Miss(found)) => assert_eq!(found, fault),
        other => panic!("{other:?}"),
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % limit
    }
}

/// Each address by itself, as it should be.
struct Oracle {
    base: u64,
    cells: Vec<Option<(u64, Access)>>,
}

impl Oracle {
    fn check(&self, iotlb: &Iotlb) {
        for (offset, cell) in self.cells.iter().enumerate() {
            let iova = self.base + offset as u64;
            for wanted in [Access::READ, Access::WRITE, access(RW)] {
                let found = iotlb.find(iova, wanted);
                match cell {
                    None => assert_eq!(found, Err(Refusal::Unknown)),
                    Some((_, allowed)) if allowed.bits() & wanted.bits() != wanted.bits() => {
                        assert_eq!(found, Err(Refusal::Denied));
                    }
                    Some((user, allowed)) => {
                        let (at, last) = found.unwrap();
                        assert_eq!(at, *user);
                        for ahead in 1..=(last - iova) {
                            let next = self.cells[offset + ahead as usize];
                            assert_eq!(next, Some((user + ahead, *allowed)));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_table_agrees_with_a_list_of_every_address() {
    const SPACE: u64 = 96;
    for base in [0, 1 << 32, u64::MAX - (SPACE - 1)] {
        let mut random = Random(base | 0x5eed);
        let mut iotlb = Iotlb::default();
        let mut oracle = Oracle {
            base,
            cells: vec![None; SPACE as usize],
        };
        for _ in 0..2_000 {
            let first = random.below(SPACE);
            let last = first + random.below((SPACE - first).min(24));
            let range = first as usize..=last as usize;
            let had = oracle.cells[range.clone()].iter().any(Option::is_some);
            // Often the user address that continues a neighbour, so that mappings join.
            let user = match random.below(3) {
                0 => 0x1000 + random.below(64),
                _ => 0x8000 + first,
            };
            let allowed = access(1 + random.below(3) as u8);
            let hit = if random.below(3) == 0 {
                oracle.cells[range].fill(None);
                iotlb.remove(base + first, base + last)
            } else {
                for (ahead, cell) in oracle.cells[range].iter_mut().enumerate() {
                    *cell = Some((user + ahead as u64, allowed));
                }
                iotlb.insert(base + first, base + last, user, allowed)
            };
            assert_eq!(hit, had);
            oracle.check(&iotlb);
        }
    }
}

#[test]
fn pages_that_continue_one_another_are_one_mapping() {
    let mut iotlb = Iotlb::default();
    for page in [1, 0, 3, 2] {
        iotlb.insert(
            page * PAGE,
            page * PAGE + PAGE - 1,
            0x10_0000 + page * PAGE,
            access(RW),
        );
    }
    assert_eq!(iotlb.len(), 1);
    assert_eq!(iotlb.find(5, Access::READ), Ok((0x10_0005, 4 * PAGE - 1)));
}

#[test]
fn a_full_table_forgets_old_mappings_and_tells_no_lies() {
    let mut iotlb = Iotlb::default();
    let count = MAX_MAPPINGS as u64 + 1000;
    for page in 0..count {
        iotlb.insert(2 * page, 2 * page, 7 * page, access(RW));
        assert_eq!(iotlb.find(2 * page, Access::READ), Ok((7 * page, 2 * page)));
    }
    assert_eq!(iotlb.len(), MAX_MAPPINGS);
    // A hole makes two of one: that stays in bounds as well.
    iotlb.insert(1 << 40, (1 << 40) + 2, 0, access(RW));
    iotlb.remove((1 << 40) + 1, (1 << 40) + 1);
    assert_eq!(iotlb.len(), MAX_MAPPINGS);
    let known = (0..count).filter(|page| match iotlb.find(2 * page, Access::READ) {
        Ok(found) => {
            assert_eq!(found, (7 * page, 2 * page));
            true
        }
        Err(refusal) => {
            assert_eq!(refusal, Refusal::Unknown);
            false
        }
    });
    assert!(known.count() >= MAX_MAPPINGS - 2);
}

#[test]
fn updates_outside_the_regions_are_refused() {
    let memory = memory();
    let update = |iova, size, user| memory.iotlb_update(iova, size, user, access(RW));
    for (user, size) in [
        (0, 1),
        (0x1_0000, PAGE), // a guest address
        (0x6fff_ffff, 2),
        (0x7000_0000, 4 * PAGE + 1),
        (0x7000_3fff, 2),
        (0x7000_4000, 1),
    ] {
        let error = update(0, size, user).unwrap_err();
        assert!(matches!(error, MemoryError::UserUnmapped { .. }), "{error}");
    }
    for (iova, size, user) in [
        (0, 0, 0x7000_0000),
        (u64::MAX, 2, 0x7000_0000),
        (0, u64::MAX, 0x7000_0000),
        (2, u64::MAX, 0),
        (0, 2, u64::MAX),
    ] {
        let error = update(iova, size, user).unwrap_err();
        assert!(matches!(error, MemoryError::MappingWraps { .. }), "{error}");
    }
    assert_miss(&memory, 0, 1, 0);
}

/// vu.mem.b4: user addresses decide; the regions' guest addresses are not used.
#[test]
fn translations_lead_to_the_bytes_of_the_regions() {
    let memory = memory();
    memory.load().write(0x1_0000 + PAGE + 10, b"first").unwrap();
    memory.load().write(0x4_0000, b"second").unwrap();
    // One mapping over both regions, at the very end of the I/O address space.
    let iova = u64::MAX - (4 * PAGE - 1);
    memory
        .iotlb_update(iova, 4 * PAGE, 0x7000_0000, access(RW))
        .unwrap();
    let map = memory.load();
    let view = memory.view(&map, true);
    let mut bytes = [0; 5];
    view.read(iova + PAGE + 10, &mut bytes).unwrap();
    assert_eq!(&bytes, b"first");
    let mut across = vec![0; PAGE as usize];
    view.read(iova + PAGE + 6, &mut across).unwrap();
    assert_eq!(
        (&across[4..9], &across[PAGE as usize - 6..]),
        (&b"first"[..], &b"second"[..])
    );
    let wraps = view.iovecs(u64::MAX, 2, Access::READ, &mut Vec::new());
    assert!(
        matches!(wraps, Err(MemoryError::Unmapped { .. })),
        "{wraps:?}"
    );
}

#[test]
fn the_first_missing_or_forbidden_byte_is_named_and_nothing_is_appended() {
    let memory = memory();
    memory
        .iotlb_update(0x100, 0x100, 0x7000_0000, access(RW))
        .unwrap();
    memory
        .iotlb_update(0x200, 0x100, 0x7000_1000, access(1))
        .unwrap();
    assert_eq!(look(&memory, 0x180, 0x180, Access::READ).unwrap(), 2);
    assert_miss(&memory, 0x180, 0x181, 0x300);
    assert_miss(&memory, 0xff, 2, 0xff);
    let fault = Fault {
        iova: 0x200,
        access: Access::WRITE,
    };
    match look(&memory, 0x180, 0x181, Access::WRITE) {
        Err(MemoryError::Denied(found)) => assert_eq!(found, fault),
        other => panic!("{other:?}"),
    }

    let map = memory.load();
    let view = memory.view(&map, true);
    let mut pieces = Vec::new();
    view.iovecs(0x100, 0x80, Access::READ, &mut pieces).unwrap();
    view.iovecs(0x180, 0x181, Access::READ, &mut pieces)
        .unwrap_err();
    let lengths: Vec<_> = pieces.iter().map(|piece| piece.iov_len).collect();
    assert_eq!(lengths, [0x80]);
}

#[test]
fn a_mapping_of_memory_that_has_gone_is_no_translation() {
    let memory = memory();
    memory
        .iotlb_update(0, 4 * PAGE, 0x7000_0000, access(RW))
        .unwrap();
    memory.remove(0x4_0000, 0x7000_2000, 2 * PAGE).unwrap();
    assert_eq!(look(&memory, 0, 2 * PAGE, Access::READ).unwrap(), 1);
    assert_miss(&memory, PAGE, 2 * PAGE, PAGE);
}

#[test]
fn invalidations_count_and_reach_to_the_end() {
    let memory = memory();
    let map_all = || {
        memory
            .iotlb_update(0, 4 * PAGE, 0x7000_0000, access(RW))
            .unwrap()
    };
    for (iova, size, gone) in [
        (0, 0, 0),
        (0, u64::MAX, 0),
        (PAGE, 0, PAGE),
        (PAGE, u64::MAX, PAGE),
        (PAGE, 1, PAGE),
    ] {
        map_all();
        let before = memory.withdrawals();
        memory.iotlb_invalidate(iova, size);
        assert_ne!(memory.withdrawals(), before);
        assert_miss(&memory, 0, 4 * PAGE, gone);
    }
    // What replaces a mapping withdraws it.
    map_all();
    let before = memory.withdrawals();
    memory
        .iotlb_update(1 << 30, PAGE, 0x7000_0000, access(RW))
        .unwrap();
    assert_eq!(memory.withdrawals(), before);
    memory
        .iotlb_update(0, PAGE, 0x7000_1000, access(RW))
        .unwrap();
    assert_ne!(memory.withdrawals(), before);
}

#[test]
fn who_waits_is_woken_by_what_it_waits_for() {
    let memory = memory();
    let woken = Arc::new(AtomicU32::new(0));
    let wait = |id, iova, wanted: Access| {
        let woken = Arc::clone(&woken);
        let fault = Fault {
            iova,
            access: wanted,
        };
        memory.wait(id, fault, move || {
            woken.fetch_add(1, Ordering::Relaxed);
        })
    };
    let count = || woken.load(Ordering::Relaxed);
    assert!(wait(1, 0x100, Access::READ));
    assert!(wait(2, 0x1ff, Access::READ));
    memory
        .iotlb_update(0, 0x100, 0x7000_0000, access(RW))
        .unwrap();
    memory
        .iotlb_update(0x200, 0x100, 0x7000_0000, access(RW))
        .unwrap();
    assert_eq!(count(), 0);
    memory.forget(2);
    memory
        .iotlb_update(0x100, 0x100, 0x7000_0000, access(1))
        .unwrap();
    assert_eq!(count(), 1);
    memory
        .iotlb_update(0x100, 0x100, 0x7000_0000, access(1))
        .unwrap();
    assert_eq!(count(), 1);
    // Mapped, or forbidden: nothing to wait for.
    assert!(!wait(3, 0x100, Access::READ));
    assert!(!wait(3, 0x100, Access::WRITE));
}

/// A look-up that misses, and then waits, is never left waiting by an update in between.
#[test]
fn no_wake_up_is_lost() {
    let memory = memory();
    let stop = Stop::default();
    let (wake, woken) = mpsc::channel();
    thread::scope(|scope| {
        let _stop = stop.on_drop();
        scope.spawn(|| {
            while !stop.asked() {
                memory
                    .iotlb_update(0, PAGE, 0x7000_0000, access(RW))
                    .unwrap();
                memory.iotlb_invalidate(0, PAGE);
            }
        });
        let fault = Fault {
            iova: 0x80,
            access: Access::READ,
        };
        for _ in 0..20_000 {
            let wake = wake.clone();
            if look(&memory, 0x80, 1, Access::READ).is_err()
                && memory.wait(1, fault, move || wake.send(()).unwrap())
            {
                woken.recv_timeout(DEADLINE).expect("a lost wake-up");
            }
        }
    });
}
