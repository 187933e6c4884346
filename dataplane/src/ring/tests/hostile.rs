//! Drivers that break the rules: each is told which, and nothing else happens.

use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::memory::tests::Stop;
use crate::memory::{MemoryMap, RegionSpec};
use crate::ring::areas::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use crate::ring::RingError;

const NEXT: u16 = DESC_F_NEXT;
const WRITE: u16 = DESC_F_WRITE;
const INDIRECT: u16 = DESC_F_INDIRECT;
const SIZE: u16 = 8;
/// Where indirect tables go.
const TABLE: u64 = DATA + 0x1_0000;

/// A ring whose every byte the test writes itself.
struct Raw {
    memory: Arc<GuestMemory>,
    config: RingConfig,
}

impl Raw {
    fn new() -> Self {
        Self {
            memory: memory(),
            config: RingConfig {
                indirect: true,
                ..little(SIZE)
            },
        }
    }

    /// Descriptor `index` of the table at `table`.
    fn desc(&self, table: u64, index: u64, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory
            .load()
            .write(table + 16 * index, &bytes)
            .unwrap();
    }

    fn main(&self, descs: &[(u64, u32, u16, u16)]) -> &Self {
        for (index, desc) in (0..).zip(descs) {
            self.desc(self.config.desc, index, *desc);
        }
        self
    }

    fn indirect(&self, descs: &[(u64, u32, u16, u16)]) -> &Self {
        for (index, desc) in (0..).zip(descs) {
            self.desc(TABLE, index, *desc);
        }
        self
    }

    fn u16(&self, address: u64, value: u16) {
        self.memory
            .load()
            .write(address, &value.to_le_bytes())
            .unwrap();
    }

    fn open(&self) -> Result<SplitRing<Little>, RingError> {
        SplitRing::new(Arc::clone(&self.memory), self.config)
    }

    /// Offers descriptor 0 as a chain and pops it.
    fn pop(&self) -> Result<Chain, RingError> {
        self.u16(self.config.driver + 4, 0);
        self.u16(self.config.driver + 2, 1);
        let mut ring = self.open().unwrap();
        let mut chain = Chain::default();
        let popped = ring.pop(&mut chain);
        if popped.is_err() {
            assert!(chain.readable.is_empty() && chain.writable.is_empty());
            assert_eq!(ring.next_avail(), 0, "a broken chain is not taken");
        }
        popped.map(|taken| {
            assert!(taken);
            chain
        })
    }
}

macro_rules! assert_broken {
    ($result:expr, $pattern:pat) => {
        match $result {
            Err(error) => {
                assert!(matches!(error, $pattern), "{error:?}");
                assert!(!error.to_string().is_empty());
            }
            Ok(_) => panic!("accepted"),
        }
    };
}

#[test]
fn sizes() {
    for size in [0, 3, 6, 1000, 32767, 32769, u16::MAX] {
        let mut raw = Raw::new();
        raw.config.size = size;
        assert_broken!(raw.open(), RingError::Size(_));
    }
    for shift in 0..=15 {
        let memory = memory();
        assert!(SplitRing::<Little>::new(memory, little(1 << shift)).is_ok());
    }
}

/// split.vq.r2
#[test]
fn alignment() {
    let aligned = Raw::new().config;
    for (desc, driver, device) in [(8, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 2), (0, 0, 1)] {
        let mut raw = Raw::new();
        raw.config.desc = aligned.desc + desc;
        raw.config.driver = aligned.driver + driver;
        raw.config.device = aligned.device + device;
        assert_broken!(raw.open(), RingError::Misaligned { .. });
    }
    let mut raw = Raw::new();
    raw.config.driver += 2;
    assert!(raw.open().is_ok());
}

/// An aligned guest address on an odd host address: a table no honest front end sends.
#[test]
fn alignment_in_the_host() {
    let backing = GuestMemory::anonymous(0, MEMORY).unwrap();
    let memory = Arc::new(GuestMemory::new());
    let odd = RegionSpec {
        guest_address: BASE,
        size: MEMORY - 1,
        user_address: 0,
        mmap_offset: 1,
        fd: backing.fd().unwrap(),
    };
    memory.add(odd).unwrap();
    let ring = SplitRing::<Little>::new(memory, little(SIZE));
    assert_broken!(ring, RingError::Misaligned { .. });
}

#[test]
fn areas_outside_memory() {
    let end = BASE + MEMORY;
    for address in [0, end, end - 16, u64::MAX - 15] {
        for area in 0..3 {
            let mut raw = Raw::new();
            let config = &mut raw.config;
            *[&mut config.desc, &mut config.driver, &mut config.device][area] = address;
            assert_broken!(raw.open(), RingError::Unmapped { .. });
        }
    }
}

