//! Faults end to end: commands that are kept, answered wrongly, or lost, and what ends them.

mod bench;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::*;
use vscsi_dataplane::fault::data::Corruption;
use vscsi_dataplane::fault::{Action, Answer, Bad, Delay, Rule, Wear, When};
use vscsi_dataplane::limits::Rate;
use vscsi_dataplane::sense::{key, SenseInfo};
use vscsi_dataplane::task::Ending;

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const BUSY: u8 = 8;
const ABORTED: Ending = Ending {
    response: 2,
    status: 0,
};

fn with(bench: &Bench, when: When, then: Action) -> Arc<Rule> {
    let rule = Arc::new(Rule::new(when, then));
    bench.nexus.lu.faults.set(vec![rule.clone()]);
    rule
}

fn reads() -> When {
    When {
        opcodes: vec![READ_10],
        ..When::default()
    }
}

fn hang() -> Action {
    Action {
        hang: true,
        ..Action::default()
    }
}

fn answer(answer: Answer) -> Action {
    Action {
        answer: Some(answer),
        ..Action::default()
    }
}

fn corrupt(corruption: Corruption) -> Action {
    Action {
        corruption: Some(corruption),
        ..Action::default()
    }
}

/// Waits until the worker has done what it was asked so far.
fn settled(bench: &Bench) -> u64 {
    bench.worker.query(99, bench.scope());
    bench.ended(99)
}

