//! Worker → Python: what a worker cannot or must not decide.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::python::Transfer;
use crate::event::Event;
use crate::lu::Nexus;
use crate::memory::Fault;
use crate::port::Port;
use crate::task_set::Held;
use crate::wire::CmdReq;
use crate::worker::{QueueRef, Reply};

/// A SCSI command that Python decides.
pub struct Command {
    pub reply: Reply,
    pub port: Arc<Port>,
    pub queue: QueueRef,
    pub nexus: Option<Arc<Nexus>>,
    pub header: CmdReq,
    pub cdb: Vec<u8>,
    pub data_out: Vec<u8>,
    pub data_out_length: u64,
    pub data_in_length: u64,
}

/// A request on the control queue, as raw bytes.
pub struct Control {
    pub reply: Reply,
    pub port: Arc<Port>,
    pub queue: QueueRef,
    pub request: Vec<u8>,
    pub reply_capacity: u64,
}

pub enum Notice {
    /// An asynchronous call ended.
    Done {
        token: u64,
        value: u64,
    },
    /// An in-band notifier wants its driver notified.
    Call {
        token: u64,
        queue: u16,
    },
    /// The event queue has buffers again.
    Event {
        queue: QueueRef,
    },
    /// The ring or a chain of it is at I/O addresses without a translation: it waits for one.
    Miss {
        queue: QueueRef,
        fault: Fault,
    },
    /// The IOMMU forbids what the ring or a chain of it asks for; `Broken` comes next.
    Denied {
        queue: QueueRef,
        fault: Fault,
    },
    /// The ring broke an invariant; it is stopped.
    Broken {
        queue: QueueRef,
        text: String,
    },
    Warning {
        text: String,
    },
    /// A command ended with CHECK CONDITION, and QERR says that others are to be aborted for that:
    /// of those that `held` keeps from beginning, the ones that came before.
    Fault {
        port: Arc<Port>,
        nexus: Arc<Nexus>,
        held: Held,
    },
}

pub enum Message {
    Command(Command),
    Control(Control),
    Notice(Notice),
    Transfer(Transfer),
}

/// Unbounded by itself: what it holds is bounded by the rings (a task in the inbox keeps its
/// place in its ring), by the workers' budget for copied data, and for transfers by the pool's
/// threads, each of which waits for one.
pub struct Inbox {
    messages: Mutex<VecDeque<Message>>,
    event: Event,
}

impl Inbox {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            messages: Mutex::default(),
            event: Event::new()?,
        })
    }

    pub fn post(&self, message: Message) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push_back(message);
        if messages.len() == 1 {
            self.event.signal();
        }
    }

    pub fn notice(&self, notice: Notice) {
        self.post(Message::Notice(notice));
    }

    /// At most `limit`, oldest first. The eventfd stays readable while more is waiting.
    pub fn take(&self, limit: usize) -> Vec<Message> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let count = messages.len().min(limit);
        let taken = messages.drain(..count).collect();
        if messages.is_empty() {
            self.event.clear();
        }
        taken
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