/// Event fields are part of the areas only with EVENT_IDX (legacy drivers may not have them).
#[test]
fn event_fields_are_checked_when_they_are_used() {
    let end = BASE + MEMORY;
    for (driver, device) in [(true, false), (false, true)] {
        let mut raw = Raw::new();
        if driver {
            raw.config.driver = end - (4 + 2 * 8);
        }
        if device {
            raw.config.device = end - (4 + 8 * 8);
        }
        assert!(raw.open().is_ok());
        raw.config.event_idx = true;
        assert_broken!(raw.open(), RingError::Unmapped { .. });
    }
}

#[test]
fn available_index_too_far() {
    let raw = Raw::new();
    let mut ring = raw.open().unwrap();
    for index in [SIZE + 1, 0x8000, 0xffff] {
        raw.u16(raw.config.driver + 2, index);
        assert_broken!(
            ring.pop(&mut Chain::default()),
            RingError::AvailIndex { .. }
        );
        assert_broken!(ring.available(), RingError::AvailIndex { .. });
        assert_broken!(ring.want_kicks(), RingError::AvailIndex { .. });
    }
    raw.u16(raw.config.driver + 2, SIZE);
    assert_eq!(ring.available().unwrap(), SIZE);
}

/// Offering descriptors again before they are used would make us hold chains without limit.
#[test]
fn more_chains_than_descriptors() {
    let raw = Raw::new();
    raw.main(&[(DATA, 1, WRITE, 0)]);
    let mut ring = raw.open().unwrap();
    let mut chain = Chain::default();
    raw.u16(raw.config.driver + 2, SIZE);
    for _ in 0..SIZE {
        assert!(ring.pop(&mut chain).unwrap());
    }
    raw.u16(raw.config.driver + 2, SIZE + 1);
    assert_broken!(ring.pop(&mut chain), RingError::Overcommitted { .. });
    ring.push_used(0, 1).unwrap();
    assert!(ring.pop(&mut chain).unwrap());
}

#[test]
fn head_out_of_range() {
    for head in [SIZE, 0x7fff, 0xffff] {
        let raw = Raw::new();
        raw.u16(raw.config.driver + 4, head);
        raw.u16(raw.config.driver + 2, 1);
        let popped = raw.open().unwrap().pop(&mut Chain::default());
        assert_broken!(popped, RingError::Head { .. });
    }
}

#[test]
fn next_out_of_range() {
    let raw = Raw::new();
    for next in [SIZE, 0xffff] {
        raw.main(&[(DATA, 1, NEXT, next)]);
        assert_broken!(raw.pop(), RingError::Next { length: 8, .. });
    }
    raw.main(&[(TABLE, 32, INDIRECT, 0)]);
    for next in [2, 3, 0xffff] {
        raw.indirect(&[(DATA, 1, NEXT, next)]);
        assert_broken!(raw.pop(), RingError::Next { length: 2, .. });
    }
}

/// split.desc.r2
#[test]
fn loops() {
    let raw = Raw::new();
    raw.main(&[(DATA, 1, NEXT, 0)]);
    assert_broken!(raw.pop(), RingError::TooLong { .. });
    raw.main(&[(DATA, 0, NEXT, 1), (DATA, 0, NEXT, 0)]);
    assert_broken!(raw.pop(), RingError::TooLong { .. });
    raw.main(&[(TABLE, 32, INDIRECT, 0)]);
    raw.indirect(&[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)]);
    assert_broken!(raw.pop(), RingError::TooLong { .. });
}

/// split.ind.r3, but for what Linux's virtio_scsi does: `seg_max` descriptors in an indirect table,
/// whatever the queue size. Direct and indirect descriptors count together.
#[test]
fn longer_than_the_queue() {
    let raw = Raw::new();
    let chain = |length: u16| -> Vec<_> {
        let next = |at| if at < length { NEXT } else { 0 };
        (1..=length).map(|at| (DATA, 1, next(at), at)).collect()
    };
    for (entries, length) in [(8, 8), (9, 9), (1024, 1024)] {
        raw.indirect(&chain(length));
        raw.main(&[(TABLE, entries * 16, INDIRECT, 0)]);
        assert_eq!(raw.pop().unwrap().readable_len, u64::from(length));
    }
    raw.main(&[(DATA, 1, NEXT, 1), (TABLE, 1024 * 16, INDIRECT, 0)]);
    assert_broken!(raw.pop(), RingError::TooLong { limit: 1024, .. });
    raw.main(&[(TABLE, 1025 * 16, INDIRECT, 0)]);
    assert_broken!(raw.pop(), RingError::IndirectTooLong { entries: 1025, .. });
    raw.main(&[(TABLE, 0xffff_fff0, INDIRECT, 0)]);
    assert_broken!(raw.pop(), RingError::IndirectTooLong { .. });
}

