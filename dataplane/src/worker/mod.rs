//! Workers: threads that take tasks from rings, do what they may, and ask Python the rest.
//!
//! This file is what others see: a `Worker` to give queues to, a `QueueRef` to steer a queue, a
//! `Reply` to answer a task. All of them only put `Mail` into the worker's mailbox; the worker's
//! state belongs to its thread alone (`thread.rs`, and the files that say `impl Thread`).

mod account;
mod admission;
mod begin;
mod drain;
mod end;
mod events;
mod execute;
mod fault;
mod mail;
mod queue;
mod queues;
mod scope;
mod thread;
mod timers;
mod uring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::event::{Event, Kick};
use crate::fault::Rule;
use crate::inbox::Inbox;
use crate::lu::{Lu, Nexus};
use crate::memory::GuestMemory;
use crate::notifier::Notifier;
use crate::passthrough::Passed;
use crate::port::Port;
use crate::ring::hostile::{HostileRing, Hostility};
use crate::ring::{self, RingConfig, RingError};
use crate::sbc::Outcome;
use crate::task::{Ending, TaskRef};
use crate::task_set::{Held, Role};
use crate::trace::Trace;
use crate::turn::Turn;
use crate::wire;

/// Switches the statistics of all workers off and on, to measure what they cost.
#[cfg(feature = "uncounted")]
pub fn set_counted(on: bool) {
    account::COUNTED.store(on, Ordering::Relaxed);
}

/// What a queue carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Control,
    Event,
    Request,
}

/// Which commands a drain means; `None` matches all.
#[derive(Clone, Default)]
pub struct Scope {
    pub port: Option<Arc<Port>>,
    pub lu: Option<Arc<Lu>>,
    pub nexus: Option<Arc<Nexus>>,
    pub tag: Option<u64>,
    /// OPERATION CODEs; none: all.
    pub opcodes: Vec<u8>,
    /// Only commands with this stamp or a lower one ([`Held::stamp`]).
    pub until: Option<u64>,
}

impl Scope {
    /// The task set of which this is a part, unless it means single commands.
    fn set(&self) -> Option<Arc<Lu>> {
        let lu = match &self.nexus {
            Some(nexus) => Some(nexus.lu.clone()),
            None => self.lu.clone(),
        };
        lu.filter(|_| self.tag.is_none())
    }
}

/// How Python or a pool thread answers a task.
pub(crate) enum Answer {
    /// Python's: response OK with a SAM status.
    Finish {
        status: u8,
        sense: Vec<u8>,
        data_in: Vec<u8>,
    },
    /// Python's: a media command, to be run by the same code as on the fast way.
    Execute,
    /// Python's: a response other than OK.
    Fail { response: u8 },
    /// Python's, to a control request.
    Control { reply: Vec<u8> },
    /// A pool thread's: an engine call ended.
    Io(io::Result<u64>),
    /// A pool thread's: a media job ended.
    Job(Outcome),
    /// A device's: a command that passed to it ended.
    Passed(Passed),
}

pub(crate) enum Mail {
    Attach(Box<queue::Run>),
    Enable {
        queue: u64,
        on: bool,
    },
    Notifier {
        queue: u64,
        notifier: Notifier,
    },
    Kick {
        queue: u64,
    },
    /// What a parked queue waited for is mapped.
    Notify {
        queue: u64,
    },
    Unpark {
        queue: u64,
    },
    Fail {
        queue: u64,
        text: String,
    },
    KickFd {
        queue: u64,
        kick: Option<Kick>,
        poll: bool,
    },
    PushEvent {
        queue: u64,
        token: u64,
        event: Vec<u8>,
    },
    WantEventBuffers {
        queue: u64,
    },
    Stop {
        queue: u64,
        token: u64,
        abort: Option<u8>,
        discard: bool,
    },
    Answer {
        task: TaskRef,
        answer: Answer,
    },
    /// A dormant task is enabled.
    Enabled {
        task: TaskRef,
        nexus: Arc<Nexus>,
        role: Role,
    },
    /// A parked task's turn has come.
    Turn {
        task: TaskRef,
        lu: Arc<Lu>,
        turn: Turn,
    },
    /// `held` until what has not begun is aborted.
    Abort {
        token: u64,
        ending: Ending,
        scope: Scope,
        held: Option<Held>,
    },
    /// What waits for `rule`, or for the unit's limits, goes on.
    Release {
        lu: Arc<Lu>,
        rule: Option<Arc<Rule>>,
    },
    Query {
        token: u64,
        scope: Scope,
    },
    Quiesce {
        token: u64,
        scope: Scope,
    },
    Trace(Arc<Trace>),
    QuiesceRange {
        token: u64,
        memory: Arc<GuestMemory>,
        first: u64,
        last: u64,
    },
    Shutdown,
}

