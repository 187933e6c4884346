//! What is remembered of commands that ended: statistics, and records for traces.

use super::queue::Run;
use super::thread::Response;
use crate::clock::{self, Clock};
use crate::iov::Cursor;
use crate::stats::End;
use crate::task::Task;
use crate::trace::{Feeds, Record, Seen};
use crate::wire;

pub(super) struct Account {
    clock: Clock,
    /// When the last command ended, if nothing has been done since.
    now: Option<u64>,
    pub traces: Feeds,
}

impl Account {
    pub fn new() -> Self {
        Self {
            clock: Clock::get(),
            now: None,
            traces: Feeds::default(),
        }
    }

    /// Time has gone by.
    pub fn look_again(&mut self) {
        self.now = None;
    }

    /// The ticks at which a command is taken. After one that ended at once, that is when it did.
    pub fn taken(&mut self) -> u64 {
        self.now.take().unwrap_or_else(|| self.clock.ticks())
    }

    /// A command ends: its response is written, its used entry not yet pushed.
    pub fn ended(&mut self, task: &Task, queue: &Run, response: &Response<'_>) {
        let now = self.clock.ticks();
        self.now = Some(now);
        let nanoseconds = self.clock.nanoseconds(task.taken, now);
        let index = queue.handle.index;
        if let Some(nexus) = &task.nexus {
            let end = End {
                class: nexus.lu.routes.class(task.cdb()),
                bytes: response.out + response.data_in,
                nanoseconds,
                status: response.status,
                response: response.response,
            };
            nexus.stats.end(index, &end);
        }
        if self.traces.is_empty() {
            return;
        }
        let seen = Seen {
            cdb: task.cdb(),
            good: response.response == wire::S_OK && response.status == wire::STATUS_GOOD,
            nanoseconds,
            unit: task.nexus.as_ref().map(|nexus| &nexus.lu),
        };
        self.traces.feed(&seen, |data_bytes| Record {
            time: clock::monotonic(),
            nanoseconds,
            port: queue.port.clone(),
            queue: index,
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
