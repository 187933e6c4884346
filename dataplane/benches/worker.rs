//! What a command costs its worker: a ring full of reads that a null disk answers, offered at once.
//! `cargo bench --no-default-features --bench worker [ROUNDS]` prints nanoseconds a command.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use vscsi_dataplane::engine::null::NullEngine;
use vscsi_dataplane::lu::Nexus;
use vscsi_dataplane::memory::GuestMemory;
use vscsi_dataplane::notifier::Notifier;
use vscsi_dataplane::port::Port;
use vscsi_dataplane::ring::driver::{Buffer, DriverRing};
use vscsi_dataplane::ring::{Little, RingConfig};
use vscsi_dataplane::worker::{Kind, QueueConfig, QueueRef, Worker};

#[path = "../tests/bench/mod.rs"]
mod bench;

const SIZE: u16 = 8192;
/// A chain is three descriptors: request, response, data.
const COMMANDS: usize = SIZE as usize / 3;
const REQUEST: u64 = 0x40_0000;
const RESPONSE: u64 = REQUEST + 0x100;
const DATA: u64 = REQUEST + 0x1000;

fn main() {
    let rounds = std::env::args().find_map(|argument| argument.parse().ok());
    let rounds: usize = rounds.unwrap_or(300);
    let memory = Arc::new(GuestMemory::anonymous(0, 8 << 20).unwrap());
    let config = RingConfig::contiguous(0, SIZE);
    let mut ring = DriverRing::<Little>::new(&memory, config).unwrap();
    let inbox = Arc::new(vscsi_dataplane::inbox::Inbox::new().unwrap());
    let worker = Worker::start(inbox, "bench", true).unwrap();
    let port = Arc::new(Port::default());
    let nexus = Arc::new(Nexus::new(bench::unit(Arc::new(NullEngine::new(64 << 10)))));
    port.set_luns(HashMap::from([((0, 0), nexus)]), &[]);
    let mut header = vec![1, 0, 0x40, 0, 0, 0, 0, 0];
    header.resize(19, 0);
    header.extend_from_slice(&bench::rw(bench::READ_10, 0, 1));
    header.resize(51, 0);
    memory.load().write(REQUEST, &header).unwrap();
    let queue = QueueConfig {
        index: 2,
        kind: Kind::Request,
        ring: config,
        big_endian: false,
        enabled: true,
        notifier: Notifier::None,
        kick: None,
        poll: true,
        hostility: None,
    };
    let _queue = QueueRef::start(&worker, port, memory.clone(), queue).unwrap();

    let chain = [
        (REQUEST, 51, false),
        (RESPONSE, 108, true),
        (DATA, 512, true),
    ];
    let chain = chain.map(|(addr, len, writable)| Buffer {
        addr,
        len,
        writable,
    });
    let mut costs: Vec<f64> = (0..rounds)
        .map(|_| {
            for _ in 0..COMMANDS {
                ring.add(&chain).unwrap();
            }
            let start = Instant::now();
            ring.publish();
            let mut done = 0;
            while done < COMMANDS {
                done += usize::from(ring.pop_used().unwrap().is_some());
            }
            start.elapsed().as_nanos() as f64 / COMMANDS as f64
        })
        .collect();
    costs.sort_by(f64::total_cmp);
    println!(
        "{:.1} ns a command (median of {rounds}; best {:.1}, worst {:.1})",
        costs[rounds / 2],
        costs[0],
        costs[rounds - 1]
    );
}
