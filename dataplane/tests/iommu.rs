//! Workers behind an IOMMU: misses, permission faults and invalidations while I/O runs.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use libc::iovec;
use vscsi_dataplane::engine::{Cursor, Engine, Io, IoKind};
use vscsi_dataplane::inbox::{Inbox, Message, Notice};
use vscsi_dataplane::lu::{Lu, Nexus, RouteTable};
use vscsi_dataplane::memory::{Access, Fault, GuestMemory};
use vscsi_dataplane::notifier::Notifier;
use vscsi_dataplane::policy::{LunPolicy, Qerr};
use vscsi_dataplane::port::Port;
use vscsi_dataplane::ring::driver::{Buffer, DriverRing};
use vscsi_dataplane::ring::{Little, RingConfig};
use vscsi_dataplane::task::Ending;
use vscsi_dataplane::worker::{Kind, QueueConfig, QueueRef, Scope, Worker};

const SIZE: u16 = 64;
const PAGE: u64 = 4096;
/// Pages of the ring, then four for each request: headers, response, data.
const RING: u64 = 4 * PAGE;
const SLOT: u64 = 4 * PAGE;
/// From guest addresses to I/O addresses.
const SHIFT: u64 = 1 << 40;
const DEADLINE: Duration = Duration::from_secs(10);

const READ_10: u8 = 0x28;
const TEST_UNIT_READY: u8 = 0x00;
const PATTERN: u8 = 0xa5;

/// Reads as `PATTERN`, but not before it is opened; optionally fails with an errno.
#[derive(Default)]
struct Doors {
    open: Mutex<bool>,
    opened: Condvar,
    errno: Option<i32>,
}

impl Doors {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl Engine for Doors {
    fn size(&self) -> u64 {
        64 << 10
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
        let open = self.open.lock().unwrap();
        let (open, _) = self
            .opened
            .wait_timeout_while(open, DEADLINE, |open| !*open)
            .unwrap();
        if !*open {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let Some(errno) = self.errno {
            return Err(io::Error::from_raw_os_error(errno));
        }
        assert_eq!(io.kind, IoKind::Read);
        let bytes = vec![PATTERN; io.len as usize];
        Ok(Cursor::new(iov).write(&bytes) as u64)
    }
}

struct Bench {
    memory: Arc<GuestMemory>,
    ring: DriverRing<Little>,
    inbox: Arc<Inbox>,
    worker: Worker,
    queue: QueueRef,
    port: Arc<Port>,
    engine: Arc<Doors>,
}

impl Bench {
    /// The queue is started, and nothing is mapped.
    fn new(engine: Doors) -> Self {
        let memory = Arc::new(GuestMemory::anonymous(0, 1 << 20).unwrap());
        let config = RingConfig {
            desc: 0,
            driver: PAGE,
            device: 2 * PAGE,
            ..RingConfig::contiguous(0, SIZE)
        };
        let ring = DriverRing::new(&memory, config).unwrap();
        let inbox = Arc::new(Inbox::new().unwrap());
        let worker = Worker::start(inbox.clone(), "test", false).unwrap();
        let mut routes = [0; 256];
        routes[usize::from(READ_10)] = 1;
        let engine = Arc::new(engine);
        let lu = Arc::new(Lu::new(
            engine.clone(),
            LunPolicy {
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
                max_compare_and_write_blocks: 0,
                max_atomic_blocks: 0,
                atomic_granularity_blocks: 0,
                qerr: Qerr::Nothing,
                restricted_reordering: false,
            },
            RouteTable::new(&routes, &HashMap::new(), &[]).unwrap(),
            0,
        ));
        let port = Arc::new(Port::default());
        port.set_luns(HashMap::from([((0, 0), Arc::new(Nexus::new(lu)))]), &[]);
        let translated = RingConfig {
            desc: config.desc + SHIFT,
            driver: config.driver + SHIFT,
            device: config.device + SHIFT,
            translated: true,
            ..config
        };
        let config = QueueConfig {
            index: 2,
            kind: Kind::Request,
            ring: translated,
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
            engine,
        }
    }

    /// As `new`, with the ring mapped and its misses taken.
    fn started(engine: Doors) -> Self {
        let bench = Self::new(engine);
        for page in 0..3 {
            let expected = if page < 2 {
                Access::READ
            } else {
                Access::WRITE
            };
            assert_eq!(bench.miss(), fault(page * PAGE, expected));
            bench.map(page * PAGE, PAGE, expected.bits());
        }
        bench
    }

