//! What each CDB becomes, at the edges of its fields.

use super::super::cdb::action::*;
use super::super::cdb::opcode::*;
use super::super::cdb::{Cdb, Command};
use super::*;
use crate::engine::memory::MemoryEngine;
use crate::engine::IoKind;

/// All commands on a range of blocks, 10 bytes and longer, with one block at `lba`.
fn range_commands(flags: u8, lba: u32) -> Vec<Vec<u8>> {
    let ten = [
        READ_10,
        WRITE_10,
        WRITE_VERIFY,
        VERIFY,
        SYNCHRONIZE_CACHE,
        WRITE_SAME,
    ];
    let twelve = [READ_12, WRITE_12, WRITE_VERIFY_12, VERIFY_12];
    let sixteen = [
        READ_16,
        WRITE_16,
        WRITE_VERIFY_16,
        VERIFY_16,
        SYNCHRONIZE_CACHE_16,
        WRITE_SAME_16,
    ];
    let thirty_two = [READ_32, VERIFY_32, WRITE_32, WRITE_VERIFY_32, WRITE_SAME_32];
    let ten = ten.map(|opcode| cdb10(opcode, flags, lba, 1));
    let twelve = twelve.map(|opcode| cdb12(opcode, flags, lba, 1));
    let sixteen = sixteen.map(|opcode| cdb16(opcode, flags, lba.into(), 1));
    let thirty_two = thirty_two.map(|action| cdb32(action, flags, lba.into(), 1));
    let all = ten.into_iter().chain(twelve).chain(sixteen);
    all.chain(thirty_two).collect()
}

/// Where a CDB has its LBA.
fn lba_at(cdb: &[u8]) -> u8 {
    if cdb[0] == VARIABLE_LENGTH_CMD {
        12
    } else {
        2
    }
}

/// What of LOGICAL BLOCK ADDRESS OUT OF RANGE is the CDB's.
fn beyond(cdb: &[u8], first: u64) -> Vec<u8> {
    with_information(illegal(0x2100, lba_at(cdb), None), first)
}

#[test]
fn a_32_byte_cdb_says_how_long_it_is() {
    let policy = policy(512, 100);
    for action in [READ_32, VERIFY_32, WRITE_32, WRITE_VERIFY_32, WRITE_SAME_32] {
        for len in [0, 8, 0x10, 0x17, 0x19, 0xff] {
            let mut cdb = cdb32(action, 0, 5, 1);
            cdb[7] = len;
            let sense = refused(plan_roomy(&policy, &cdb));
            assert_eq!(sense, illegal(0x2400, 7, None), "{action:#x}, {len:#x}");
        }
    }
    for unknown in [0, 8, 0x0e, 0x10, 0x109, 0x900] {
        let sense = refused(plan_roomy(&policy, &cdb32(unknown, 0, 5, 1)));
        assert_eq!(sense, illegal(0x2000, 0, None), "{unknown:#x}");
    }
}

#[test]
fn the_blocks_of_a_32_byte_cdb() {
    let policy = policy(4096, 1 << 40);
    let (lba, count) = ((1 << 40) - 0x1000_0000, 0x0fff_ffff);
    for (action, kind) in [(READ_32, IoKind::Read), (WRITE_32, IoKind::Write)] {
        for flags in [0, 8] {
            let want = Io {
                kind,
                offset: lba * 4096,
                len: u64::from(count) * 4096,
                durable: flags != 0,
            };
            let cdb = cdb32(action, flags, lba, count);
            assert_eq!(io(plan_roomy(&policy, &cdb)), want);
        }
    }
    let unmap_without_data = cdb32(WRITE_SAME_32, 9, 7, 2);
    let want = Io {
        kind: IoKind::Discard,
        offset: 7 * 4096,
        len: 2 * 4096,
        durable: false,
    };
    assert_eq!(io(plan(&policy, &unmap_without_data, &[], 0, 0)), want);
}

