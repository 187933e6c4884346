//! What orders a task set, under its lock.

use std::collections::VecDeque;

use super::{naca, preempts, Arrival, Attribute, Refusal, Role};
use crate::turn::TurnQueue;

/// A command that waits to be enabled.
pub struct Dormant {
    ticket: u64,
    pub role: Role,
    pub wake: Box<dyn FnOnce(Role) + Send>,
}

/// An auto contingent allegiance (SAM-6).
pub struct Aca {
    faulted: u64,
    /// An ACA command is in the set: there is one at most.
    task: bool,
}

impl Aca {
    pub fn of(faulted: u64) -> Self {
        Self {
            faulted,
            task: false,
        }
    }
}

#[derive(Default)]
pub struct Order {
    /// In the order of arrival.
    dormant: VecDeque<Dormant>,
    next_ticket: u64,
    /// ORDERED commands that are enabled: one, or another that preempts an ACA condition.
    ordered: u32,
    /// HEAD OF QUEUE commands that are enabled.
    heads: u32,
    pub aca: Option<Aca>,
    pub holds: u32,
    pub restricted: bool,
    pub turns: TurnQueue,
}

impl Order {
    /// Nobody enters freely.
    pub fn closed(&self) -> bool {
        self.ordered > 0 || self.restricted || self.stopped() || !self.dormant.is_empty()
    }

    /// No SIMPLE and no ORDERED command is enabled.
    fn stopped(&self) -> bool {
        self.heads > 0 || self.holds > 0 || self.aca.is_some()
    }

    pub fn role(&self, attribute: Attribute) -> Role {
        match attribute {
            Attribute::Simple if self.restricted => Role::Ordered,
            other => other,
        }
    }

    pub fn waiting(&self) -> u64 {
        self.dormant.len() as u64
    }

    pub fn faulted(&self, id: u64) -> bool {
        self.aca.as_ref().is_some_and(|aca| aca.faulted == id)
    }

    /// Commands that come while an ACA condition is in effect (SAM-6; TST 000b).
    pub fn check_aca(&self, id: u64, arrival: &Arrival<'_>) -> Result<(), Refusal> {
        let is_aca = arrival.attribute == Attribute::Aca;
        match &self.aca {
            None if is_aca => Err(Refusal::InvalidMessage),
            None => Ok(()),
            Some(aca) if aca.faulted == id => match is_aca && !aca.task {
                true => Ok(()),
                false => Err(Refusal::AcaActive),
            },
            Some(_) if is_aca => Err(Refusal::AcaActive),
            Some(_) if preempts(arrival.cdb) => Ok(()),
            Some(_) if naca(arrival.cdb) => Err(Refusal::AcaActive),
            Some(_) => Err(Refusal::Busy),
        }
    }

    /// Whether an accepted command is enabled at once, beside `enabled` others.
    pub fn may_start(&self, role: Role, enabled: u64, arrival: &Arrival<'_>) -> bool {
        match role {
            Role::HeadOfQueue | Role::Aca => true,
            // Let through by `check_aca`: nothing else may clear the condition.
            _ if self.aca.is_some() => preempts(arrival.cdb),
            _ => self.dormant.is_empty() && self.may_run(role, enabled),
        }
    }

    /// SIMPLE waits for ORDERED before it, ORDERED for everything before it, both for HEAD OF
    /// QUEUE whenever that came.
    fn may_run(&self, role: Role, enabled: u64) -> bool {
        !self.stopped() && self.ordered == 0 && (role != Role::Ordered || enabled == 0)
    }

    pub fn start(&mut self, role: Role) {
        match role {
            Role::Simple => {}
            Role::Ordered => self.ordered += 1,
            Role::HeadOfQueue => self.heads += 1,
            Role::Aca => {
                if let Some(aca) = &mut self.aca {
                    aca.task = true;
                }
            }
        }
    }

    pub fn end(&mut self, role: Role) {
        match role {
            Role::Simple => {}
            Role::Ordered => self.ordered -= 1,
            Role::HeadOfQueue => self.heads -= 1,
            Role::Aca => {
                if let Some(aca) = &mut self.aca {
                    aca.task = false;
                }
            }
        }
    }

    pub fn wait(&mut self, role: Role, wake: Box<dyn FnOnce(Role) + Send>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.dormant.push_back(Dormant { ticket, role, wake });
        ticket
    }

    pub fn cancel(&mut self, ticket: u64) -> bool {
        // Tickets ascend along the queue.
        let found = self
            .dormant
            .binary_search_by_key(&ticket, |waiting| waiting.ticket);
        found.is_ok_and(|at| self.dormant.remove(at).is_some())
    }

    /// The first dormant command, if it may run now; it is counted as started.
    pub fn next(&mut self, enabled: u64) -> Option<Dormant> {
        let role = self.dormant.front()?.role;
        if !self.may_run(role, enabled) {
            return None;
        }
        self.start(role);
        self.dormant.pop_front()
    }
}
