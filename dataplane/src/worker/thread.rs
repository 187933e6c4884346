//! A worker's thread: the loop. What it does with queues, mail and tasks is in files of their own.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::account::Account;
use super::drain::Drains;
use super::queue::Run;
use super::timers::Timers;
use super::uring::Uring;
use super::{Kind, Mailbox};
use crate::inbox::{Inbox, Notice};
use crate::ring::RingError;
use crate::task::Slab;

/// Chains taken from one queue before the next one has its turn.
pub(super) const BUDGET: usize = 64;
/// Turns without work before polled queues are looked at in intervals only.
const POLL_TURNS: u32 = 1000;
const POLL_INTERVAL_MS: i32 = 1;

const MAILBOX: u64 = u64::MAX;
const URING: u64 = u64::MAX - 1;
const TIMER: u64 = u64::MAX - 2;

pub(super) struct Thread {
    pub(super) inbox: Arc<Inbox>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) epoll: Epoll,
    pub(super) uring: Option<Uring>,
    pub(super) queues: Vec<Option<Run>>,
    pub(super) keys: HashMap<u64, usize>,
    pub(super) tasks: Slab,
    pub(super) account: Account,
    pub(super) drains: Drains,
    pub(super) timers: Timers,
    /// Queues that may have chains.
    pub(super) ready: VecDeque<usize>,
    /// Queues with something to publish or to end at the turn's end.
    pub(super) touched: Vec<usize>,
    /// Ended calls, told to Python after the used entries they wait for are published.
    pub(super) done: Vec<(u64, u64)>,
    pub(super) completions: Vec<(u64, i32)>,
    pub(super) copied: usize,
    /// A response being put together.
    pub(super) response: Vec<u8>,
    /// Queues to look at without kicks.
    pub(super) polled: Vec<usize>,
    pub(super) idle_turns: u32,
    /// Mail owed by task sets, to tasks that may be gone meanwhile.
    pub(super) owed: usize,
    pub(super) shutdown: bool,
}

impl Thread {
    pub fn new(inbox: Arc<Inbox>, mailbox: Arc<Mailbox>, io_uring: bool) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        // Edge-triggered, so that its counter need not be read: it only grows.
        let mail = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, MAILBOX);
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

    pub(super) fn turn(&mut self) {
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
        self.account.count();
        self.publish();
    }

    /// Sleeps until something happens; not at all while there is work.
    pub(super) fn wait(&mut self) {
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
        for event in &events[..count] {
            match event.data() {
                MAILBOX | URING | TIMER => {}
                key => {
                    let key = key as usize;
                    if let Some(kick) = self.queue(key).and_then(|queue| queue.kick.as_ref()) {
                        kick.clear();
                    }
                    self.mark_ready(key);
                }
            }
        }
        self.mailbox.wake_up();
        for at in 0..self.polled.len() {
            self.mark_ready(self.polled[at]);
        }
    }

    /// Takes chains from a ready queue, at most `BUDGET`.
    pub(super) fn serve(&mut self, key: usize) {
        let Some(queue) = self.queue(key) else { return };
        queue.ready = false;
        if queue.handle.kind == Kind::Event {
            return self.look_for_event_buffers(key);
        }
        let index = queue.handle.index;
        if let Err(error) = queue.ring.suppress_kicks() {
            return self.failed(key, &error);
        }
        self.account.take(index);
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
                        self.begun(slot);
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
}
