//! Workers end to end: a driver's ring on one side, the inbox on the other.

mod bench;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::*;
use vscsi_dataplane::engine::file::FileEngine;
use vscsi_dataplane::gate::{CLASS_ALL, CLASS_READ, CLASS_WRITE};
use vscsi_dataplane::inbox::{Message, Notice};
use vscsi_dataplane::lu::Lu;
use vscsi_dataplane::ring::driver::Buffer;
use vscsi_dataplane::task::Ending;
use vscsi_dataplane::worker::Scope;

#[test]
fn writes_and_reads_without_python() {
    let mut bench = Bench::new();
    let data: Vec<u8> = (0..1024u32).map(|n| (n * 7) as u8).collect();
    let head = bench.submit(0, &rw(WRITE_10, 5, 2), &data, 0);
    let done = bench.wait(0, 0);
    assert_eq!(
        (done.head, done.used, done.response, done.status),
        (head, 108, 0, 0)
    );
    bench.submit(1, &rw(READ_10, 5, 2), &[], 2048);
    let done = bench.wait(1, 1024);
    assert_eq!((done.used, done.residual), (108 + 1024, 1024));
    assert_eq!(done.data, data);
    assert!(bench.inbox.take(9).is_empty());
}

#[test]
fn a_transfer_larger_than_its_buffer_is_an_overrun() {
    let mut bench = Bench::new();
    bench.submit(0, &rw(READ_10, 0, 4), &[], 1024);
    let done = bench.wait(0, 0);
    assert_eq!((done.response, done.residual), (1, 1024));
}

#[test]
fn addresses_without_a_unit() {
    let mut bench = Bench::new();
    let at = SLOTS;
    bench.port.set_luns(HashMap::new(), &[]);
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    assert_eq!(bench.wait(0, 0).response, 3, "BAD_TARGET");
    bench
        .port
        .set_luns(HashMap::from([((0, 9), bench.nexus.clone())]), &[]);
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    let command = bench.command();
    assert!(command.nexus.is_none());
    assert_eq!(command.header.lun, [1, 0, 0x40, 0, 0, 0, 0, 0]);
    command.reply.finish(2, vec![0x70], Vec::new());
    let done = bench.wait(0, 0);
    assert_eq!((done.response, done.status), (0, 2));
    let mut response = [0; 14];
    bench.memory.load().read(at + 0x100, &mut response).unwrap();
    assert_eq!(
        (response[0], response[12], response[13]),
        (1, 0x70, 0),
        "sense, and zeros after"
    );
}

#[test]
fn both_directions_at_once_are_refused() {
    let mut bench = Bench::new();
    bench.submit(0, &rw(READ_10, 0, 1), &[1; 512], 512);
    let done = bench.wait(0, 0);
    assert_eq!((done.response, done.residual), (9, 1024));
}

#[test]
fn a_dropped_command_is_answered_with_failure() {
    let mut bench = Bench::new();
    bench.submit(0, &[TEST_UNIT_READY], &[], 0);
    drop(bench.command());
    assert_eq!(bench.wait(0, 0).response, 9);
    assert_eq!(bench.nexus.gate.pending(), 0);
}

#[test]
fn a_closed_gate_sends_commands_to_python_until_the_last_is_decided() {
    let mut bench = Bench::new();
    bench.nexus.gate.close(CLASS_READ);
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    bench.submit(1, &rw(READ_10, 0, 1), &[], 512);
    let (first, second) = (bench.command(), bench.command());
    assert!(first.data_out.is_empty());
    first.reply.finish(2, vec![0x70], Vec::new());
    bench.nexus.gate.open(CLASS_READ);
    assert_eq!(bench.wait(0, 0).status, 2);
    assert_eq!(
        bench.nexus.gate.closed(),
        CLASS_READ,
        "the second one is not decided yet"
    );
    second.reply.execute();
    let done = bench.wait(1, 512);
    assert_eq!((done.status, done.residual), (0, 0));
    assert_eq!(bench.nexus.gate.closed(), 0);
    // A handle answers once.
    second.reply.fail(9);
    bench.submit(2, &rw(READ_10, 0, 1), &[], 512);
    assert_eq!(bench.wait(2, 0).response, 0);
}

