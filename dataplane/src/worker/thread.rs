//! A worker's thread: the loop, and the life of a task from `begin` to `respond`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use libc::iovec;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::account::Account;
use super::drain::Drains;
use super::fault;
use super::queue::Run;
use super::timers::Timers;
use super::uring::Uring;
use super::{Answer, Kind, Mail, Mailbox, Reply, Scope};
use crate::cache::Use;
use crate::engine::{Io, IoKind, Partial};
use crate::inbox::{Command, Control, Inbox, Message, Notice};
use crate::iov::Cursor;
use crate::memory::{Fault, GuestMemory};
use crate::notifier::Notifier;
use crate::passthrough::{Passed, Passthrough};
use crate::pool::pool;
use crate::port;
use crate::ring::RingError;
use crate::sbc::{self, Outcome, Plan};
use crate::task::{Ending, Place, Slab, State, TaskRef, MAX_CDB};
use crate::turn::Turn;
use crate::wire::{self, CmdReq, CMD_REQ_FIXED, CMD_RESP_FIXED};

/// Chains taken from one queue before the next one has its turn.
const BUDGET: usize = 64;
/// Data-out bytes copied for one command that Python decides.
pub(super) const MAX_COPY: u64 = 1 << 20;
/// The same for all commands of a worker that are with Python; above it they get BUSY.
const COPY_BUDGET: usize = 64 << 20;
/// Longest control request that has a meaning is 24 bytes; the rest is cut off.
const MAX_CONTROL: u64 = 4096;
/// Turns without work before polled queues are looked at in intervals only.
const POLL_TURNS: u32 = 1000;
const POLL_INTERVAL_MS: i32 = 1;

const MAILBOX: u64 = u64::MAX;
const URING: u64 = u64::MAX - 1;
const TIMER: u64 = u64::MAX - 2;

/// What a response says.
pub(super) struct Response<'a> {
    pub response: u8,
    pub status: u8,
    pub sense: &'a [u8],
    /// Data-out bytes consumed and data-in bytes produced.
    pub out: u64,
    pub data_in: u64,
}

impl Response<'_> {
    /// No SCSI status: the transport's own answer.
    pub fn transport(response: u8) -> Self {
        Self::ending(Ending::response(response))
    }

    /// A SCSI status without data or sense.
    pub fn status(status: u8) -> Self {
        Self::ending(Ending {
            response: wire::S_OK,
            status,
        })
    }

    fn ending(ending: Ending) -> Self {
        Self {
            response: ending.response,
            status: ending.status,
            sense: &[],
            out: 0,
            data_in: 0,
        }
    }
}

/// Work for a pool thread, with pointers into a task that stays until the answer is in.
pub(super) struct Sendable<T>(pub T);

// SAFETY: the iovecs inside point into guest memory that the task's `chain.map` keeps mapped.
unsafe impl<T> Send for Sendable<T> {}

pub(super) struct Thread {
    pub(super) inbox: Arc<Inbox>,
    pub(super) mailbox: Arc<Mailbox>,
    epoll: Epoll,
    uring: Option<Uring>,
    pub(super) queues: Vec<Option<Run>>,
    keys: HashMap<u64, usize>,
    pub(super) tasks: Slab,
    pub(super) account: Account,
    pub(super) drains: Drains,
    pub(super) timers: Timers,
    /// Queues that may have chains.
    ready: VecDeque<usize>,
    /// Queues with something to publish or to end at the turn's end.
    touched: Vec<usize>,
    /// Ended calls, told to Python after the used entries they wait for are published.
    done: Vec<(u64, u64)>,
    completions: Vec<(u64, i32)>,
    pub(super) copied: usize,
    /// A response being put together.
    response: Vec<u8>,
    /// Queues to look at without kicks.
    polled: Vec<usize>,
    idle_turns: u32,
    /// Mail owed by task sets, to tasks that may be gone meanwhile.
    pub(super) owed: usize,
    shutdown: bool,
}

