//! Commands that are kept back, by their unit's limits or by a fault, and those that go wrong.

use std::sync::Arc;
use std::time::Instant;

use super::end::Response;
use super::thread::Thread;
use crate::engine::Engine;
use crate::fault::data::{FaultyEngine, Wrong};
use crate::fault::{self, Bad, Command, Part, Planned, Rule};
use crate::lu::{Lu, Nexus, Route};
use crate::sbc::{self, Outcome, Plan};
use crate::sense::{self, Sense, SenseInfo};
use crate::task::{State, TaskRef};
use crate::wire;

/// The engine for one command, if something goes wrong there: `engine` behind all that is planned
/// for the medium.
pub(super) fn faulty(
    fault: &mut Option<Box<Planned>>,
    plan: &Plan,
    block_size: u64,
    engine: &Arc<dyn Engine>,
) -> Option<Arc<dyn Engine>> {
    let fault = fault.as_mut()?;
    let touches = plan.touches();
    let mut wrongs = Vec::new();
    if let Some(corrupted) = &fault.corruption {
        wrongs.extend(Wrong::corruption(corrupted, &touches, block_size));
    }
    if let Some(part) = fault.part {
        let bytes = part.of(touches.len(), block_size);
        fault.part = Some(Part::Bytes(bytes));
        wrongs.push(Wrong::Cut(bytes));
    }
    if let Some(Bad {
        blocks: (first, last),
        reads,
        sense,
    }) = fault.bad
    {
        wrongs.push(Wrong::Bad {
            first: first.saturating_mul(block_size),
            last: last
                .saturating_mul(block_size)
                .saturating_add(block_size - 1),
            reads,
            sense,
        });
    }
    let wrap = |inner: Option<Arc<dyn Engine>>, wrong| -> Option<Arc<dyn Engine>> {
        let inner = inner.unwrap_or_else(|| engine.clone());
        let touches = touches.clone();
        Some(Arc::new(FaultyEngine::new(
            inner, touches, wrong, block_size,
        )))
    };
    wrongs.into_iter().fold(None, wrap)
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
                blocks: sbc::blocks(task.cdb(), &task.data_out),
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
            let ours = matches!(route, Route::Media(_)) && nexus.lu.engine.passthrough().is_none();
            if let Some(bad) = fault.bad.filter(|_| !ours) {
                // Nothing of it can be done: the error is at its first bad block.
                let blocks = sbc::blocks(task.cdb(), &task.data_out);
                let first = blocks.first().map(|range| range.lba.max(bad.blocks.0));
                let sense = SenseInfo {
                    information: first,
                    ..bad.sense
                };
                return self.answer_wrongly(slot, nexus, &fault::Answer::check(sense));
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
            (fault.answer, fault.bad) = (None, None);
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
            response.out = part.of(real.out, 1);
            response.data_in = part.of(real.data_in, 1);
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
}

fn build(nexus: &Nexus, answer: &crate::fault::Answer) -> Sense {
    let descriptor = nexus.lu.policy.load().descriptor_sense;
    answer
        .sense
        .map_or(Sense::NONE, |sense| sense::build(&sense, descriptor))
}
