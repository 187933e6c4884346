//! Rings and chains at I/O addresses (VIRTIO_F_ACCESS_PLATFORM).

use super::*;
use crate::memory::{Access, Fault, RegionSpec};
use crate::ring::RingError;

/// From guest addresses, which the driver uses, to I/O addresses, which the device sees.
const SHIFT: u64 = 1 << 44;
const PAGE: u64 = 4096;
const RW: u8 = 3;

/// A ring whose three parts are each in pages of their own.
fn layout(size: u16) -> RingConfig {
    RingConfig {
        desc: BASE,
        driver: BASE + 16 * PAGE,
        device: BASE + 32 * PAGE,
        ..little(size)
    }
}

fn shifted(config: RingConfig) -> RingConfig {
    RingConfig {
        desc: config.desc + SHIFT,
        driver: config.driver + SHIFT,
        device: config.device + SHIFT,
        translated: true,
        ..config
    }
}

struct Guest {
    memory: Arc<GuestMemory>,
    driver: DriverRing<Little>,
    device: SplitRing<Little>,
    config: RingConfig,
    chain: Chain,
}

impl Guest {
    /// Nothing is mapped yet.
    fn new(config: RingConfig) -> Self {
        let memory = memory();
        let driver = DriverRing::new(&memory, config).unwrap();
        let device = SplitRing::new(Arc::clone(&memory), shifted(config)).unwrap();
        Self {
            memory,
            driver,
            device,
            config,
            chain: Chain::default(),
        }
    }

    fn map(&self, guest: u64, size: u64, bits: u8) {
        let access = Access::from_bits(bits).unwrap();
        let user = guest; // as `GuestMemory::anonymous` has it
        self.memory
            .iotlb_update(guest + SHIFT, size, user, access)
            .unwrap();
    }

    fn map_ring(&self) {
        self.map(self.config.desc, 16 * PAGE, 1);
        self.map(self.config.driver, 16 * PAGE, 1);
        self.map(self.config.device, 16 * PAGE, 2);
    }

    fn unmap(&self, guest: u64, size: u64) {
        self.memory.iotlb_invalidate(guest + SHIFT, size);
    }

    fn pop(&mut self) -> Result<bool, RingError> {
        let before = self.device.next_avail();
        let popped = self.device.pop(&mut self.chain);
        let taken = u16::from(matches!(popped, Ok(true)));
        assert_eq!(self.device.next_avail(), before.wrapping_add(taken));
        popped
    }
}

fn miss(guest: u64, access: Access) -> Option<Fault> {
    Some(Fault {
        iova: guest + SHIFT,
        access,
    })
}

#[track_caller]
fn assert_miss<T: std::fmt::Debug>(result: Result<T, RingError>, guest: u64, access: Access) {
    assert_eq!(result.unwrap_err().miss(), miss(guest, access));
}

#[test]
fn every_part_of_a_ring_is_asked_for_and_nothing_is_lost() {
    let mut guest = Guest::new(layout(8));
    let RingConfig {
        desc,
        driver,
        device,
        ..
    } = guest.config;
    guest.memory.load().write(DATA, b"request").unwrap();
    guest
        .driver
        .add(&[readable(DATA + SHIFT, 7), writable(DATA + SHIFT + PAGE, 8)])
        .unwrap();
    guest.driver.publish();

    for (area, access, bits) in [
        (desc, Access::READ, 1),
        (driver, Access::READ, 1),
        (device, Access::WRITE, 2),
    ] {
        assert_miss(guest.pop(), area, access);
        assert_miss(guest.device.want_kicks(), area, access);
        assert_miss(guest.device.suppress_kicks(), area, access);
        assert_miss(guest.device.available(), area, access);
        guest.map(area, PAGE, bits);
    }
    assert_eq!(guest.device.available().unwrap(), 1);
    assert_miss(guest.pop(), DATA, Access::READ);
    guest.map(DATA, PAGE, 1);
    assert_miss(guest.pop(), DATA + PAGE, Access::WRITE);
    guest.map(DATA + PAGE, PAGE, 2);
    assert!(guest.pop().unwrap());
    assert_eq!(gather(&guest.chain.readable), b"request");
    let (start, end) = (DATA + SHIFT, DATA + SHIFT + PAGE + 7);
    assert!(guest.chain.uses(0, start) && guest.chain.uses(end, u64::MAX));
    assert!(!guest.chain.uses(0, start - 1) && !guest.chain.uses(end + 1, u64::MAX));
    assert!(
        !guest.chain.uses(start + 7, start + PAGE - 1),
        "between the two"
    );

    // The used ring goes away while the chain is in flight: the completion waits.
    guest.unmap(device, PAGE);
    scatter(&guest.chain.writable, b"response");
    guest.device.push_used(guest.chain.head, 8).unwrap();
    assert_miss(guest.device.publish(), device, Access::WRITE);
    assert_eq!(guest.driver.pop_used().unwrap(), None);
    guest.map(device, PAGE, 2);
    assert!(guest.device.publish().unwrap());
    assert_eq!(
        guest.driver.pop_used().unwrap(),
        Some((guest.chain.head, 8))
    );
    let mut response = [0; 8];
    guest
        .memory
        .load()
        .read(DATA + PAGE, &mut response)
        .unwrap();
    assert_eq!(&response, b"response");
}

