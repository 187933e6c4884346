//! Which tasks a call from outside means, and the call that ends them.

use std::collections::HashSet;
use std::sync::Arc;

use super::end::Response;
use super::thread::{Thread, BUDGET};
use super::{Kind, Scope};
use crate::memory::GuestMemory;
use crate::task::{Ending, State, TaskRef};

impl Thread {
    /// A command that the driver queued before it asked for a TMF is in the task set, whether or
    /// not this worker has seen it yet.
    pub(super) fn take_offered(&mut self, scope: &Scope) {
        for key in 0..self.queues.len() {
            let Some(queue) = self.queue(key) else {
                continue;
            };
            let asked = scope
                .port
                .as_ref()
                .is_none_or(|port| Arc::ptr_eq(port, &queue.port));
            if queue.handle.kind != Kind::Request || !asked {
                continue;
            }
            // Bounded: a driver that keeps adding does not keep us here.
            let rounds = queue.size / BUDGET + 1;
            self.mark_ready(key);
            for _ in 0..rounds {
                if !self.queue(key).is_some_and(|queue| queue.ready) {
                    break;
                }
                self.ready.retain(|ready| *ready != key);
                self.serve(key);
            }
        }
    }

    pub(super) fn matching(&self, scope: &Scope) -> Vec<TaskRef> {
        self.tasks
            .live()
            .filter(|(_, task)| {
                let Some(queue) = self.queues.get(task.queue).and_then(Option::as_ref) else {
                    return false;
                };
                let nexus = task.nexus.as_ref();
                let lu = nexus.map(|nexus| &nexus.lu);
                queue.handle.kind == Kind::Request
                    && scope
                        .port
                        .as_ref()
                        .is_none_or(|port| Arc::ptr_eq(port, &queue.port))
                    && scope
                        .lu
                        .as_ref()
                        .is_none_or(|wanted| lu.is_some_and(|lu| Arc::ptr_eq(wanted, lu)))
                    && scope
                        .nexus
                        .as_ref()
                        .is_none_or(|wanted| nexus.is_some_and(|nexus| Arc::ptr_eq(wanted, nexus)))
                    && scope.tag.is_none_or(|tag| tag == task.header.tag)
                    && (scope.opcodes.is_empty() || scope.opcodes.contains(&task.cdb()[0]))
                    && scope.until.is_none_or(|until| task.stamp <= until)
            })
            .map(|(slot, task)| TaskRef {
                slot,
                generation: task.generation,
            })
            .collect()
    }

    /// Tasks, on any kind of queue, with pieces translated from I/O addresses of [first, last].
    pub(super) fn using(
        &self,
        memory: &Arc<GuestMemory>,
        first: u64,
        last: u64,
    ) -> HashSet<TaskRef> {
        self.tasks
            .live()
            .filter(|(_, task)| {
                let queue = self.queues.get(task.queue).and_then(Option::as_ref);
                queue.is_some_and(|queue| Arc::ptr_eq(memory, &queue.memory))
                    && task.chain.uses(first, last)
            })
            .map(|(slot, task)| TaskRef {
                slot,
                generation: task.generation,
            })
            .collect()
    }

    pub(super) fn abort(&mut self, token: u64, ending: Ending, scope: &Scope) {
        self.take_offered(scope);
        let hit = self.matching(scope);
        let mut waiting = HashSet::new();
        for task in &hit {
            let found = self.tasks.get(task.slot);
            if found.state != State::Running {
                self.end(task.slot, &Response::ending(ending));
            } else {
                found.aborted = Some(ending);
                waiting.insert(*task);
            }
        }
        self.drains
            .add(token, hit.len() as u64, waiting, &mut self.done);
    }
}
