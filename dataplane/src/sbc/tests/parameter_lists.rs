//! UNMAP: its parameter list, to SBC-5's letter.

use super::super::cdb::opcode::UNMAP;
use super::*;
use crate::engine::IoKind;

fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
    let len = descriptors.len() as u16 * 16;
    let mut list = [(len + 6).to_be_bytes(), len.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, count) in descriptors {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(policy: &LunPolicy, list: &[u8]) -> Plan {
    let guest = Guest::new(list, &[list.len() / 2]);
    let cdb = cdb10(UNMAP, 0, 0, list.len() as u16);
    plan(policy, &cdb, &guest.iov, list.len() as u64, 0)
}

/// Sense data that points into the parameter list.
fn in_list(code: u16, byte: u16) -> Vec<u8> {
    let mut sense = illegal(code, 0, None);
    sense[15] = 0x80;
    sense[16..].copy_from_slice(&byte.to_be_bytes());
    sense
}

fn good(plan: Plan, transferred: u64) {
    match plan {
        Plan::Done(outcome) => assert_eq!(outcome, Outcome::good(transferred)),
        other => panic!("not done: {other:?}"),
    }
}

fn discard(lba: u64, count: u64) -> Io {
    Io {
        kind: IoKind::Discard,
        offset: lba * 512,
        len: count * 512,
        durable: false,
    }
}

#[test]
fn one_range_is_one_engine_call() {
    let policy = policy(512, 100);
    assert_eq!(io(unmap(&policy, &list(&[(3, 5)]))), discard(3, 5));
    assert_eq!(
        io(unmap(&policy, &list(&[(0, 0), (0, 100), (100, 0)]))),
        discard(0, 100)
    );
    let cdb = cdb10(UNMAP, 0, 0, 24);
    assert_eq!(
        complete(&policy, &cdb, &discard(3, 5), Ok(2560)),
        Outcome::good(24)
    );
}

#[test]
fn nothing_to_unmap_is_good() {
    let policy = policy(512, 100);
    good(plan_roomy(&policy, &cdb10(UNMAP, 0, 0, 0)), 0);
    good(unmap(&policy, &list(&[])), 8);
    good(unmap(&policy, &list(&[(100, 0)])), 24);
}

#[test]
fn the_shortest_length_counts_and_half_a_descriptor_is_none() {
    let policy = policy(512, 100);
    let two = list(&[(3, 5), (20, 1)]);
    let first = discard(3, 5);
    assert_eq!(
        io(unmap(&policy, &two[..39])),
        first,
        "PARAMETER LIST LENGTH"
    );
    assert_eq!(
        io(unmap(&policy, &two[..24])),
        first,
        "PARAMETER LIST LENGTH"
    );
    for (at, short) in [(1, 37), (1, 22), (3, 31), (3, 16)] {
        let mut list = two.clone();
        list[at] = short;
        assert_eq!(io(unmap(&policy, &list)), first, "byte {at} = {short}");
    }
    for (at, none) in [(1, 0), (1, 21), (3, 15), (3, 0)] {
        let mut list = two.clone();
        list[at] = none;
        good(unmap(&policy, &list), 40);
    }
    // Claims beyond what was sent.
    let mut list = list(&[(3, 5)]);
    list[..4].fill(0xff);
    assert_eq!(io(unmap(&policy, &list)), first);
}

#[test]
fn lists_without_room_for_a_header() {
    let policy = policy(512, 100);
    for len in 1..8 {
        let sense = refused(unmap(&policy, &list(&[])[..len]));
        assert_eq!(sense, illegal(0x1a00, 7, None));
    }
}

#[test]
fn ranges_beyond_the_capacity() {
    let policy = policy(512, 100);
    for bad in [
        (100, 1),
        (101, 0),
        (99, 2),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
    ] {
        let sense = refused(unmap(&policy, &list(&[(0, 1), bad])));
        let first = bad.0.max(100);
        let want = with_information(in_list(0x2100, 24), first);
        assert_eq!(sense, want, "{bad:?}");
    }
}

#[test]
fn limits_of_descriptors_and_blocks() {
    let policy = LunPolicy {
        max_unmap_descriptors: 2,
        max_unmap_blocks: 10,
        ..policy(512, 100)
    };
    let sense = refused(unmap(&policy, &list(&[(0, 1), (1, 1), (2, 1)])));
    assert_eq!(sense, in_list(0x2600, 2));
    let sense = refused(unmap(&policy, &list(&[(0, 6), (50, 5)])));
    assert_eq!(sense, in_list(0x2600, 32));
    assert!(matches!(
        unmap(&policy, &list(&[(0, 5), (50, 5)])),
        Plan::Job(_)
    ));
}

#[test]
fn unsupported_or_anchored() {
    let thick = LunPolicy {
        unmap: false,
        ..policy(512, 100)
    };
    assert_eq!(
        refused(unmap(&thick, &list(&[(0, 1)]))),
        illegal(0x2000, 0, None)
    );
    let anchored = plan_roomy(&policy(512, 100), &cdb10(UNMAP, 1, 0, 24));
    assert_eq!(refused(anchored), illegal(0x2400, 1, Some(0)));
}

#[test]
fn with_a_disabled_cache_unmapping_is_durable() {
    let policy = LunPolicy {
        write_cache: false,
        ..policy(512, 100)
    };
    assert!(io(unmap(&policy, &list(&[(0, 1)]))).durable);
}