#[test]
fn an_indirect_table_is_read_where_it_is_mapped() {
    let mut guest = Guest::new(RingConfig {
        indirect: true,
        ..layout(8)
    });
    guest.map_ring();
    // The driver's helper writes the table at its own address; only a copy elsewhere is mapped.
    let (written, table) = (DATA + SHIFT, DATA + 4 * PAGE);
    let buffers = [readable(DATA + SHIFT + PAGE, 5)];
    let mut other = [0; 16];
    {
        let scratch = GuestMemory::anonymous(written, PAGE).unwrap();
        let spec = RegionSpec {
            guest_address: written,
            size: PAGE,
            user_address: written,
            mmap_offset: 0,
            fd: scratch.fd().unwrap(),
        };
        guest.memory.add(spec).unwrap();
        guest.driver = DriverRing::new(&guest.memory, guest.config).unwrap();
        guest.driver.add_indirect(written, &buffers).unwrap();
        guest.driver.publish();
        guest.memory.load().read(written, &mut other).unwrap();
        guest.memory.remove(written, written, PAGE).unwrap();
    }
    guest.memory.load().write(table, &other).unwrap();
    guest.memory.load().write(DATA + PAGE, b"bytes").unwrap();

    assert_miss(guest.pop(), DATA, Access::READ);
    let access = Access::from_bits(1).unwrap();
    guest
        .memory
        .iotlb_update(written, PAGE, table, access)
        .unwrap();
    assert_miss(guest.pop(), DATA + PAGE, Access::READ);
    guest.map(DATA + PAGE, PAGE, 1);
    assert!(guest.pop().unwrap());
    assert_eq!(gather(&guest.chain.readable), b"bytes");
}

#[test]
fn permissions_hold_in_both_directions() {
    let RingConfig {
        desc,
        driver,
        device,
        ..
    } = layout(8);
    for (area, wrong, access) in [
        (desc, 2, Access::READ),
        (driver, 2, Access::READ),
        (device, 1, Access::WRITE),
    ] {
        let mut guest = Guest::new(layout(8));
        guest.map_ring();
        guest.map(area, PAGE, wrong);
        let error = guest.pop().unwrap_err();
        assert_eq!((error.miss(), error.denied()), (None, miss(area, access)));
    }
    for (buffer, allowed, access) in [
        (readable(DATA + SHIFT, 9), 1, Access::READ),
        (writable(DATA + SHIFT, 9), 2, Access::WRITE),
    ] {
        let mut guest = Guest::new(layout(8));
        guest.map_ring();
        guest.driver.add(&[buffer]).unwrap();
        guest.driver.publish();
        guest.map(DATA, PAGE, RW ^ allowed);
        let error = guest.pop().unwrap_err();
        assert_eq!((error.miss(), error.denied()), (None, miss(DATA, access)));
        assert!(guest.chain.map.is_none());
        guest.map(DATA, PAGE, allowed);
        assert!(guest.pop().unwrap());
    }
}

