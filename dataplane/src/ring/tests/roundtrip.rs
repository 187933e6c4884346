//! Honest drivers: what they put in comes out, and back.

use std::collections::VecDeque;

use super::*;
use crate::ring::driver::DriverError;
use crate::ring::{open, Big};

/// A chain that the driver has out.
struct Sent {
    head: u16,
    out: Vec<u8>,
    buffers: Vec<Buffer>,
}

/// Carves a random chain of at most `limit` buffers out of `space`, readable ones filled.
fn random_chain(
    random: &mut Random,
    memory: &GuestMemory,
    space: &mut u64,
    limit: u64,
) -> (Vec<Buffer>, Vec<u8>) {
    let count = 1 + random.below(limit);
    let readers = random.below(count + 1);
    let mut out = Vec::new();
    let mut buffers = Vec::new();
    for index in 0..count {
        let len = random.below(40) as u32;
        // Sometimes contiguous with the one before, mostly not.
        *space += random.below(3);
        if index < readers {
            let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            memory.load().write(*space, &bytes).unwrap();
            out.extend(bytes);
            buffers.push(readable(*space, len));
        } else {
            buffers.push(writable(*space, len));
        }
        *space += u64::from(len);
    }
    (buffers, out)
}

/// Random chains in random batches, completed out of order, over every kind of descriptor layout.
/// split.frame.d1, split.ind.d2, split.used.d4, split.supply.r1
fn exchange<E: Endian>(size: u16, start: u16, seed: u64, rounds: u32) {
    let mut random = Random(seed);
    let config = RingConfig {
        next_avail: start,
        indirect: true,
        event_idx: seed % 2 == 0,
        ..little(size)
    };
    let Pair {
        memory,
        mut driver,
        mut device,
    } = Pair::<E>::new(config);
    let mut sent: VecDeque<Sent> = VecDeque::new();
    let mut space = DATA;
    let mut popped = 0_u16;
    for _ in 0..rounds {
        if sent.is_empty() {
            space = DATA;
        }
        for _ in 0..1 + random.below(4) {
            if driver.free() == 0 {
                break;
            }
            let free = driver.free() as u64;
            let way = random.below(3);
            let limit = if way == 0 {
                free.min(8)
            } else {
                8.min(size.into())
            };
            let (buffers, out) = random_chain(&mut random, &memory, &mut space, limit);
            space = space.next_multiple_of(16);
            let table = space;
            space += 16 * 8;
            let direct = match way {
                0 => buffers.len(),
                1 => 0,
                _ => (random.below(free) as usize).min(buffers.len() - 1),
            };
            let head = if way == 0 {
                driver.add(&buffers)
            } else {
                driver.add_mixed(&buffers[..direct], table, &buffers[direct..])
            };
            let head = head.unwrap();
            sent.push_back(Sent { head, out, buffers });
        }
        driver.publish();

        let mut chains = Vec::new();
        loop {
            let waiting = device.available().unwrap();
            let mut chain = Chain::default();
            if !device.pop(&mut chain).unwrap() {
                assert_eq!(waiting, 0);
                break;
            }
            assert!(waiting > 0);
            popped = popped.wrapping_add(1);
            assert_eq!(device.next_avail(), start.wrapping_add(popped));
            let expected = &sent[chains.len()];
            assert_eq!(chain.head, expected.head);
            assert_eq!(gather(&chain.readable), expected.out);
            assert_eq!(chain.readable_len, expected.out.len() as u64);
            let room = expected.buffers.iter().filter(|buffer| buffer.writable);
            let room: u64 = room.map(|buffer| u64::from(buffer.len)).sum();
            assert_eq!(chain.writable_len, room);
            chains.push((chain, random.next()));
        }
        assert_eq!(chains.len(), sent.len());

        // Back in any order.
        chains.sort_by_key(|(_, order)| *order);
        for (chain, order) in &chains {
            let fill: Vec<u8> = (0..chain.writable_len).map(|i| (order + i) as u8).collect();
            scatter(&chain.writable, &fill);
            device
                .push_used(chain.head, chain.writable_len as u32)
                .unwrap();
        }
        assert!(driver.pop_used().unwrap().is_none(), "not published yet");
        device.publish().unwrap();
        for (chain, order) in &chains {
            let (head, len) = driver.pop_used().unwrap().unwrap();
            assert_eq!((head, u64::from(len)), (chain.head, chain.writable_len));
            let index = sent.iter().position(|sent| sent.head == head).unwrap();
            let mut next = *order;
            for buffer in sent.remove(index).unwrap().buffers {
                if buffer.writable {
                    let mut bytes = vec![0; buffer.len as usize];
                    memory.load().read(buffer.addr, &mut bytes).unwrap();
                    for byte in bytes {
                        assert_eq!(byte, next as u8);
                        next += 1;
                    }
                }
            }
        }
        assert!(driver.pop_used().unwrap().is_none());
        assert_eq!(driver.free(), usize::from(size));
        assert_eq!(device.next_used(), device.next_avail());
    }
}

