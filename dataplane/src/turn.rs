//! Whose turn is it on the medium? Most media commands run side by side; an exclusive one
//! (COMPARE AND WRITE and its like) runs alone.

use std::collections::VecDeque;

use crate::task_set::Wake;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Shared,
    Exclusive,
}

/// Who waits for a turn; under the task set's lock. First come, first served, so that neither side
/// starves the other.
#[derive(Default)]
pub(crate) struct TurnQueue {
    /// An exclusive one runs.
    pub alone: bool,
    pub waiting: VecDeque<(Turn, Wake)>,
}

impl TurnQueue {
    /// The next one whose turn it is while `sharing` others run, off the queue.
    pub fn next(&mut self, sharing: u64) -> Option<(Turn, Wake)> {
        match self.waiting.front()? {
            _ if self.alone => None,
            // Whoever still shares asks again when leaving.
            (Turn::Exclusive, _) if sharing > 0 => None,
            _ => {
                let next = self.waiting.pop_front()?;
                self.alone = next.0 == Turn::Exclusive;
                Some(next)
            }
        }
    }

    /// Nobody new may share the medium.
    pub fn closed(&self) -> bool {
        self.alone || !self.waiting.is_empty()
    }
}
