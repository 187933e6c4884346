//! Commands that are kept back, by their unit's limits or by a fault, and those that go wrong.

use std::sync::Arc;
use std::time::Instant;

use super::thread::{Response, Sendable, Thread};
use super::Answer;
use crate::engine::Io;
use crate::fault::data::Corruption;
use crate::fault::{Command, Part, Planned, Rule};
use crate::lu::{Lu, Nexus, Route};
use crate::sbc::{self, Outcome};
use crate::sense::{self, Sense};
use crate::task::{State, TaskRef};
use crate::wire;

/// What of a plan concerns the engine call, off the plan: a call that is cut short, or corrupted.
pub(super) fn plan_io(
    fault: &mut Option<Box<Planned>>,
    io: &mut Io,
    block_size: u64,
) -> Option<(Corruption, u64)> {
    let fault = fault.as_mut().filter(|_| io.moves_data())?;
    if let Some(part) = fault.part.take() {
        io.len = part.of(io.len, block_size);
    }
    fault.corruption.take()
}

impl Thread {
    /// An enabled command of a unit with rules or limits.
    pub(super) fn meet_faults(&mut self, slot: u32, nexus: &Nexus, route: Route) {
        let task = self.tasks.get(slot);
        let Some(queue) = self.queues[task.queue].as_ref() else {
            return;
        };
        if nexus.lu.faults.any() {
            task.fault = nexus.lu.faults.plan(&Command {
                port: &queue.port,
                tag: task.header.tag,
                cdb: task.cdb(),
                blocks: sbc::blocks(task.cdb()),
                now: Instant::now(),
            });
        }
        self.go_on(slot, nexus, route);
    }

    /// The next thing that a command waits for, or its way.
    fn go_on(&mut self, slot: u32, nexus: &Nexus, route: Route) {
        let task = self.tasks.get(slot);
        if let Some(fault) = &mut task.fault {
            if fault.hang.is_some() {
                return self.keep(slot, nexus, None);
            }
            let delay = std::mem::take(&mut fault.delay);
            if !delay.is_zero() {
                return self.keep(slot, nexus, Some(Instant::now() + delay));
            }
            if let Some(answer) = fault.answer.filter(|answer| !answer.executed) {
                return self.answer_wrongly(slot, nexus, &answer);
            }
        }
        if nexus.lu.limits.any() && matches!(route, Route::Media(_)) && !task.paced {
            task.paced = true;
            let now = Instant::now();
            let due = nexus
                .lu
                .limits
                .take(task.data_out_len + task.data_in_len, now);
            if due > now {
                return self.keep(slot, nexus, Some(due));
            }
        }
        task.state = State::Running;
        self.send(slot, nexus, route);
    }

    fn keep(&mut self, slot: u32, nexus: &Nexus, due: Option<Instant>) {
        let task = self.tasks.get(slot);
        task.state = State::Dormant;
        task.due = due;
        // Others need not wait with it.
        if let Some(turn) = task.turn.take() {
            nexus.lu.tasks.leave_turn(turn);
        }
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        if let Some(due) = due {
            self.timers.add(due, task_ref);
        }
    }

    /// Commands whose time has come go on.
    pub(super) fn expire(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(task) = self.timers.expired(now) {
            self.wake(task.slot);
        }
    }

    fn wake(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        if let Some(due) = task.due.take() {
            self.timers.remove(due, task_ref);
        }
        let task = self.tasks.get(slot);
        if let Some(nexus) = task.nexus.clone() {
            let route = nexus.lu.routes.route(task.cdb());
            self.go_on(slot, &nexus, route);
        }
    }

