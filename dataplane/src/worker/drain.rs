//! Calls that end when certain tasks have: abort and quiesce.

use std::collections::HashSet;

use crate::task::TaskRef;

struct Drain {
    token: u64,
    value: u64,
    waiting: HashSet<TaskRef>,
}

#[derive(Default)]
pub(crate) struct Drains(Vec<Drain>);

impl Drains {
    /// "Done" with `value` once all of `waiting` are complete, which may be now.
    pub fn add(
        &mut self,
        token: u64,
        value: u64,
        waiting: HashSet<TaskRef>,
        done: &mut Vec<(u64, u64)>,
    ) {
        if waiting.is_empty() {
            done.push((token, value));
        } else {
            self.0.push(Drain {
                token,
                value,
                waiting,
            });
        }
    }

    pub fn wait_for(&self, task: TaskRef) -> bool {
        self.0.iter().any(|drain| drain.waiting.contains(&task))
    }

    pub fn completed(&mut self, task: TaskRef, done: &mut Vec<(u64, u64)>) {
        self.0.retain_mut(|drain| {
            drain.waiting.remove(&task);
            if drain.waiting.is_empty() {
                done.push((drain.token, drain.value));
            }
            !drain.waiting.is_empty()
        });
    }
}
