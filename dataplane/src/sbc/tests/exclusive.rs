//! COMPARE AND WRITE, ORWRITE and WRITE ATOMIC: what they refuse, and what a failure leaves.

use std::io;

use io_uring::squeue;

use super::super::cdb::opcode::*;
use super::super::turn;
use super::*;
use crate::engine::memory::MemoryEngine;
use crate::engine::{IoKind, Partial};
use crate::turn::Turn;

const FUA: u8 = 8;

#[test]
fn only_these_run_alone() {
    for cdb in [
        compare_and_write(0, 0, 1),
        cdb16(ORWRITE_16, 0, 0, 1),
        write_atomic(0, 0, 4),
    ] {
        assert_eq!(turn(&cdb, false), Turn::Exclusive, "{cdb:02x?}");
    }
    for cdb in [
        cdb16(WRITE_16, 0, 0, 1),
        cdb10(READ_10, 0, 0, 1),
        vec![0xee; 16],
    ] {
        assert_eq!(turn(&cdb, true), Turn::Shared, "{cdb:02x?}");
    }
}

#[test]
fn what_frees_space_that_is_counted_runs_alone_too() {
    const FREES: u8 = 8;
    for cdb in [
        cdb10(UNMAP, 0, 0, 24),
        cdb10(WRITE_SAME, FREES, 0, 1),
        cdb16(WRITE_SAME_16, FREES, 0, 1),
    ] {
        assert_eq!(turn(&cdb, true), Turn::Exclusive, "{cdb:02x?}");
        assert_eq!(turn(&cdb, false), Turn::Shared, "{cdb:02x?}");
    }
    assert_eq!(turn(&cdb16(WRITE_SAME_16, 0, 0, 1), true), Turn::Shared);
}

#[test]
fn what_is_refused() {
    let policy = LunPolicy {
        max_compare_and_write_blocks: 10,
        ..policy(512, 100)
    };
    for (cdb, sense) in [
        (compare_and_write(0x20, 0, 1), illegal(0x2400, 1, Some(7))),
        (compare_and_write(0, 0, 11), illegal(0x2400, 13, None)),
        (compare_and_write(0, 91, 10), out_of_range(100)),
        (compare_and_write(0, 100, 0), out_of_range(100)),
        (cdb16(ORWRITE_16, 0x20, 0, 1), illegal(0x2400, 1, Some(7))),
        (cdb16(ORWRITE_16, 0, 99, 2), out_of_range(100)),
        (write_atomic(0x20, 0, 4), illegal(0x2400, 1, Some(7))),
        (write_atomic(0, 1, 4), illegal(0x2400, 2, None)),
        (write_atomic(0, 0, 5), illegal(0x2400, 12, None)),
        (write_atomic(0, 0, 36), illegal(0x2400, 12, None)),
        (write_atomic(0, 96, 8), out_of_range(100)),
    ] {
        assert_eq!(refused(plan_roomy(&policy, &cdb)), sense, "{cdb:02x?}");
    }
    let none = LunPolicy {
        max_atomic_blocks: 0,
        ..policy.clone()
    };
    let sense = refused(plan_roomy(&none, &write_atomic(0, 0, 4)));
    assert_eq!(sense, illegal(0x2000, 0, None));
}

#[test]
fn data_out_and_write_protection() {
    let policy = policy(512, 100);
    for (cdb, needs) in [
        (compare_and_write(0, 0, 3), 3072),
        (cdb16(ORWRITE_16, 0, 0, 3), 1536),
        (write_atomic(0, 0, 4), 2048),
    ] {
        let overrun = |len| matches!(plan(&policy, &cdb, &[], len, 0), Plan::Overrun);
        assert!(overrun(needs - 1), "{cdb:02x?}");
        assert!(!overrun(needs), "{cdb:02x?}");
        let protected = LunPolicy {
            write_protected: true,
            ..policy.clone()
        };
        let sense = refused(plan_roomy(&protected, &cdb));
        assert_eq!((sense[2], sense[12]), (7, 0x27), "{cdb:02x?}");
    }
    for cdb in [
        compare_and_write(0, 5, 0),
        cdb16(ORWRITE_16, 0, 5, 0),
        write_atomic(0, 4, 0),
    ] {
        match plan(&policy, &cdb, &[], 0, 0) {
            Plan::Done(outcome) => assert_eq!(outcome, Outcome::good(0)),
            other => panic!("{other:?}"),
        }
    }
}

