//! Completed commands, one record each, for whoever traces them.
//!
//! A worker keeps a list of the traces under way; while there is none, looking at it is all that
//! it does. Each worker has a buffer of its own in a trace, so that they do not wait for each other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::lu::Lu;
use crate::port::Port;
use crate::sbc::cdb::variable_action;
use crate::wire::CmdReq;

/// A command as it ended.
#[derive(Clone)]
pub struct Record {
    /// CLOCK_MONOTONIC when it was complete, in nanoseconds.
    pub time: u64,
    /// Since it was taken from its queue.
    pub nanoseconds: u64,
    pub port: Arc<Port>,
    /// Index of its queue.
    pub queue: u16,
    pub header: CmdReq,
    pub cdb: Vec<u8>,
    /// Bytes of its buffers.
    pub data_out_length: u64,
    pub data_in_length: u64,
    /// Bytes moved.
    pub data_out_moved: u64,
    pub data_in_moved: u64,
    pub status: u8,
    pub response: u8,
    pub sense: Vec<u8>,
    /// The first bytes moved, either way.
    pub data: Vec<u8>,
}

/// Which commands a trace wants; empty or 0: all.
#[derive(Default)]
pub struct Filter {
    /// Not held: a unit that is removed lets go of its storage.
    pub units: Vec<Weak<Lu>>,
    /// Bit by OPERATION CODE.
    pub opcodes: [u64; 4],
    /// SERVICE ACTIONs of variable-length CDBs, beside those.
    pub actions: Vec<u16>,
    /// Those only that end with another response than OK or another status than GOOD.
    pub errors: bool,
    pub min_nanoseconds: u64,
}

impl Filter {
    /// Adds an OPERATION CODE.
    pub fn want_opcode(&mut self, opcode: u8) {
        self.opcodes[usize::from(opcode >> 6)] |= 1 << (opcode & 63);
    }

    fn wants(&self, seen: &Seen<'_>) -> bool {
        let opcode = seen.cdb[0];
        let named = self.opcodes[usize::from(opcode >> 6)] & (1 << (opcode & 63)) != 0
            || variable_action(seen.cdb).is_some_and(|action| self.actions.contains(&action));
        (named || (self.opcodes == [0; 4] && self.actions.is_empty()))
            && !(self.errors && seen.good)
            && seen.nanoseconds >= self.min_nanoseconds
            && (self.units.is_empty()
                || seen.unit.is_some_and(|unit| {
                    let mut units = self.units.iter();
                    units.any(|wanted| wanted.as_ptr() == Arc::as_ptr(unit))
                }))
    }
}

/// What a filter looks at.
pub struct Seen<'a> {
    pub cdb: &'a [u8],
    pub good: bool,
    pub nanoseconds: u64,
    pub unit: Option<&'a Arc<Lu>>,
}

/// What to do with a record when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It is lost.
    DropNew,
    /// The oldest makes room for it.
    DropOld,
}

type Records = Mutex<VecDeque<Record>>;

/// A trace; workers feed it from [`Worker::trace`](crate::worker::Worker::trace) until it is ended.
pub struct Trace {
    filter: Filter,
    /// Records in each worker's buffer.
    capacity: usize,
    full: Full,
    data_bytes: usize,
    ended: AtomicBool,
    lost: AtomicU64,
    buffers: Mutex<Vec<Arc<Records>>>,
}

impl Trace {
    pub fn new(filter: Filter, capacity: usize, full: Full, data_bytes: usize) -> Self {
        Self {
            filter,
            capacity: capacity.max(1),
            full,
            data_bytes,
            ended: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            buffers: Mutex::default(),
        }
    }

    /// Workers forget it at their next command.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Records that found no room, or made room, since the last call.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// Removes the records that there are, in order of their time.
    pub fn take(&self) -> Vec<Record> {
        self.collect(|records| std::mem::take(records).into())
    }

    /// The same, without removing them.
    pub fn peek(&self) -> Vec<Record> {
        self.collect(|records| records.iter().cloned().collect())
    }

    fn collect(&self, of: impl Fn(&mut VecDeque<Record>) -> Vec<Record>) -> Vec<Record> {
        let buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for records in buffers.iter() {
            all.extend(of(&mut records
                .lock()
                .unwrap_or_else(PoisonError::into_inner)));
        }
        all.sort_by_key(|record| record.time);
        all
    }
}

/// One worker's end of a trace.
struct Feed {
    trace: Arc<Trace>,
    records: Arc<Records>,
}

/// The traces that a worker feeds.
#[derive(Default)]
pub struct Feeds(Vec<Feed>);