#[test]
fn no_command_slips_past_a_closed_gate() {
    let mut bench = Bench::new();
    let zeros = [0u8; 512];
    let mut token = 0;
    for round in 0..200u64 {
        // Writes are under way while the gate closes.
        for slot in 0..20 {
            bench.submit(
                slot,
                &rw(WRITE_10, slot as u8, 1),
                &[round as u8 | 1; 512],
                0,
            );
        }
        bench.nexus.gate.close(CLASS_WRITE);
        token += 1;
        bench.worker.quiesce(token, bench.scope());
        let mut held = Vec::new();
        let mut ended = false;
        while !ended {
            match bench.message() {
                Message::Command(command) => held.push(command),
                Message::Notice(Notice::Done { token: t, .. }) => ended = t == token,
                _ => panic!("unexpected message"),
            }
        }
        // From here on the medium is ours: whatever changes it has slipped past.
        let engine = &bench.nexus.lu.engine;
        let mut before = vec![0u8; 64 << 10];
        let io = |kind| vscsi_dataplane::engine::Io {
            kind,
            offset: 0,
            len: 64 << 10,
            durable: false,
        };
        let read = io(vscsi_dataplane::engine::IoKind::Read);
        let piece = |bytes: &mut Vec<u8>| libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        engine.run(&read, &[piece(&mut before)]).unwrap();
        for _ in 0..20 {
            std::thread::yield_now();
        }
        let mut after = vec![1u8; 64 << 10];
        engine.run(&read, &[piece(&mut after)]).unwrap();
        assert!(
            before == after,
            "round {round}: a write ran while the gate was closed"
        );
        let mut done = 0;
        let start = Instant::now();
        bench.nexus.gate.open(CLASS_ALL);
        while done < 20 {
            for command in held.drain(..) {
                command.reply.execute();
            }
            for message in bench.inbox.take(64) {
                if let Message::Command(command) = message {
                    held.push(command);
                }
            }
            while bench.ring.pop_used().unwrap().is_some() {
                done += 1;
            }
            assert!(start.elapsed() < DEADLINE);
        }
        assert_eq!(
            (bench.nexus.gate.pending(), bench.nexus.gate.closed()),
            (0, 0)
        );
        bench.submit(0, &rw(WRITE_10, 0, 1), &zeros, 0);
        bench.wait(0, 0);
    }
}

#[test]
fn an_abort_ends_what_is_with_python_before_it_ends_itself() {
    let mut bench = Bench::new();
    for slot in 0..3 {
        bench.submit(slot, &[TEST_UNIT_READY], &[], 0);
    }
    // Not even seen by the worker yet, perhaps: they count all the same.
    bench.worker.query(7, bench.scope());
    let mut held = Vec::new();
    let count = loop {
        match bench.message() {
            Message::Command(command) => held.push(command),
            Message::Notice(Notice::Done { token: 7, value }) => break value,
            _ => panic!("unexpected message"),
        }
    };
    assert_eq!((count, held.len()), (3, 3));
    let one = Scope {
        tag: Some(1),
        ..bench.scope()
    };
    bench.worker.abort(8, Ending::response(RESET), one);
    assert_eq!(bench.ended(8), 1);
    // Used before the call's end: no waiting here.
    let done = bench.poll(1, 0).expect("complete before the abort ended");
    assert_eq!((done.response, done.residual), (RESET, 0));
    bench
        .worker
        .abort(9, Ending::response(RESET), bench.scope());
    assert_eq!(bench.ended(9), 2);
    assert_eq!(bench.poll(0, 0).unwrap().response, RESET);
    assert_eq!(bench.poll(2, 0).unwrap().response, RESET);
    // Late answers go nowhere.
    for command in &held {
        command.reply.finish(0, Vec::new(), Vec::new());
    }
    assert_eq!(bench.nexus.gate.pending(), 0);
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    assert_eq!(bench.wait(0, 0).status, 0);
}