/// Notes what is asked of it; writes fail as `fails` says, after half of their bytes.
struct Watched {
    inner: MemoryEngine,
    fails: std::sync::atomic::AtomicBool,
    asked: std::sync::Mutex<Vec<(IoKind, bool)>>,
}

impl Watched {
    fn new(fails: bool) -> Self {
        Self {
            inner: MemoryEngine::new(51200).unwrap(),
            fails: fails.into(),
            asked: Default::default(),
        }
    }
}

impl Engine for Watched {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn try_now(&self, _: &Io, _: &[iovec]) -> Option<io::Result<u64>> {
        None
    }
    fn sqe(&self, _: &Io, _: &[iovec]) -> Option<squeue::Entry> {
        None
    }
    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        self.asked.lock().unwrap().push((io.kind, io.durable));
        let once = std::sync::atomic::Ordering::Relaxed;
        if io.kind == IoKind::Write && self.fails.swap(false, once) {
            let done = io.len / 2;
            let mut half = iov.to_vec();
            trim(&mut half, done);
            self.inner.run(&Io { len: done, ..*io }, &half)?;
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(io::Error::other(Partial { done, source }));
        }
        self.inner.run(io, iov)
    }
}

#[test]
fn fua_and_no_cache_mean_durable() {
    for (write_cache, flags, durable) in [(true, 0, false), (true, FUA, true), (false, 0, true)] {
        let policy = LunPolicy {
            write_cache,
            ..policy(512, 100)
        };
        for cdb in [
            compare_and_write(flags, 0, 4),
            cdb16(ORWRITE_16, flags, 0, 4),
            write_atomic(flags, 0, 4),
        ] {
            let engine = Watched::new(false);
            let data = Guest::zeroed(4096);
            let outcome = execute(None, &engine, &policy, &cdb, &data, &no_data());
            assert_eq!(outcome.status, 0);
            let asked = engine.asked.into_inner().unwrap();
            assert_eq!(asked, [(IoKind::Read, false), (IoKind::Write, durable)]);
        }
    }
}

#[test]
fn an_atomic_write_that_fails_is_taken_back() {
    let policy = policy(512, 100);
    let engine = Watched::new(false);
    let old = Guest::new(&[0x11; 8192], &[]);
    execute(
        None,
        &engine,
        &policy,
        &write_atomic(0, 8, 16),
        &old,
        &no_data(),
    );
    engine
        .fails
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let new = Guest::new(&[0x22; 8192], &[100, 5000]);
    let outcome = execute(
        None,
        &engine,
        &policy,
        &write_atomic(0, 8, 16),
        &new,
        &no_data(),
    );
    let sense = outcome.sense.as_bytes();
    assert_eq!(
        (outcome.status, sense[2], sense[12], sense[13]),
        (2, 7, 0x27, 7)
    );
    let back = Guest::zeroed(8192);
    execute(
        None,
        &engine,
        &policy,
        &cdb10(READ_10, 0, 8, 16),
        &no_data(),
        &back,
    );
    assert!(back.content(8192).iter().all(|&byte| byte == 0x11));
}

#[test]
fn a_miscompare_writes_nothing() {
    let policy = policy(512, 100);
    let engine = Watched::new(false);
    let mut data = vec![0; 2048];
    data[700] = 1;
    data[1024..].fill(9);
    let given = Guest::new(&data, &[]);
    let outcome = execute(
        None,
        &engine,
        &policy,
        &compare_and_write(0, 3, 2),
        &given,
        &no_data(),
    );
    let want = [
        0xf0, 0, 0xe, 0, 0, 2, 188, 10, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0, 0,
    ];
    assert_eq!((outcome.status, outcome.sense.as_bytes()), (2, &want[..]));
    assert_eq!(*engine.asked.lock().unwrap(), [(IoKind::Read, false)]);
}