/// split.frame.r1
#[test]
fn readable_after_writable() {
    let raw = Raw::new();
    raw.main(&[(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)]);
    assert_broken!(raw.pop(), RingError::ReadableAfterWritable { .. });
    raw.main(&[(DATA, 1, NEXT | WRITE, 1), (TABLE, 16, INDIRECT, 0)]);
    raw.indirect(&[(DATA, 1, 0, 0)]);
    assert_broken!(raw.pop(), RingError::ReadableAfterWritable { .. });
}

/// split.ind.r1
#[test]
fn indirect_without_the_feature() {
    let mut raw = Raw::new();
    raw.config.indirect = false;
    raw.main(&[(TABLE, 16, INDIRECT, 0)]);
    assert_broken!(raw.pop(), RingError::IndirectNotNegotiated { .. });
}

/// split.ind.r4
#[test]
fn indirect_with_next() {
    let raw = Raw::new();
    raw.main(&[(TABLE, 16, INDIRECT | NEXT, 1), (DATA, 1, 0, 0)]);
    assert_broken!(raw.pop(), RingError::IndirectWithNext { .. });
}

/// split.ind.r2
#[test]
fn nested_indirect() {
    let raw = Raw::new();
    raw.main(&[(TABLE, 16, INDIRECT, 0)]);
    raw.indirect(&[(TABLE, 16, INDIRECT, 0)]);
    assert_broken!(raw.pop(), RingError::NestedIndirect { .. });
}

#[test]
fn indirect_tables_of_odd_size() {
    let raw = Raw::new();
    for length in [0, 1, 15, 17, 31, u32::MAX] {
        raw.main(&[(TABLE, length, INDIRECT, 0)]);
        assert_broken!(raw.pop(), RingError::IndirectLength { .. });
    }
}

#[test]
fn indirect_tables_outside_memory() {
    let raw = Raw::new();
    let end = BASE + MEMORY;
    for address in [0, end, end - 15, u64::MAX, u64::MAX - 15] {
        raw.main(&[(address, 16, INDIRECT, 0)]);
        assert_broken!(raw.pop(), RingError::IndirectUnmapped { .. });
    }
}

/// split.ind.d1
#[test]
fn write_flag_of_an_indirect_descriptor_means_nothing() {
    let raw = Raw::new();
    raw.main(&[(TABLE, 32, INDIRECT | WRITE, 0)]);
    raw.indirect(&[(DATA, 3, NEXT, 1), (DATA, 4, WRITE, 0)]);
    let chain = raw.pop().unwrap();
    assert_eq!((chain.readable_len, chain.writable_len), (3, 4));
}

/// split.ind.d2
#[test]
fn direct_descriptors_may_end_in_an_indirect_one() {
    let raw = Raw::new();
    raw.main(&[(DATA, 3, NEXT, 5)]);
    raw.desc(raw.config.desc, 5, (TABLE, 16, INDIRECT, 0));
    raw.indirect(&[(DATA, 4, WRITE, 0)]);
    let chain = raw.pop().unwrap();
    assert_eq!((chain.readable_len, chain.writable_len), (3, 4));
}

/// split.desc.r1
#[test]
fn more_than_4_gib() {
    let raw = Raw::new();
    // All of 4 GiB must be there for the sum to be the error.
    let big = GuestMemory::anonymous(0, 1 << 32).unwrap();
    let region = RegionSpec {
        guest_address: 1 << 40,
        size: 1 << 32,
        user_address: 1 << 40,
        mmap_offset: 0,
        fd: big.fd().unwrap(),
    };
    raw.memory.add(region).unwrap();
    raw.main(&[(1 << 40, u32::MAX, NEXT, 1), (DATA, 1, WRITE, 0)]);
    let chain = raw.pop().unwrap();
    assert_eq!(chain.readable_len + chain.writable_len, 1 << 32);
    raw.main(&[(1 << 40, u32::MAX, NEXT, 1), (DATA, 2, WRITE, 0)]);
    assert_broken!(raw.pop(), RingError::TooManyBytes { .. });
}

#[test]
fn zero_length_descriptors_contribute_nothing() {
    let raw = Raw::new();
    raw.main(&[
        (u64::MAX, 0, NEXT, 1),
        (DATA, 5, NEXT, 2),
        (0, 0, NEXT | WRITE, 3),
        (DATA, 0, WRITE, 0),
    ]);
    let chain = raw.pop().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 0));
    assert_eq!((chain.readable_len, chain.writable_len), (5, 0));
}

