//! What is remembered of commands that ended: statistics, and records for traces.
//!
//! A look at the clock, and at a shard's counters, is made for many commands at once. Commands that
//! are taken together have one time; those that end in one turn of the worker have another, just
//! before the turn's used entries are published: until then they have not ended for their driver.

#[cfg(feature = "uncounted")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::end::Response;
use super::queue::Run;
use crate::clock::{self, Clock};
use crate::iov::Cursor;
use crate::lu::Nexus;
use crate::stats::{Class, Ended, Stats};
use crate::task::Task;
use crate::trace::{Feeds, Record, Seen};

/// Whether there are statistics, which only a benchmark asks: there always are.
#[cfg(not(feature = "uncounted"))]
fn counted() -> bool {
    true
}

#[cfg(feature = "uncounted")]
pub(super) static COUNTED: AtomicBool = AtomicBool::new(true);

#[cfg(feature = "uncounted")]
fn counted() -> bool {
    COUNTED.load(Ordering::Relaxed)
}

/// Nexuses whose commands are looked up quickly.
const UNITS: usize = 8;

/// Commands of one nexus that have ended while those beside them were still being taken.
struct Unit {
    nexus: Weak<Nexus>,
    stats: Arc<Stats>,
    ended: Ended,
}

/// Commands of one shard, taken together, that ended in this turn.
struct Batch {
    stats: Arc<Stats>,
    queue: u16,
    taken: u64,
    ended: Ended,
}

pub(super) struct Account {
    clock: Clock,
    /// The queue that commands are being taken from, and since when.
    queue: u16,
    taken: u64,
    units: Vec<Unit>,
    /// Of them, the one whose command ended last.
    last: usize,
    /// All that does not belong to `units`.
    batches: Vec<Batch>,
    pub traces: Feeds,
}

impl Account {
    pub fn new() -> Self {
        Self {
            clock: Clock::get(),
            queue: 0,
            taken: 0,
            units: Vec::new(),
            last: 0,
            batches: Vec::new(),
            traces: Feeds::default(),
        }
    }

    /// Commands are going to be taken from a queue, as many as there are.
    pub fn take(&mut self, queue: u16) {
        if counted() {
            for at in 0..self.units.len() {
                self.close(at);
            }
            self.queue = queue;
            self.taken = self.clock.ticks();
        }
    }

    /// A unit's commands become a batch.
    fn close(&mut self, at: usize) {
        let unit = &mut self.units[at];
        if !unit.ended.is_empty() {
            self.batches.push(Batch {
                stats: unit.stats.clone(),
                queue: self.queue,
                taken: self.taken,
                ended: std::mem::take(&mut unit.ended),
            });
        }
    }

    /// The ticks at which a command is taken; its own while there is a trace.
    pub fn taken(&self) -> u64 {
        if self.traces.is_empty() {
            self.taken
        } else {
            self.clock.ticks()
        }
    }

    /// A command ends: its response is written, its used entry not yet pushed.
    #[inline]
    pub fn ended(&mut self, task: &Task, queue: &Run, response: &Response<'_>) {
        if counted() {
            let bytes = response.out + response.data_in;
            match (&task.nexus, self.units.get_mut(self.last)) {
                (Some(nexus), Some(unit)) if !task.in_flight && unit.is(nexus) => {
                    let class = nexus.lu.routes.class(task.cdb());
                    unit.ended.add(class, bytes);
                }
                _ => self.remember(task, queue, bytes),
            }
            if !response.good() {
                let stats = stats_of(task, queue);
                stats.fail(queue.handle.index, response.status, response.response);
            }
        }
        if !self.traces.is_empty() {
            self.feed(task, queue, response);
        }
    }