impl Thread {
    pub fn new(inbox: Arc<Inbox>, mailbox: Arc<Mailbox>, io_uring: bool) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let mail = EpollEvent::new(EventSet::IN, MAILBOX);
        epoll.ctl(ControlOperation::Add, mailbox.as_fd().as_raw_fd(), mail)?;
        let timers = Timers::new()?;
        let timer = EpollEvent::new(EventSet::IN, TIMER);
        epoll.ctl(ControlOperation::Add, timers.fd(), timer)?;
        let uring = if io_uring { Uring::new().ok() } else { None };
        if let Some(uring) = &uring {
            epoll.ctl(
                ControlOperation::Add,
                uring.fd(),
                EpollEvent::new(EventSet::IN, URING),
            )?;
        }
        Ok(Self {
            inbox,
            mailbox,
            epoll,
            uring,
            queues: Vec::new(),
            keys: HashMap::new(),
            tasks: Slab::default(),
            account: Account::new(),
            drains: Drains::default(),
            timers,
            ready: VecDeque::new(),
            touched: Vec::new(),
            done: Vec::new(),
            completions: Vec::new(),
            copied: 0,
            response: Vec::new(),
            polled: Vec::new(),
            idle_turns: 0,
            owed: 0,
            shutdown: false,
        })
    }

    pub fn has_io_uring(&self) -> bool {
        self.uring.is_some()
    }

    pub fn run(&mut self) {
        loop {
            self.turn();
            if self.shutdown && self.owed == 0 && self.tasks.live().next().is_none() {
                return;
            }
            self.wait();
        }
    }

    fn turn(&mut self) {
        for mail in self.mailbox.take() {
            self.open(mail);
        }
        self.reap();
        self.expire();
        for _ in 0..self.ready.len() {
            if let Some(key) = self.ready.pop_front() {
                self.serve(key);
            }
        }
        if let Some(uring) = &mut self.uring {
            uring.submit();
        }
        self.publish();
    }

    /// Sleeps until something happens; not at all while there is work.
    fn wait(&mut self) {
        let mut timeout = -1;
        if !self.ready.is_empty() {
            timeout = 0;
        } else if !self.polled.is_empty() {
            self.idle_turns = self.idle_turns.saturating_add(1);
            timeout = if self.idle_turns < POLL_TURNS {
                0
            } else {
                POLL_INTERVAL_MS
            };
        }
        if self.uring.as_ref().is_some_and(Uring::must_retry) {
            timeout = POLL_INTERVAL_MS;
        }
        if !self.mailbox.fall_asleep() {
            timeout = 0;
        }
        self.timers.arm();
        let mut events = [EpollEvent::default(); 32];
        // EINTR is a wake-up like any other.
        let count = self.epoll.wait(timeout, &mut events).unwrap_or(0);
        let mut rung = false;
        for event in &events[..count] {
            match event.data() {
                MAILBOX => rung = true,
                URING | TIMER => {}
                key => {
                    let key = key as usize;
                    if let Some(kick) = self.queue(key).and_then(|queue| queue.kick.as_ref()) {
                        kick.clear();
                    }
                    self.mark_ready(key);
                }
            }
        }
        self.mailbox.wake_up(rung);
        for at in 0..self.polled.len() {
            self.mark_ready(self.polled[at]);
        }
    }

    fn update_polled(&mut self) {
        self.polled.clear();
        for (key, queue) in self.queues.iter().enumerate() {
            if queue
                .as_ref()
                .is_some_and(|queue| queue.poll && !queue.dead)
            {
                self.polled.push(key);
            }
        }
    }

    // ── Queues ───────────────────────────────────────────────────────────────────────────────

    fn queue(&mut self, key: usize) -> Option<&mut Run> {
        self.queues.get_mut(key)?.as_mut()
    }

    fn named(&mut self, id: u64) -> Option<(usize, &mut Run)> {
        let key = *self.keys.get(&id)?;
        Some((key, self.queues[key].as_mut()?))
    }

    fn mark_ready(&mut self, key: usize) {
        if let Some(queue) = self.queue(key) {
            if !queue.ready && queue.runs() {
                queue.ready = true;
                self.ready.push_back(key);
            }
        }
    }

    fn attach(&mut self, run: Run) {
        let key = self
            .queues
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.queues.len());
        if key == self.queues.len() {
            self.queues.push(None);
        }
        self.keys.insert(run.handle.id, key);
        let kick = run.kick.as_ref().map(|kick| kick.as_fd().as_raw_fd());
        self.queues[key] = Some(run);
        if let Some(kick) = kick {
            self.watch(key, kick);
        }
        self.update_polled();
        self.mark_ready(key);
    }

    /// Edge-triggered: see `Kick`.
    fn watch(&mut self, key: usize, kick: RawFd) {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, key as u64);
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, kick, event) {
            self.broken(
                key,
                &format!("its kick descriptor cannot be watched: {error}"),
            );
        }
    }

    fn unwatch(&mut self, key: usize) {
        let kick = self.queue(key).and_then(|queue| queue.kick.take());
        if let Some(kick) = kick {
            // Fails only if `watch` had; the descriptor is closed next.
            let _ = self.epoll.ctl(
                ControlOperation::Delete,
                kick.as_fd().as_raw_fd(),
                EpollEvent::default(),
            );
        }
    }

    /// The ring cannot be trusted any more: it is not touched again.
    fn broken(&mut self, key: usize, text: &str) {
        let Some(queue) = self.queue(key) else { return };
        if queue.dead {
            return;
        }
        queue.dead = true;
        queue.unpublished = false;
        let queue = queue.handle.clone();
        self.unwatch(key);
        self.inbox.notice(Notice::Broken {
            queue,
            text: text.to_owned(),
        });
    }

    /// What becomes of a queue whose ring reported this.
    fn failed(&mut self, key: usize, error: &RingError) {
        if let Some(fault) = error.miss() {
            return self.park(key, fault);
        }
        if let (Some(fault), Some(queue)) = (error.denied(), self.queue(key)) {
            let queue = queue.handle.clone();
            self.inbox.notice(Notice::Denied { queue, fault });
        }
        self.broken(key, &error.to_string());
    }

    /// Leaves a queue alone until `fault` is mapped. All that it has to take or to publish stays.
    fn park(&mut self, key: usize, fault: Fault) {
        let mailbox = self.mailbox.clone();
        let Some(queue) = self.queue(key) else { return };
        let id = queue.handle.id;
        let wake = move || mailbox.post(Mail::Unpark { queue: id });
        if queue.memory.wait(id, fault, wake) {
            queue.parked = true;
            let queue = queue.handle.clone();
            self.inbox.notice(Notice::Miss { queue, fault });
        } else {
            self.unpark(id);
        }
    }

    fn unpark(&mut self, id: u64) {
        if let Some((key, queue)) = self.named(id) {
            queue.parked = false;
            if queue.unpublished {
                self.touched.push(key);
            }
            self.mark_ready(key);
        }
    }

    /// Takes chains from a ready queue, at most `BUDGET`.
    fn serve(&mut self, key: usize) {
        let Some(queue) = self.queue(key) else { return };
        queue.ready = false;
        if queue.handle.kind == Kind::Event {
            return self.look_for_event_buffers(key);
        }
        if let Err(error) = queue.ring.suppress_kicks() {
            return self.failed(key, &error);
        }
        self.account.look_again();
        for _ in 0..BUDGET {
            let slot = self.tasks.reserve();
            // Not `self.queue`: the task is borrowed from the slab at the same time.
            let Some(queue) = self.queues[key].as_mut().filter(|queue| queue.runs()) else {
                return self.tasks.release(slot);
            };
            let task = self.tasks.get(slot);
            match queue.take(&mut task.chain) {
                Ok(true) => {
                    task.queue = key;
                    task.taken = self.account.taken();
                    let kind = queue.handle.kind;
                    self.idle_turns = 0;
                    if kind == Kind::Control {
                        self.begin_control(slot);
                    } else {
                        self.begin(slot);
                    }
                }
                Ok(false) => return self.tasks.release(slot),
                Err(error) => {
                    self.tasks.release(slot);
                    return self.failed(key, &error);
                }
            }
        }
        self.mark_ready(key);
    }

    /// Makes used entries visible, notifies, ends stopped queues, and then tells who waited.
    fn publish(&mut self) {
        while let Some(key) = self.touched.pop() {
            let Some(queue) = self.queues.get_mut(key).and_then(Option::as_mut) else {
                continue;
            };
            let mut failure = None;
            // A queue that ends tries once more: its driver may not answer misses any longer.
            if queue.unpublished && !queue.dead && (!queue.parked || queue.stop.is_some()) {
                match queue.ring.publish() {
                    Ok(wanted) => {
                        queue.unpublished = false;
                        if wanted {
                            queue.notified = true;
                            queue.notifier.notify(&self.inbox, queue.handle.index);
                        }
                    }
                    Err(error) => failure = Some(error),
                }
                if queue.memory.is_dead() {
                    failure = Some(RingError::Truncated);
                }
            }
            if let (Some(token), 0) = (queue.stop, queue.in_flight) {
                let next_avail = queue.ring.next_avail();
                self.done.push((token, u64::from(next_avail)));
                self.remove(key);
            } else if let Some(error) = failure {
                self.failed(key, &error);
            }
        }
        for (token, value) in self.done.drain(..) {
            self.inbox.notice(Notice::Done { token, value });
        }
    }

    fn remove(&mut self, key: usize) {
        self.unwatch(key);
        if let Some(run) = self.queues[key].take() {
            self.keys.remove(&run.handle.id);
            run.memory.forget(run.handle.id);
            if run.unpublished && !run.dead {
                let index = run.handle.index;
                self.inbox.notice(Notice::Warning {
                    text: format!(
                        "queue {index} was stopped while the IOTLB had no translation of its used \
                         ring: the driver does not learn what was completed last"
                    ),
                });
            }
        }
        self.update_polled();
    }

    // ── Mail ─────────────────────────────────────────────────────────────────────────────────

    fn open(&mut self, mail: Mail) {
        match mail {
            Mail::Attach(run) => self.attach(*run),
            Mail::Enable { queue, on } => {
                if let Some((key, queue)) = self.named(queue) {
                    queue.enabled = on;
                    self.mark_ready(key);
                }
            }
            Mail::Notifier { queue, notifier } => {
                let key = self.keys.get(&queue).copied();
                if let Some(queue) = key.and_then(|key| self.queues[key].as_mut()) {
                    let before = std::mem::replace(&mut queue.notifier, notifier);
                    if matches!(before, Notifier::None) || queue.notified {
                        // Buffers used before now were told to nobody, or to a descriptor that
                        // nobody reads any more: QEMU starts rings with those of their last run,
                        // and a driver may be quicker than the message that replaces them.
                        queue.notifier.notify(&self.inbox, queue.handle.index);
                    }
                }
            }
            Mail::Kick { queue } => {
                if let Some((key, _)) = self.named(queue) {
                    self.mark_ready(key);
                }
            }
            Mail::Notify { queue } => {
                let key = self.keys.get(&queue).copied();
                if let Some(queue) = key.and_then(|key| self.queues[key].as_ref()) {
                    queue.notifier.notify(&self.inbox, queue.handle.index);
                }
            }
            Mail::Unpark { queue } => self.unpark(queue),
            Mail::Fail { queue, text } => {
                if let Some((key, _)) = self.named(queue) {
                    self.broken(key, &text);
                }
            }
            Mail::KickFd { queue, kick, poll } => self.set_kick(queue, kick, poll),
            Mail::PushEvent {
                queue,
                token,
                event,
            } => self.push_event(queue, token, &event),
            Mail::WantEventBuffers { queue } => {
                if let Some((key, queue)) = self.named(queue) {
                    queue.want_event_buffers = true;
                    self.mark_ready(key);
                }
            }
            Mail::Stop {
                queue,
                token,
                abort,
                discard,
            } => {
                self.stop_queue(queue, token, abort, discard);
            }
            Mail::Answer { task, answer } => self.answered(task, answer),
            Mail::Enabled { task, nexus, role } => self.enabled(task, &nexus, role),
            Mail::Turn { task, lu, turn } => {
                self.owed -= 1;
                match self.tasks.find(task) {
                    Some(_) => self.execute_now(task.slot, turn),
                    None => lu.tasks.leave_turn(turn),
                }
            }
            Mail::Abort {
                token,
                ending,
                scope,
                held,
            } => {
                self.abort(token, ending, &scope);
                drop(held);
            }
            Mail::Release { lu, rule } => self.release(&lu, rule.as_ref()),
            Mail::Query { token, scope } => {
                self.take_offered(&scope);
                let count = self.matching(&scope).len() as u64;
                self.done.push((token, count));
            }
            Mail::Quiesce { token, scope } => {
                let running = self.matching(&scope);
                let waiting: HashSet<_> = running
                    .into_iter()
                    .filter(|task| {
                        // A dormant one has yet to come to the gate.
                        let state = self.tasks.get(task.slot).state;
                        state != State::Python && state != State::Dormant
                    })
                    .collect();
                self.drains
                    .add(token, waiting.len() as u64, waiting, &mut self.done);
            }
            Mail::QuiesceRange {
                token,
                memory,
                first,
                last,
            } => {
                // Rings look again before their next use, which comes after this mail.
                let waiting = self.using(&memory, first, last);
                let waiting = self.end_dormant(waiting);
                self.drains
                    .add(token, waiting.len() as u64, waiting, &mut self.done);
            }
            Mail::Trace(trace) => self.account.traces.add(trace),
            Mail::Shutdown => {
                self.shutdown = true;
                let ids: Vec<_> = self.keys.keys().copied().collect();
                for id in ids {
                    self.discard(id);
                }
            }
        }
    }

    fn set_kick(&mut self, id: u64, kick: Option<crate::event::Kick>, poll: bool) {
        let Some((key, queue)) = self.named(id) else {
            return;
        };
        if queue.dead {
            return;
        }
        queue.poll = poll;
        self.unwatch(key);
        if let Some(kick) = kick {
            let fd = kick.as_fd().as_raw_fd();
            if let Some(queue) = self.queue(key) {
                queue.kick = Some(kick);
            }
            self.watch(key, fd);
        }
        self.update_polled();
        self.mark_ready(key);
    }

    fn stop_queue(&mut self, id: u64, token: u64, abort: Option<u8>, discard: bool) {
        if discard {
            self.discard(id);
        }
        let Some((key, queue)) = self.named(id) else {
            // Already stopped: the call still ends.
            self.done.push((token, 0));
            return;
        };
        queue.stop = Some(token);
        self.unwatch(key);
        match abort {
            Some(response) => self.end_undecided(key, response),
            None => self.end_dormant_of(key),
        }
        self.touched.push(key);
    }

    /// The driver is gone: nothing more is written, and tasks with Python end now.
    fn discard(&mut self, id: u64) {
        if let Some((key, queue)) = self.named(id) {
            queue.dead = true;
            self.unwatch(key);
            self.end_undecided(key, wire::S_FAILURE);
        }
    }

    fn end_undecided(&mut self, key: usize, response: u8) {
        let undecided: Vec<_> = self
            .tasks
            .live()
            .filter(|(_, task)| task.queue == key && task.state != State::Running)
            .map(|(slot, _)| slot)
            .collect();
        for slot in undecided {
            self.end(slot, &Response::transport(response));
        }
    }

    fn push_event(&mut self, id: u64, token: u64, event: &[u8]) {
        let slot = self.tasks.reserve();
        let mut value = 0;
        let mut failure = None;
        if let Some(key) = self.keys.get(&id).copied() {
            if let Some(queue) = self.queues[key].as_mut().filter(|queue| queue.runs()) {
                let chain = &mut self.tasks.get(slot).chain;
                match queue.ring.pop(chain) {
                    Ok(true) => {
                        let written = Cursor::new(&chain.writable).write(event);
                        match queue.ring.push_used(chain.head, written as u32) {
                            Ok(()) => value = 1,
                            Err(error) => failure = Some(error),
                        }
                        queue.unpublished = true;
                        self.touched.push(key);
                    }
                    Ok(false) => {}
                    Err(error) => failure = Some(error),
                }
                if let Some(error) = failure {
                    self.failed(key, &error);
                }
            }
        }
        self.tasks.release(slot);
        self.done.push((token, value));
    }

    fn look_for_event_buffers(&mut self, key: usize) {
        let Some(queue) = self.queue(key) else { return };
        if !queue.runs() {
            return;
        }
        match queue.ring.want_kicks() {
            Ok(true) if queue.want_event_buffers => {
                queue.want_event_buffers = false;
                let queue = queue.handle.clone();
                self.inbox.notice(Notice::Event { queue });
            }
            Ok(_) => {}
            Err(error) => self.failed(key, &error),
        }
    }

    // ── Task management ──────────────────────────────────────────────────────────────────────

    /// A command that the driver queued before it asked for a TMF is in the task set, whether or
    /// not this worker has seen it yet.
    fn take_offered(&mut self, scope: &Scope) {
        for key in 0..self.queues.len() {
            let Some(queue) = self.queue(key) else {
                continue;
            };
            let asked = scope
                .port
                .as_ref()
                .is_none_or(|port| Arc::ptr_eq(port, &queue.port));
            if queue.handle.kind != Kind::Request || !asked {
                continue;
            }
            // Bounded: a driver that keeps adding does not keep us here.
            let rounds = queue.size / BUDGET + 1;
            self.mark_ready(key);
            for _ in 0..rounds {
                if !self.queue(key).is_some_and(|queue| queue.ready) {
                    break;
                }
                self.ready.retain(|ready| *ready != key);
                self.serve(key);
            }
        }
    }

    fn matching(&self, scope: &Scope) -> Vec<TaskRef> {
        self.tasks
            .live()
            .filter(|(_, task)| {
                let Some(queue) = self.queues.get(task.queue).and_then(Option::as_ref) else {
                    return false;
                };
                let nexus = task.nexus.as_ref();
                let lu = nexus.map(|nexus| &nexus.lu);
                queue.handle.kind == Kind::Request
                    && scope
                        .port
                        .as_ref()
                        .is_none_or(|port| Arc::ptr_eq(port, &queue.port))
                    && scope
                        .lu
                        .as_ref()
                        .is_none_or(|wanted| lu.is_some_and(|lu| Arc::ptr_eq(wanted, lu)))
                    && scope
                        .nexus
                        .as_ref()
                        .is_none_or(|wanted| nexus.is_some_and(|nexus| Arc::ptr_eq(wanted, nexus)))
                    && scope.tag.is_none_or(|tag| tag == task.header.tag)
                    && scope.until.is_none_or(|until| task.stamp <= until)
            })
            .map(|(slot, task)| TaskRef {
                slot,
                generation: task.generation,
            })
            .collect()
    }

    /// Tasks, on any kind of queue, with pieces translated from I/O addresses of [first, last].
    fn using(&self, memory: &Arc<GuestMemory>, first: u64, last: u64) -> HashSet<TaskRef> {
        self.tasks
            .live()
            .filter(|(_, task)| {
                let queue = self.queues.get(task.queue).and_then(Option::as_ref);
                queue.is_some_and(|queue| Arc::ptr_eq(memory, &queue.memory))
                    && task.chain.uses(first, last)
            })
            .map(|(slot, task)| TaskRef {
                slot,
                generation: task.generation,
            })
            .collect()
    }

    fn abort(&mut self, token: u64, ending: Ending, scope: &Scope) {
        self.take_offered(scope);
        let hit = self.matching(scope);
        let mut waiting = HashSet::new();
        for task in &hit {
            let found = self.tasks.get(task.slot);
            if found.state != State::Running {
                self.end(task.slot, &Response::ending(ending));
            } else {
                found.aborted = Some(ending);
                waiting.insert(*task);
            }
        }
        self.drains
            .add(token, hit.len() as u64, waiting, &mut self.done);
    }

    // ── The life of a task ───────────────────────────────────────────────────────────────────

    fn begin_control(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        let Some(queue) = self.queues[task.queue].as_ref() else {
            return;
        };
        let mut request = vec![0; task.chain.readable_len.min(MAX_CONTROL) as usize];
        Cursor::new(&task.chain.readable).read(&mut request);
        task.state = State::Python;
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        self.inbox.post(Message::Control(Control {
            reply: Reply::new(self.mailbox.clone(), task_ref),
            port: queue.port.clone(),
            queue: queue.handle.clone(),
            request,
            reply_capacity: task.chain.writable_len,
        }));
    }

    /// Takes a command apart and sends it its way.
    fn begin(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        let Some(queue) = self.queues[task.queue].as_ref() else {
            return;
        };
        let port = queue.port.clone();
        let cdb_size = port.cdb_size().min(MAX_CDB);
        task.cdb_len = cdb_size;
        task.sense_size = port.sense_size();
        task.state = State::Running;
        let (readable, writable) = (task.chain.readable_len, task.chain.writable_len);
        if writable < CMD_RESP_FIXED as u64 {
            let key = task.queue;
            self.drop_unanswered(slot);
            let text = format!("a request has {writable} bytes for its response of at least 12");
            return self.broken(key, &text);
        }
        task.data_out.clear();
        task.data_in.clear();
        let header_len = CMD_REQ_FIXED + cdb_size;
        let response_len = CMD_RESP_FIXED + task.sense_size;
        after(&task.chain.readable, header_len, &mut task.data_out);
        after(&task.chain.writable, response_len, &mut task.data_in);
        task.data_out_len = readable.saturating_sub(header_len as u64);
        task.data_in_len = writable.saturating_sub(response_len as u64);
        if readable < header_len as u64 || writable < response_len as u64 {
            task.sense_size = task.sense_size.min(writable as usize - CMD_RESP_FIXED);
            task.header = CmdReq::default();
            task.cdb.fill(0);
            return self.respond(slot, &Response::transport(wire::S_FAILURE));
        }
        let mut header = [0; CMD_REQ_FIXED + MAX_CDB];
        Cursor::new(&task.chain.readable).read(&mut header[..header_len]);
        let mut fixed = [0; CMD_REQ_FIXED];
        fixed.copy_from_slice(&header[..CMD_REQ_FIXED]);
        task.header = CmdReq::parse(&fixed, queue.big_endian);
        task.cdb.fill(0);
        task.cdb[..cdb_size].copy_from_slice(&header[CMD_REQ_FIXED..header_len]);

        if task.data_out_len > 0 && task.data_in_len > 0 && !port.inout() {
            return self.respond(slot, &Response::transport(wire::S_FAILURE));
        }
        match port.route(&task.header.lun) {
            port::Route::BadTarget => {
                self.respond(slot, &Response::transport(wire::S_BAD_TARGET));
            }
            port::Route::Python => self.ask_python(slot, MAX_COPY),
            port::Route::Unit(nexus) => {
                nexus.stats.begin(queue.handle.index);
                task.nexus = Some(nexus);
                self.enter(slot);
            }
        }
    }

    /// Posts a command to the inbox, with a copy of its data-out up to `copy` bytes.
    pub(super) fn ask_python(&mut self, slot: u32, copy: u64) {
        let task = self.tasks.get(slot);
        let Some(queue) = self.queues[task.queue].as_ref() else {
            return;
        };
        let copy = task.data_out_len.min(copy) as usize;
        if self.copied + copy > COPY_BUDGET {
            return self.respond(slot, &Response::status(wire::STATUS_BUSY));
        }
        self.copied += copy;
        task.copied = copy;
        let mut data_out = vec![0; copy];
        Cursor::new(&task.data_out).read(&mut data_out);
        task.state = State::Python;
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        self.inbox.post(Message::Command(Command {
            reply: Reply::new(self.mailbox.clone(), task_ref),
            port: queue.port.clone(),
            nexus: task.nexus.clone(),
            header: task.header,
            cdb: task.cdb().to_vec(),
            data_out,
            data_out_length: task.data_out_len,
            data_in_length: task.data_in_len,
        }));
    }

    fn answered(&mut self, task: TaskRef, answer: Answer) {
        let Some(found) = self.tasks.find(task) else {
            return;
        };
        let slot = task.slot;
        // An answer of Python to a task that runs already, or the other way round, cannot be:
        // `Reply` answers once, and the pool only what runs.
        match answer {
            Answer::Finish {
                status,
                sense,
                data_in,
            } => {
                self.finish(slot, status, &sense, &data_in);
            }
            Answer::Execute => {
                self.settle(slot);
                self.execute(slot);
            }
            Answer::Fail { response } => self.respond(slot, &Response::transport(response)),
            Answer::Control { reply } => {
                let written = Cursor::new(&found.chain.writable).write(&reply);
                self.complete(slot, written as u32);
            }
            Answer::Io(result) => self.io_done(slot, result),
            Answer::Job(outcome) => self.outcome(slot, &outcome),
            Answer::Passed(passed) => self.passed(slot, &passed),
        }
    }

    /// Python has decided: the gate may open again when this was the last one.
    pub(super) fn settle(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        if std::mem::take(&mut task.pending) {
            if let Some(nexus) = &task.nexus {
                nexus.gate.decided();
            }
        }
    }

    fn finish(&mut self, slot: u32, status: u8, sense: &[u8], data: &[u8]) {
        let task = self.tasks.get(slot);
        let produced = Cursor::new(&task.data_in).write(data);
        let overrun = produced < data.len();
        let response = Response {
            response: if overrun { wire::S_OVERRUN } else { wire::S_OK },
            status,
            sense,
            out: if status == wire::STATUS_GOOD {
                task.data_out_len
            } else {
                0
            },
            data_in: produced as u64,
        };
        self.respond(slot, &response);
    }

    /// Runs a media command, when it is its turn on the medium.
    pub(super) fn execute(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        let Some(nexus) = &task.nexus else {
            // Python executes only what has a logical unit.
            return self.respond(slot, &Response::transport(wire::S_FAILURE));
        };
        if let Some(device) = nexus.lu.engine.passthrough().cloned() {
            return self.pass(slot, &device);
        }
        if let Some(turn) = task.turn {
            return self.execute_now(slot, turn);
        }
        let turn = nexus.lu.turn(task.cdb());
        let mailbox = &self.mailbox;
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        let at_once = nexus.lu.tasks.take_turn(turn, || {
            let (mailbox, lu) = (mailbox.clone(), nexus.lu.clone());
            Box::new(move || {
                mailbox.post(Mail::Turn {
                    task: task_ref,
                    lu,
                    turn,
                });
            })
        });
        if at_once {
            self.execute_now(slot, turn);
        } else {
            task.state = State::Parked;
            self.owed += 1;
        }
    }

    fn execute_now(&mut self, slot: u32, turn: Turn) {
        let task = self.tasks.get(slot);
        task.turn = Some(turn);
        task.state = State::Running;
        let Some(nexus) = task.nexus.clone() else {
            return;
        };
        let policy = nexus.lu.policy.load_full();
        task.policy = Some(policy.clone());
        let data_out_len = task.data_out_len;
        let plan = sbc::plan(
            &policy,
            task.cdb(),
            &task.data_out,
            data_out_len,
            task.data_in_len,
        );
        task.cache = plan.cache_use(&nexus.lu.cache);
        if task.cache == Use::Fills {
            nexus.written.note(&nexus.lu.cache);
        }
        match plan {
            Plan::Done(outcome) => self.outcome(slot, &outcome),
            Plan::Overrun => self.respond(slot, &Response::transport(wire::S_OVERRUN)),
            Plan::Io(io) => self.start_io(slot, io),
            Plan::Job(job) => {
                let work = Sendable((job, task.data_out.clone(), task.data_in.clone()));
                let cdb = task.cdb().to_vec();
                let engine = nexus.lu.engine.clone();
                self.on_pool(slot, move || {
                    let Sendable((job, data_out, data_in)) = { work };
                    Answer::Job(job.run(&policy, engine.as_ref(), &cdb, &data_out, &data_in))
                });
            }
        }
    }

    /// Hands a command to a device of the host, which has an order of its own.
    fn pass(&mut self, slot: u32, device: &Arc<Passthrough>) {
        let mailbox = self.mailbox.clone();
        let task = self.tasks.get(slot);
        task.state = State::Running;
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        let done = move |passed| {
            mailbox.post(Mail::Answer {
                task: task_ref,
                answer: Answer::Passed(passed),
            });
        };
        // SAFETY: the task and its mapping stay until `passed`.
        unsafe { device.start(task.cdb(), &task.data_out, &task.data_in, done) };
    }

    fn passed(&mut self, slot: u32, passed: &Passed) {
        let (out, data_in) = self.tasks.get(slot).moved(passed.transferred);
        let response = Response {
            response: passed.response,
            status: passed.status,
            sense: &passed.sense,
            out,
            data_in,
        };
        self.respond(slot, &response);
    }

    fn start_io(&mut self, slot: u32, mut io: Io) {
        let task = self.tasks.get(slot);
        task.iov.clear();
        match io.kind {
            IoKind::Read => task.iov.extend_from_slice(&task.data_in),
            IoKind::Write => task.iov.extend_from_slice(&task.data_out),
            _ => {}
        }
        let block_size = task.policy.as_ref().map_or(1, |policy| policy.block_size);
        let corruption = fault::plan_io(&mut task.fault, &mut io, block_size.into());
        sbc::trim(&mut task.iov, io.len);
        task.io = Some(io);
        if let Some(corruption) = corruption {
            return self.run_corrupted(slot, corruption, block_size.into());
        }
        let task = self.tasks.get(slot);
        let Some(nexus) = &task.nexus else { return };
        let engine = &nexus.lu.engine;
        if let Some(result) = engine.try_now(&io, &task.iov) {
            return self.io_done(slot, result);
        }
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        if let Some(uring) = &mut self.uring {
            if let Some(entry) = engine.sqe(&io, &task.iov) {
                // SAFETY: the task, its `iov`, its mapping and its engine stay until `io_done`.
                if unsafe { uring.push(entry, task_ref.to_bits()) } {
                    return;
                }
            }
        }
        self.run_io(slot);
    }

    /// The engine call in its blocking, complete form.
    fn run_io(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        let (Some(nexus), Some(io)) = (&task.nexus, task.io) else {
            return;
        };
        let engine = nexus.lu.engine.clone();
        let iov = Sendable(task.iov.clone());
        self.on_pool(slot, move || {
            let Sendable(iov) = { iov };
            Answer::Io(engine.run(&io, &iov))
        });
    }

    pub(super) fn on_pool(&mut self, slot: u32, work: impl FnOnce() -> Answer + Send + 'static) {
        let mailbox = self.mailbox.clone();
        let task = TaskRef {
            slot,
            generation: self.tasks.get(slot).generation,
        };
        pool().run(Box::new(move || {
            mailbox.post(Mail::Answer {
                task,
                answer: work(),
            })
        }));
    }

    fn reap(&mut self) {
        let Some(uring) = &mut self.uring else { return };
        let mut completions = std::mem::take(&mut self.completions);
        uring.completed(&mut completions);
        for (user_data, result) in completions.drain(..) {
            let task = TaskRef::from_bits(user_data);
            let Some(io) = self.tasks.find(task).and_then(|task| task.io) else {
                continue;
            };
            if io.completed_by(result) {
                self.io_done(task.slot, uring_result(result));
                continue;
            }
            if uring_result(result).is_err_and(|error| io.loses_cache(&error)) {
                self.cache_lost(task.slot);
            }
            self.run_io(task.slot);
        }
        self.completions = completions;
    }

    fn io_done(&mut self, slot: u32, result: io::Result<u64>) {
        let task = self.tasks.get(slot);
        let (Some(policy), Some(io)) = (task.policy.clone(), task.io) else {
            return;
        };
        if let Err(error) = &result {
            if Partial::split(error).1.raw_os_error() == Some(libc::EFAULT) {
                // Truncated guest memory that the kernel met before we did.
                if let Some(queue) = &self.queues[task.queue] {
                    queue.memory.condemn();
                }
            }
        }
        let outcome = sbc::complete(&policy, task.cdb(), &io, result);
        self.outcome(slot, &outcome);
    }

    /// What the unit's cache held may be lost. Only a flush tells its own nexus of that.
    fn cache_lost(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        if let Some(nexus) = &task.nexus {
            let cache = &nexus.lu.cache;
            match task.cache {
                Use::Flushes(flush) => cache.lost(flush.settled, Some(nexus)),
                _ => cache.lost(cache.settled(), None),
            }
        }
    }

    /// How a command ended, once the unit's cache is reckoned with.
    fn settle_cache(&mut self, slot: u32, outcome: &Outcome) -> Outcome {
        if outcome.loses_cache {
            self.cache_lost(slot);
        }
        let task = self.tasks.get(slot);
        let used = std::mem::take(&mut task.cache);
        let (Some(nexus), Some(policy)) = (&task.nexus, &task.policy) else {
            return *outcome;
        };
        let good = outcome.status == wire::STATUS_GOOD;
        match used {
            Use::Fills => nexus.written.note(&nexus.lu.cache),
            Use::Flushes(flush) if good || outcome.loses_cache => {
                nexus.lu.cache.settle(flush);
                if nexus.written.take_lost() && good {
                    return Outcome::write_error(policy);
                }
            }
            Use::Flushes(_) | Use::None => {}
        }
        *outcome
    }

    pub(super) fn outcome(&mut self, slot: u32, outcome: &Outcome) {
        let outcome = self.settle_cache(slot, outcome);
        let task = self.tasks.get(slot);
        if let Some(nexus) = &task.nexus {
            nexus.lu.errors.note(task.cdb(), &outcome);
        }
        let (out, data_in) = task.moved(outcome.transferred);
        let sense = outcome.sense;
        let response = Response {
            response: wire::S_OK,
            status: outcome.status,
            sense: sense.as_bytes(),
            out,
            data_in,
        };
        self.respond(slot, &response);
    }

    /// Writes a command's response. Every command ends here, except one without room for it.
    pub(super) fn respond(&mut self, slot: u32, response: &Response<'_>) {
        let task = self.tasks.get(slot);
        if let Some(fault) = task.fault.take() {
            return self.respond_wrongly(slot, response, &fault);
        }
        let Some(queue) = self.queues[task.queue].as_ref() else {
            return;
        };
        let aborted = task.aborted.map(Response::ending);
        let response = aborted.as_ref().unwrap_or(response);
        let total = task.data_out_len + task.data_in_len;
        let residual = total - response.out - response.data_in;
        let sense = &response.sense[..response.sense.len().min(task.sense_size)];
        let mut used = (CMD_RESP_FIXED + task.sense_size) as u64;
        if queue.handle.kind == Kind::Control {
            // `response` is byte 0 of a TMF's reply and byte 4 of an AN request's.
            used = Cursor::new(&task.chain.writable).write(&[response.response; 5]) as u64;
        } else if !queue.dead {
            let bytes = &mut self.response;
            bytes.clear();
            bytes.extend_from_slice(&wire::cmd_resp(
                sense.len() as u32,
                u32::try_from(residual).unwrap_or(u32::MAX),
                response.status,
                response.response,
                queue.big_endian,
            ));
            bytes.extend_from_slice(sense);
            // The sense area is written whole: `used.len` covers it (virtio 1.4 2.7.8.2).
            bytes.resize(CMD_RESP_FIXED + task.sense_size, 0);
            Cursor::new(&task.chain.writable).write(bytes);
            used += response.data_in;
        }
        if queue.handle.kind == Kind::Request {
            self.account.ended(task, queue, response);
        }
        let checked = response.status == wire::STATUS_CHECK_CONDITION;
        self.settle(slot);
        if checked {
            self.check_condition(slot);
        }
        self.complete(slot, u32::try_from(used).unwrap_or(u32::MAX));
    }

    /// Ends a task before its time, whatever was still planned for it.
    pub(super) fn end(&mut self, slot: u32, response: &Response<'_>) {
        self.tasks.get(slot).fault = None;
        self.respond(slot, response);
    }

    /// A chain without room for an answer: its ring is broken, its entry never used.
    fn drop_unanswered(&mut self, slot: u32) {
        let key = self.tasks.get(slot).queue;
        if let Some(queue) = self.queue(key) {
            queue.in_flight -= 1;
        }
        self.tasks.release(slot);
    }

    /// Pushes the used entry and forgets the task: the one place where a task ends.
    fn complete(&mut self, slot: u32, used: u32) {
        let task = self.tasks.get(slot);
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        let (key, head) = (task.queue, task.chain.head);
        self.copied -= std::mem::take(&mut task.copied);
        if let Some(due) = task.due.take() {
            self.timers.remove(due, task_ref);
        }
        if let (Place::Dormant(ticket), Some(nexus)) = (task.place, &task.nexus) {
            // Otherwise its wake is under way; it will find nobody.
            self.owed -= usize::from(nexus.lu.tasks.cancel(&nexus.part, ticket));
        }
        let mut failure = None;
        if let Some(queue) = self.queues[key].as_mut() {
            queue.in_flight -= 1;
            if !queue.dead {
                match queue.ring.push_used(head, used) {
                    Ok(()) => queue.unpublished = true,
                    Err(error) => failure = Some(error),
                }
            }
            self.touched.push(key);
        }
        self.tasks.release(slot);
        self.drains.completed(task_ref, &mut self.done);
        if let Some(error) = failure {
            self.failed(key, &error);
        }
    }
}

fn uring_result(result: i32) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// The pieces of `iov` from byte `skip` on.
fn after(iov: &[iovec], skip: usize, out: &mut Vec<iovec>) {
    let mut cursor = Cursor::new(iov);
    cursor.skip(skip);
    cursor.rest(out);
}
