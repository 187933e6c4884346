//! Task sets end to end: what commands of several workers may and may not do at the same time
//! (SAM-6 clause 8), and what ends them.

mod bench;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bench::*;
use libc::iovec;
use vscsi_dataplane::engine::null::NullEngine;
use vscsi_dataplane::engine::{Engine, Io};
use vscsi_dataplane::inbox::{Message, Notice};
use vscsi_dataplane::lu::{Lu, Nexus};
use vscsi_dataplane::policy::Qerr;
use vscsi_dataplane::task::Ending;
use vscsi_dataplane::task_set::Held;
use vscsi_dataplane::worker::Scope;

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const BUSY: u8 = 8;
const TASK_SET_FULL: u8 = 0x28;
const ACA_ACTIVE: u8 = 0x30;
const TASK_ABORTED: Ending = Ending {
    response: 0,
    status: 0x40,
};
const ABORTED: u8 = 2;
const BAD_LBA: u8 = 0xff;

/// Notes when each call begins and ends, by its first block; calls take a while.
struct Noting {
    inner: NullEngine,
    log: Mutex<Vec<(u64, bool)>>,
}

impl Noting {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: NullEngine::new(64 << 10),
            log: Mutex::default(),
        })
    }
}

impl Engine for Noting {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn can_discard(&self) -> bool {
        false
    }
    fn try_now(&self, _: &Io, _: &[iovec]) -> Option<io::Result<u64>> {
        None
    }
    fn sqe(&self, _: &Io, _: &[iovec]) -> Option<io_uring::squeue::Entry> {
        None
    }
    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        let block = io.offset / 512;
        self.log.lock().unwrap().push((block, true));
        std::thread::sleep(Duration::from_micros(block * 37 % 400));
        let result = self.inner.run(io, iov);
        self.log.lock().unwrap().push((block, false));
        result
    }
}

/// Two queues of one nexus, each on a worker of its own.
fn two_workers(lu: &Arc<Lu>) -> [Bench; 2] {
    let nexus = Arc::new(Nexus::new(lu.clone()));
    [Bench::through(nexus.clone()), Bench::through(nexus)]
}

fn with_naca(mut cdb: [u8; 10]) -> [u8; 10] {
    cdb[9] = 4;
    cdb
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "it never happens");
        std::thread::yield_now();
    }
}

/// Waits for the worker to have taken what is on its ring.
fn taken(bench: &Bench, count: u64) {
    static TOKEN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);
    wait_until(|| {
        let token = TOKEN.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        bench.worker.query(token, bench.scope());
        bench.ended(token) == count
    });
}

#[test]
fn ordered_commands_are_alone_on_the_unit_whatever_worker_has_them() {
    let engine = Noting::new();
    let lu = unit(engine.clone());
    let mut benches = two_workers(&lu);
    let mut kinds = HashMap::new();
    let mut left = [20, 20];
    for slot in 0..20u64 {
        for (n, bench) in benches.iter_mut().enumerate() {
            let block = (1 + slot * 2 + n as u64) as u8;
            let attribute = match (slot * 5 + n as u64) % 6 {
                0 => ORDERED,
                1 => HEAD_OF_QUEUE,
                _ => SIMPLE,
            };
            kinds.insert(u64::from(block), attribute);
            bench.submit_as(attribute, slot, &rw(READ_10, block, 1), &[], 512);
        }
    }
    wait_until(|| {
        for (bench, left) in benches.iter_mut().zip(&mut left) {
            while bench.ring.pop_used().unwrap().is_some() {
                *left -= 1;
            }
        }
        left == [0, 0]
    });
    let log = engine.log.lock().unwrap();
    assert_eq!(log.len(), 2 * 40);
    let mut running = HashSet::new();
    let mut began = Vec::new();
    for (block, begins) in log.iter() {
        if !begins {
            running.remove(block);
            continue;
        }
        let others = running.iter().filter(|other| kinds[other] != HEAD_OF_QUEUE);
        match kinds[block] {
            HEAD_OF_QUEUE => {}
            ORDERED => assert_eq!(others.count(), 0, "an ORDERED one has company"),
            _ => assert!(
                others.into_iter().all(|other| kinds[other] == SIMPLE),
                "beside an ORDERED one"
            ),
        }
        running.insert(*block);
        began.push(*block);
    }
    // On each queue, no SIMPLE one has passed an ORDERED one, either way.
    for n in 0..2 {
        let queue: Vec<_> = began.iter().filter(|block| (*block - 1) % 2 == n).collect();
        for (at, block) in queue.iter().enumerate() {
            for later in &queue[at + 1..] {
                let pair = [kinds[block], kinds[later]];
                if pair.contains(&ORDERED) && !pair.contains(&HEAD_OF_QUEUE) {
                    assert!(block < later, "{block} and {later} changed places");
                }
            }
        }
    }
}