#[test]
fn a_part_of_a_32_byte_cdb_expects_the_tags_of_its_blocks() {
    let mut cdb = cdb32(READ_32, 0x20, 0x1_0000_0000, 0x100);
    cdb[20..24].copy_from_slice(&0xffff_fffe_u32.to_be_bytes());
    let mut want = cdb.clone();
    want[12..20].copy_from_slice(&0x1_0000_0005_u64.to_be_bytes());
    want[20..24].copy_from_slice(&3_u32.to_be_bytes());
    want[28..32].copy_from_slice(&7_u32.to_be_bytes());
    let parsed = Cdb::parse(&cdb).unwrap();
    parsed.set_range(&mut cdb, 0x1_0000_0005, 7);
    assert_eq!(cdb, want);
}

#[test]
fn unknown_operation_codes_are_refused() {
    let policy = policy(512, 100);
    assert_eq!(
        refused(plan_roomy(&policy, &[0x12; 16])),
        illegal(0x2000, 0, None)
    );
    assert_eq!(refused(plan_roomy(&policy, &[]))[12], 0x20);
}

#[test]
fn a_cdb_cut_short_is_refused_at_every_length() {
    let policy = policy(512, 100);
    let mut cdbs = range_commands(0, 0);
    cdbs.push(cdb6(READ_6, 0, 1));
    cdbs.push(cdb10(UNMAP, 0, 0, 24));
    for cdb in cdbs {
        // Without its SERVICE ACTION a variable-length CDB is no command at all.
        let least = if cdb[0] == VARIABLE_LENGTH_CMD { 10 } else { 1 };
        for len in least..cdb.len() {
            let sense = refused(plan_roomy(&policy, &cdb[..len]));
            assert_eq!(
                (sense[2], sense[12], sense[13]),
                (5, 0x24, 0),
                "{cdb:02x?} to {len}"
            );
        }
    }
}

#[test]
fn six_byte_commands_have_21_bits_of_lba_and_mean_256_by_0() {
    let policy = policy(512, 0x20_0000);
    for (opcode, kind) in [(READ_6, IoKind::Read), (WRITE_6, IoKind::Write)] {
        let want = |lba: u64, count: u64| Io {
            kind,
            offset: lba * 512,
            len: count * 512,
            durable: false,
        };
        // Bits 5 to 7 of byte 1 are not part of the LBA.
        let last = plan_roomy(&policy, &cdb6(opcode, 0xff_ffff, 1));
        assert_eq!(io(last), want(0x1f_ffff, 1));
        assert_eq!(io(plan_roomy(&policy, &cdb6(opcode, 5, 0))), want(5, 256));
        assert_eq!(io(plan_roomy(&policy, &cdb6(opcode, 5, 255))), want(5, 255));
        let beyond = refused(plan_roomy(&policy, &cdb6(opcode, 0x1f_ff01, 0)));
        let sense = with_information(illegal(0x2100, 1, Some(4)), 0x20_0000);
        assert_eq!(beyond, sense);
    }
}

#[test]
fn reads_and_writes_of_every_length() {
    let policy = policy(4096, 1 << 40);
    for (six, ten, twelve, sixteen, kind) in [
        (READ_6, READ_10, READ_12, READ_16, IoKind::Read),
        (WRITE_6, WRITE_10, WRITE_12, WRITE_16, IoKind::Write),
    ] {
        for (cdb, lba, count) in [
            (cdb6(six, 0x12345, 7), 0x12345, 7),
            (cdb10(ten, 0, 0xfedc_ba98, 0xffff), 0xfedc_ba98, 0xffff),
            (
                cdb12(twelve, 0, 0xffff_ffff, 0x8000_0001),
                0xffff_ffff,
                0x8000_0001,
            ),
            (cdb16(sixteen, 0, (1 << 40) - 3, 3), (1 << 40) - 3, 3),
        ] {
            let want = Io {
                kind,
                offset: lba * 4096,
                len: count * 4096,
                durable: false,
            };
            assert_eq!(io(plan_roomy(&policy, &cdb)), want, "{cdb:02x?}");
        }
    }
}

