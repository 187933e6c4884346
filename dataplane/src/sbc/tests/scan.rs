//! Reading a whole medium.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use io_uring::squeue;

use super::super::scan::{BadBlock, Scan};
use super::*;
use crate::engine::IoKind;

/// Fails reads that touch the byte at `bad`; the first `forgiven` of them, that is all.
struct Worn {
    size: u64,
    bad: u64,
    forgiven: AtomicU64,
    read: AtomicU64,
}

impl Engine for Worn {
    fn size(&self) -> u64 {
        self.size
    }
    fn can_discard(&self) -> bool {
        false
    }
    fn try_now(&self, _: &Io, _: &[iovec]) -> Option<io::Result<u64>> {
        None
    }
    fn sqe(&self, _: &Io, _: &[iovec]) -> Option<squeue::Entry> {
        None
    }
    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        assert_eq!(io.kind, IoKind::Read);
        assert_eq!(crate::engine::total(iov), io.len);
        let touched = (io.offset..io.offset + io.len).contains(&self.bad);
        if touched && self.forgiven.load(Ordering::Relaxed) > 0 {
            self.forgiven.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.read.fetch_add(io.len, Ordering::Relaxed);
        Ok(io.len)
    }
}

const SIZE: u64 = 5 << 19;

fn scan(bad: u64, forgiven: u64, descriptor_sense: bool) -> (Arc<Worn>, Scan) {
    let engine = Arc::new(Worn {
        size: SIZE,
        bad,
        forgiven: AtomicU64::new(forgiven),
        read: AtomicU64::new(0),
    });
    let policy = Arc::new(LunPolicy {
        descriptor_sense,
        ..policy(4096, SIZE / 4096)
    });
    (engine.clone(), Scan::new(engine, policy))
}

#[test]
fn every_byte_is_read_once() {
    let (engine, scan) = scan(u64::MAX, 0, false);
    assert_eq!(scan.progress(), 0);
    assert_eq!(scan.run().unwrap(), None);
    assert_eq!(engine.read.load(Ordering::Relaxed), SIZE);
    assert_eq!(scan.progress(), u16::MAX);
}

#[test]
fn the_first_block_that_cannot_be_read_is_found() {
    for descriptor_sense in [false, true] {
        for bad in [0, 4095, 1 << 20, SIZE - 1] {
            let (_, scan) = scan(bad, u64::MAX, descriptor_sense);
            let found = BadBlock {
                lba: bad / 4096,
                key: crate::sense::key::MEDIUM_ERROR,
                code: 0x1100,
            };
            assert_eq!(scan.run().unwrap(), Some(found));
        }
    }
}

#[test]
fn what_can_be_read_the_second_time_is_not_bad() {
    let (_, scan) = scan(1 << 20, 1, false);
    assert_eq!(scan.run().unwrap(), None);
}

#[test]
fn it_can_be_cancelled() {
    let (engine, scan) = scan(u64::MAX, 0, false);
    scan.cancel();
    let error = scan.run().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    assert_eq!(engine.read.load(Ordering::Relaxed), 0);
}