#[test]
fn a_stop_waits_for_the_task_with_python_and_tells_where_the_ring_stands() {
    let mut bench = Bench::new();
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    bench.wait(0, 0);
    bench.submit(1, &[TEST_UNIT_READY], &[], 0);
    let command = bench.command();
    bench.queue.stop(5, None, false);
    std::thread::sleep(Duration::from_millis(20));
    assert!(
        bench.inbox.take(9).is_empty(),
        "ended with a task in flight"
    );
    command.reply.finish(0, Vec::new(), Vec::new());
    assert_eq!(bench.ended(5), 2);
    assert_eq!(bench.poll(1, 0).unwrap().status, 0);
    bench.submit(2, &rw(READ_10, 0, 1), &[], 512);
    bench.queue.kick();
    std::thread::sleep(Duration::from_millis(20));
    assert!(
        bench.poll(2, 0).is_none(),
        "a stopped ring is not looked at"
    );
}

#[test]
fn a_discarded_queue_writes_nothing_more() {
    let mut bench = Bench::new();
    bench.submit(0, &[TEST_UNIT_READY], &[], 0);
    let command = bench.command();
    bench.queue.stop(5, None, true);
    assert_eq!(bench.ended(5), 1);
    command.reply.finish(0, Vec::new(), Vec::new());
    std::thread::sleep(Duration::from_millis(20));
    assert!(bench.poll(0, 0).is_none());
}

#[test]
fn a_chain_without_room_for_a_response_breaks_its_ring_only() {
    let mut bench = Bench::new();
    bench
        .ring
        .add(&[Buffer {
            addr: SLOTS,
            len: 51,
            writable: false,
        }])
        .unwrap();
    bench.ring.publish();
    match bench.message() {
        Message::Notice(Notice::Broken { queue, text }) => {
            assert_eq!(queue.index(), 2);
            assert!(text.contains("response"), "{text}");
        }
        _ => panic!("the ring is not broken"),
    }
    bench.queue.stop(6, None, false);
    assert_eq!(bench.ended(6), 1);
}

#[test]
fn a_truncated_header_is_answered_with_failure() {
    let mut bench = Bench::new();
    let buffers = [
        Buffer {
            addr: SLOTS,
            len: 30,
            writable: false,
        },
        Buffer {
            addr: SLOTS + 0x100,
            len: 108,
            writable: true,
        },
    ];
    bench.ring.add(&buffers).unwrap();
    bench.ring.publish();
    assert_eq!(bench.wait(0, 0).response, 9);
}

#[test]
fn an_ended_worker_leaves_no_queue_behind() {
    let mut bench = Bench::new();
    bench.submit(0, &[TEST_UNIT_READY], &[], 0);
    let _held = bench.command();
    bench.worker.stop();
    bench.worker.stop();
}

// ── Exclusive commands ─────────────────────────────────────────────────────────────────────────

/// A guest that adds 1 to the counters in blocks 0 and 1, time and again, by COMPARE AND WRITE.
struct Counter {
    bench: Bench,
    /// By chain: its slot, and the value that it wants to replace (`None`: it reads).
    started: HashMap<u16, (u64, Option<u32>)>,
    left: u32,
}

impl Counter {
    const SLOTS: u64 = 4;

    fn new(lu: &Arc<Lu>, left: u32) -> Self {
        let mut counter = Self {
            bench: Bench::on(lu),
            started: HashMap::new(),
            left,
        };
        (0..Self::SLOTS).for_each(|slot| counter.read(slot));
        counter
    }

    fn read(&mut self, slot: u64) {
        let head = self.bench.submit(slot, &rw(READ_10, 0, 2), &[], 1024);
        self.started.insert(head, (slot, None));
    }

    fn swap(&mut self, slot: u64, from: u32) {
        let blocks = |value: u32| value.to_le_bytes().repeat(256);
        let data = [blocks(from), blocks(from + 1)].concat();
        let mut cdb = [0; 16];
        (cdb[0], cdb[13]) = (COMPARE_AND_WRITE, 2);
        let head = self.bench.submit(slot, &cdb, &data, 0);
        self.started.insert(head, (slot, Some(from)));
    }