#[test]
fn fua_and_a_disabled_cache_make_writes_durable() {
    const FUA: u8 = 8;
    const DPO: u8 = 16;
    let cached = policy(512, 100);
    let through = LunPolicy {
        write_cache: false,
        ..cached.clone()
    };
    let durable = |policy: &LunPolicy, opcode, flags| {
        io(plan_roomy(policy, &cdb10(opcode, flags, 0, 1))).durable
    };
    assert!(!durable(&cached, WRITE_10, DPO));
    assert!(durable(&cached, WRITE_10, FUA));
    assert!(durable(&through, WRITE_10, 0));
    assert!(durable(&cached, READ_10, FUA));
    assert!(!durable(&cached, READ_10, DPO));
    assert!(
        !durable(&through, READ_10, FUA),
        "all is on the medium already"
    );
    assert!(io(plan_roomy(&through, &cdb6(WRITE_6, 0, 1))).durable);
    let zeros = cdb16(WRITE_SAME_16, 1, 0, 1);
    assert!(!io(plan_roomy(&cached, &zeros)).durable);
    assert!(io(plan_roomy(&through, &zeros)).durable);
}

#[test]
fn lbas_beyond_the_capacity() {
    let policy = policy(512, 100);
    for mut cdb in range_commands(0, 100) {
        assert_eq!(
            refused(plan_roomy(&policy, &cdb)),
            beyond(&cdb, 100),
            "{cdb:02x?}"
        );
        let (lba_len, last) = match cdb.len() {
            16 | 32 => (8, u64::MAX),
            _ => (4, u32::MAX.into()),
        };
        let at = lba_at(&cdb);
        cdb[at.into()..][..lba_len].fill(0xff);
        assert_eq!(
            refused(plan_roomy(&policy, &cdb)),
            beyond(&cdb, last),
            "{cdb:02x?}"
        );
    }
    for cdb in range_commands(0, 99) {
        let plan = plan_roomy(&policy, &cdb);
        let refused = matches!(&plan, Plan::Done(outcome) if outcome.status != 0);
        // WRITE SAME objects to the huge buffer here, not to the LBA.
        let write_same = Cdb::parse(&cdb).unwrap().command == Command::WriteSame;
        assert_eq!(refused, write_same, "{cdb:02x?}");
    }
    let overlong = refused(plan_roomy(&policy, &cdb10(READ_10, 0, 99, 2)));
    assert_eq!(overlong, out_of_range(100));
}

#[test]
fn a_length_of_zero_still_has_its_lba_checked() {
    let policy = policy(512, 100);
    for opcode in [READ_10, WRITE_10, VERIFY, WRITE_VERIFY] {
        match plan_roomy(&policy, &cdb10(opcode, 0, 99, 0)) {
            Plan::Done(outcome) => assert_eq!(outcome, Outcome::good(0)),
            other => panic!("{opcode:#x}: {other:?}"),
        }
        for lba in [100, 101, u32::MAX] {
            let sense = refused(plan_roomy(&policy, &cdb10(opcode, 0, lba, 0)));
            assert_eq!(sense, out_of_range(lba.into()), "{opcode:#x} at {lba}");
        }
    }
}

#[test]
fn a_medium_of_2_to_the_64_bytes_and_more_does_not_overflow() {
    let policy = policy(4096, u64::MAX);
    for (lba, count) in [
        (1 << 52, 1),
        (u64::MAX - 1, 1),
        (u64::MAX, 1),
        (u64::MAX - 1, u32::MAX),
    ] {
        let sense = refused(plan_roomy(&policy, &cdb16(READ_16, 0, lba, count)));
        assert_eq!(sense, out_of_range(u64::MAX), "{lba:#x}+{count:#x}");
    }
    for cdb in [
        cdb16(WRITE_SAME_16, 1, 5, 0),
        cdb16(SYNCHRONIZE_CACHE_16, 0, 5, 0),
    ] {
        assert_eq!(refused(plan_roomy(&policy, &cdb)), out_of_range(u64::MAX));
    }
}

