//! Tests of both sides of the ring. Names of normative statements are rows of
//! `tests/conformance/normative.tsv`.

mod hostile;
mod notification;
mod roundtrip;
mod shared;
mod translated;

use std::sync::Arc;

use super::driver::{Buffer, DriverRing};
use super::{Chain, Endian, Little, Ring, RingConfig, SplitRing};
use crate::memory::GuestMemory;

/// Where rings start, at an address that is not 0.
const BASE: u64 = 0x1_0000;
/// Where data starts, behind the biggest ring.
const DATA: u64 = 0x20_0000;
/// Bytes of guest memory from `BASE` on.
const MEMORY: u64 = 0x40_0000;

/// xorshift64*: repeatable from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

fn memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::anonymous(BASE, MEMORY).unwrap())
}

/// Both sides of one ring.
struct Pair<E: Endian> {
    memory: Arc<GuestMemory>,
    driver: DriverRing<E>,
    device: SplitRing<E>,
}

impl<E: Endian> Pair<E> {
    fn new(config: RingConfig) -> Self {
        let memory = memory();
        let driver = DriverRing::new(&memory, config).unwrap();
        let device = SplitRing::new(Arc::clone(&memory), config).unwrap();
        Self {
            memory,
            driver,
            device,
        }
    }
}

fn little(size: u16) -> RingConfig {
    RingConfig::contiguous(BASE, size)
}

fn readable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: false,
    }
}

fn writable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: true,
    }
}

/// The bytes of `pieces`, one after the other.
fn gather(pieces: &[libc::iovec]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        for offset in 0..piece.iov_len {
            // SAFETY: the chain that these are pieces of keeps them mapped.
            bytes.push(unsafe { piece.iov_base.cast::<u8>().add(offset).read_volatile() });
        }
    }
    bytes
}

/// Fills `pieces` with `bytes`, one after the other.
fn scatter(pieces: &[libc::iovec], bytes: &[u8]) {
    let mut bytes = bytes.iter();
    for piece in pieces {
        for offset in 0..piece.iov_len {
            let byte = *bytes.next().unwrap();
            // SAFETY: the chain that these are pieces of keeps them mapped.
            unsafe { piece.iov_base.cast::<u8>().add(offset).write_volatile(byte) };
        }
    }
    assert!(bytes.next().is_none());
}