    /// Takes what is complete; whether there is more to come.
    fn step(&mut self) -> bool {
        while let Some((head, used)) = self.bench.ring.pop_used().unwrap() {
            let (slot, wanted) = self.started.remove(&head).unwrap();
            let done = self.bench.response(slot, head, used, 1024);
            assert_eq!(done.response, 0);
            if wanted.is_some() {
                assert!([0, 2].contains(&done.status));
                self.left -= u32::from(done.status == 0);
                self.read(slot);
            } else {
                assert_eq!(done.status, 0);
                let value = &done.data[..4];
                assert!(
                    done.data.chunks(4).all(|each| each == value),
                    "a COMPARE AND WRITE seen half done"
                );
                if self.left > self.swapping() {
                    self.swap(slot, u32::from_le_bytes(value.try_into().unwrap()));
                }
            }
        }
        !self.started.is_empty()
    }

    fn swapping(&self) -> u32 {
        let wanted = self.started.values().filter(|(_, from)| from.is_some());
        wanted.count() as u32
    }
}

#[test]
fn compare_and_write_of_three_workers_never_interleaves() {
    const EACH: u32 = 200;
    let file = tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    file.set_len(64 << 10).unwrap();
    let engine = FileEngine::new(file.into(), None, 64 << 10, false, false).unwrap();
    let lu = unit(Arc::new(engine));
    let mut counters = [0; 3].map(|_| Counter::new(&lu, EACH));
    let start = Instant::now();
    while counters
        .iter_mut()
        .filter_map(|counter| counter.step().then_some(()))
        .count()
        > 0
    {
        assert!(start.elapsed() < 3 * DEADLINE, "a turn never comes");
        std::thread::yield_now();
    }
    let mut bench = Bench::on(&lu);
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    let done = bench.wait(0, 4);
    assert!(counters.iter().all(|counter| counter.left == 0));
    assert_eq!(done.data, (3 * EACH).to_le_bytes());
}

#[test]
fn an_aborted_parked_command_gives_its_turn_back() {
    let (engine, go) = Slow::new();
    let mut bench = Bench::on(&unit(engine));
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (COMPARE_AND_WRITE, 1);
    bench.submit(1, &cdb, &[0; 1024], 0);
    bench.submit(2, &rw(WRITE_10, 9, 1), &[7; 512], 0);
    let scope = |tag| Scope {
        tag: Some(tag),
        ..Scope::default()
    };
    // The exclusive one waits for the read, the write behind it; both can end at once.
    bench.worker.abort(11, Ending::response(RESET), scope(1));
    assert_eq!(bench.ended(11), 1);
    assert_eq!(bench.wait(1, 0).response, RESET);
    bench.worker.abort(12, Ending::response(RESET), scope(2));
    assert_eq!(bench.ended(12), 1);
    assert_eq!(bench.wait(2, 0).response, RESET);
    go.send(()).unwrap();
    assert_eq!(bench.wait(0, 0).status, 0);
    // Turns that came to the aborted ones did not stay with them.
    bench.submit(3, &cdb, &[0; 1024], 0);
    go.send(()).unwrap();
    assert_eq!(bench.wait(3, 0).status, 0);
    bench.submit(4, &rw(READ_10, 9, 1), &[], 512);
    go.send(()).unwrap();
    assert_eq!(bench.wait(4, 512).data, [0; 512], "the aborted write");
}

#[test]
fn a_parked_command_counts_as_running() {
    let (engine, go) = Slow::new();
    let mut bench = Bench::on(&unit(engine));
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (COMPARE_AND_WRITE, 1);
    bench.submit(1, &cdb, &[0; 1024], 0);
    bench.worker.query(20, bench.scope());
    assert_eq!(bench.ended(20), 2);
    bench.worker.quiesce(21, bench.scope());
    go.send(()).unwrap();
    assert_eq!(bench.wait(0, 0).status, 0);
    assert!(bench.inbox.take(1).is_empty(), "one is parked or running");
    go.send(()).unwrap();
    assert_eq!(bench.wait(1, 0).status, 0);
    assert_eq!(bench.ended(21), 2);
}