pub(crate) struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    event: Event,
    /// The worker sleeps or is about to: mail must ring the bell.
    asleep: AtomicBool,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            mail: Mutex::default(),
            event: Event::new()?,
            asleep: AtomicBool::new(true),
        })
    }

    pub fn post(&self, mail: Mail) {
        self.mail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(mail);
        // SeqCst, with the worker's: either it sees the mail or we see it asleep.
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.event.signal();
        }
    }

    fn take(&self) -> Vec<Mail> {
        std::mem::take(&mut *self.mail.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// False: mail came in the meantime, do not sleep.
    fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let empty = self
            .mail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        if !empty {
            self.asleep.store(false, Ordering::SeqCst);
        }
        empty
    }

    fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The right to answer one task, once. Dropped unanswered, it answers FAILURE: a bug in Python
/// must not leave a guest waiting.
pub struct Reply {
    mailbox: Arc<Mailbox>,
    task: TaskRef,
    used: AtomicBool,
}

impl Reply {
    fn new(mailbox: Arc<Mailbox>, task: TaskRef) -> Self {
        Self {
            mailbox,
            task,
            used: AtomicBool::new(false),
        }
    }

    fn answer(&self, answer: Answer) {
        if !self.used.swap(true, Ordering::AcqRel) {
            self.mailbox.post(Mail::Answer {
                task: self.task,
                answer,
            });
        }
    }

    pub fn finish(&self, status: u8, sense: Vec<u8>, data_in: Vec<u8>) {
        self.answer(Answer::Finish {
            status,
            sense,
            data_in,
        });
    }

    pub fn execute(&self) {
        self.answer(Answer::Execute);
    }

    pub fn fail(&self, response: u8) {
        self.answer(Answer::Fail { response });
    }

    pub fn control(&self, reply: Vec<u8>) {
        self.answer(Answer::Control { reply });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.fail(wire::S_FAILURE);
    }
}

/// Everything a queue starts with.
pub struct QueueConfig {
    pub index: u16,
    pub kind: Kind,
    pub ring: RingConfig,
    pub big_endian: bool,
    pub enabled: bool,
    pub notifier: Notifier,
    pub kick: Option<Kick>,
    pub poll: bool,
    /// The queue misbehaves towards its driver.
    pub hostility: Option<Arc<Hostility>>,
}

/// A started queue, to steer it from outside its worker.
#[derive(Clone)]
pub struct QueueRef {
    mailbox: Arc<Mailbox>,
    id: u64,
    index: u16,
    kind: Kind,
}

impl QueueRef {
    /// Starts a queue on `worker`. The ring is checked here, on the caller's thread.
    pub fn start(
        worker: &Worker,
        port: Arc<Port>,
        memory: Arc<GuestMemory>,
        config: QueueConfig,
    ) -> Result<Self, RingError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let queue = Self {
            mailbox: worker.mailbox.clone(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            index: config.index,
            kind: config.kind,
        };
        let size = usize::from(config.ring.size);
        let mut ring = ring::open(memory.clone(), config.ring, config.big_endian)?;
        if let Some(hostility) = config.hostility {
            ring = Box::new(HostileRing::new(ring, hostility, config.ring.size));
        }
        let run = queue::Run {
            handle: queue.clone(),
            port,
            memory,
            ring,
            size,
            big_endian: config.big_endian,
            enabled: config.enabled,
            notifier: config.notifier,
            kick: config.kick,
            poll: config.poll,
            in_flight: 0,
            unpublished: false,
            notified: false,
            ready: false,
            stop: None,
            dead: false,
            want_event_buffers: false,
            parked: false,
        };
        queue.mailbox.post(Mail::Attach(Box::new(run)));
        Ok(queue)
    }

    pub fn index(&self) -> u16 {
        self.index
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn set_enabled(&self, on: bool) {
        self.mailbox.post(Mail::Enable { queue: self.id, on });
    }

    pub fn set_notifier(&self, notifier: Notifier) {
        self.mailbox.post(Mail::Notifier {
            queue: self.id,
            notifier,
        });
    }

    pub fn set_kick(&self, kick: Option<Kick>, poll: bool) {
        self.mailbox.post(Mail::KickFd {
            queue: self.id,
            kick,
            poll,
        });
    }

    pub fn kick(&self) {
        self.mailbox.post(Mail::Kick { queue: self.id });
    }

    /// Breaks the ring for a reason that lies outside it.
    pub fn fail(&self, text: String) {
        self.mailbox.post(Mail::Fail {
            queue: self.id,
            text,
        });
    }

    /// Notifies the driver, whether or not there is a reason.
    pub fn notify(&self) {
        self.mailbox.post(Mail::Notify { queue: self.id });
    }

    pub fn push_event(&self, token: u64, event: Vec<u8>) {
        self.mailbox.post(Mail::PushEvent {
            queue: self.id,
            token,
            event,
        });
    }

    pub fn want_event_buffers(&self) {
        self.mailbox.post(Mail::WantEventBuffers { queue: self.id });
    }

    /// Takes no more chains; done when those in flight are. `abort`: commands with Python end
    /// with this response. `discard`: nothing more is written to the ring.
    pub fn stop(&self, token: u64, abort: Option<u8>, discard: bool) {
        self.mailbox.post(Mail::Stop {
            queue: self.id,
            token,
            abort,
            discard,
        });
    }
}

/// A thread that serves queues.
pub struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
    io_uring: bool,
}

impl Worker {
    pub fn start(inbox: Arc<Inbox>, name: &str, io_uring: bool) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let (report, started) = mpsc::sync_channel(1);
        let thread = {
            let mailbox = mailbox.clone();
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(
                    move || match thread::Thread::new(inbox, mailbox, io_uring) {
                        Ok(mut thread) => {
                            let _ = report.send(Ok(thread.has_io_uring()));
                            thread.run();
                        }
                        Err(error) => {
                            let _ = report.send(Err(error));
                        }
                    },
                )?
        };
        let io_uring = started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the worker thread ended as it started")))?;
        Ok(Self {
            mailbox,
            thread: Mutex::new(Some(thread)),
            io_uring,
        })
    }

    pub fn has_io_uring(&self) -> bool {
        self.io_uring
    }

    /// From now on nothing that is not running yet begins on the task set that `scope` means, until
    /// this worker has aborted its part.
    pub fn abort(&self, token: u64, ending: Ending, scope: Scope) {
        let held = scope.set().map(Held::new);
        self.mailbox.post(Mail::Abort {
            token,
            ending,
            scope,
            held,
        });
    }

    /// Commands of `lu` that `rule` keeps back go on; None: those that its limits do, at the new
    /// ones.
    pub fn release(&self, lu: Arc<Lu>, rule: Option<Arc<Rule>>) {
        self.mailbox.post(Mail::Release { lu, rule });
    }

    pub fn query(&self, token: u64, scope: Scope) {
        self.mailbox.post(Mail::Query { token, scope });
    }

    pub fn quiesce(&self, token: u64, scope: Scope) {
        self.mailbox.post(Mail::Quiesce { token, scope });
    }

    /// From now on `trace` gets a record of each command that ends here, until it is ended.
    pub fn trace(&self, trace: Arc<Trace>) {
        self.mailbox.post(Mail::Trace(trace));
    }

    /// Done once no ring and no task, whoever has it, uses a translation of these I/O addresses
    /// that was found before; `size` as in [`GuestMemory::iotlb_invalidate`], which comes first.
    pub fn quiesce_range(&self, token: u64, memory: Arc<GuestMemory>, iova: u64, size: u64) {
        self.mailbox.post(Mail::QuiesceRange {
            token,
            memory,
            first: iova,
            last: iova.saturating_add(size.wrapping_sub(1)),
        });
    }

    /// Ends the thread once its running I/O is done. Idempotent.
    pub fn stop(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            self.mailbox.post(Mail::Shutdown);
            // A panic of the thread has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}
