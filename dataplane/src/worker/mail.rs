//! What a worker does about its mail.

use std::collections::HashSet;

use super::end::Response;
use super::thread::Thread;
use super::{Answer, Mail};
use crate::iov::Cursor;
use crate::notifier::Notifier;
use crate::task::{State, TaskRef};

impl Thread {
    pub(super) fn open(&mut self, mail: Mail) {
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
}