#[test]
fn data_outside_memory() {
    let raw = Raw::new();
    let end = BASE + MEMORY;
    for (address, length) in [
        (0, 1),
        (BASE - 1, 2),
        (end - 1, 2),
        (end, 1),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (DATA, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            raw.main(&[(DATA, 1, NEXT, 1), (address, length, flags, 0)]);
            assert_broken!(raw.pop(), RingError::DataUnmapped { .. });
        }
    }
}

/// Many overlapping buffers over many tiny regions: a little ring, a lot of work.
#[test]
fn scattered_data() {
    let raw = Raw::new();
    let tiny = GuestMemory::anonymous(0, 4096).unwrap();
    for i in 0..64 {
        let region = RegionSpec {
            guest_address: (1 << 40) + i,
            size: 1,
            user_address: (1 << 40) + i,
            mmap_offset: 8 * i,
            fd: tiny.fd().unwrap(),
        };
        raw.memory.add(region).unwrap();
    }
    raw.main(&[(1 << 40, 64, NEXT, 1), (DATA, 1, 0, 0)]);
    assert_eq!(raw.pop().unwrap().readable.len(), 65);
    raw.main(&[(1 << 40, 64, NEXT, 1), (1 << 40, 64, 0, 0)]);
    assert_broken!(raw.pop(), RingError::Scattered { .. });
}

#[test]
fn errors_name_their_numbers() {
    let raw = Raw::new();
    raw.main(&[(0xdead_beef, 7, 0, 0)]);
    let text = raw.pop().unwrap_err().to_string();
    assert!(
        text.contains("chain 0") && text.contains("0xdeadbeef"),
        "{text}"
    );
    raw.u16(raw.config.driver + 2, 1000);
    let popped = raw.open().unwrap().pop(&mut Chain::default());
    let text = popped.unwrap_err().to_string();
    assert!(text.contains("1000") && text.contains('8'), "{text}");
}

/// Whether `pieces` are all host addresses of guest memory, `bytes` in sum.
fn all_in_memory(map: &MemoryMap, pieces: &[libc::iovec], bytes: u64) -> bool {
    let start = map.slice(BASE, MEMORY).unwrap().addr();
    let end = start + MEMORY as usize;
    let inside = pieces.iter().all(|piece| {
        let from = piece.iov_base.addr();
        from >= start && from < end && piece.iov_len <= end - from && piece.iov_len > 0
    });
    inside && pieces.iter().map(|piece| piece.iov_len as u64).sum::<u64>() == bytes
}

/// A guest that rewrites ring and tables while we read them gets errors or valid chains.
#[test]
fn a_ring_that_changes_while_it_is_read() {
    let raw = Raw::new();
    let stop = Stop::default();
    thread::scope(|scope| {
        let _stop = stop.on_drop();
        scope.spawn(|| {
            let mut random = Random(0xbad);
            while !stop.asked() {
                let flags = random.below(8) as u16;
                // Mostly plausible values, so that all paths are reached.
                let addr = match random.below(8) {
                    0 => random.next(),
                    1 => BASE + MEMORY - random.below(32),
                    2..=4 => TABLE + 16 * random.below(4),
                    _ => DATA + random.below(4096),
                };
                let len = match random.below(8) {
                    0 => random.next() as u32,
                    1..=5 => 16 * random.below(10) as u32,
                    _ => random.below(100) as u32,
                };
                let desc = (addr, len, flags, random.below(10) as u16);
                let table = [raw.config.desc, TABLE][random.below(2) as usize];
                raw.desc(table, random.below(8), desc);
                let entry = raw.config.driver + 4 + 2 * random.below(8);
                raw.u16(entry, random.below(9) as u16);
                let index = match random.below(16) {
                    0 => random.next() as u16,
                    _ => random.below(9) as u16,
                };
                raw.u16(raw.config.driver + 2, index);
            }
        });
        let map = raw.memory.load();
        let mut chain = Chain::default();
        let (mut good, mut bad, mut turns) = (0, 0, 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        while (turns < 100_000 || good < 1000 || bad < 1000) && Instant::now() < deadline {
            turns += 1;
            let mut ring = raw.open().unwrap();
            match ring.pop(&mut chain) {
                Ok(true) => {
                    good += 1;
                    assert!(chain.head < SIZE);
                    assert!(chain.readable.len() + chain.writable.len() <= 9);
                    assert!(all_in_memory(&map, &chain.readable, chain.readable_len));
                    assert!(all_in_memory(&map, &chain.writable, chain.writable_len));
                }
                Ok(false) => {}
                Err(_) => bad += 1,
            }
        }
        assert!(good >= 1000 && bad >= 1000, "{good} chains, {bad} errors");
    });
}
