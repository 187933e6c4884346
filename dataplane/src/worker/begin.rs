//! How a task begins: a request is taken apart, and goes to its logical unit or to Python.

use libc::iovec;

use super::account;
use super::end::Response;
use super::thread::Thread;
use super::Reply;
use crate::inbox::{Command, Control, Message};
use crate::iov::Cursor;
use crate::port;
use crate::task::{State, TaskRef, MAX_CDB};
use crate::wire::{self, CmdReq, CMD_REQ_FIXED, CMD_RESP_FIXED};

/// Data-out bytes copied for one command that Python decides.
pub(super) const MAX_COPY: u64 = 1 << 20;
/// The same for all commands of a worker that are with Python; above it they get BUSY.
const COPY_BUDGET: usize = 64 << 20;
/// Longest control request that has a meaning is 24 bytes; the rest is cut off.
const MAX_CONTROL: u64 = 4096;

impl Thread {
    pub(super) fn begin_control(&mut self, slot: u32) {
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
    pub(super) fn begin(&mut self, slot: u32) {
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
                task.nexus = Some(nexus);
                self.enter(slot);
            }
        }
    }

    /// A command has been sent its way; unless it has ended already, it is in flight.
    pub(super) fn begun(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        if task.state == State::Free {
            return;
        }
        if let Some(queue) = &self.queues[task.queue] {
            account::lasts(task, queue);
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
            queue: queue.handle.clone(),
            nexus: task.nexus.clone(),
            header: task.header,
            cdb: task.cdb().to_vec(),
            data_out,
            data_out_length: task.data_out_len,
            data_in_length: task.data_in_len,
        }));
    }
}

/// The pieces of `iov` from byte `skip` on.
fn after(iov: &[iovec], skip: usize, out: &mut Vec<iovec>) {
    let mut cursor = Cursor::new(iov);
    cursor.skip(skip);
    cursor.rest(out);
}
