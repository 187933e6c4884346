//! A command's way into its task set, and what its end does to others there.

use std::collections::HashSet;

use super::begin::MAX_COPY;
use super::end::Response;
use super::thread::Thread;
use super::Mail;
use crate::inbox::Notice;
use crate::lu::{Nexus, Route};
use crate::policy::Qerr;
use crate::sense::{self, key, SenseInfo};
use crate::task::{Place, State, TaskRef};
use crate::task_set::{naca, Admission, Arrival, Attribute, Held, Refusal, Role};
use crate::turn::Turn;
use crate::wire;

const INVALID_MESSAGE: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x4900);

impl Thread {
    /// A command with a logical unit joins the task set, if that takes it.
    pub(super) fn enter(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        let Some(nexus) = task.nexus.clone() else {
            return;
        };
        let Some(attribute) = Attribute::from_wire(task.header.task_attr) else {
            return self.refuse(slot, &nexus, Refusal::InvalidMessage);
        };
        let route = nexus.lu.routes.route(task.cdb());
        let media = matches!(route, Route::Media(_));
        let arrival = Arrival {
            attribute,
            cdb: task.cdb(),
            shares: media && nexus.lu.turn(task.cdb()) == Turn::Shared,
        };
        let task_ref = TaskRef {
            slot,
            generation: task.generation,
        };
        let mailbox = &self.mailbox;
        let admission = nexus.lu.tasks.enter(&nexus.part, &arrival, || {
            let (mailbox, nexus) = (mailbox.clone(), nexus.clone());
            Box::new(move |role| {
                mailbox.post(Mail::Enabled {
                    task: task_ref,
                    nexus,
                    role,
                });
            })
        });
        task.stamp = nexus.lu.tasks.stamp();
        match admission {
            Ok(Admission::Enabled(role, turn)) => {
                (task.place, task.turn) = (Place::Enabled(role), turn);
                self.process(slot, &nexus, route);
            }
            Ok(Admission::Dormant(ticket)) => {
                (task.place, task.state) = (Place::Dormant(ticket), State::Dormant);
                self.owed += 1;
            }
            Err(refusal) => self.refuse(slot, &nexus, refusal),
        }
    }

    fn refuse(&mut self, slot: u32, nexus: &Nexus, refusal: Refusal) {
        let status = match refusal {
            Refusal::Busy => wire::STATUS_BUSY,
            Refusal::TaskSetFull => wire::STATUS_TASK_SET_FULL,
            Refusal::AcaActive => wire::STATUS_ACA_ACTIVE,
            Refusal::InvalidMessage => wire::STATUS_CHECK_CONDITION,
        };
        let mut response = Response::status(status);
        let descriptor = nexus.lu.policy.load().descriptor_sense;
        let sense = sense::build(&INVALID_MESSAGE, descriptor);
        if refusal == Refusal::InvalidMessage {
            response.sense = sense.as_bytes();
        }
        self.respond(slot, &response);
    }

    /// A dormant task is enabled; it may have been aborted meanwhile.
    pub(super) fn enabled(&mut self, task: TaskRef, nexus: &Nexus, role: Role) {
        self.owed -= 1;
        let Some(found) = self.tasks.find(task) else {
            return nexus.lu.tasks.leave(&nexus.part, role, None);
        };
        found.place = Place::Enabled(role);
        found.state = State::Running;
        let route = nexus.lu.routes.route(found.cdb());
        self.process(task.slot, nexus, route);
    }

    fn process(&mut self, slot: u32, nexus: &Nexus, route: Route) {
        if nexus.lu.faults.any() || nexus.lu.limits.any() {
            self.meet_faults(slot, nexus, route);
        } else {
            self.send(slot, nexus, route);
        }
    }

    /// Sends an enabled command its way.
    pub(super) fn send(&mut self, slot: u32, nexus: &Nexus, route: Route) {
        let task = self.tasks.get(slot);
        let copy = match route {
            Route::Media(class) if nexus.gate.enter(class) => return self.execute(slot),
            Route::Media(_) => {
                // Python may take its time.
                if let Some(turn) = task.turn.take() {
                    nexus.lu.tasks.leave_turn(turn);
                }
                0
            }
            Route::Python => {
                nexus.gate.wait();
                MAX_COPY
            }
        };
        task.pending = true;
        self.ask_python(slot, copy);
    }

    /// An enabled command ends with CHECK CONDITION: before its driver can know, an ACA condition
    /// is in effect, and nothing begins that QERR says is to be aborted.
    pub(super) fn check_condition(&mut self, slot: u32) {
        let task = self.tasks.get(slot);
        let Some(nexus) = &task.nexus else { return };
        let naca = naca(task.cdb());
        let Place::Enabled(role) = &mut task.place else {
            return;
        };
        if naca || *role == Role::Aca {
            nexus.lu.tasks.check_condition(&nexus.part, role, naca);
        }
        if nexus.lu.policy.load().qerr == Qerr::Nothing {
            return;
        }
        let Some(queue) = self.queues[task.queue].as_ref() else {
            return;
        };
        self.inbox.notice(Notice::Fault {
            port: queue.port.clone(),
            nexus: nexus.clone(),
            held: Held::new(nexus.lu.clone()),
        });
    }

    /// Ends those of `tasks` that have not begun, which may be as long as the driver likes (ACA);
    /// the others. The initiator tries again.
    pub(super) fn end_dormant(&mut self, mut tasks: HashSet<TaskRef>) -> HashSet<TaskRef> {
        tasks.retain(|task| {
            let dormant = self.tasks.get(task.slot).state == State::Dormant;
            if dormant {
                self.end(task.slot, &Response::status(wire::STATUS_BUSY));
            }
            !dormant
        });
        tasks
    }

    pub(super) fn end_dormant_of(&mut self, key: usize) {
        let tasks = self.tasks.live().filter(|(_, task)| task.queue == key);
        let tasks = tasks.map(|(slot, task)| TaskRef {
            slot,
            generation: task.generation,
        });
        let tasks = tasks.collect();
        self.end_dormant(tasks);
    }
}
