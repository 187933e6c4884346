//! Statistics end to end: what a driver sees ended is counted, under its unit, queue and class.

mod bench;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::*;
use vscsi_dataplane::engine::memory::MemoryEngine;
use vscsi_dataplane::engine::Engine;
use vscsi_dataplane::lu::Nexus;
use vscsi_dataplane::stats::{upper_bound, Snapshot, Stats};
use vscsi_dataplane::task::Ending;

/// Of the one queue that there is.
fn counted(stats: &Stats) -> Snapshot {
    let mut queues = stats.snapshot();
    assert!(queues.len() <= 1, "{queues:?}");
    queues.pop().map_or_else(Snapshot::default, |(queue, of)| {
        assert_eq!(queue, 2);
        of
    })
}

/// Commands and bytes of each class.
fn classes(stats: &Stats) -> [(u64, u64); 3] {
    counted(stats).classes.map(|class| {
        let commands = class.latencies.iter().map(|(_, commands)| commands).sum();
        (commands, class.bytes)
    })
}

/// Waits until the worker has done what it was asked so far.
fn settled(bench: &Bench) {
    bench.worker.query(99, bench.scope());
    bench.ended(99);
}

/// A second unit, at 0:1, and commands to either.
fn another(bench: &Bench, engine: Arc<dyn Engine>) -> Arc<Nexus> {
    let second = Arc::new(Nexus::new(unit(engine)));
    let units = [((0, 0), bench.nexus.clone()), ((0, 1), second.clone())];
    bench.port.set_luns(HashMap::from(units), &[]);
    second
}

#[test]
fn commands_of_one_batch_are_told_apart() {
    let mut bench = Bench::new();
    let engine = MemoryEngine::new(64 << 10).unwrap();
    let second = another(&bench, Arc::new(engine));
    // Nothing is taken until all of it is there.
    bench.queue.set_enabled(false);
    settled(&bench);
    for slot in 0..12 {
        match slot % 4 {
            0 => bench.submit(slot, &rw(READ_10, 0, 2), &[], 1024),
            1 => bench.submit_to(1, slot, &rw(READ_10, 0, 1), &[], 512),
            2 => bench.submit(slot, &rw(WRITE_10, 0, 1), &[1; 512], 0),
            // Beyond the end.
            _ => bench.submit_to(1, slot, &rw(WRITE_10, 200, 1), &[1; 512], 0),
        };
    }
    bench.queue.set_enabled(true);
    for _ in 0..12 {
        bench.wait(0, 0);
    }
    assert_eq!(classes(&bench.nexus.stats), [(3, 3072), (3, 1536), (0, 0)]);
    assert_eq!(classes(&second.stats), [(3, 1536), (3, 0), (0, 0)]);
    assert!(counted(&bench.nexus.stats).statuses.is_empty());
    assert_eq!(counted(&second.stats).statuses, [(2, 3)]);
}

#[test]
fn a_command_is_counted_when_its_driver_sees_its_end() {
    let mut bench = Bench::new();
    for done in 1..=1000 {
        bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
        bench.wait(0, 512);
        assert_eq!(classes(&bench.nexus.stats)[0], (done, done * 512));
    }
}

#[test]
fn commands_under_way_are_in_flight_and_their_time_is_counted() {
    let (engine, go) = Slow::new();
    let mut bench = Bench::on(&unit(engine));
    let start = Instant::now();
    for slot in 0..3 {
        bench.submit(slot, &rw(READ_10, 0, 1), &[], 512);
    }
    while counted(&bench.nexus.stats).in_flight < 3 {
        assert!(start.elapsed() < DEADLINE);
    }
    let shortest = Instant::now();
    while shortest.elapsed() < Duration::from_millis(2) {}
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    for _ in 0..3 {
        bench.wait(0, 0);
    }
    let whole = start.elapsed();
    let end = counted(&bench.nexus.stats);
    assert_eq!(end.in_flight, 0);
    let latencies = &end.classes[0].latencies;
    assert_eq!(latencies.iter().map(|(_, count)| count).sum::<u64>(), 3);
    for (bucket, _) in latencies {
        let latency = Duration::from_nanos(upper_bound(*bucket));
        assert!(latency >= Duration::from_millis(2), "{latency:?}");
        // By a bucket's width and the clocks' difference.
        assert!(
            latency <= whole * 17 / 16 + Duration::from_micros(1),
            "{latency:?}"
        );
    }
}

#[test]
fn an_aborted_command_is_counted_as_such() {
    let mut bench = Bench::new();
    bench.submit(0, &[TEST_UNIT_READY, 0, 0, 0, 0, 0], &[], 0);
    let _command = bench.command();
    settled(&bench);
    assert_eq!(counted(&bench.nexus.stats).in_flight, 1);
    let scope = bench.scope();
    bench.worker.abort(1, Ending::response(RESET), scope);
    bench.wait(0, 0);
    let end = counted(&bench.nexus.stats);
    assert_eq!(end.in_flight, 0);
    assert_eq!(end.responses, [(RESET, 1)]);
    assert_eq!(classes(&bench.nexus.stats)[2], (1, 0));
}

#[test]
fn commands_for_no_unit_are_the_ports() {
    let mut bench = Bench::new();
    bench.submit_to(5, 0, &[TEST_UNIT_READY, 0, 0, 0, 0, 0], &[], 0);
    let command = bench.command();
    settled(&bench);
    assert_eq!(counted(&bench.port.stats).in_flight, 1);
    command.reply.finish(2, vec![0x70], Vec::new());
    bench.wait(0, 0);
    bench.port.set_luns(HashMap::new(), &[]);
    bench.submit(0, &rw(READ_10, 0, 1), &[], 512);
    assert_eq!(bench.wait(0, 0).response, 3);
    let end = counted(&bench.port.stats);
    assert_eq!(end.in_flight, 0);
    assert_eq!((end.statuses, end.responses), (vec![(2, 1)], vec![(3, 1)]));
    assert_eq!(classes(&bench.port.stats), [(0, 0), (0, 0), (2, 0)]);
    assert_eq!(counted(&bench.nexus.stats), Snapshot::default());
}