/// Linux allocates a ring in blocks of whole pages that are contiguous for the device only.
#[test]
fn a_ring_may_be_scattered_over_pages() {
    let config = RingConfig {
        event_idx: true,
        ..layout(1024)
    };
    let mut guest = Guest::new(config);
    // The driver's ring is in place; the device sees it through pages, each mapped by itself, the
    // memory of every second one moved away.
    let away = DATA + 64 * PAGE;
    let mut moved = Vec::new();
    for page in 0..48 {
        let (from, to) = (BASE + page * PAGE, away + page * PAGE);
        let access = Access::from_bits(if page < 32 { 1 } else { 2 }).unwrap();
        let user = if page % 2 == 1 { to } else { from };
        guest
            .memory
            .iotlb_update(from + SHIFT, PAGE, user, access)
            .unwrap();
        if page % 2 == 1 {
            moved.push((from, to));
        }
    }
    guest.map(DATA, PAGE, RW);
    let copy = |memory: &GuestMemory, back: bool| {
        let mut bytes = [0; PAGE as usize];
        for &(here, there) in &moved {
            let (from, to) = if back { (there, here) } else { (here, there) };
            memory.load().read(from, &mut bytes).unwrap();
            memory.load().write(to, &bytes).unwrap();
        }
    };
    for turn in 0..3000u32 {
        let length = 1 + turn % 16;
        guest.driver.add(&[writable(DATA + SHIFT, length)]).unwrap();
        guest.driver.publish();
        copy(&guest.memory, false);
        assert!(guest.pop().unwrap());
        assert_eq!(guest.chain.writable_len, u64::from(length));
        guest.device.push_used(guest.chain.head, turn).unwrap();
        guest.device.publish().unwrap();
        guest.device.want_kicks().unwrap();
        copy(&guest.memory, true);
        assert_eq!(
            guest.driver.pop_used().unwrap(),
            Some((guest.chain.head, turn))
        );
    }
}

#[test]
fn a_field_across_two_pieces_is_refused() {
    for (area, border, alignment) in [(0, 40, 16), (1, 5, 2), (2, 6, 4)] {
        let guest = Guest::new(layout(8));
        guest.map_ring();
        let config = guest.config;
        let start = [config.desc, config.driver, config.device][area];
        let end = Access::from_bits(RW).unwrap();
        guest
            .memory
            .iotlb_update(start + border + SHIFT, 64, DATA, end)
            .unwrap();
        match SplitRing::<Little>::new(Arc::clone(&guest.memory), shifted(config)) {
            Err(RingError::Misaligned {
                alignment: found, ..
            }) => assert_eq!(found, alignment),
            other => panic!("{:?}", other.err()),
        }
    }
}

/// A ring that moves under the same I/O addresses is used where it is now, from the next call on.
#[test]
fn a_moved_ring_is_followed() {
    let mut guest = Guest::new(layout(8));
    guest.map_ring();
    guest.map(DATA, PAGE, RW);
    guest.driver.add(&[readable(DATA + SHIFT, 3)]).unwrap();
    guest.driver.publish();
    assert!(guest.pop().unwrap());
    let away = DATA + 64 * PAGE;
    let mut bytes = vec![0; 48 * PAGE as usize];
    guest.memory.load().read(BASE, &mut bytes).unwrap();
    guest.memory.load().write(away, &bytes).unwrap();
    let access = Access::from_bits(RW).unwrap();
    guest
        .memory
        .iotlb_update(BASE + SHIFT, 48 * PAGE, away, access)
        .unwrap();
    guest.device.push_used(guest.chain.head, 3).unwrap();
    guest.device.publish().unwrap();
    assert_eq!(
        guest.driver.pop_used().unwrap(),
        None,
        "the old place is left alone"
    );
    guest.memory.load().read(away, &mut bytes).unwrap();
    guest.memory.load().write(BASE, &bytes).unwrap();
    assert_eq!(
        guest.driver.pop_used().unwrap(),
        Some((guest.chain.head, 3))
    );
}

/// rsvd.d9
#[test]
fn without_the_feature_the_iotlb_means_nothing() {
    let mut pair = Pair::<Little>::new(layout(8));
    let access = Access::from_bits(RW).unwrap();
    pair.memory
        .iotlb_update(BASE, MEMORY, BASE, access)
        .unwrap();
    pair.memory
        .iotlb_update(DATA, PAGE, DATA + PAGE, access)
        .unwrap();
    pair.memory.load().write(DATA, b"here").unwrap();
    pair.driver.add(&[readable(DATA, 4)]).unwrap();
    pair.driver.publish();
    let mut chain = Chain::default();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert_eq!(gather(&chain.readable), b"here");
    assert!(!chain.uses(0, u64::MAX));
}

#[test]
fn a_wrong_layout_is_refused_before_anything_is_mapped() {
    let mut config = shifted(layout(8));
    config.desc += 8;
    let ring = SplitRing::<Little>::new(memory(), config);
    assert!(matches!(ring.err(), Some(RingError::Misaligned { .. })));
    let ring = SplitRing::<Little>::new(memory(), shifted(little(12)));
    assert!(matches!(ring.err(), Some(RingError::Size(12))));
}
