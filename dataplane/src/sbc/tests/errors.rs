//! What an initiator is told of an engine's errors.

use std::io::{Error, ErrorKind, Result};
use std::sync::Mutex;

use super::super::cdb::opcode::*;
use super::*;
use crate::engine::space::SpaceSoon;
use crate::engine::{IoKind, Partial};

const READ: Io = Io {
    kind: IoKind::Read,
    offset: 512 * 100,
    len: 512 * 8,
    durable: false,
};
const WRITE: Io = Io {
    kind: IoKind::Write,
    ..READ
};

fn os(errno: i32) -> Error {
    Error::from_raw_os_error(errno)
}

fn after(done: u64, source: Error) -> Error {
    Error::other(Partial { done, source })
}

fn ended(io: &Io, error: Error) -> Outcome {
    let policy = policy(512, 1 << 33);
    complete(&policy, &cdb10(READ_10, 0, 100, 8), io, Err(error))
}

fn key_and_code(io: &Io, errno: i32) -> (u8, u16) {
    let outcome = ended(io, os(errno));
    assert_eq!(outcome.status, 2);
    let sense = outcome.sense.as_bytes();
    (sense[2], u16::from_be_bytes([sense[12], sense[13]]))
}

#[test]
fn errno_becomes_sense() {
    for (errno, read, write) in [
        (libc::EIO, (3, 0x1100), (3, 0x0c00)),
        (libc::ENODATA, (3, 0x1100), (3, 0x0c00)),
        (libc::ENOSPC, (7, 0x2707), (7, 0x2707)),
        (libc::EDQUOT, (7, 0x2707), (7, 0x2707)),
        (libc::EROFS, (7, 0x2700), (7, 0x2700)),
        (libc::EFAULT, (0xb, 0x4b00), (0xb, 0x4b00)),
        (libc::ENXIO, (4, 0x4400), (4, 0x4400)),
        (libc::EINVAL, (4, 0x4400), (4, 0x4400)),
    ] {
        assert_eq!(key_and_code(&READ, errno), read, "read {errno}");
        assert_eq!(key_and_code(&WRITE, errno), write, "write {errno}");
    }
    let flush = Io {
        kind: IoKind::Flush,
        ..READ
    };
    assert_eq!(key_and_code(&flush, libc::EIO), (3, 0x0c00));
}

#[test]
fn a_lack_of_space_is_temporary_while_some_is_being_freed() {
    let outcome = ended(&WRITE, Error::other(SpaceSoon));
    let sense = outcome.sense.as_bytes();
    assert_eq!((outcome.status, sense[2]), (2, 2));
    assert_eq!(sense[12..14], [0x04, 0x14]);
}

#[test]
fn shortage_is_busy() {
    for errno in [libc::EAGAIN, libc::ENOMEM] {
        let outcome = ended(&READ, os(errno));
        assert_eq!((outcome.status, outcome.sense.as_bytes()), (8, &[][..]));
    }
}

#[test]
fn the_failing_block_is_named_where_it_is_known() {
    // Somewhere in eight blocks: no INFORMATION.
    assert_eq!(ended(&READ, os(libc::EIO)).sense.as_bytes()[0], 0x70);
    let outcome = ended(&READ, after(512 * 5 + 100, os(libc::EIO)));
    assert_eq!(outcome.sense.as_bytes()[..7], [0xf0, 0, 3, 0, 0, 0, 105]);
    assert_eq!(outcome.transferred, 512 * 5 + 100);
    let one = Io { len: 512, ..READ };
    assert_eq!(
        ended(&one, os(libc::EIO)).sense.as_bytes()[..7],
        [0xf0, 0, 3, 0, 0, 0, 100]
    );
    // A failed flush has no place.
    let flush = Io {
        kind: IoKind::Flush,
        ..one
    };
    assert_eq!(ended(&flush, os(libc::EIO)).sense.as_bytes()[0], 0x70);
}