    #[inline(never)]
    fn remember(&mut self, task: &Task, queue: &Run, bytes: u64) {
        let stats = stats_of(task, queue);
        let class = match &task.nexus {
            Some(nexus) => nexus.lu.routes.class(task.cdb()),
            None => Class::Other,
        };
        if let (Some(nexus), false) = (&task.nexus, task.in_flight) {
            return self.unit(nexus).ended.add(class, bytes);
        }
        let queue = queue.handle.index;
        let fits = self.batches.last().is_some_and(|batch| {
            batch.taken == task.taken && batch.queue == queue && Arc::ptr_eq(&batch.stats, stats)
        });
        if !fits {
            self.batches.push(Batch {
                stats: stats.clone(),
                queue,
                taken: task.taken,
                ended: Ended::default(),
            });
        }
        if let Some(batch) = self.batches.last_mut() {
            batch.ended.add(class, bytes);
            batch.ended.in_flight += u64::from(task.in_flight);
        }
    }

    fn unit(&mut self, nexus: &Arc<Nexus>) -> &mut Unit {
        let known = self.units.iter().position(|unit| unit.is(nexus));
        self.last = known.unwrap_or_else(|| {
            let new = Unit {
                nexus: Arc::downgrade(nexus),
                stats: nexus.stats.clone(),
                ended: Ended::default(),
            };
            if self.units.len() < UNITS {
                self.units.push(new);
                return self.units.len() - 1;
            }
            let next = (self.last + 1) % UNITS;
            self.close(next);
            self.units[next] = new;
            next
        });
        &mut self.units[self.last]
    }

    /// Counts what ended; it is published next.
    pub fn count(&mut self) {
        if self.batches.is_empty() && self.units.iter().all(|unit| unit.ended.is_empty()) {
            return;
        }
        let now = self.clock.ticks();
        let since = |taken| self.clock.nanoseconds(taken, now);
        for batch in self.batches.drain(..) {
            let Batch { stats, ended, .. } = &batch;
            stats.end(batch.queue, since(batch.taken), ended);
        }
        for unit in &mut self.units {
            let ended = std::mem::take(&mut unit.ended);
            unit.stats.end(self.queue, since(self.taken), &ended);
        }
    }

    #[inline(never)]
    fn feed(&mut self, task: &Task, queue: &Run, response: &Response<'_>) {
        let nanoseconds = self.clock.nanoseconds(task.taken, self.clock.ticks());
        let seen = Seen {
            cdb: task.cdb(),
            good: response.good(),
            nanoseconds,
            unit: task.nexus.as_ref().map(|nexus| &nexus.lu),
        };
        self.traces.feed(&seen, |data_bytes| Record {
            time: clock::monotonic(),
            nanoseconds,
            port: queue.port.clone(),
            queue: queue.handle.index,
            header: task.header,
            cdb: task.cdb().to_vec(),
            data_out_length: task.data_out_len,
            data_in_length: task.data_in_len,
            data_out_moved: response.out,
            data_in_moved: response.data_in,
            status: response.status,
            response: response.response,
            sense: response.sense.to_vec(),
            data: moved(task, response, data_bytes),
        });
    }
}

impl Unit {
    fn is(&self, nexus: &Arc<Nexus>) -> bool {
        Weak::as_ptr(&self.nexus) == Arc::as_ptr(nexus)
    }
}

fn stats_of<'a>(task: &'a Task, queue: &'a Run) -> &'a Arc<Stats> {
    match &task.nexus {
        Some(nexus) => &nexus.stats,
        None => &queue.port.stats,
    }
}

/// A command that has been taken has not ended yet: it is in flight.
pub(super) fn lasts(task: &mut Task, queue: &Run) {
    if counted() {
        stats_of(task, queue).begin(queue.handle.index);
        task.in_flight = true;
    }
}

/// The first bytes that a command moved: of its data-out buffer or else of its data-in buffer.
fn moved(task: &Task, response: &Response<'_>, limit: usize) -> Vec<u8> {
    let (iov, length) = if response.out > 0 {
        (&task.data_out, response.out)
    } else {
        (&task.data_in, response.data_in)
    };
    let mut data = vec![0; length.min(limit as u64) as usize];
    Cursor::new(iov).read(&mut data);
    data
}
