//! How a command is executed: on the medium, at once, through io_uring or a pool thread; or by a
//! device of the host.

use std::io;
use std::sync::Arc;

use super::end::Response;
use super::fault;
use super::thread::Thread;
use super::{Answer, Mail};
use crate::cache::Use;
use crate::engine::{Engine, Io, IoKind, Partial};
use crate::passthrough::{Passed, Passthrough};
use crate::pool::pool;
use crate::sbc::{self, Plan};
use crate::task::{State, TaskRef};
use crate::turn::Turn;
use crate::wire;

/// Work for a pool thread, with pointers into a task that stays until the answer is in.
pub(super) struct Sendable<T>(pub T);

// SAFETY: the iovecs inside point into guest memory that the task's `chain.map` keeps mapped.
unsafe impl<T> Send for Sendable<T> {}

impl Thread {
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

    pub(super) fn execute_now(&mut self, slot: u32, turn: Turn) {
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
        let (block_size, engine) = (policy.block_size.into(), &nexus.lu.engine);
        let faulty = fault::faulty(&mut task.fault, &plan, block_size, engine);
        task.cache = match plan.cache_use(&nexus.lu.cache) {
            Use::None if faulty.is_some() => Use::Pretends,
            used => used,
        };
        if task.cache == Use::Fills {
            nexus.written.note(&nexus.lu.cache);
        }
        match plan {
            Plan::Done(outcome) => self.outcome(slot, &outcome),
            Plan::Overrun => self.respond(slot, &Response::transport(wire::S_OVERRUN)),
            Plan::Io(io) => self.start_io(slot, io, faulty),
            Plan::Job(job) => {
                let work = Sendable((job, task.data_out.clone(), task.data_in.clone()));
                let cdb = task.cdb().to_vec();
                let engine = faulty.unwrap_or_else(|| engine.clone());
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

    pub(super) fn passed(&mut self, slot: u32, passed: &Passed) {
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

    /// `faulty`: takes the place of the unit's engine.
    fn start_io(&mut self, slot: u32, io: Io, faulty: Option<Arc<dyn Engine>>) {
        let task = self.tasks.get(slot);
        task.iov.clear();
        match io.kind {
            IoKind::Read => task.iov.extend_from_slice(&task.data_in),
            IoKind::Write => task.iov.extend_from_slice(&task.data_out),
            _ => {}
        }
        sbc::trim(&mut task.iov, io.len);
        task.io = Some(io);
        if let Some(engine) = faulty {
            return self.run_io(slot, engine);
        }
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
        let engine = engine.clone();
        self.run_io(slot, engine);
    }

    /// The engine call in its blocking, complete form.
    fn run_io(&mut self, slot: u32, engine: Arc<dyn Engine>) {
        let task = self.tasks.get(slot);
        let Some(io) = task.io else { return };
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

    pub(super) fn reap(&mut self) {
        let Some(uring) = &mut self.uring else { return };
        let mut completions = std::mem::take(&mut self.completions);
        uring.completed(&mut completions);
        for (user_data, result) in completions.drain(..) {
            let task = TaskRef::from_bits(user_data);
            let Some(found) = self.tasks.find(task) else {
                continue;
            };
            let (Some(io), Some(nexus)) = (found.io, &found.nexus) else {
                continue;
            };
            if io.completed_by(result) {
                self.io_done(task.slot, uring_result(result));
                continue;
            }
            let engine = nexus.lu.engine.clone();
            if uring_result(result).is_err_and(|error| io.loses_cache(&error)) {
                self.cache_lost(task.slot);
            }
            self.run_io(task.slot, engine);
        }
        self.completions = completions;
    }

    pub(super) fn io_done(&mut self, slot: u32, result: io::Result<u64>) {
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
}

fn uring_result(result: i32) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
