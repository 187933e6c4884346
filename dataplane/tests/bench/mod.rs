//! A driver's ring on one side of a worker, the inbox on the other.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{mpsc, Arc, Mutex};
use std::time::{Duration, Instant};

use libc::iovec;
use vscsi_dataplane::engine::memory::MemoryEngine;
use vscsi_dataplane::engine::{Engine, Io, IoKind};
use vscsi_dataplane::inbox::{Command, Inbox, Message, Notice};
use vscsi_dataplane::lu::{Lu, Nexus, RouteTable};
use vscsi_dataplane::memory::GuestMemory;
use vscsi_dataplane::notifier::Notifier;
use vscsi_dataplane::policy::{LunPolicy, Qerr};
use vscsi_dataplane::port::Port;
use vscsi_dataplane::ring::driver::{Buffer, DriverRing};
use vscsi_dataplane::ring::{Little, RingConfig};
use vscsi_dataplane::worker::{Kind, QueueConfig, QueueRef, Scope, Worker};

pub const SIZE: u16 = 64;
pub const SLOT: u64 = 0x2000;
pub const SLOTS: u64 = 0x10000;
pub const DEADLINE: Duration = Duration::from_secs(10);

pub const READ_10: u8 = 0x28;
pub const WRITE_10: u8 = 0x2a;
pub const COMPARE_AND_WRITE: u8 = 0x89;
pub const TEST_UNIT_READY: u8 = 0x00;

pub const SIMPLE: u8 = 0;
pub const ORDERED: u8 = 1;
pub const HEAD_OF_QUEUE: u8 = 2;
pub const ACA: u8 = 3;

pub const RESET: u8 = 4;

/// A disk of 64 KiB.
pub fn unit(engine: Arc<dyn Engine>) -> Arc<Lu> {
    limited_unit(engine, 0)
}

pub fn limited_unit(engine: Arc<dyn Engine>, queue_depth: u32) -> Arc<Lu> {
    let mut routes = [0; 256];
    routes[usize::from(READ_10)] = 1;
    routes[usize::from(WRITE_10)] = 2;
    routes[usize::from(COMPARE_AND_WRITE)] = 2;
    let policy = LunPolicy {
        block_size: 512,
        blocks: 128,
        write_protected: false,
        write_cache: true,
        descriptor_sense: false,
        max_transfer_blocks: 0,
        max_write_same_blocks: 0,
        max_unmap_blocks: 0,
        max_unmap_descriptors: 0,
        unmap: false,
        max_compare_and_write_blocks: 255,
        max_atomic_blocks: 0,
        atomic_granularity_blocks: 0,
        qerr: Qerr::Nothing,
        restricted_reordering: false,
    };
    let routes = RouteTable::new(&routes, &HashMap::new(), &[]).unwrap();
    Arc::new(Lu::new(engine, policy, routes, queue_depth))
}

/// One guest with one request queue, target 0 LUN 0 a memory disk of 64 KiB.
pub struct Bench {
    pub memory: Arc<GuestMemory>,
    pub ring: DriverRing<Little>,
    pub inbox: Arc<Inbox>,
    pub worker: Worker,
    pub queue: QueueRef,
    pub port: Arc<Port>,
    pub nexus: Arc<Nexus>,
}

pub struct Done {
    pub head: u16,
    pub used: u32,
    pub residual: u32,
    pub status: u8,
    pub response: u8,
    pub data: Vec<u8>,
}

impl Bench {
    pub fn new() -> Self {
        Self::on(&unit(Arc::new(MemoryEngine::new(64 << 10).unwrap())))
    }

    /// With a worker and a nexus of its own.
    pub fn on(lu: &Arc<Lu>) -> Self {
        Self::through(Arc::new(Nexus::new(lu.clone())))
    }

    /// With a worker of its own.
    pub fn through(nexus: Arc<Nexus>) -> Self {
        let memory = Arc::new(GuestMemory::anonymous(0, 1 << 20).unwrap());
        let ring_config = RingConfig::contiguous(0, SIZE);
        let ring = DriverRing::new(&memory, ring_config).unwrap();
        let inbox = Arc::new(Inbox::new().unwrap());
        let worker = Worker::start(inbox.clone(), "test", true).unwrap();
        let port = Arc::new(Port::default());
        port.set_luns(HashMap::from([((0, 0), nexus.clone())]), &[]);
        let config = QueueConfig {
            index: 2,
            kind: Kind::Request,
            ring: ring_config,
            big_endian: false,
            enabled: true,
            notifier: Notifier::None,
            kick: None,
            poll: true,
            hostility: None,
        };
        let queue = QueueRef::start(&worker, port.clone(), memory.clone(), config).unwrap();
        Self {
            memory,
            ring,
            inbox,
            worker,
            queue,
            port,
            nexus,
        }
    }

    /// A SIMPLE command in a slot, with up to 4 KiB of data at its end; its tag is the slot.
    pub fn submit(&mut self, slot: u64, cdb: &[u8], out: &[u8], data_in: u32) -> u16 {
        self.submit_as(SIMPLE, slot, cdb, out, data_in)
    }