#[test]
fn protection_fields_are_refused_first() {
    let policy = LunPolicy {
        write_protected: true,
        ..policy(512, 100)
    };
    for protect in 1..8u8 {
        for cdb in range_commands(protect << 5, 500) {
            let want = match cdb[0] {
                // Has no such field.
                SYNCHRONIZE_CACHE | SYNCHRONIZE_CACHE_16 => out_of_range(500),
                VARIABLE_LENGTH_CMD => illegal(0x2400, 10, Some(7)),
                _ => illegal(0x2400, 1, Some(7)),
            };
            assert_eq!(refused(plan_roomy(&policy, &cdb)), want, "{cdb:02x?}");
        }
    }
}

#[test]
fn transfers_over_the_limit_point_at_their_length() {
    let policy = LunPolicy {
        max_transfer_blocks: 8,
        ..policy(512, 100)
    };
    for (opcode, at) in [(READ_10, 7), (WRITE_10, 7), (VERIFY, 7), (WRITE_VERIFY, 7)] {
        assert_eq!(
            refused(plan_roomy(&policy, &cdb10(opcode, 0, 0, 9))),
            illegal(0x2400, at, None)
        );
        assert!(!matches!(
            plan_roomy(&policy, &cdb10(opcode, 0, 0, 8)),
            Plan::Done(_)
        ));
    }
    let sense = refused(plan_roomy(&policy, &cdb12(READ_12, 0, 0, 9)));
    assert_eq!(sense, illegal(0x2400, 6, None));
    let sense = refused(plan_roomy(&policy, &cdb16(WRITE_16, 0, 0, 9)));
    assert_eq!(sense, illegal(0x2400, 10, None));
    let sense = refused(plan_roomy(&policy, &cdb32(WRITE_32, 0, 0, 9)));
    assert_eq!(sense, illegal(0x2400, 28, None));
    // Nor do the 256 blocks of a 0 fit.
    let sense = refused(plan_roomy(&super::policy(512, 100), &cdb6(READ_6, 0, 0)));
    assert_eq!(sense[12], 0x21);
}

#[test]
fn write_protection_stops_all_that_writes() {
    let policy = LunPolicy {
        write_protected: true,
        ..policy(512, 100)
    };
    let data_protect = [0x70, 0, 7, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0, 0, 0, 0, 0];
    let mut cdbs = range_commands(0, 0);
    cdbs.push(cdb6(WRITE_6, 0, 1));
    cdbs.push(cdb6(READ_6, 0, 1));
    cdbs.push(cdb10(UNMAP, 0, 0, 24));
    cdbs.push(cdb10(WRITE_10, 0, 0, 0));
    for cdb in cdbs {
        let plan = plan_roomy(&policy, &cdb);
        match Cdb::parse(&cdb).unwrap().command {
            Command::Read | Command::SynchronizeCache => {
                assert!(matches!(plan, Plan::Io(_)), "{cdb:02x?}");
            }
            Command::Verify => assert!(matches!(plan, Plan::Job(_)), "{cdb:02x?}"),
            _ => assert_eq!(refused(plan), data_protect, "{cdb:02x?}"),
        }
    }
}

