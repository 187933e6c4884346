//! How a task ends: its response, then its used entry.

use super::thread::Thread;
use super::Kind;
use crate::cache::Use;
use crate::iov::Cursor;
use crate::sbc::Outcome;
use crate::task::{Ending, Place, TaskRef};
use crate::wire::{self, CMD_RESP_FIXED};

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

    /// GOOD, and nothing to say against it.
    pub fn good(&self) -> bool {
        self.response == wire::S_OK && self.status == wire::STATUS_GOOD
    }

    pub fn ending(ending: Ending) -> Self {
        Self {
            response: ending.response,
            status: ending.status,
            sense: &[],
            out: 0,
            data_in: 0,
        }
    }
}

impl Thread {
    /// Python has decided: the gate may open again when this was the last one.
    pub(super) fn settle(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        if std::mem::take(&mut task.pending) {
            if let Some(nexus) = &task.nexus {
                nexus.gate.decided();
            }
        }
    }

    pub(super) fn finish(&mut self, slot: u32, status: u8, sense: &[u8], data: &[u8]) {
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

    /// What the unit's cache held may be lost. Only a flush tells its own nexus of that.
    pub(super) fn cache_lost(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        if let Some(nexus) = &task.nexus {
            let cache = &nexus.lu.cache;
            match task.cache {
                Use::Pretends => {}
                Use::Flushes(flush) => cache.lost(flush.settled, Some(nexus)),
                Use::None | Use::Fills => cache.lost(cache.settled(), None),
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
            Use::Flushes(_) | Use::None | Use::Pretends => {}
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
    pub(super) fn drop_unanswered(&mut self, slot: u32) {
        let key = self.tasks.get(slot).queue;
        if let Some(queue) = self.queue(key) {
            queue.in_flight -= 1;
        }
        self.tasks.release(slot);
    }

    /// Pushes the used entry and forgets the task: the one place where a task ends.
    pub(super) fn complete(&mut self, slot: u32, used: u32) {
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
