//! A worker's queues: how they come, go, wait, and break.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::end::Response;
use super::queue::Run;
use super::thread::Thread;
use super::Mail;
use crate::event::Kick;
use crate::inbox::Notice;
use crate::memory::Fault;
use crate::ring::RingError;
use crate::task::State;
use crate::wire;

impl Thread {
    pub(super) fn queue(&mut self, key: usize) -> Option<&mut Run> {
        self.queues.get_mut(key)?.as_mut()
    }

    pub(super) fn named(&mut self, id: u64) -> Option<(usize, &mut Run)> {
        let key = *self.keys.get(&id)?;
        Some((key, self.queues[key].as_mut()?))
    }

    pub(super) fn mark_ready(&mut self, key: usize) {
        if let Some(queue) = self.queue(key) {
            if !queue.ready && queue.runs() {
                queue.ready = true;
                self.ready.push_back(key);
            }
        }
    }

    pub(super) fn attach(&mut self, run: Run) {
        let key = self
            .queues
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.queues.len());
        if key == self.queues.len() {
            self.queues.push(None);
        }
        self.keys.insert(run.handle.id, key);
        let kick = run.kick.as_ref().map(|kick| kick.as_fd().as_raw_fd());
        self.queues[key] = Some(run);
        if let Some(kick) = kick {
            self.watch(key, kick);
        }
        self.update_polled();
        self.mark_ready(key);
    }

    /// Edge-triggered: see `Kick`.
    fn watch(&mut self, key: usize, kick: RawFd) {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, key as u64);
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, kick, event) {
            self.broken(
                key,
                &format!("its kick descriptor cannot be watched: {error}"),
            );
        }
    }

    fn unwatch(&mut self, key: usize) {
        let kick = self.queue(key).and_then(|queue| queue.kick.take());
        if let Some(kick) = kick {
            // Fails only if `watch` had; the descriptor is closed next.
            let _ = self.epoll.ctl(
                ControlOperation::Delete,
                kick.as_fd().as_raw_fd(),
                EpollEvent::default(),
            );
        }
    }

    fn update_polled(&mut self) {
        self.polled.clear();
        for (key, queue) in self.queues.iter().enumerate() {
            if queue
                .as_ref()
                .is_some_and(|queue| queue.poll && !queue.dead)
            {
                self.polled.push(key);
            }
        }
    }

    /// The ring cannot be trusted any more: it is not touched again.
    pub(super) fn broken(&mut self, key: usize, text: &str) {
        let Some(queue) = self.queue(key) else { return };
        if queue.dead {
            return;
        }
        queue.dead = true;
        queue.unpublished = false;
        let queue = queue.handle.clone();
        self.unwatch(key);
        self.inbox.notice(Notice::Broken {
            queue,
            text: text.to_owned(),
        });
    }

    /// What becomes of a queue whose ring reported this.
    pub(super) fn failed(&mut self, key: usize, error: &RingError) {
        if let Some(fault) = error.miss() {
            return self.park(key, fault);
        }
        if let (Some(fault), Some(queue)) = (error.denied(), self.queue(key)) {
            let queue = queue.handle.clone();
            self.inbox.notice(Notice::Denied { queue, fault });
        }
        self.broken(key, &error.to_string());
    }

    /// Leaves a queue alone until `fault` is mapped. All that it has to take or to publish stays.
    fn park(&mut self, key: usize, fault: Fault) {
        let mailbox = self.mailbox.clone();
        let Some(queue) = self.queue(key) else { return };
        let id = queue.handle.id;
        let wake = move || mailbox.post(Mail::Unpark { queue: id });
        if queue.memory.wait(id, fault, wake) {
            queue.parked = true;
            let queue = queue.handle.clone();
            self.inbox.notice(Notice::Miss { queue, fault });
        } else {
            self.unpark(id);
        }
    }

    pub(super) fn unpark(&mut self, id: u64) {
        if let Some((key, queue)) = self.named(id) {
            queue.parked = false;
            if queue.unpublished {
                self.touched.push(key);
            }
            self.mark_ready(key);
        }
    }

    pub(super) fn set_kick(&mut self, id: u64, kick: Option<Kick>, poll: bool) {
        let Some((key, queue)) = self.named(id) else {
            return;
        };
        if queue.dead {
            return;
        }
        queue.poll = poll;
        self.unwatch(key);
        if let Some(kick) = kick {
            let fd = kick.as_fd().as_raw_fd();
            if let Some(queue) = self.queue(key) {
                queue.kick = Some(kick);
            }
            self.watch(key, fd);
        }
        self.update_polled();
        self.mark_ready(key);
    }

    pub(super) fn stop_queue(&mut self, id: u64, token: u64, abort: Option<u8>, discard: bool) {
        if discard {
            self.discard(id);
        }
        let Some((key, queue)) = self.named(id) else {
            // Already stopped: the call still ends.
            self.done.push((token, 0));
            return;
        };
        queue.stop = Some(token);
        self.unwatch(key);
        match abort {
            Some(response) => self.end_undecided(key, response),
            None => self.end_dormant_of(key),
        }
        self.touched.push(key);
    }

    /// The driver is gone: nothing more is written, and tasks with Python end now.
    pub(super) fn discard(&mut self, id: u64) {
        if let Some((key, queue)) = self.named(id) {
            queue.dead = true;
            self.unwatch(key);
            self.end_undecided(key, wire::S_FAILURE);
        }
    }

    fn end_undecided(&mut self, key: usize, response: u8) {
        let undecided: Vec<_> = self
            .tasks
            .live()
            .filter(|(_, task)| task.queue == key && task.state != State::Running)
            .map(|(slot, _)| slot)
            .collect();
        for slot in undecided {
            self.end(slot, &Response::transport(response));
        }
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.unwatch(key);
        if let Some(run) = self.queues[key].take() {
            self.keys.remove(&run.handle.id);
            run.memory.forget(run.handle.id);
            if run.unpublished && !run.dead {
                let index = run.handle.index;
                self.inbox.notice(Notice::Warning {
                    text: format!(
                        "queue {index} was stopped while the IOTLB had no translation of its used \
                         ring: the driver does not learn what was completed last"
                    ),
                });
            }
        }
        self.update_polled();
    }
}
