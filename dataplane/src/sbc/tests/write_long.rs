//! Blocks marked bad, on every way a command reaches them.

use std::sync::Arc;

use super::super::cdb::action::SAO_WRITE_LONG;
use super::super::cdb::opcode::*;
use super::*;
use crate::engine::marked::MarkedEngine;
use crate::engine::memory::MemoryEngine;
use crate::engine::IoKind;

const WR_UNCOR: u8 = 0x40;
const COR_DIS: u8 = 0x80;

fn disk() -> (MarkedEngine, LunPolicy) {
    let engine = MemoryEngine::new(100 * 512).unwrap();
    (MarkedEngine::new(Arc::new(engine)), policy(512, 100))
}

fn run(engine: &dyn Engine, policy: &LunPolicy, cdb: &[u8], data: &Guest) -> Outcome {
    let none = no_data();
    match cdb[0] {
        READ_10 => execute(None, engine, policy, cdb, &none, data),
        _ => execute(None, engine, policy, cdb, data, &none),
    }
}

fn mark(engine: &dyn Engine, policy: &LunPolicy, lba: u32) {
    let cdb = cdb10(WRITE_LONG, WR_UNCOR, lba, 0);
    assert_eq!(run(engine, policy, &cdb, &no_data()), Outcome::good(0));
}

fn marked_bad(lba: u8) -> Vec<u8> {
    vec![
        0xf0, 0, 3, 0, 0, 0, lba, 10, 0, 0, 0, 0, 0x11, 0x14, 0, 0, 0, 0,
    ]
}

#[test]
fn what_is_planned_and_what_is_refused() {
    let policy = policy(512, 100);
    let want = Io {
        kind: IoKind::Mark,
        offset: 5 * 512,
        len: 512,
        durable: false,
    };
    for flags in [WR_UNCOR, WR_UNCOR | COR_DIS] {
        assert_eq!(
            io(plan_roomy(&policy, &cdb10(WRITE_LONG, flags, 5, 9))),
            want
        );
        let cdb = cdb16(SERVICE_ACTION_OUT_16, flags | SAO_WRITE_LONG as u8, 5, 9);
        assert_eq!(io(plan_roomy(&policy, &cdb)), want);
    }
    for (cdb, sense) in [
        (
            cdb10(WRITE_LONG, COR_DIS, 5, 512),
            illegal(0x2400, 1, Some(6)),
        ),
        (cdb10(WRITE_LONG, WR_UNCOR, 100, 0), out_of_range(100)),
    ] {
        assert_eq!(refused(plan_roomy(&policy, &cdb)), sense);
    }
    let protected = LunPolicy {
        write_protected: true,
        ..policy
    };
    let sense = refused(plan_roomy(&protected, &cdb10(WRITE_LONG, WR_UNCOR, 5, 0)));
    assert_eq!((sense[2], sense[12]), (7, 0x27));
}

#[test]
fn a_marked_block_cannot_be_read_in_any_way() {
    let (engine, policy) = disk();
    let content = Guest::new(&[0x33; 8 * 512], &[700]);
    let write = cdb10(WRITE_10, 0, 10, 8);
    assert_eq!(run(&engine, &policy, &write, &content).status, 0);
    mark(&engine, &policy, 13);
    mark(&engine, &policy, 15);
    let data = Guest::new(&[0; 8 * 512], &[100]);
    let outcome = run(&engine, &policy, &cdb10(READ_10, 0, 10, 8), &data);
    assert_eq!(outcome.sense.as_bytes(), marked_bad(13));
    assert_eq!(outcome.transferred, 3 * 512);
    assert_eq!(data.content(3 * 512), [0x33; 3 * 512]);
    for cdb in [
        cdb10(VERIFY, 0, 10, 8),
        cdb16(ORWRITE_16, 0, 10, 8),
        compare_and_write(0, 13, 1),
    ] {
        let outcome = run(&engine, &policy, &cdb, &content);
        assert_eq!(outcome.sense.as_bytes(), marked_bad(13), "{cdb:02x?}");
    }
    for (lba, blocks) in [(10, 3), (14, 1), (16, 80)] {
        let cdb = cdb10(VERIFY, 0, lba, blocks);
        assert_eq!(run(&engine, &policy, &cdb, &no_data()), Outcome::good(0));
    }
}

#[test]
fn written_it_is_good_again() {
    let (engine, policy) = disk();
    let block = Guest::new(&[0x44; 512], &[]);
    let all = cdb10(VERIFY, 0, 0, 100);
    for cdb in [
        cdb10(WRITE_10, 0, 20, 1),
        cdb10(WRITE_SAME, 0, 20, 1),
        cdb10(WRITE_SAME, 8, 15, 30),
        cdb10(WRITE_VERIFY, 0, 20, 1),
    ] {
        mark(&engine, &policy, 20);
        assert_eq!(run(&engine, &policy, &all, &no_data()).status, 2);
        assert_eq!(run(&engine, &policy, &cdb, &block).status, 0, "{cdb:02x?}");
        assert_eq!(run(&engine, &policy, &all, &no_data()), Outcome::good(0));
    }
    // Its neighbours do not help.
    mark(&engine, &policy, 20);
    for lba in [19, 21] {
        run(&engine, &policy, &cdb10(WRITE_10, 0, lba, 1), &block);
    }
    assert_eq!(
        run(&engine, &policy, &all, &no_data()).sense.as_bytes(),
        marked_bad(20)
    );
}