#[test]
fn buffers_too_small_are_an_overrun() {
    let policy = policy(512, 100);
    let overrun = |cdb: &[u8], data_out, data_in| {
        matches!(plan(&policy, cdb, &[], data_out, data_in), Plan::Overrun)
    };
    let big = u64::MAX;
    for (cdb, needs) in [
        (cdb10(WRITE_10, 0, 0, 3), 1536),
        (cdb10(WRITE_VERIFY, 0, 0, 3), 1536),
        (cdb10(VERIFY, 1 << 1, 0, 3), 1536),
        (cdb10(VERIFY, 3 << 1, 0, 3), 512),
        (cdb10(UNMAP, 0, 0, 24), 24),
    ] {
        assert!(overrun(&cdb, needs - 1, big), "{cdb:02x?}");
        assert!(!overrun(&cdb, needs, 0), "{cdb:02x?}");
    }
    assert!(overrun(&cdb10(READ_10, 0, 0, 3), big, 1535));
    assert!(!overrun(&cdb10(READ_10, 0, 0, 3), 0, 1536));
    assert!(!overrun(&cdb10(VERIFY, 0, 0, 3), 0, 0));
    assert!(!overrun(&cdb16(WRITE_SAME_16, 1, 0, 3), 0, 0));
    // What is wrong with the command comes first.
    assert!(!overrun(&cdb10(READ_10, 0, 100, 3), 0, 0));
}

#[test]
fn synchronize_cache_flushes_the_range_or_the_rest() {
    const IMMED: u8 = 2;
    let policy = policy(512, 100);
    let flush = |lba: u64, count: u64| Io {
        kind: IoKind::Flush,
        offset: lba * 512,
        len: count * 512,
        durable: true,
    };
    let plan = |cdb: &[u8]| io(plan_roomy(&policy, cdb));
    assert_eq!(plan(&cdb10(SYNCHRONIZE_CACHE, 0, 0, 0)), flush(0, 100));
    assert_eq!(plan(&cdb10(SYNCHRONIZE_CACHE, IMMED, 10, 5)), flush(10, 5));
    assert_eq!(plan(&cdb16(SYNCHRONIZE_CACHE_16, 0, 99, 0)), flush(99, 1));
    for (lba, count) in [(100, 0), (99, 2)] {
        let cdb = cdb16(SYNCHRONIZE_CACHE_16, 0, lba, count);
        assert_eq!(refused(plan_roomy(&policy, &cdb)), out_of_range(100));
    }
    let cdb = cdb10(SYNCHRONIZE_CACHE, 0, 0, 0);
    assert_eq!(
        complete(&policy, &cdb, &flush(0, 100), Ok(0)),
        Outcome::good(0)
    );
}

#[test]
fn write_same_of_zeros_is_one_engine_call() {
    let policy = policy(512, 100);
    let zeros = Guest::zeroed(512);
    let planned = |cdb: &[u8], guest: &Guest, len| io(plan(&policy, cdb, &guest.iov, len, 0));
    let range = |kind, lba: u64, count: u64| Io {
        kind,
        offset: lba * 512,
        len: count * 512,
        durable: false,
    };
    const UNMAP_BIT: u8 = 8;
    const NDOB: u8 = 1;
    let zero = range(IoKind::Zero, 5, 10);
    assert_eq!(planned(&cdb10(WRITE_SAME, 0, 5, 10), &zeros, 512), zero);
    assert_eq!(
        planned(&cdb16(WRITE_SAME_16, NDOB, 5, 10), &no_data(), 0),
        zero
    );
    let discard = range(IoKind::Discard, 5, 10);
    assert_eq!(
        planned(&cdb16(WRITE_SAME_16, UNMAP_BIT, 5, 10), &zeros, 512),
        discard
    );
    let cdb = cdb16(WRITE_SAME_16, UNMAP_BIT | NDOB, 5, 10);
    assert_eq!(planned(&cdb, &no_data(), 0), discard);
    assert_eq!(
        complete(&policy, &cdb, &discard, Ok(5120)),
        Outcome::good(0)
    );
    let cdb = cdb10(WRITE_SAME, UNMAP_BIT, 95, 0);
    let rest = range(IoKind::Discard, 95, 5);
    assert_eq!(planned(&cdb, &zeros, 512), rest);
    assert_eq!(complete(&policy, &cdb, &rest, Ok(0)), Outcome::good(512));
    // Bit 0 is NDOB in the 16-byte command only: this one lacks its block.
    assert!(matches!(
        plan(&policy, &cdb10(WRITE_SAME, NDOB, 0, 1), &[], 0, 0),
        Plan::Done(outcome) if outcome.status == crate::sbc::status::CHECK_CONDITION
    ));
}

