//! A popped request, from its ring until its used entry is written.

use std::sync::Arc;
use std::time::Instant;

use libc::iovec;

use crate::cache::Use;
use crate::engine::Io;
use crate::fault::Planned;
use crate::lu::Nexus;
use crate::policy::LunPolicy;
use crate::ring::Chain;
use crate::task_set::Role;
use crate::turn::Turn;
use crate::wire::CmdReq;

/// Longest CDB (SPC-6: variable length, up to 260 bytes).
pub const MAX_CDB: usize = 260;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Free,
    /// In its task set, and waits, with nobody at work on it: to be enabled, for its limits, or as
    /// a fault wants it.
    Dormant,
    /// Waits for its turn on the medium.
    Parked,
    /// In the inbox or with Python. Not yet decided: its nexus counts it as pending.
    Python,
    /// With the engine: guest memory is in use and the task cannot be cancelled.
    Running,
}

/// Names a task from outside its worker; stale once the task is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskRef {
    pub slot: u32,
    pub generation: u32,
}

impl TaskRef {
    pub fn to_bits(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.slot)
    }

    pub fn from_bits(bits: u64) -> Self {
        Self {
            slot: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// How an aborted task ends: a virtio-scsi response and, where that is OK, a SAM status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub response: u8,
    pub status: u8,
}

impl Ending {
    pub fn response(response: u8) -> Self {
        Self {
            response,
            status: 0,
        }
    }
}

/// Where a task is in its logical unit's task set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Outside,
    /// With the ticket by which its wake can be cancelled.
    Dormant(u64),
    Enabled(Role),
}

pub struct Task {
    pub state: State,
    pub generation: u32,
    /// Key of its queue in the worker.
    pub queue: usize,
    /// When it was taken ([`Clock::ticks`](crate::clock::Clock::ticks)).
    pub taken: u64,
    /// Counted as in flight.
    pub in_flight: bool,
    pub chain: Chain,
    pub header: CmdReq,
    pub cdb: [u8; MAX_CDB],
    pub cdb_len: usize,
    /// `sense_size` when the request was taken: the response's layout.
    pub sense_size: usize,
    pub nexus: Option<Arc<Nexus>>,
    pub policy: Option<Arc<LunPolicy>>,
    pub data_out: Vec<iovec>,
    pub data_in: Vec<iovec>,
    pub data_out_len: u64,
    pub data_in_len: u64,
    /// The engine call under way.
    pub io: Option<Io>,
    pub iov: Vec<iovec>,
    /// Its place in the logical unit's task set, until it ends.
    pub place: Place,
    /// Tells it from tasks that came after an abort ([`crate::task_set::Held`]).
    pub stamp: u64,
    /// What it does to its unit's cache, while it runs.
    pub cache: Use,
    /// On the medium, held until the task ends.
    pub turn: Option<Turn>,
    /// Counted in its nexus's gate as pending.
    pub pending: bool,
    /// Bytes copied for Python, counted in the worker's budget.
    pub copied: usize,
    /// It gets this response instead of its own.
    pub aborted: Option<Ending>,
    /// What is still to go wrong with it.
    pub fault: Option<Box<Planned>>,
    /// It has what its unit's limits want.
    pub paced: bool,
    /// When it goes on, if it waits for that.
    pub due: Option<Instant>,
}

// SAFETY: the iovecs point into memory that `chain.map` keeps mapped, wherever the task moves.
unsafe impl Send for Task {}

impl Task {
    fn new() -> Self {
        Self {
            state: State::Free,
            generation: 0,
            queue: 0,
            taken: 0,
            in_flight: false,
            chain: Chain::default(),
            header: CmdReq::default(),
            cdb: [0; MAX_CDB],
            cdb_len: 0,
            sense_size: 0,
            nexus: None,
            policy: None,
            data_out: Vec::new(),
            data_in: Vec::new(),
            data_out_len: 0,
            data_in_len: 0,
            io: None,
            iov: Vec::new(),
            place: Place::Outside,
            stamp: 0,
            cache: Use::None,
            turn: None,
            pending: false,
            copied: 0,
            aborted: None,
            fault: None,
            paced: false,
            due: None,
        }
    }

    /// `transferred` bytes as those of data-out and of data-in.
    pub fn moved(&self, transferred: u64) -> (u64, u64) {
        if self.data_in_len > 0 {
            (0, transferred.min(self.data_in_len))
        } else {
            (transferred.min(self.data_out_len), 0)
        }
    }

    /// The CDB, zero-padded to 16 bytes where `cdb_size` is less.
    pub fn cdb(&self) -> &[u8] {
        &self.cdb[..self.cdb_len.max(16)]
    }
}

/// A worker's tasks. Slots and their buffers are reused: no allocation once warm.
#[derive(Default)]
pub struct Slab {
    tasks: Vec<Task>,
    free: Vec<u32>,
}

impl Slab {
    /// A free task; it stays free until its `state` says otherwise.
    pub fn reserve(&mut self) -> u32 {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        self.tasks.push(Task::new());
        (self.tasks.len() - 1) as u32
    }

    pub fn release(&mut self, slot: u32) {
        let task = self.get(slot);
        task.state = State::Free;
        task.generation = task.generation.wrapping_add(1);
        task.in_flight = false;
        task.chain.map = None;
        let place = std::mem::replace(&mut task.place, Place::Outside);
        let turn = task.turn.take();
        if let (Some(nexus), Place::Enabled(role)) = (task.nexus.take(), place) {
            nexus.lu.tasks.leave(&nexus.part, role, turn);
        }
        task.policy = None;
        task.io = None;
        task.pending = false;
        task.copied = 0;
        task.aborted = None;
        task.fault = None;
        task.paced = false;
        self.free.push(slot);
    }

    pub fn get(&mut self, slot: u32) -> &mut Task {
        &mut self.tasks[slot as usize]
    }

    /// The task that `task` named when it was made, unless it is complete.
    pub fn find(&mut self, task: TaskRef) -> Option<&mut Task> {
        let found = self.tasks.get_mut(task.slot as usize)?;
        (found.state != State::Free && found.generation == task.generation).then_some(found)
    }

    /// All live tasks.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Task)> {
        self.tasks
            .iter()
            .enumerate()
            .filter(|(_, task)| task.state != State::Free)
            .map(|(slot, task)| (slot as u32, task))
    }
}