    /// See [`super::Worker::release`].
    pub(super) fn release(&mut self, lu: &Arc<Lu>, rule: Option<&Arc<Rule>>) {
        let kept = self.tasks.live().filter(|(_, task)| {
            let here = task
                .nexus
                .as_ref()
                .is_some_and(|nexus| Arc::ptr_eq(&nexus.lu, lu));
            let hang = task.fault.as_ref().and_then(|fault| fault.hang.as_ref());
            here && task.state == State::Dormant
                && match rule {
                    Some(rule) => hang.is_some_and(|hang| Arc::ptr_eq(hang, rule)),
                    None => task.paced,
                }
        });
        let kept: Vec<_> = kept.map(|(slot, _)| slot).collect();
        for slot in kept {
            let task = self.tasks.get(slot);
            match (&mut task.fault, rule) {
                (Some(fault), Some(_)) => fault.hang = None,
                _ => task.paced = false,
            }
            self.wake(slot);
        }
    }

    /// The command is not executed.
    fn answer_wrongly(&mut self, slot: u32, nexus: &Nexus, answer: &crate::fault::Answer) {
        let task = self.tasks.get(slot);
        task.state = State::Running;
        if let Some(fault) = &mut task.fault {
            fault.answer = None;
        }
        let sense = build(nexus, answer);
        if answer.response != wire::S_OK {
            return self.respond(slot, &Response::transport(answer.response));
        }
        self.outcome(
            slot,
            &Outcome {
                status: answer.status,
                sense,
                ..Outcome::good(0)
            },
        );
    }

    /// A command that has been executed, or refused, with what was planned for its end.
    pub(super) fn respond_wrongly(&mut self, slot: u32, real: &Response<'_>, fault: &Planned) {
        let task = self.tasks.get(slot);
        let Some(nexus) = task.nexus.clone().filter(|_| task.aborted.is_none()) else {
            return self.respond(slot, real);
        };
        if fault.lose && self.lose(slot, &nexus) {
            return;
        }
        let well = (real.response, real.status) == (wire::S_OK, wire::STATUS_GOOD);
        let mut response = Response { ..*real };
        if let Some(part) = fault.part.filter(|_| well) {
            let block_size = match part {
                Part::Fraction(_) => 1,
                Part::Blocks(_) => nexus.lu.policy.load().block_size.into(),
            };
            response.out = part.of(real.out, block_size);
            response.data_in = part.of(real.data_in, block_size);
        }
        let sense;
        if let Some(answer) = fault.answer.filter(|_| well) {
            sense = build(&nexus, &answer);
            response.response = answer.response;
            response.status = answer.status;
            response.sense = sense.as_bytes();
        }
        self.respond(slot, &response);
    }

    /// The driver is not told that a command has ended; it lasts until it is aborted. False: it
    /// must end now, as somebody waits for that.
    fn lose(&mut self, slot: u32, nexus: &Nexus) -> bool {
        let task = self.tasks.get(slot);
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        let ending = match self.queues[task.queue].as_ref() {
            Some(queue) => queue.dead || queue.stop.is_some(),
            None => true,
        };
        if ending || self.drains.wait_for(task_ref) {
            return false;
        }
        self.settle(slot);
        let task = self.tasks.get(slot);
        self.copied -= std::mem::take(&mut task.copied);
        if let Some(turn) = task.turn.take() {
            nexus.lu.tasks.leave_turn(turn);
        }
        task.paced = false;
        task.state = State::Dormant;
        true
    }

    pub(super) fn run_corrupted(&mut self, slot: u32, what: (Corruption, u64), block_size: u64) {
        let task = self.tasks.get(slot);
        let (Some(nexus), Some(io)) = (&task.nexus, task.io) else {
            return;
        };
        let engine = nexus.lu.engine.clone();
        let iov = Sendable(task.iov.clone());
        let (corruption, random) = what;
        self.on_pool(slot, move || {
            let Sendable(iov) = { iov };
            Answer::Io(corruption.run(random, block_size, engine.as_ref(), &io, &iov))
        });
    }
}

fn build(nexus: &Nexus, answer: &crate::fault::Answer) -> Sense {
    let descriptor = nexus.lu.policy.load().descriptor_sense;
    answer
        .sense
        .map_or(Sense::NONE, |sense| sense::build(&sense, descriptor))
}