    fn map(&self, guest: u64, size: u64, bits: u8) {
        let access = Access::from_bits(bits).unwrap();
        self.memory
            .iotlb_update(guest + SHIFT, size, guest, access)
            .unwrap();
    }

    fn unmap(&self, token: u64, guest: u64, size: u64) {
        self.memory.iotlb_invalidate(guest + SHIFT, size);
        self.worker
            .quiesce_range(token, self.memory.clone(), guest + SHIFT, size);
    }

    /// Takes the used ring away, which the worker, as it polls, soon misses.
    fn unmap_used_ring(&self, token: u64) {
        self.unmap(token, 2 * PAGE, PAGE);
        let (mut ended, mut missed) = (false, false);
        while !(ended && missed) {
            match self.message(DEADLINE) {
                Some(Message::Notice(Notice::Done { token: t, value })) if t == token => {
                    assert_eq!(value, 0, "no command uses the used ring's page");
                    ended = true;
                }
                Some(Message::Notice(Notice::Miss { fault: found, .. })) => {
                    assert_eq!(found, fault(2 * PAGE, Access::WRITE));
                    missed = true;
                }
                _ => panic!("neither the end nor a miss"),
            }
        }
    }

    fn at(slot: u64) -> u64 {
        RING + slot * SLOT
    }

    /// Request header, response and data in a page each.
    fn submit(&mut self, slot: u64, opcode: u8, data_in: u32) -> u16 {
        let at = Self::at(slot);
        let mut header = vec![1, 0, 0x40, 0, 0, 0, 0, 0];
        header.extend_from_slice(&slot.to_le_bytes());
        header.extend_from_slice(&[0, 0, 0]);
        header.extend_from_slice(&[opcode, 0, 0, 0, 0, 0, 0, 0, (data_in / 512) as u8, 0]);
        header.resize(51, 0);
        let map = self.memory.load();
        map.write(at, &header).unwrap();
        map.write(at + PAGE, &[0xee; 108]).unwrap();
        map.write(at + 2 * PAGE, &[0; 512]).unwrap();
        let buffer = |page: u64, len, writable| Buffer {
            addr: at + page * PAGE + SHIFT,
            len,
            writable,
        };
        let mut buffers = vec![buffer(0, 51, false), buffer(1, 108, true)];
        if data_in > 0 {
            buffers.push(buffer(2, data_in, true));
        }
        let head = self.ring.add(&buffers).unwrap();
        self.ring.publish();
        head
    }

    fn map_slot(&self, slot: u64) {
        self.map(Self::at(slot), PAGE, 1);
        self.map(Self::at(slot) + PAGE, 2 * PAGE, 2);
    }

    /// (status, response, first byte of data)
    fn response(&self, slot: u64) -> (u8, u8, u8) {
        let mut bytes = [0; 12];
        let mut data = [0];
        let map = self.memory.load();
        map.read(Self::at(slot) + PAGE, &mut bytes).unwrap();
        map.read(Self::at(slot) + 2 * PAGE, &mut data).unwrap();
        (bytes[10], bytes[11], data[0])
    }

    fn used(&mut self) -> u16 {
        let start = Instant::now();
        loop {
            if let Some((head, _)) = self.ring.pop_used().unwrap() {
                return head;
            }
            assert!(start.elapsed() < DEADLINE, "no completion");
            std::thread::yield_now();
        }
    }