#[test]
fn a_busy_unit_takes_the_counted_commands_only() {
    let mut bench = Bench::new();
    let when = When {
        skip: 1,
        every: 3,
        times: 2,
        ..reads()
    };
    let busy = answer(Answer {
        status: BUSY,
        ..Answer::default()
    });
    let rule = with(&bench, when, busy);
    let mut statuses = Vec::new();
    for _ in 0..9 {
        bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
        let done = bench.wait(0, 512);
        assert_eq!(done.residual, if done.status == GOOD { 0 } else { 512 });
        statuses.push(done.status);
    }
    assert_eq!(statuses, [0, BUSY, 0, 0, BUSY, 0, 0, 0, 0]);
    assert_eq!((rule.met(), rule.hits()), (9, 2));
    bench.submit(0, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    assert_eq!(bench.wait(0, 0).status, GOOD);
    assert_eq!(rule.met(), 9);
}

#[test]
fn a_bad_block_ends_a_read_behind_what_comes_before_it() {
    let mut bench = Bench::new();
    bench.submit(0, &rw(WRITE_10, 0, 8), &[7; 4096], 0);
    assert_eq!(bench.wait(0, 0).status, GOOD);
    let when = When {
        blocks: Some((3, 4)),
        ..reads()
    };
    let bad = Bad {
        blocks: (3, 4),
        reads: true,
        sense: SenseInfo::new(key::MEDIUM_ERROR, 0x1100),
    };
    let then = Action {
        bad: Some(bad),
        ..Action::default()
    };
    let rule = with(&bench, when, then);
    for (lba, count, information) in [(0, 8, 3), (3, 1, 3), (4, 4, 4)] {
        bench.write(SLOTS + 0x1000, &[0; 4096]);
        bench.submit(0, &rw(READ_10, lba, count), &[], u32::from(count) * 512);
        let done = bench.wait(0, usize::from(count) * 512);
        let before = usize::from(information - lba) * 512;
        assert_eq!(done.status, CHECK_CONDITION);
        assert_eq!(done.residual as usize, usize::from(count) * 512 - before);
        assert!(done.data[..before].iter().all(|byte| *byte == 7));
        assert!(done.data[before..].iter().all(|byte| *byte == 0));
        let mut sense = [0; 18];
        let at = SLOTS + 0x100 + 12;
        bench.memory.load().read(at, &mut sense).unwrap();
        assert_eq!((sense[0], sense[2], sense[6]), (0xf0, 3, information));
    }
    bench.submit(0, &rw(READ_10, 5, 3), &[], 1536);
    assert_eq!(bench.wait(0, 0).status, GOOD);
    assert_eq!(rule.hits(), 3);
}

#[test]
fn what_hangs_waits_for_its_release() {
    let mut bench = Bench::new();
    let rule = with(&bench, reads(), hang());
    let other = Arc::new(Rule::new(reads(), hang()));
    let lu = bench.nexus.lu.clone();
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    assert_eq!(settled(&bench), 1);
    lu.faults.set(Vec::new());
    bench.worker.release(lu.clone(), Some(other));
    bench.worker.release(lu.clone(), None);
    // Nobody who waits for the medium waits for it.
    bench.worker.quiesce(5, bench.scope());
    assert_eq!(bench.ended(5), 0);
    assert!(bench.poll(0, 0).is_none());
    bench.worker.release(lu, Some(rule));
    assert_eq!(bench.wait(0, 0).status, GOOD);
}

#[test]
fn python_s_commands_go_wrong_too() {
    let mut bench = Bench::new();
    let when = When {
        opcodes: vec![TEST_UNIT_READY],
        ..When::default()
    };
    let rule = with(&bench, when, hang());
    bench.submit(0, &[TEST_UNIT_READY], &[], 0);
    assert_eq!(settled(&bench), 1);
    assert!(bench.inbox.take(9).is_empty());
    bench.worker.release(bench.nexus.lu.clone(), Some(rule));
    bench.command().reply.finish(GOOD, Vec::new(), Vec::new());
    assert_eq!(bench.wait(0, 0).status, GOOD);
    assert_eq!(bench.nexus.gate.pending(), 0);
}

#[test]
fn an_abort_and_a_stop_end_what_hangs_or_was_lost_at_once() {
    let lost = || Action {
        lose: true,
        ..Action::default()
    };
    let late = || Action {
        delay: Some(Delay::Fixed(1000.0)),
        ..Action::default()
    };
    for then in [hang, lost, late] as [fn() -> Action; 3] {
        let mut bench = Bench::new();
        with(&bench, reads(), then());
        bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
        assert_eq!(settled(&bench), 1);
        bench.worker.abort(1, ABORTED, bench.scope());
        let done = bench.wait(0, 0);
        assert_eq!((done.response, done.status), (2, 0));
        assert_eq!(bench.ended(1), 1);
        bench.submit(1, &rw(READ_10, 0, 1), &[], 512);
        assert_eq!(settled(&bench), 1);
        bench.queue.stop(2, None, false);
        assert_eq!(bench.wait(1, 0).status, BUSY);
        assert_eq!(bench.ended(2), 2);
    }
}

#[test]
fn what_is_lost_was_done() {
    let mut bench = Bench::new();
    let when = When {
        opcodes: vec![WRITE_10],
        times: 1,
        ..When::default()
    };
    let lose = Action {
        lose: true,
        ..Action::default()
    };
    with(&bench, when, lose);
    bench.submit(0, &rw(WRITE_10, 2, 1), &[9; 512], 0);
    assert_eq!(settled(&bench), 1);
    bench.submit(1, &rw(READ_10, 2, 1), &[], 512);
    assert_eq!(bench.wait(1, 512).data, [9; 512]);
    assert_eq!(settled(&bench), 1, "still in the task set");
}

#[test]
fn a_delay_lasts_as_long_as_it_says() {
    let mut bench = Bench::new();
    let delay = Action {
        delay: Some(Delay::Fixed(0.05)),
        ..Action::default()
    };
    with(&bench, reads(), delay);
    let start = Instant::now();
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    bench.submit(1, &rw(READ_10, 0, 1), &[], 512);
    for slot in 0..2 {
        assert_eq!(bench.wait(slot, 0).status, GOOD);
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
}

#[test]
fn a_short_transfer_says_so() {
    let mut bench = Bench::new();
    let half = Action {
        short: Some(0.5),
        ..Action::default()
    };
    let when = When {
        opcodes: vec![WRITE_10],
        ..When::default()
    };
    with(&bench, when, half);
    bench.submit(0, &rw(WRITE_10, 0, 4), &[5; 2048], 0);
    let done = bench.wait(0, 0);
    assert_eq!((done.status, done.residual), (GOOD, 1024));
    bench.submit(0, &rw(READ_10, 0, 4), &[], 2048);
    let done = bench.wait(0, 2048);
    assert_eq!(done.data[..1024], [5; 1024]);
    assert_eq!(done.data[1024..], [0; 1024]);
}

#[test]
fn data_goes_wrong_without_a_word() {
    let old = [1u8; 2048];
    let new = [2u8; 2048];
    for (corruption, seed) in [
        (Corruption::Flip, 1),
        (Corruption::Torn, 2),
        (Corruption::Lost, 3),
        (Corruption::Misdirected, 4),
    ] {
        let mut bench = Bench::new();
        bench.submit(0, &rw(WRITE_10, 8, 4), &old, 0);
        assert_eq!(bench.wait(0, 0).status, GOOD);
        let when = When {
            opcodes: vec![WRITE_10],
            seed,
            ..When::default()
        };
        with(&bench, when, corrupt(corruption));
        bench.submit(0, &rw(WRITE_10, 8, 4), &new, 0);
        let done = bench.wait(0, 0);
        assert_eq!((done.status, done.residual), (GOOD, 0), "{corruption:?}");
        bench.submit(0, &rw(READ_10, 8, 4), &[], 2048);
        let data = bench.wait(0, 2048).data;
        let bits: u32 = data
            .iter()
            .zip(new)
            .map(|(a, b)| (a ^ b).count_ones())
            .sum();
        let cut = data.iter().take_while(|byte| **byte == 2).count();
        match corruption {
            Corruption::Flip => assert_eq!(bits, 1),
            Corruption::Torn => {
                assert!([512, 1024, 1536].contains(&cut));
                assert_eq!(data[cut..], old[cut..]);
            }
            Corruption::Lost | Corruption::Misdirected => assert_eq!(data, old),
        }
        bench.submit(0, &rw(WRITE_10, 60, 1), &[2; 512], 0);
        assert_eq!(bench.wait(0, 0).status, GOOD);
    }
}

#[test]
fn one_block_is_torn_in_its_middle_and_reads_flip_for_the_reader_only() {
    let mut bench = Bench::new();
    let writes = || When {
        opcodes: vec![WRITE_10],
        ..When::default()
    };
    with(&bench, writes(), corrupt(Corruption::Torn));
    bench.submit(0, &rw(WRITE_10, 0, 1), &[3; 512], 0);
    assert_eq!(bench.wait(0, 0).status, GOOD);
    let when = When {
        times: 1,
        ..reads()
    };
    with(&bench, when, corrupt(Corruption::Flip));
    let mut seen = Vec::new();
    for _ in 0..2 {
        bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
        seen.push(bench.wait(0, 512).data);
    }
    let bits = seen[0]
        .iter()
        .zip(&seen[1])
        .map(|(a, b)| (a ^ b).count_ones());
    assert_eq!(bits.sum::<u32>(), 1);
    assert_eq!(seen[1][..256], [3; 256]);
    assert_eq!(seen[1][256..], [0; 256]);
}

#[test]
fn a_job_of_several_steps_goes_wrong_too() {
    let mut bench = Bench::new();
    let when = When {
        opcodes: vec![COMPARE_AND_WRITE],
        ..When::default()
    };
    with(&bench, when, corrupt(Corruption::Lost));
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (COMPARE_AND_WRITE, 1);
    let data = [[0; 512], [6; 512]].concat();
    for _ in 0..2 {
        bench.submit(0, &cdb, &data, 0);
        let done = bench.wait(0, 0);
        assert_eq!((done.status, done.residual), (GOOD, 0));
    }
    bench.nexus.lu.faults.set(Vec::new());
    for status in [GOOD, CHECK_CONDITION] {
        bench.submit(0, &cdb, &data, 0);
        assert_eq!(bench.wait(0, 0).status, status);
    }
}

#[test]
fn a_unit_wears_out_where_it_is_written() {
    let mut bench = Bench::new();
    let when = When {
        opcodes: vec![WRITE_10],
        blocks: Some((0, 127)),
        ..When::default()
    };
    let then = Action {
        wear: Wear::new((0, 127), 8, 1, 1),
        ..Action::default()
    };
    let rule = with(&bench, when, then);
    let mut sense = [0; 18];
    for (lba, count, key, code, information) in [
        (0, 8, 0, 0, 0),
        (8, 8, 0, 0, 0),
        (3, 1, 1, 0x0c01, 0),
        (12, 8, 3, 0x0c02, 12),
        (16, 1, 0, 0, 0),
        (2, 1, 3, 0x0c02, 2),
        (32, 8, 0, 0, 0),
        (28, 8, 3, 0x0c02, 32),
    ] {
        let data = vec![lba; usize::from(count) * 512];
        bench.submit(0, &rw(WRITE_10, lba, count), &data, 0);
        let done = bench.wait(0, 0);
        assert_eq!(done.status == GOOD, key == 0, "LBA {lba}");
        let before = if key == 3 { information - lba } else { count };
        let residual = u32::from(count - before) * 512;
        assert_eq!(done.residual, residual, "LBA {lba}");
        if key != 0 {
            bench
                .memory
                .load()
                .read(SLOTS + 0x100 + 12, &mut sense)
                .unwrap();
            assert_eq!(
                (sense[2], u16::from_be_bytes([sense[12], sense[13]])),
                (key, code)
            );
            assert_eq!(sense[6], information);
        }
    }
    assert_eq!((rule.met(), rule.hits()), (8, 4));
}

#[test]
fn draws_follow_from_the_seed() {
    let pick = |seed| {
        let mut bench = Bench::new();
        let when = When {
            probability: Some(0.5),
            seed,
            ..reads()
        };
        let busy = answer(Answer {
            status: BUSY,
            ..Answer::default()
        });
        with(&bench, when, busy);
        let statuses = (0..64).map(|_| {
            bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
            bench.wait(0, 0).status
        });
        statuses.collect::<Vec<_>>()
    };
    let first = pick(1);
    assert_eq!(first, pick(1));
    assert_ne!(first, pick(2));
    let busy = first.iter().filter(|status| **status == BUSY).count();
    assert!((16..48).contains(&busy));
}

#[test]
fn limits_keep_the_rate_over_two_workers_and_end_when_lifted() {
    let lu = unit(Arc::new(
        vscsi_dataplane::engine::memory::MemoryEngine::new(64 << 10).unwrap(),
    ));
    let mut benches = [Bench::on(&lu), Bench::on(&lu)];
    let rate = Rate {
        per_second: 200,
        burst: 1,
    };
    lu.limits.set(rate, Rate::default());
    let start = Instant::now();
    for _ in 0..25 {
        for bench in &mut benches {
            bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
            bench.submit(1, &rw(READ_10, 0, 1), &[], 512);
        }
        for bench in &mut benches {
            bench.wait(0, 0);
            bench.wait(1, 0);
        }
    }
    // 100 commands, of which one or two came free.
    assert!(start.elapsed() >= Duration::from_millis(490));
    let slow = Rate {
        per_second: 1,
        burst: 0,
    };
    lu.limits.set(slow, Rate::default());
    let bench = &mut benches[0];
    for slot in 0..3 {
        bench.submit(slot, &rw(READ_10, 0, 1), &[], 512);
    }
    assert_eq!(bench.wait(0, 0).status, GOOD);
    bench.worker.abort(
        1,
        ABORTED,
        vscsi_dataplane::worker::Scope {
            tag: Some(1),
            ..bench.scope()
        },
    );
    assert_eq!(bench.wait(1, 0).response, 2);
    assert_eq!(bench.ended(1), 1);
    lu.limits.set(Rate::default(), Rate::default());
    bench.worker.release(lu, None);
    assert_eq!(bench.wait(2, 0).status, GOOD);
}
