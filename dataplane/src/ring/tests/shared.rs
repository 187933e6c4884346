//! Memory tables that change under a running ring, and memory that vanishes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;

use super::*;
use crate::memory::tests::Stop;
use crate::memory::RegionSpec;
use crate::ring::RingError;

fn whole(memory: &GuestMemory) -> RegionSpec<'_> {
    RegionSpec {
        guest_address: BASE,
        size: MEMORY,
        user_address: BASE,
        mmap_offset: 0,
        fd: memory.fd().unwrap(),
    }
}

fn turn(pair: &mut Pair<Little>, number: u32) {
    let mut chain = Chain::default();
    let map = pair.memory.load();
    map.write(DATA, &number.to_le_bytes()).unwrap();
    pair.driver
        .add(&[readable(DATA, 4), writable(DATA + 8, 4)])
        .unwrap();
    pair.driver.publish();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert_eq!(gather(&chain.readable), number.to_le_bytes());
    scatter(&chain.writable, &number.to_be_bytes());
    pair.device.push_used(chain.head, number).unwrap();
    pair.device.publish().unwrap();
    assert_eq!(pair.driver.pop_used().unwrap(), Some((chain.head, number)));
    let mut back = [0; 4];
    map.read(DATA + 8, &mut back).unwrap();
    assert_eq!(back, number.to_be_bytes());
}

#[test]
fn the_table_is_swapped_under_a_running_ring() {
    let mut pair = Pair::<Little>::new(little(8));
    let memory = Arc::clone(&pair.memory);
    let stop = Stop::default();
    thread::scope(|scope| {
        let _stop = stop.on_drop();
        scope.spawn(|| {
            let other = GuestMemory::anonymous(1 << 40, 4096).unwrap();
            let more = RegionSpec {
                guest_address: 1 << 40,
                user_address: 1 << 40,
                size: 4096,
                mmap_offset: 0,
                fd: other.fd().unwrap(),
            };
            while !stop.asked() {
                memory.add(more).unwrap();
                memory.replace(vec![whole(&memory)]).unwrap();
            }
        });
        for number in 0..5_000 {
            turn(&mut pair, number);
        }
    });
}

#[test]
fn a_chain_in_flight_outlives_its_memory_but_the_ring_does_not() {
    let mut pair = Pair::<Little>::new(little(8));
    pair.memory.load().write(DATA, b"payload").unwrap();
    pair.driver.add(&[readable(DATA, 7)]).unwrap();
    pair.driver.add(&[readable(DATA, 7)]).unwrap();
    pair.driver.publish();
    let mut chain = Chain::default();
    assert!(pair.device.pop(&mut chain).unwrap());

    pair.memory.remove(BASE, BASE, MEMORY).unwrap();
    drop(pair.driver);
    let mut next = Chain::default();
    let gone = |result: Result<bool, RingError>| {
        assert!(matches!(result, Err(RingError::Unmapped { .. })));
    };
    gone(pair.device.pop(&mut next));
    gone(pair.device.push_used(0, 0).map(|()| true));
    gone(pair.device.publish());
    gone(pair.device.want_kicks());
    gone(pair.device.suppress_kicks().map(|()| true));
    gone(pair.device.available().map(|_| true));
    drop(pair.device);
    assert_eq!(gather(&chain.readable), b"payload");
}

/// New memory at the old address: the ring follows, and asks for kicks anew.
#[test]
fn a_replaced_ring_is_read_where_it_is_now() {
    let mut pair = Pair::<Little>::new(little(8));
    pair.device.suppress_kicks().unwrap();
    let other = GuestMemory::anonymous(BASE, MEMORY).unwrap();
    pair.memory.replace(vec![whole(&other)]).unwrap();
    let mut driver = DriverRing::<Little>::new(&pair.memory, little(8)).unwrap();
    driver.add(&[writable(DATA, 3)]).unwrap();
    assert!(driver.publish());
    pair.device.suppress_kicks().unwrap();
    driver.add(&[writable(DATA, 3)]).unwrap();
    assert!(!driver.publish());
    assert_eq!(pair.device.available().unwrap(), 2);
}

#[test]
fn a_ring_in_truncated_memory_breaks_instead_of_reading_zeros() {
    let mut pair = Pair::<Little>::new(little(8));
    pair.driver.add(&[readable(DATA, 7)]).unwrap();
    pair.driver.publish();
    let fd: OwnedFd = pair.memory.fd().unwrap().try_clone_to_owned().unwrap();
    File::from(fd).set_len(0).unwrap();
    let mut chain = Chain::default();
    // The first look finds zeros, and with them that the memory is gone.
    for _ in 0..2 {
        let popped = pair.device.pop(&mut chain);
        assert!(matches!(popped, Err(RingError::Truncated)), "{popped:?}");
        assert!(chain.map.is_none());
    }
    assert!(pair.memory.is_dead());
}