    fn message(&self, wait: Duration) -> Option<Message> {
        let mut poll = libc::pollfd {
            fd: self.inbox.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        unsafe { libc::poll(&raw mut poll, 1, wait.as_millis() as i32) };
        self.inbox.take(1).pop()
    }

    fn miss(&self) -> Fault {
        match self.message(DEADLINE) {
            Some(Message::Notice(Notice::Miss { queue, fault })) => {
                assert_eq!(queue.index(), 2);
                fault
            }
            Some(Message::Notice(Notice::Broken { text, .. })) => panic!("broken: {text}"),
            other => panic!(
                "no miss, {}",
                if other.is_some() {
                    "but another"
                } else {
                    "nothing"
                }
            ),
        }
    }

    fn ended(&self, token: u64) -> u64 {
        match self.message(DEADLINE) {
            Some(Message::Notice(Notice::Done { token: t, value })) if t == token => value,
            _ => panic!("call {token} did not end next"),
        }
    }

    fn broken(&self) -> String {
        match self.message(DEADLINE) {
            Some(Message::Notice(Notice::Broken { text, .. })) => text,
            _ => panic!("the ring did not break next"),
        }
    }

    #[track_caller]
    fn quiet(&self) {
        let message = self.message(Duration::from_millis(30));
        assert!(message.is_none(), "something in the inbox");
    }
}

fn fault(guest: u64, access: Access) -> Fault {
    Fault {
        iova: guest + SHIFT,
        access,
    }
}

fn open() -> Doors {
    Doors {
        open: Mutex::new(true),
        ..Doors::default()
    }
}

#[test]
fn a_command_goes_through_a_miss_at_every_page() {
    let mut bench = Bench::started(open());
    let head = bench.submit(0, READ_10, 512);
    let at = Bench::at(0);
    for (page, access) in [(0, Access::READ), (1, Access::WRITE), (2, Access::WRITE)] {
        assert_eq!(bench.miss(), fault(at + page * PAGE, access));
        // Kicks and polls ask no second time.
        bench.queue.kick();
        bench.quiet();
        bench.map(at + page * PAGE, PAGE, access.bits());
    }
    assert_eq!(bench.used(), head);
    assert_eq!(bench.response(0), (0, 0, PATTERN));
    bench.quiet();
}

#[test]
fn a_completion_waits_for_its_used_ring() {
    let mut bench = Bench::started(Doors::default());
    bench.map_slot(0);
    bench.submit(0, READ_10, 512);
    bench.worker.query(1, Scope::default());
    assert_eq!(bench.ended(1), 1);
    bench.unmap_used_ring(2);
    bench.engine.open();
    bench.quiet();
    assert!(bench.ring.pop_used().unwrap().is_none());
    bench.map(2 * PAGE, PAGE, 2);
    bench.used();
    assert_eq!(bench.response(0), (0, 0, PATTERN));
}

#[test]
fn an_invalidation_ends_after_the_commands_that_use_the_range() {
    let mut bench = Bench::started(Doors::default());
    for slot in 0..2 {
        bench.map_slot(slot);
        bench.submit(slot, READ_10, 512);
    }
    bench.map_slot(2);
    bench.submit(2, TEST_UNIT_READY, 0);
    let Some(Message::Command(asked)) = bench.message(DEADLINE) else {
        panic!("no command for Python")
    };
    // Other memory, and memory of no command: at once.
    bench.unmap(1, Bench::at(9), SLOT);
    assert_eq!(bench.ended(1), 0);
    let other = Arc::new(GuestMemory::new());
    bench.worker.quiesce_range(2, other, 0, 0);
    assert_eq!(bench.ended(2), 0);
    // Memory of a command that Python has.
    bench.unmap(3, Bench::at(2), SLOT);
    bench.quiet();
    asked.reply.finish(0, Vec::new(), Vec::new());
    assert_eq!(bench.ended(3), 1);
    // Memory of a command that the engine has: one byte is enough.
    bench.unmap(4, Bench::at(1) + 2 * PAGE + 511, 1);
    bench.quiet();
    assert_eq!(bench.response(1).2, 0);
    bench.engine.open();
    assert_eq!(bench.ended(4), 1);
    assert_eq!(
        bench.response(1),
        (0, 0, PATTERN),
        "before the invalidation was acknowledged"
    );
    // All.
    bench.unmap(5, 0, 0);
    loop {
        match bench.message(DEADLINE) {
            Some(Message::Notice(Notice::Done { token: 5, .. })) => break,
            Some(Message::Notice(Notice::Miss { .. })) => {}
            _ => panic!("neither a miss nor the end"),
        }
    }
}

#[test]
fn a_forbidden_address_is_named_and_breaks_the_ring() {
    let mut bench = Bench::started(open());
    bench.map_slot(0);
    bench.map(Bench::at(0) + PAGE, PAGE, 1);
    bench.submit(0, READ_10, 512);
    match bench.message(DEADLINE) {
        Some(Message::Notice(Notice::Denied {
            queue,
            fault: found,
        })) => {
            assert_eq!(queue.index(), 2);
            assert_eq!(found, fault(Bench::at(0) + PAGE, Access::WRITE));
        }
        _ => panic!("not told"),
    }
    let text = bench.broken();
    assert!(
        text.contains("forbids writing") && text.contains("0x10000005000"),
        "{text}"
    );
    bench.map_slot(0);
    bench.queue.kick();
    bench.quiet();
    assert!(bench.ring.pop_used().unwrap().is_none());
}

#[test]
fn a_parked_queue_ends_promptly() {
    for discard in [false, true] {
        let mut bench = Bench::started(Doors::default());
        bench.map_slot(0);
        bench.submit(0, READ_10, 512);
        bench.worker.query(1, Scope::default());
        assert_eq!(bench.ended(1), 1);
        bench.submit(1, READ_10, 512);
        bench.miss();
        // TMFs pass by what the ring holds back, and wait for what runs only.
        let scope = || Scope {
            port: Some(bench.port.clone()),
            ..Scope::default()
        };
        bench.worker.query(2, scope());
        assert_eq!(bench.ended(2), 1);
        bench.worker.abort(3, Ending::response(4), scope());
        bench.quiet();
        bench.engine.open();
        assert_eq!(bench.ended(3), 1);
        bench.queue.stop(4, None, discard);
        assert_eq!(bench.ended(4), 1, "the second command stays in the ring");
        bench.map_slot(1);
        bench.quiet();
    }
}

#[test]
fn a_queue_that_ends_without_its_used_ring_says_so() {
    let mut bench = Bench::started(Doors::default());
    bench.map_slot(0);
    bench.submit(0, READ_10, 512);
    bench.worker.query(1, Scope::default());
    assert_eq!(bench.ended(1), 1);
    bench.unmap_used_ring(2);
    bench.queue.stop(3, None, false);
    bench.engine.open();
    let warned = bench.message(DEADLINE);
    assert!(matches!(
        warned,
        Some(Message::Notice(Notice::Warning { .. }))
    ));
    assert_eq!(bench.ended(3), 1);
}

#[test]
fn a_queue_can_be_given_up_while_it_waits() {
    let bench = Bench::new(open());
    bench.miss();
    bench.queue.fail("no mapping".into());
    assert_eq!(bench.broken(), "no mapping");
    bench.map(0, RING, 3);
    bench.quiet();
    bench.queue.stop(1, None, false);
    assert_eq!(bench.ended(1), 0);
}

/// EFAULT: the kernel found the guest's memory gone, as SIGBUS would have told us.
#[test]
fn memory_that_the_kernel_cannot_reach_breaks_the_ring() {
    let mut bench = Bench::started(Doors {
        errno: Some(libc::EFAULT),
        ..open()
    });
    bench.map_slot(0);
    bench.submit(0, READ_10, 512);
    let text = bench.broken();
    assert!(text.contains("truncated"), "{text}");
    assert!(bench.memory.is_dead());
    assert!(bench.ring.pop_used().unwrap().is_none());
}

/// A driver that maps each request for its I/O and unmaps it before it looks at the data, while
/// the ring itself comes and goes. Every completion arrives, with the right data.
#[test]
fn mappings_churn_while_commands_run() {
    let mut bench = Bench::started(open());
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 16) % limit
    };
    const SLOTS: u64 = 12;
    let mut slots: HashMap<u16, u64> = HashMap::new();
    let (mut done, mut token) = (0, 100);
    let start = Instant::now();
    while done < 3_000 {
        assert!(
            start.elapsed() < 3 * DEADLINE,
            "{done} done, {} wait",
            slots.len()
        );
        let slot = random(SLOTS);
        if random(2) == 0 && !slots.values().any(|&busy| busy == slot) {
            let head = bench.submit(slot, READ_10, 512);
            slots.insert(head, slot);
        }
        if random(8) == 0 {
            token += 1;
            let page = random(3);
            bench.unmap(token, page * PAGE, PAGE);
        }
        while let Some(message) = bench.message(Duration::ZERO) {
            match message {
                // As an IOMMU answers: what the guest maps there.
                Message::Notice(Notice::Miss { fault, .. }) => {
                    bench.map(
                        (fault.iova - SHIFT) & !(PAGE - 1),
                        PAGE,
                        fault.access.bits(),
                    );
                }
                Message::Notice(Notice::Done { .. }) => {}
                Message::Notice(Notice::Broken { text, .. }) => panic!("broken: {text}"),
                _ => panic!("unexpected message"),
            }
        }
        while let Some((head, _)) = bench.ring.pop_used().unwrap() {
            let slot = slots.remove(&head).unwrap();
            assert_eq!(bench.response(slot), (0, 0, PATTERN));
            token += 1;
            bench.unmap(token, Bench::at(slot), SLOT);
            done += 1;
        }
    }
}
