//! GET LBA STATUS and PRE-FETCH.

use super::super::cdb::action::SAI_GET_LBA_STATUS;
use super::super::cdb::opcode::*;
use super::*;
use crate::engine::memory::MemoryEngine;
use crate::engine::null::NullEngine;
use crate::engine::testing::file_engine;
use crate::engine::IoKind;

fn get_lba_status(lba: u64, allocation: u32) -> Vec<u8> {
    cdb16(
        SERVICE_ACTION_IN_16,
        SAI_GET_LBA_STATUS as u8,
        lba,
        allocation,
    )
}

/// (LBA, blocks, PROVISIONING STATUS) of each descriptor.
fn status(
    engine: &dyn Engine,
    policy: &LunPolicy,
    lba: u64,
    allocation: u32,
) -> Vec<(u64, u32, u8)> {
    let data = Guest::zeroed(allocation as usize);
    let cdb = get_lba_status(lba, allocation);
    let outcome = execute(None, engine, policy, &cdb, &no_data(), &data);
    assert_eq!(outcome.status, 0);
    let data = data.content(outcome.transferred as usize);
    let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
    assert_eq!(len + 4, data.len());
    assert_eq!(data[4..8], [0; 4]);
    data[8..]
        .chunks(16)
        .map(|each| {
            assert_eq!(each[13..], [0; 3]);
            (
                u64::from_be_bytes(each[..8].try_into().unwrap()),
                u32::from_be_bytes(each[8..12].try_into().unwrap()),
                each[12],
            )
        })
        .collect()
}

fn write(engine: &dyn Engine, policy: &LunPolicy, lba: u32, blocks: u16) {
    let data = Guest::new(&vec![7; usize::from(blocks) * 512], &[]);
    let cdb = cdb10(WRITE_10, 0, lba, blocks);
    let outcome = execute(None, engine, policy, &cdb, &data, &no_data());
    assert_eq!(outcome.status, 0);
}

#[test]
fn holes_are_deallocated_and_the_rest_is_mapped() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let policy = policy(512, 800);
    let memory = MemoryEngine::new(800 * 512).unwrap();
    let file = file_engine(dir.path(), 800 * 512, false);
    for engine in [&memory as &dyn Engine, &file] {
        let all = Guest::zeroed(800 * 512);
        let read = cdb10(READ_10, 0, 0, 800);
        execute(None, engine, &policy, &read, &no_data(), &all);
        assert_eq!(
            status(engine, &policy, 0, 256),
            [(0, 800, 1)],
            "reading maps nothing"
        );
        // One block maps the whole page of 8 that holds it.
        write(engine, &policy, 20, 1);
        write(engine, &policy, 400, 400);
        let want = [(0, 16, 1), (16, 8, 0), (24, 376, 1), (400, 400, 0)];
        assert_eq!(status(engine, &policy, 0, 4096), want);
        assert_eq!(status(engine, &policy, 0, 8 + 2 * 16), want[..2]);
        assert_eq!(status(engine, &policy, 0, 8 + 3 * 16 + 15).len(), 3);
        assert_eq!(status(engine, &policy, 17, 24), [(17, 7, 0)]);
        assert_eq!(status(engine, &policy, 799, 24), [(799, 1, 0)]);
        let cdb = cdb16(WRITE_SAME_16, 8 | 1, 400, 392);
        execute(None, engine, &policy, &cdb, &no_data(), &no_data());
        assert_eq!(
            status(engine, &policy, 24, 256),
            [(24, 768, 1), (792, 8, 0)],
            "neighbours of one state are one descriptor"
        );
    }
}

#[test]
fn a_block_that_is_partly_a_hole_is_mapped() {
    let engine = MemoryEngine::new(16 << 16).unwrap();
    let policy = policy(65536, 16);
    let data = Guest::new(&[7; 512], &[]);
    let io = Io {
        kind: IoKind::Write,
        offset: 3 * 65536 + 32768,
        len: 512,
        durable: false,
    };
    engine.run(&io, &data.iov).unwrap();
    let want = [(0, 3, 1), (3, 1, 0), (4, 12, 1)];
    assert_eq!(status(&engine, &policy, 0, 256), want);
}

#[test]
fn who_cannot_tell_says_mapped() {
    let engine = NullEngine::new(1 << 50);
    let policy = policy(512, 1 << 41);
    assert_eq!(status(&engine, &policy, 5, 256), [(5, u32::MAX, 0)]);
}

#[test]
fn allocation_length_and_range() {
    let engine = MemoryEngine::new(100 * 512).unwrap();
    let policy = policy(512, 100);
    let data = Guest::zeroed(64);
    for allocation in [0, 4, 8, 23] {
        let cdb = get_lba_status(0, allocation);
        let outcome = execute(None, &engine, &policy, &cdb, &no_data(), &data);
        assert_eq!(outcome, Outcome::good(allocation.into()));
    }
    assert_eq!(data.content(4), [0, 0, 0, 20]);
    let sense = refused(plan_roomy(&policy, &get_lba_status(100, 24)));
    assert_eq!(sense, out_of_range(100));
}

#[test]
fn prefetch_is_a_hint_for_a_checked_range() {
    const IMMED: u8 = 2;
    let policy = policy(512, 100);
    let hint = |lba: u64, blocks: u64| Io {
        kind: IoKind::Prefetch,
        offset: lba * 512,
        len: blocks * 512,
        durable: false,
    };
    let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let engine = file_engine(dir.path(), 100 * 512, false);
    for (cdb, want) in [
        (cdb10(PRE_FETCH, IMMED, 5, 10), hint(5, 10)),
        (cdb10(PRE_FETCH, 0, 5, 0), hint(5, 95)),
        (cdb16(PRE_FETCH_16, 0, 99, 1), hint(99, 1)),
    ] {
        assert_eq!(io(plan_roomy(&policy, &cdb)), want);
        let outcome = execute(None, &engine, &policy, &cdb, &no_data(), &no_data());
        assert_eq!(outcome, Outcome::good(0));
    }
    for cdb in [cdb10(PRE_FETCH, 0, 100, 0), cdb16(PRE_FETCH_16, 0, 99, 2)] {
        assert_eq!(refused(plan_roomy(&policy, &cdb)), out_of_range(100));
    }
}