    pub fn submit_as(
        &mut self,
        attribute: u8,
        slot: u64,
        cdb: &[u8],
        out: &[u8],
        data_in: u32,
    ) -> u16 {
        self.submit_at([0, attribute], slot, cdb, out, data_in)
    }

    /// SIMPLE, to another LUN of target 0.
    pub fn submit_to(&mut self, lun: u8, slot: u64, cdb: &[u8], out: &[u8], data_in: u32) -> u16 {
        self.submit_at([lun, SIMPLE], slot, cdb, out, data_in)
    }

    fn submit_at(
        &mut self,
        [lun, attribute]: [u8; 2],
        slot: u64,
        cdb: &[u8],
        out: &[u8],
        data_in: u32,
    ) -> u16 {
        let at = SLOTS + slot * SLOT;
        let mut header = vec![1, 0, 0x40, lun, 0, 0, 0, 0];
        header.extend_from_slice(&slot.to_le_bytes());
        header.extend_from_slice(&[attribute, 0, 0]);
        header.extend_from_slice(cdb);
        header.resize(51, 0);
        self.write(at, &header);
        self.write(at + 0x100, &[0xee; 108]);
        self.write(at + 0x1000, out);
        let mut buffers = vec![Buffer {
            addr: at,
            len: 51,
            writable: false,
        }];
        if !out.is_empty() {
            buffers.push(Buffer {
                addr: at + 0x1000,
                len: out.len() as u32,
                writable: false,
            });
        }
        buffers.push(Buffer {
            addr: at + 0x100,
            len: 108,
            writable: true,
        });
        if data_in > 0 {
            buffers.push(Buffer {
                addr: at + 0x1000,
                len: data_in,
                writable: true,
            });
        }
        let head = self.ring.add(&buffers).unwrap();
        self.ring.publish();
        head
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.load().write(at, bytes).unwrap();
    }

    pub fn poll(&mut self, slot: u64, data_in: usize) -> Option<Done> {
        let (head, used) = self.ring.pop_used().unwrap()?;
        Some(self.response(slot, head, used, data_in))
    }

    pub fn response(&self, slot: u64, head: u16, used: u32, data_in: usize) -> Done {
        let mut bytes = [0; 108];
        let map = self.memory.load();
        map.read(SLOTS + slot * SLOT + 0x100, &mut bytes).unwrap();
        let mut data = vec![0; data_in];
        map.read(SLOTS + slot * SLOT + 0x1000, &mut data).unwrap();
        let residual = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        Done {
            head,
            used,
            residual,
            status: bytes[10],
            response: bytes[11],
            data,
        }
    }

    pub fn wait(&mut self, slot: u64, data_in: usize) -> Done {
        let start = Instant::now();
        loop {
            if let Some(done) = self.poll(slot, data_in) {
                return done;
            }
            assert!(start.elapsed() < DEADLINE, "no completion");
            std::thread::yield_now();
        }
    }

    pub fn message(&self) -> Message {
        let mut poll = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.inbox.as_fd()),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, DEADLINE.as_millis() as i32) };
        assert_eq!(ready, 1, "nothing in the inbox");
        self.inbox
            .take(1)
            .pop()
            .expect("the eventfd says there is something")
    }

    pub fn command(&self) -> Command {
        match self.message() {
            Message::Command(command) => command,
            Message::Notice(Notice::Done { token, .. }) => panic!("done {token}, no command"),
            Message::Notice(Notice::Broken { text, .. }) => panic!("broken: {text}"),
            _ => panic!("no command"),
        }
    }

    /// Waits for the end of call `token`; its value.
    pub fn ended(&self, token: u64) -> u64 {
        match self.message() {
            Message::Notice(Notice::Done {
                token: ended,
                value,
            }) if ended == token => value,
            _ => panic!("something else before the end of call {token}"),
        }
    }

    pub fn scope(&self) -> Scope {
        Scope {
            port: Some(self.port.clone()),
            lu: Some(self.nexus.lu.clone()),
            ..Scope::default()
        }
    }
}

pub fn rw(opcode: u8, lba: u8, blocks: u8) -> [u8; 10] {
    [opcode, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

/// An engine whose reads wait until they are let go.
pub struct Slow {
    inner: MemoryEngine,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Slow {
    /// The engine, and what lets a read go each time.
    pub fn new() -> (Arc<Self>, mpsc::Sender<()>) {
        let (go, wait) = mpsc::channel();
        let inner = MemoryEngine::new(64 << 10).unwrap();
        let go_on = Mutex::new(wait);
        (Arc::new(Self { inner, go: go_on }), go)
    }
}

impl Engine for Slow {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn can_discard(&self) -> bool {
        false
    }
    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        (io.kind != IoKind::Read).then(|| self.inner.run(io, iov))
    }
    fn sqe(&self, _: &Io, _: &[iovec]) -> Option<io_uring::squeue::Entry> {
        None
    }
    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        if io.kind == IoKind::Read {
            self.go.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        }
        self.inner.run(io, iov)
    }
}