#[test]
fn python_s_commands_are_in_the_order_too() {
    let mut bench = Bench::new();
    bench.submit(0, &[TEST_UNIT_READY], &[], 0);
    let older = bench.command();
    bench.submit_as(ORDERED, 1, &rw(READ_10, 0, 1), &[], 512);
    bench.submit(2, &[TEST_UNIT_READY], &[], 0);
    taken(&bench, 3);
    assert!(bench.inbox.take(9).is_empty() && bench.poll(1, 0).is_none());
    bench.submit_as(HEAD_OF_QUEUE, 3, &[TEST_UNIT_READY], &[], 0);
    let head = bench.command();
    assert_eq!(head.header.tag, 3);
    older.reply.finish(GOOD, Vec::new(), Vec::new());
    assert_eq!(bench.wait(0, 0).status, GOOD);
    assert!(bench.poll(1, 0).is_none(), "a head of queue is there");
    head.reply.finish(GOOD, Vec::new(), Vec::new());
    assert_eq!(bench.wait(3, 0).status, GOOD);
    assert_eq!(bench.wait(1, 0).status, GOOD);
    bench.command().reply.finish(GOOD, Vec::new(), Vec::new());
    assert_eq!(bench.wait(2, 0).status, GOOD);
}

#[test]
fn a_dormant_command_comes_to_the_gate_when_it_is_enabled() {
    let (engine, go) = Slow::new();
    let mut bench = Bench::on(&unit(engine));
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    bench.submit_as(ORDERED, 1, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    taken(&bench, 2);
    bench.nexus.gate.close(vscsi_dataplane::gate::CLASS_ALL);
    bench.worker.quiesce(1, bench.scope());
    go.send(()).unwrap();
    // It does not wait for the dormant one, which cannot slip through.
    let command = match bench.message() {
        Message::Notice(Notice::Done { token: 1, value: 1 }) => bench.command(),
        Message::Command(command) => {
            assert_eq!(bench.ended(1), 1);
            command
        }
        _ => panic!("unexpected message"),
    };
    assert_eq!(command.header.tag, 1);
    command.reply.execute();
    assert_eq!(bench.wait(0, 0).status, GOOD);
    assert_eq!(bench.wait(1, 0).status, GOOD);
}

#[test]
fn dormant_commands_are_aborted_at_once_and_hold_nobody() {
    let (engine, go) = Slow::new();
    let lu = unit(engine);
    let [mut one, mut two] = two_workers(&lu);
    one.submit(0, &rw(READ_10, 0, 1), &[], 512);
    taken(&one, 1);
    two.submit_as(ORDERED, 1, &rw(WRITE_10, 1, 1), &[1; 512], 0);
    two.submit(2, &rw(WRITE_10, 2, 1), &[1; 512], 0);
    taken(&two, 2);
    let ordered = Scope {
        tag: Some(1),
        ..two.scope()
    };
    two.worker.abort(5, Ending::response(ABORTED), ordered);
    assert_eq!(two.ended(5), 1);
    assert_eq!(two.poll(1, 0).unwrap().response, ABORTED);
    assert_eq!(two.wait(2, 0).status, GOOD, "beside the one that runs");
    // A whole task set: it ends while one still runs, and nothing dormant begins.
    two.submit_as(ORDERED, 3, &rw(WRITE_10, 3, 1), &[1; 512], 0);
    taken(&two, 1);
    let nexus = Scope {
        nexus: Some(two.nexus.clone()),
        ..Scope::default()
    };
    two.worker.abort(6, TASK_ABORTED, nexus);
    assert_eq!(two.ended(6), 1);
    let done = two.poll(3, 0).unwrap();
    assert_eq!((done.response, done.status), (0, 0x40));
    go.send(()).unwrap();
    assert_eq!(one.wait(0, 0).status, GOOD);
    two.submit(4, &rw(WRITE_10, 4, 1), &[1; 512], 0);
    assert_eq!(two.wait(4, 0).status, GOOD);
}

#[test]
fn a_scope_tells_two_nexuses_to_one_unit_apart() {
    let lu = unit(Noting::new());
    let mut bench = Bench::on(&lu);
    let other = Arc::new(Nexus::new(lu));
    bench
        .port
        .set_luns(HashMap::from([((0, 0), other.clone())]), &[]);
    bench.submit(0, &[TEST_UNIT_READY], &[], 0);
    let held = bench.command();
    let scope = |nexus: &Arc<Nexus>| Scope {
        nexus: Some(nexus.clone()),
        port: Some(bench.port.clone()),
        ..Scope::default()
    };
    bench.worker.query(1, scope(&bench.nexus));
    assert_eq!(bench.ended(1), 0);
    bench.worker.query(2, scope(&other));
    assert_eq!(bench.ended(2), 1);
    drop(held);
}

// ── Auto contingent allegiance ─────────────────────────────────────────────────────────────────

#[test]
fn aca_is_in_effect_before_its_check_condition_is_seen() {
    let lu = unit(Arc::new(NullEngine::new(64 << 10)));
    let mut bench = Bench::on(&lu);
    let mut other = Bench::on(&lu);
    for round in 0..200 {
        bench.submit(0, &with_naca(rw(READ_10, BAD_LBA, 1)), &[], 512);
        assert_eq!(bench.wait(0, 0).status, CHECK_CONDITION);
        for attribute in [SIMPLE, ORDERED, HEAD_OF_QUEUE] {
            bench.submit_as(attribute, 1, &rw(READ_10, 0, 1), &[], 512);
            assert_eq!(bench.wait(1, 0).status, ACA_ACTIVE, "round {round}");
        }
        other.submit(0, &rw(READ_10, 0, 1), &[], 512);
        assert_eq!(other.wait(0, 0).status, BUSY);
        other.submit(0, &with_naca(rw(READ_10, 0, 1)), &[], 512);
        assert_eq!(other.wait(0, 0).status, ACA_ACTIVE);
        bench.submit_as(ACA, 1, &rw(READ_10, 0, 1), &[], 512);
        assert_eq!(bench.wait(1, 0).status, GOOD);
        if round % 2 == 0 {
            assert!(bench.nexus.lu.tasks.clear_aca(&bench.nexus.part));
        } else {
            bench.submit_as(ACA, 1, &rw(READ_10, BAD_LBA, 1), &[], 512);
            assert_eq!(bench.wait(1, 0).status, CHECK_CONDITION);
        }
        other.submit(0, &rw(READ_10, 0, 1), &[], 512);
        assert_eq!(other.wait(0, 0).status, GOOD);
    }
}

#[test]
fn attributes_that_mean_nothing_are_refused() {
    let mut bench = Bench::new();
    for attribute in [ACA, 4, 0xff] {
        bench.submit_as(attribute, 0, &rw(READ_10, 0, 1), &[], 512);
        assert_eq!(bench.wait(0, 0).status, CHECK_CONDITION);
        let mut sense = [0; 14];
        let map = bench.memory.load();
        map.read(SLOTS + 0x100 + 12, &mut sense).unwrap();
        assert_eq!((sense[2], sense[12], sense[13]), (5, 0x49, 0));
    }
}

#[test]
fn a_queue_that_stops_waits_for_no_dormant_command() {
    let (engine, go) = Slow::new();
    let mut bench = Bench::on(&unit(engine));
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    bench.submit_as(ORDERED, 1, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    bench.submit(2, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    taken(&bench, 3);
    bench.queue.stop(1, None, false);
    for slot in [1, 2] {
        assert_eq!(bench.wait(slot, 0).status, BUSY);
    }
    go.send(()).unwrap();
    assert_eq!(bench.ended(1), 3);
    assert_eq!(bench.wait(0, 0).status, GOOD);
}

// ── QERR and limits ────────────────────────────────────────────────────────────────────────────

#[test]
fn nothing_dormant_begins_after_a_check_condition_with_qerr() {
    let (engine, go) = Slow::new();
    let lu = unit(engine);
    let mut policy = lu.policy.load().as_ref().clone();
    policy.qerr = Qerr::AbortsAll;
    lu.set_policy(policy);
    let [mut one, mut two] = two_workers(&lu);
    one.submit(0, &rw(READ_10, 0, 1), &[], 512);
    taken(&one, 1);
    two.submit_as(ORDERED, 0, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    taken(&two, 1);
    one.submit_as(HEAD_OF_QUEUE, 1, &rw(READ_10, BAD_LBA, 1), &[], 512);
    assert_eq!(one.wait(1, 0).status, CHECK_CONDITION);
    let Message::Notice(Notice::Fault { nexus, held, .. }) = one.message() else {
        panic!("no fault");
    };
    assert!(Arc::ptr_eq(&nexus, &one.nexus));
    go.send(()).unwrap();
    assert_eq!(one.wait(0, 0).status, GOOD);
    // The one that came before is aborted, the one that comes now is not.
    two.submit(1, &rw(WRITE_10, 1, 1), &[1; 512], 0);
    taken(&two, 2);
    assert!(two.poll(0, 0).is_none(), "begun");
    let scope = Scope {
        until: Some(held.stamp),
        ..two.scope()
    };
    two.worker.abort(7, Ending::response(ABORTED), scope);
    drop(held);
    assert_eq!(two.ended(7), 1);
    assert_eq!(two.wait(0, 0).response, ABORTED);
    assert_eq!(two.wait(1, 0).status, GOOD);
}

#[test]
fn a_held_task_set_goes_on_when_the_notice_is_lost() {
    let lu = unit(Noting::new());
    let mut bench = Bench::on(&lu);
    let held = Held::new(lu);
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    taken(&bench, 1);
    assert!(bench.poll(0, 0).is_none());
    drop(held);
    assert_eq!(bench.wait(0, 0).status, GOOD);
}

#[test]
fn a_full_task_set() {
    let (engine, go) = Slow::new();
    let lu = limited_unit(engine, 2);
    let mut one = Bench::on(&lu);
    let mut two = Bench::on(&lu);
    for slot in 0..2 {
        one.submit(slot, &rw(READ_10, 0, 1), &[], 512);
    }
    taken(&one, 2);
    one.submit(2, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    assert_eq!(one.wait(2, 0).status, TASK_SET_FULL);
    two.submit(0, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    assert_eq!(two.wait(0, 0).status, BUSY, "it has none in the set");
    for _ in 0..2 {
        go.send(()).unwrap();
    }
    // They end in any order: whose response is there is known once both are.
    let ended = [one.wait(0, 0), one.wait(0, 0)];
    for (slot, done) in (0..).zip(ended) {
        assert_eq!(one.response(slot, done.head, done.used, 0).status, GOOD);
    }
    two.submit(0, &rw(WRITE_10, 0, 1), &[1; 512], 0);
    assert_eq!(two.wait(0, 0).status, GOOD);
}
