//! Filling a whole medium.

use std::sync::{Arc, Mutex};

use io_uring::squeue;

use super::super::overwrite::{Fill, Overwrite};
use super::*;
use crate::engine::memory::MemoryEngine;
use crate::engine::{Cursor, IoKind};

/// Notes first bytes written, and everything else; the `fails`th call fails.
struct Noting {
    inner: MemoryEngine,
    asked: Mutex<Vec<(IoKind, u64, Option<u8>)>>,
    fails: usize,
}

fn noting(size: u64, fails: usize) -> Arc<Noting> {
    Arc::new(Noting {
        inner: MemoryEngine::new(size).unwrap(),
        asked: Mutex::default(),
        fails,
    })
}

impl Engine for Noting {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn try_now(&self, _: &Io, _: &[iovec]) -> Option<std::io::Result<u64>> {
        None
    }
    fn sqe(&self, _: &Io, _: &[iovec]) -> Option<squeue::Entry> {
        None
    }
    fn run(&self, io: &Io, iov: &[iovec]) -> std::io::Result<u64> {
        let mut asked = self.asked.lock().unwrap();
        let mut first = [0];
        let first = (Cursor::new(iov).read(&mut first) > 0).then_some(first[0]);
        asked.push((io.kind, io.offset, first));
        if asked.len() == self.fails {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        self.inner.run(io, iov)
    }
}

const SIZE: u64 = 5 << 19;

fn content(engine: &dyn Engine) -> Vec<u8> {
    let guest = Guest::zeroed(SIZE as usize);
    let cdb = cdb10(opcode::READ_10, 0, 0, (SIZE / 512) as u16);
    execute(
        None,
        engine,
        &policy(512, SIZE / 512),
        &cdb,
        &no_data(),
        &guest,
    );
    guest.content(SIZE as usize)
}

#[test]
fn each_pass_is_the_inverse_of_the_next_one() {
    let engine = noting(SIZE, 0);
    let fill = Fill::Pattern {
        block: [&[0x0f; 100][..], &[0xa5; 412]].concat(),
        passes: 3,
        invert: true,
    };
    let job = Overwrite::new(engine.clone(), SIZE, fill);
    assert_eq!(job.progress(), 0);
    job.run().unwrap();
    assert_eq!(job.progress(), u16::MAX);
    let mut asked = engine.asked.lock().unwrap().split_off(0);
    assert_eq!(asked.pop(), Some((IoKind::Flush, 0, None)));
    let mut want = Vec::new();
    for first in [0x0f, 0xf0, 0x0f] {
        want.extend([0, 1 << 20, 2 << 20].map(|at| (IoKind::Write, at, Some(first))));
        want.push((IoKind::Flush, 0, None));
    }
    assert_eq!(asked, want);
    let expect = [&[0x0f; 100][..], &[0xa5; 412]].concat();
    assert!(content(engine.as_ref())
        .chunks(512)
        .all(|block| block == expect));
}

#[test]
fn erased_blocks_read_as_zeros() {
    let engine = noting(SIZE, 0);
    let fill = Fill::Pattern {
        block: vec![7; 512],
        passes: 1,
        invert: false,
    };
    Overwrite::new(engine.clone(), SIZE, fill).run().unwrap();
    Overwrite::new(engine.clone(), SIZE, Fill::Erase)
        .run()
        .unwrap();
    let asked = engine.asked.lock().unwrap().split_off(5);
    assert_eq!(
        asked,
        [(IoKind::Discard, 0, None), (IoKind::Flush, 0, None)]
    );
    assert!(content(engine.as_ref()).iter().all(|&byte| byte == 0));
}

#[test]
fn progress_goes_by_bytes_and_stops_at_an_error() {
    let engine = noting(SIZE, 2);
    let fill = Fill::Pattern {
        block: vec![7; 512],
        passes: 2,
        invert: false,
    };
    let job = Overwrite::new(engine, SIZE, fill);
    let error = job.run().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // 1 of 5 MiB.
    assert_eq!(job.progress(), 13107);
}

#[test]
fn a_cancelled_one_ends() {
    let engine = noting(SIZE, 0);
    let job = Overwrite::new(engine.clone(), SIZE, Fill::Erase);
    job.cancel();
    assert_eq!(
        job.run().unwrap_err().kind(),
        std::io::ErrorKind::Interrupted
    );
    assert!(engine.asked.lock().unwrap().is_empty());
}