#[test]
fn what_goes_in_comes_out_and_back() {
    for (seed, size) in (1..).zip([1, 2, 4, 8, 64, 1024]) {
        exchange::<Little>(size, 0, seed, 200);
        exchange::<Big>(size, 0, seed + 100, 200);
    }
}

#[test]
fn indices_wrap_around() {
    for (seed, size) in (1..).zip([1, 2, 8, 256]) {
        exchange::<Little>(size, 0xffff - 100, seed, 200);
        exchange::<Big>(size, 0xffff, seed, 200);
    }
}

#[test]
fn the_whole_index_space_passes() {
    let mut pair = Pair::<Little>::new(little(2));
    let mut chain = Chain::default();
    for turn in 0..70_000_u32 {
        let head = pair.driver.add(&[writable(DATA, 4)]).unwrap();
        pair.driver.publish();
        assert!(pair.device.pop(&mut chain).unwrap());
        pair.device.push_used(chain.head, turn).unwrap();
        pair.device.publish().unwrap();
        assert_eq!(pair.driver.pop_used().unwrap(), Some((head, turn)));
    }
    assert_eq!(pair.device.next_avail(), 70_000_u32 as u16);
}

#[test]
fn a_full_ring_of_the_biggest_size_is_popped_whole() {
    let size = 32768;
    let mut pair = Pair::<Little>::new(RingConfig {
        next_avail: 0xfff0,
        ..little(size)
    });
    for _ in 0..size {
        pair.driver.add(&[writable(DATA, 1)]).unwrap();
    }
    assert!(matches!(
        pair.driver.add(&[writable(DATA, 1)]),
        Err(DriverError::Full { needed: 1, free: 0 })
    ));
    pair.driver.publish();
    assert_eq!(pair.device.available().unwrap(), size);
    let mut chain = Chain::default();
    for _ in 0..size {
        assert!(pair.device.pop(&mut chain).unwrap());
    }
    assert!(!pair.device.pop(&mut chain).unwrap());
}

#[test]
fn one_chain_may_use_every_descriptor() {
    let mut pair = Pair::<Little>::new(RingConfig {
        indirect: true,
        ..little(64)
    });
    let buffers: Vec<Buffer> = (0..64).map(|i| readable(DATA + 8 * i, 4)).collect();
    let mut chain = Chain::default();
    pair.driver.add(&buffers).unwrap();
    pair.driver
        .add_indirect(DATA + 0x1000, &buffers)
        .unwrap_err();
    pair.driver.publish();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert_eq!((chain.readable.len(), chain.readable_len), (64, 256));
    pair.device.push_used(chain.head, 0).unwrap();
    pair.device.publish().unwrap();
    pair.driver.pop_used().unwrap().unwrap();

    pair.driver.add_indirect(DATA + 0x1000, &buffers).unwrap();
    pair.driver.publish();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert_eq!((chain.readable.len(), chain.readable_len), (64, 256));
}

