//! What a command costs its worker: 512-byte reads that null disks answer, of a ring that is full
//! and polled (nothing but the worker's work), to one disk and to four by turns, and at depths of 32
//! and 1 with kicks and calls through eventfds, as over vhost-user.
//!
//! `cargo bench --no-default-features --bench worker [ROUNDS]` prints nanoseconds a command. With
//! `--features uncounted` every round is done once more without statistics: what they add.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use vscsi_dataplane::engine::null::NullEngine;
use vscsi_dataplane::event::{Call, Event, Kick};
use vscsi_dataplane::inbox::Inbox;
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
const REQUEST: u64 = 0x40_0000;
const RESPONSE: u64 = REQUEST + 0x800;
const DATA: u64 = REQUEST + 0x1000;
const DESCRIPTORS: usize = 3;
const FULL: usize = SIZE as usize / DESCRIPTORS;

/// A read from a LUN.
fn chain(lun: u64) -> [Buffer; DESCRIPTORS] {
    let buffer = |addr, len, writable| Buffer {
        addr,
        len,
        writable,
    };
    [
        buffer(REQUEST + lun * 64, 51, false),
        buffer(RESPONSE, 108, true),
        buffer(DATA, 512, true),
    ]
}

/// A driver, and the worker that serves it.
struct Machine {
    ring: DriverRing<Little>,
    /// None: both sides poll.
    events: Option<Events>,
    nexuses: Vec<Arc<Nexus>>,
    chains: Vec<[Buffer; DESCRIPTORS]>,
    _queue: QueueRef,
    _worker: Worker,
}

struct Events {
    kick: Event,
    call: Event,
}

impl Machine {
    fn new(luns: u8, events: Option<Events>) -> Self {
        let memory = Arc::new(GuestMemory::anonymous(0, 8 << 20).unwrap());
        let config = RingConfig::contiguous(0, SIZE);
        let ring = DriverRing::<Little>::new(&memory, config).unwrap();
        let worker = Worker::start(Arc::new(Inbox::new().unwrap()), "bench", true).unwrap();
        let port = Arc::new(Port::default());
        let disk = |_| Arc::new(Nexus::new(bench::unit(Arc::new(NullEngine::new(64 << 10)))));
        let nexuses: Vec<_> = (0..luns).map(disk).collect();
        let numbers = (0..).map(|lun| (0, lun));
        port.set_luns(numbers.zip(nexuses.iter().cloned()).collect(), &[]);
        let chains: Vec<_> = (0..luns.into()).map(chain).collect();
        for (lun, chain) in (0..luns).zip(&chains) {
            let mut request = vec![1, 0, 0x40, lun, 0, 0, 0, 0];
            request.resize(19, 0);
            request.extend_from_slice(&bench::rw(bench::READ_10, 0, 1));
            request.resize(51, 0);
            memory.load().write(chain[0].addr, &request).unwrap();
        }
        let queue = QueueConfig {
            index: 2,
            kind: Kind::Request,
            ring: config,
            big_endian: false,
            enabled: true,
            notifier: match &events {
                Some(events) => Notifier::Fd(Call::new(events.call.as_fd()).unwrap()),
                None => Notifier::None,
            },
            kick: events
                .as_ref()
                .map(|events| Kick::new(events.kick.as_fd()).unwrap()),
            poll: events.is_none(),
            hostility: None,
        };
        Self {
            ring,
            events,
            nexuses,
            chains,
            _queue: QueueRef::start(&worker, port, memory, queue).unwrap(),
            _worker: worker,
        }
    }

    /// Has `commands` done, so many at a time; nanoseconds for one, from the first kick on.
    fn round(&mut self, commands: usize, depth: usize) -> f64 {
        let (mut added, mut done) = (depth, 0);
        self.add(depth);
        let start = Instant::now();
        loop {
            let kick = self.ring.publish();
            if let Some(events) = self.events.as_ref().filter(|_| kick) {
                events.kick.signal();
            }
            done += self.used();
            if done == commands {
                return start.elapsed().as_nanos() as f64 / commands as f64;
            }
            let more = (commands - added).min(depth - (added - done));
            self.add(more);
            added += more;
        }
    }

    fn add(&mut self, commands: usize) {
        for chain in self.chains.iter().cycle().take(commands) {
            self.ring.add(chain).unwrap();
        }
    }

    /// Commands that its worker has counted.
    fn counted(&self) -> u64 {
        let queues = self.nexuses.iter().flat_map(|nexus| nexus.stats.snapshot());
        let reads = queues.flat_map(|(_, queue)| queue.classes[0].latencies.clone());
        reads.map(|(_, commands)| commands).sum()
    }

    /// Waits for commands that have ended, and takes them all.
    fn used(&mut self) -> usize {
        let mut used = 0;
        loop {
            while self.ring.pop_used().unwrap().is_some() {
                used += 1;
            }
            match &self.events {
                _ if used > 0 => return used,
                Some(events) => wait(&events.call),
                None => {}
            }
        }
    }
}

fn wait(event: &Event) {
    let mut poll = libc::pollfd {
        fd: event.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, -1) };
    event.clear();
}

#[cfg(feature = "uncounted")]
use vscsi_dataplane::worker::set_counted;

#[cfg(not(feature = "uncounted"))]
fn set_counted(_on: bool) {}

fn main() {
    let rounds = std::env::args().find_map(|argument| argument.parse().ok());
    let rounds: usize = rounds.unwrap_or(300);
    let events = || {
        Some(Events {
            kick: Event::new().unwrap(),
            call: Event::new().unwrap(),
        })
    };
    for (name, luns, events, commands, depth) in [
        ("full ring", 1, None, FULL, FULL),
        ("full ring, 4 disks", 4, None, FULL, FULL),
        ("depth 32", 1, events(), 1024, 32),
        ("depth 1", 1, events(), 128, 1),
    ] {
        let mut machine = Machine::new(luns, events);
        let (mut costs, mut ratios) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut cost = |counted| {
                set_counted(counted);
                machine.round(commands, depth)
            };
            if cfg!(feature = "uncounted") {
                let first = cost(round % 2 == 0);
                let second = cost(round % 2 == 1);
                let (with, without) = match round % 2 {
                    0 => (first, second),
                    _ => (second, first),
                };
                costs.push(with);
                ratios.push(with / without);
            } else {
                costs.push(cost(true));
            }
        }
        assert_eq!(machine.counted(), (rounds * commands) as u64);
        let [best, middle] = [0, rounds / 2].map(|at| sorted(&costs)[at]);
        print!("{name}: {middle:.1} ns a command (median of {rounds}, best {best:.1})");
        if cfg!(feature = "uncounted") {
            let [low, middle, high] = [1, 2, 3].map(|quarter| {
                let ratio = sorted(&ratios)[(rounds - 1) * quarter / 4];
                (ratio - 1.0) * 100.0
            });
            print!("; statistics {middle:.2} % (quartiles {low:.2} and {high:.2})");
        }
        println!();
    }
}

fn sorted(costs: &[f64]) -> Vec<f64> {
    let mut costs = costs.to_vec();
    costs.sort_by(f64::total_cmp);
    costs
}