impl Feeds {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, trace: Arc<Trace>) {
        let records = Arc::<Records>::default();
        let mut buffers = trace.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.push(records.clone());
        drop(buffers);
        self.0.push(Feed { trace, records });
    }

    /// A command ended: `make` makes the record, with at most so many bytes of data, for those
    /// traces that want it.
    pub fn feed(&mut self, seen: &Seen<'_>, make: impl Fn(usize) -> Record) {
        self.0
            .retain(|feed| !feed.trace.ended.load(Ordering::Acquire));
        for Feed { trace, records } in &self.0 {
            if !trace.filter.wants(seen) {
                continue;
            }
            let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
            if records.len() >= trace.capacity {
                trace.lost.fetch_add(1, Ordering::Relaxed);
                match trace.full {
                    Full::DropNew => continue,
                    Full::DropOld => records.pop_front(),
                };
            }
            records.push_back(make(trace.data_bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time: u64) -> Record {
        Record {
            time,
            nanoseconds: 0,
            port: Arc::default(),
            queue: 2,
            header: CmdReq::default(),
            cdb: vec![0; 16],
            data_out_length: 0,
            data_in_length: 0,
            data_out_moved: 0,
            data_in_moved: 0,
            status: 0,
            response: 0,
            sense: Vec::new(),
            data: Vec::new(),
        }
    }

    const READ: Seen<'static> = Seen {
        cdb: &[0x28],
        good: true,
        nanoseconds: 1000,
        unit: None,
    };

    fn times(records: &[Record]) -> Vec<u64> {
        records.iter().map(|record| record.time).collect()
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        for (full, kept) in [(Full::DropNew, [1, 2]), (Full::DropOld, [4, 5])] {
            let trace = Arc::new(Trace::new(Filter::default(), 2, full, 0));
            let mut feeds = Feeds::default();
            feeds.add(trace.clone());
            for time in 1..=5 {
                feeds.feed(&READ, |_| record(time));
            }
            assert_eq!(times(&trace.peek()), kept);
            assert_eq!(times(&trace.take()), kept);
            assert_eq!((trace.take_lost(), trace.take_lost()), (3, 0));
            assert!(trace.take().is_empty());
        }
    }

    #[test]
    fn the_records_of_all_workers_are_in_order() {
        let trace = Arc::new(Trace::new(Filter::default(), 9, Full::DropNew, 0));
        let (mut one, mut two) = (Feeds::default(), Feeds::default());
        one.add(trace.clone());
        two.add(trace.clone());
        for time in [1, 4] {
            one.feed(&READ, |_| record(time));
        }
        for time in [2, 3] {
            two.feed(&READ, |_| record(time));
        }
        assert_eq!(times(&trace.take()), [1, 2, 3, 4]);
    }

    #[test]
    fn an_ended_trace_is_forgotten() {
        let trace = Arc::new(Trace::new(Filter::default(), 9, Full::DropNew, 0));
        let mut feeds = Feeds::default();
        feeds.add(trace.clone());
        trace.end();
        feeds.feed(&READ, |_| record(1));
        assert!(feeds.is_empty() && trace.take().is_empty());
    }

    #[test]
    fn a_filter_passes_what_fits_all_of_it() {
        let mut filter = Filter {
            errors: true,
            min_nanoseconds: 500,
            ..Filter::default()
        };
        filter.want_opcode(0x28);
        filter.want_opcode(0xff);
        assert!(!filter.wants(&READ));
        let bad = Seen {
            good: false,
            ..READ
        };
        assert!(filter.wants(&bad));
        assert!(filter.wants(&Seen {
            cdb: &[0xff],
            ..bad
        }));
        assert!(!filter.wants(&Seen {
            cdb: &[0x2a],
            ..bad
        }));
        let variable = |action| {
            let mut cdb = [0; 32];
            (cdb[0], cdb[9]) = (0x7f, action);
            cdb
        };
        assert!(!filter.wants(&Seen {
            cdb: &variable(9),
            ..bad
        }));
        filter.actions = vec![9];
        for (cdb, wanted) in [(variable(9), true), (variable(0x0b), false)] {
            let seen = Seen { cdb: &cdb, ..bad };
            assert_eq!(filter.wants(&seen), wanted);
        }
        filter.opcodes = [0; 4];
        assert!(!filter.wants(&bad), "one action is not all");
        filter.actions.clear();
        filter.want_opcode(0x28);
        assert!(!filter.wants(&Seen {
            nanoseconds: 499,
            ..bad
        }));
    }
}