#[test]
fn write_same_refuses_what_it_cannot_do() {
    let policy = LunPolicy {
        max_write_same_blocks: 50,
        unmap: false,
        ..policy(512, 100)
    };
    let zeros = Guest::zeroed(1024);
    let planned = |cdb: &[u8], len| plan(&policy, cdb, &zeros.iov, len, 0);
    for (bit, flags) in [(4, 0x18), (3, 8), (2, 4), (1, 2)] {
        let want = illegal(0x2400, 1, Some(bit));
        assert_eq!(refused(planned(&cdb10(WRITE_SAME, flags, 0, 1), 512)), want);
        assert_eq!(
            refused(planned(&cdb16(WRITE_SAME_16, flags, 0, 1), 512)),
            want
        );
    }
    assert_eq!(
        refused(planned(&cdb10(WRITE_SAME, 0, 0, 51), 512)),
        illegal(0x2400, 7, None)
    );
    assert_eq!(
        refused(planned(&cdb16(WRITE_SAME_16, 0, 49, 0), 512)),
        illegal(0x2400, 10, None)
    );
    assert!(matches!(
        planned(&cdb16(WRITE_SAME_16, 0, 50, 0), 512),
        Plan::Io(_)
    ));
    assert_eq!(
        refused(planned(&cdb16(WRITE_SAME_16, 0, 100, 0), 512)),
        out_of_range(100)
    );
    for data_out in [0, 511, 513] {
        let sense = refused(planned(&cdb10(WRITE_SAME, 0, 0, 1), data_out));
        assert_eq!((sense[2], sense[12], sense[15]), (5, 0x24, 0));
    }
}

#[test]
fn reserved_values_of_bytchk() {
    let policy = policy(512, 100);
    for (opcode, bytchk) in [(VERIFY, 2), (WRITE_VERIFY, 2), (WRITE_VERIFY, 3)] {
        let sense = refused(plan_roomy(&policy, &cdb10(opcode, bytchk << 1, 0, 1)));
        assert_eq!(sense, illegal(0x2400, 1, Some(2)), "{opcode:#x} {bytchk}");
    }
}

#[test]
fn miscompare_says_where() {
    let policy = policy(512, 8192);
    let engine = MemoryEngine::new(4 << 20).unwrap();
    let mut content = vec![0xab; 3 << 20];
    let write = cdb16(WRITE_16, 0, 8, 6144);
    let guest = Guest::new(&content, &[]);
    execute(None, &engine, &policy, &write, &guest, &no_data());
    let verify = cdb16(VERIFY_16, 1 << 1, 8, 6144);
    let outcome = execute(None, &engine, &policy, &verify, &guest, &no_data());
    assert_eq!(outcome, Outcome::good(3 << 20));
    // In the last chunk; two differences, the first counts.
    content[0x2f_1234] = 0;
    content[0x2f_ffff] = 0;
    let guest = Guest::new(&content, &[12345]);
    let outcome = execute(None, &engine, &policy, &verify, &guest, &no_data());
    let want = [
        0xf0, 0, 0xe, 0, 0x2f, 0x12, 0x34, 10, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0, 0,
    ];
    assert_eq!((outcome.status, outcome.sense.as_bytes()), (2, &want[..]));

    // One block against many: the offset is within the block.
    let one = cdb16(VERIFY_16, 3 << 1, 8, 6144);
    let good = Guest::new(&[0xab; 512], &[100]);
    let outcome = execute(None, &engine, &policy, &one, &good, &no_data());
    assert_eq!(outcome, Outcome::good(512));
    let mut block = [0xab; 512];
    block[511] = 1;
    let bad = Guest::new(&block, &[]);
    let outcome = execute(None, &engine, &policy, &one, &bad, &no_data());
    assert_eq!(outcome.sense.as_bytes()[..7], [0xf0, 0, 0xe, 0, 0, 1, 0xff]);
}