#[test]
fn a_block_beyond_32_bits_needs_descriptor_format() {
    let far = Io {
        offset: 512 << 32,
        len: 512,
        ..READ
    };
    assert_eq!(ended(&far, os(libc::EIO)).sense.as_bytes()[0], 0x70);
    let policy = LunPolicy {
        descriptor_sense: true,
        ..policy(512, 1 << 33)
    };
    let outcome = complete(&policy, &[], &far, Err(os(libc::EIO)));
    assert_eq!(
        outcome.sense.as_bytes(),
        [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    );
}

#[test]
fn short_transfers_are_errors() {
    let policy = policy(512, 1000);
    let cdb = cdb10(READ_10, 0, 100, 8);
    let outcome = complete(&policy, &cdb, &READ, Ok(4095));
    assert_eq!((outcome.status, outcome.sense.as_bytes()[2]), (2, 3));
    assert_eq!(
        complete(&policy, &cdb, &READ, Ok(4096)),
        Outcome::good(4096)
    );
    let eof = ended(&READ, after(512, ErrorKind::UnexpectedEof.into()));
    assert_eq!(eof.sense.as_bytes()[..7], [0xf0, 0, 3, 0, 0, 0, 101]);
}

/// Fails one kind of call, and writes down all.
struct Failing {
    kind: IoKind,
    calls: Mutex<Vec<Io>>,
}

impl Engine for Failing {
    fn size(&self) -> u64 {
        u64::MAX
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn try_now(&self, _io: &Io, _iov: &[iovec]) -> Option<Result<u64>> {
        None
    }

    fn sqe(&self, _io: &Io, _iov: &[iovec]) -> Option<io_uring::squeue::Entry> {
        None
    }

    fn run(&self, io: &Io, _iov: &[iovec]) -> Result<u64> {
        self.calls.lock().unwrap().push(*io);
        match io.kind == self.kind {
            true => Err(after(1024, os(libc::EIO))),
            false => Ok(io.len),
        }
    }
}

fn run_job(fails: IoKind, policy: &LunPolicy, cdb: &[u8], data_out: &Guest) -> (Outcome, Vec<Io>) {
    let engine = Failing {
        kind: fails,
        calls: Mutex::default(),
    };
    let outcome = execute(None, &engine, policy, cdb, data_out, &no_data());
    (outcome, engine.calls.into_inner().unwrap())
}

#[test]
fn jobs_stop_at_the_first_error() {
    let policy = LunPolicy {
        write_cache: false,
        ..policy(512, 1 << 20)
    };
    let block = Guest::new(&[1; 512], &[]);
    let same = cdb16(WRITE_SAME_16, 0, 64, 4096);
    let (outcome, calls) = run_job(IoKind::Write, &policy, &same, &block);
    assert_eq!(calls.len(), 1);
    assert_eq!(outcome.sense.as_bytes()[..7], [0xf0, 0, 3, 0, 0, 0, 66]);
    assert_eq!(outcome.sense.as_bytes()[12], 0x0c);
    let (outcome, calls) = run_job(IoKind::Flush, &policy, &same, &block);
    assert_eq!(outcome.status, 2);
    let kinds: Vec<_> = calls.iter().map(|io| (io.kind, io.len)).collect();
    let all = 4096 * 512;
    assert_eq!(
        kinds,
        [
            (IoKind::Write, all / 2),
            (IoKind::Write, all / 2),
            (IoKind::Flush, all)
        ]
    );

    let (outcome, calls) = run_job(
        IoKind::Read,
        &policy,
        &cdb16(VERIFY_16, 0, 64, 4096),
        &block,
    );
    assert_eq!(calls.len(), 1);
    assert_eq!(outcome.sense.as_bytes()[12], 0x11);
}

#[test]
fn write_and_verify_writes_through_the_cache() {
    let policy = policy(512, 1 << 20);
    let guest = Guest::new(&[1; 1024], &[]);
    let (outcome, calls) = run_job(
        IoKind::Discard,
        &policy,
        &cdb10(WRITE_VERIFY, 0, 8, 2),
        &guest,
    );
    assert_eq!(outcome, Outcome::good(1024));
    let kinds: Vec<_> = calls
        .iter()
        .map(|io| (io.kind, io.offset, io.durable))
        .collect();
    assert_eq!(
        kinds,
        [(IoKind::Write, 4096, true), (IoKind::Read, 4096, false)]
    );
}

#[test]
fn verify_looks_at_the_medium() {
    let policy = policy(512, 1 << 20);
    let verify = cdb10(VERIFY, 0, 8, 2);
    let kinds = |policy: &LunPolicy| -> Vec<_> {
        let (outcome, calls) = run_job(IoKind::Discard, policy, &verify, &no_data());
        assert_eq!(outcome, Outcome::good(0));
        calls.iter().map(|io| io.kind).collect()
    };
    assert_eq!(kinds(&policy), [IoKind::Flush, IoKind::Read]);
    let through = LunPolicy {
        write_cache: false,
        ..policy
    };
    assert_eq!(kinds(&through), [IoKind::Read]);
}
