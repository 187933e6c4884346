//! Tasks that wait for a point in time.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use crate::task::TaskRef;

pub(super) struct Timers {
    timer: TimerFd,
    /// When the timer rings, if it is set.
    armed: Option<Instant>,
    /// Earliest first.
    due: BTreeSet<(Instant, u64)>,
}

impl Timers {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            timer: TimerFd::new()?,
            armed: None,
            due: BTreeSet::new(),
        })
    }

    /// Readable once the earliest task is due, after [`Timers::arm`].
    pub fn fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    pub fn add(&mut self, due: Instant, task: TaskRef) {
        self.due.insert((due, task.to_bits()));
    }

    pub fn remove(&mut self, due: Instant, task: TaskRef) {
        self.due.remove(&(due, task.to_bits()));
    }

    /// The next task that is due, off the list.
    pub fn expired(&mut self, now: Instant) -> Option<TaskRef> {
        let (due, _) = self.due.first()?;
        if *due > now {
            return None;
        }
        let (_, task) = self.due.pop_first()?;
        Some(TaskRef::from_bits(task))
    }

    /// Before sleeping. Costs nothing as long as nobody waits.
    pub fn arm(&mut self) {
        let next = self.due.first().map(|(due, _)| *due);
        if next == self.armed {
            return;
        }
        let set = match next {
            // A duration of 0 would disarm it.
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now());
                self.timer.reset(left.max(Duration::from_nanos(1)), None)
            }
            None => self.timer.clear(),
        };
        if set.is_ok() {
            self.armed = next;
        }
    }
}