#[test]
fn an_indirect_table_may_cross_regions() {
    let mut pair = Pair::<Little>::new(RingConfig {
        indirect: true,
        ..little(4)
    });
    let more = GuestMemory::anonymous(0, 0x1000).unwrap();
    let end = BASE + MEMORY;
    let region = crate::memory::RegionSpec {
        guest_address: end,
        size: 0x1000,
        user_address: 0,
        mmap_offset: 0,
        fd: more.fd().unwrap(),
    };
    pair.memory.add(region).unwrap();
    // A driver of now, as the other keeps to the table of its start.
    let mut driver = DriverRing::<Little>::new(&pair.memory, little(4)).unwrap();
    let buffers = [readable(end - 5, 10), readable(DATA, 1), writable(DATA, 2)];
    driver.add_indirect(end - 24, &buffers).unwrap();
    driver.publish();
    let mut chain = Chain::default();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert_eq!((chain.readable_len, chain.writable_len), (11, 2));
}

#[test]
fn a_popped_chain_keeps_nothing_of_the_one_before() {
    let mut pair = Pair::<Little>::new(little(4));
    pair.driver
        .add(&[readable(DATA, 9), writable(DATA, 9)])
        .unwrap();
    pair.driver.add(&[writable(DATA, 1)]).unwrap();
    pair.driver.publish();
    let mut chain = Chain::default();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert!(pair.device.pop(&mut chain).unwrap());
    assert_eq!((chain.readable.len(), chain.writable.len()), (0, 1));
    assert_eq!((chain.readable_len, chain.writable_len), (0, 1));
    assert!(!pair.device.pop(&mut chain).unwrap());
    assert!(chain.writable.is_empty() && chain.map.is_none());
}

/// split.leg.d2: the same bytes mean different things.
#[test]
fn byte_order_is_as_asked() {
    for big_endian in [false, true] {
        let memory = memory();
        let config = little(4);
        let bytes = |value: u16| {
            if big_endian {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let map = memory.load();
        map.write(config.desc + 2 * 16 + 11, &[16 + u8::from(!big_endian)])
            .unwrap();
        let mut desc = [0; 16];
        if big_endian {
            desc[..8].copy_from_slice(&DATA.to_be_bytes());
            desc[8..12].copy_from_slice(&16_u32.to_be_bytes());
        } else {
            desc[..8].copy_from_slice(&DATA.to_le_bytes());
            desc[8..12].copy_from_slice(&16_u32.to_le_bytes());
        }
        map.write(config.desc + 2 * 16, &desc).unwrap();
        map.write(config.driver + 4, &bytes(2)).unwrap();
        map.write(config.driver + 2, &bytes(1)).unwrap();

        let mut ring = open(Arc::clone(&memory), config, big_endian).unwrap();
        let mut chain = Chain::default();
        assert!(ring.pop(&mut chain).unwrap());
        assert_eq!((chain.head, chain.readable_len), (2, 16));
        ring.push_used(2, 0x0102_0304).unwrap();
        ring.publish().unwrap();
        let mut used = [0; 12];
        map.read(config.device, &mut used).unwrap();
        let expected: [u8; 12] = if big_endian {
            [0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4]
        } else {
            [0, 0, 1, 0, 2, 0, 0, 0, 4, 3, 2, 1]
        };
        assert_eq!(used, expected);
    }
}

/// vu.vring.b3: the used index comes from guest memory unless it is given.
#[test]
fn a_ring_goes_on_where_it_was() {
    let mut pair = Pair::<Little>::new(little(4));
    let mut chain = Chain::default();
    for _ in 0..3 {
        pair.driver.add(&[writable(DATA, 1)]).unwrap();
    }
    pair.driver.publish();
    assert!(pair.device.pop(&mut chain).unwrap());
    pair.device.push_used(chain.head, 1).unwrap();
    pair.device.publish().unwrap();
    let next_avail = pair.device.next_avail();
    drop(pair.device);

    let config = RingConfig {
        next_avail,
        ..little(4)
    };
    let mut device = SplitRing::<Little>::new(Arc::clone(&pair.memory), config).unwrap();
    assert_eq!((device.next_avail(), device.next_used()), (1, 1));
    assert_eq!(device.available().unwrap(), 2);
    let told = RingConfig {
        next_used: Some(7),
        ..config
    };
    let told = SplitRing::<Little>::new(pair.memory, told).unwrap();
    assert_eq!(told.next_used(), 7);
}
