//! The task set of a logical unit (SAM-6 clause 8): which of its commands are enabled, which wait.
//! One set for all nexuses (TST 000b). Nobody blocks: who cannot enter is told later.
//!
//! While all commands are SIMPLE and share the medium, one atomic word is all that they touch.

mod order;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::lu::Lu;
use crate::turn::Turn;
use order::{Aca, Dormant, Order};

/// Called when a command is enabled or its turn has come; it may run on any thread, under the
/// lock, so it only posts.
pub type Wake = Box<dyn FnOnce() + Send>;

/// Commands enter through the lock. Set as long as the set orders anything; changed under the lock.
const ORDER: u64 = 1 << 63;
/// The same for turns on the medium.
const TURN: u64 = 1 << 62;
/// Bits 31 to 61 count enabled commands, bits 0 to 30 those of them that share the medium. Rings
/// bound both: 254 queues of 32768 entries for each of 255 HBAs are less than 2^31.
const ENABLED: u64 = 1 << 31;
const SHARING: u64 = 1;

fn enabled(word: u64) -> u64 {
    (word & !(ORDER | TURN)) / ENABLED
}

fn sharing(word: u64) -> u64 {
    word % ENABLED
}

/// Task attributes (SAM-6 clause 8; `VIRTIO_SCSI_S_*` of virtio 1.4 5.6.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    Simple,
    Ordered,
    HeadOfQueue,
    Aca,
}

impl Attribute {
    pub fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Simple,
            1 => Self::Ordered,
            2 => Self::HeadOfQueue,
            3 => Self::Aca,
            _ => return None,
        })
    }
}

/// What a command counts as in the set. A SIMPLE one is ordered under restricted reordering.
pub type Role = Attribute;

/// A received command.
pub struct Arrival<'a> {
    pub attribute: Attribute,
    pub cdb: &'a [u8],
    /// It goes to the medium and shares that.
    pub shares: bool,
}

/// Why a command is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Busy,
    TaskSetFull,
    AcaActive,
    /// The attribute fits no command now.
    InvalidMessage,
}

/// An accepted command; each is followed by one [`TaskSet::leave`], or by a
/// [`TaskSet::cancel`] that says true.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may be processed, and has its turn on the medium if that is said.
    Enabled(Role, Option<Turn>),
    /// Its wake will be called once it is enabled, unless the ticket is cancelled.
    Dormant(u64),
}

/// A nexus's part of the set.
pub struct Part {
    id: u64,
    /// Commands in the set; counted only where their number is limited.
    commands: AtomicU32,
}

impl Default for Part {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            commands: AtomicU32::new(0),
        }
    }
}

pub struct TaskSet {
    word: AtomicU64,
    /// Most commands in the set.
    limit: Option<u64>,
    /// Goes up when part of the set is aborted: commands with a higher stamp came after that.
    generation: AtomicU64,
    order: Mutex<Order>,
}

impl TaskSet {
    /// `limit` 0: as many commands as the rings hold.
    pub fn new(limit: u32) -> Self {
        Self {
            word: AtomicU64::new(0),
            limit: (limit > 0).then_some(u64::from(limit)),
            generation: AtomicU64::new(0),
            order: Mutex::default(),
        }
    }

    /// `wake` makes what is called when a dormant command is enabled, in this role.
    pub fn enter(
        &self,
        part: &Part,
        arrival: &Arrival<'_>,
        wake: impl FnOnce() -> Box<dyn FnOnce(Role) + Send>,
    ) -> Result<Admission, Refusal> {
        let free = match arrival.attribute {
            Attribute::Simple => self.enter_freely(arrival.shares),
            _ => None,
        };
        let admission = match free {
            Some(turn) => Admission::Enabled(Role::Simple, turn),
            None => self.enter_in_order(part, arrival, wake)?,
        };
        if self.limit.is_some() {
            part.commands.fetch_add(1, Ordering::Relaxed);
        }
        Ok(admission)
    }

    /// What tells this command, just admitted, from later ones; see [`Held::stamp`].
    pub fn stamp(&self) -> u64 {
        // A command that entered freely while the set was held late counts as later: both orders
        // of two things at once are right.
        self.generation.load(Ordering::Acquire)
    }

    fn enter_freely(&self, shares: bool) -> Option<Option<Turn>> {
        let limit = self.limit.unwrap_or(u64::MAX);
        let turn = |word| shares && word & TURN == 0;
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let open = word & ORDER == 0 && enabled(word) < limit;
                open.then(|| word + ENABLED + if turn(word) { SHARING } else { 0 })
            })
            .ok()
            .map(|word| turn(word).then_some(Turn::Shared))
    }

    fn enter_in_order(
        &self,
        part: &Part,
        arrival: &Arrival<'_>,
        wake: impl FnOnce() -> Box<dyn FnOnce(Role) + Send>,
    ) -> Result<Admission, Refusal> {
        let mut order = self.lock();
        // From here on nobody enters but through the lock.
        let word = self.word.fetch_or(ORDER, Ordering::AcqRel);
        let role = order.role(arrival.attribute);
        let accepted = order
            .check_aca(part.id, arrival)
            .and_then(|()| self.check_limit(part, role, enabled(word) + order.waiting()));
        let admission = accepted.map(|()| {
            if order.may_start(role, enabled(word), arrival) {
                order.start(role);
                self.word.fetch_add(ENABLED, Ordering::AcqRel);
                Admission::Enabled(role, None)
            } else {
                Admission::Dormant(order.wait(role, wake()))
            }
        });
        self.promote(&mut order);
        admission
    }

    /// SAM-6: BUSY instead for a nexus without any command in the set.
    fn check_limit(&self, part: &Part, role: Role, present: u64) -> Result<(), Refusal> {
        // What clears an ACA condition has room in any case.
        if role == Role::Aca || self.limit.is_none_or(|limit| present < limit) {
            Ok(())
        } else if part.commands.load(Ordering::Relaxed) > 0 {
            Err(Refusal::TaskSetFull)
        } else {
            Err(Refusal::Busy)
        }
    }

    /// Takes a dormant command out of the set. False: it is being woken, and leaves after that.
    pub fn cancel(&self, part: &Part, ticket: u64) -> bool {
        let mut order = self.lock();
        let found = order.cancel(ticket);
        if found {
            self.forget(part);
            self.promote(&mut order);
        }
        found
    }

    /// An enabled command has ended, and with it its turn on the medium.
    pub fn leave(&self, part: &Part, role: Role, turn: Option<Turn>) {
        self.forget(part);
        let out = ENABLED + turn.map_or(0, |turn| u64::from(turn == Turn::Shared));
        if role == Role::Simple && turn != Some(Turn::Exclusive) {
            let before = self.word.fetch_sub(out, Ordering::AcqRel);
            let last = before & TURN != 0 && turn.is_some() && sharing(before) == 1;
            if before & ORDER != 0 || last {
                self.promote(&mut self.lock());
            }
        } else {
            let mut order = self.lock();
            self.word.fetch_sub(out, Ordering::AcqRel);
            order.end(role);
            if turn == Some(Turn::Exclusive) {
                order.turns.alone = false;
            }
            self.promote(&mut order);
        }
    }

    fn forget(&self, part: &Part) {
        if self.limit.is_some() {
            part.commands.fetch_sub(1, Ordering::Relaxed);
        }
    }

    // ── Turns on the medium ──────────────────────────────────────────────────────────────────

    /// For an enabled command without a turn. True: it has it. False: `wake` will be called when
    /// it has. Either way each turn ends once, by itself or with the command.
    pub fn take_turn(&self, turn: Turn, wake: impl FnOnce() -> Wake) -> bool {
        if turn == Turn::Shared && self.share() {
            return true;
        }
        let mut order = self.lock();
        match turn {
            // Open again meanwhile: only the lock's holder could close it, and that is us.
            Turn::Shared if self.share() => return true,
            Turn::Shared => (),
            Turn::Exclusive => {
                let word = self.word.fetch_or(TURN, Ordering::AcqRel);
                if word & TURN == 0 && sharing(word) == 0 {
                    order.turns.alone = true;
                    return true;
                }
            }
        }
        order.turns.waiting.push_back((turn, wake()));
        false
    }

    /// Ends a turn only.
    pub fn leave_turn(&self, turn: Turn) {
        match turn {
            Turn::Shared => {
                let before = self.word.fetch_sub(SHARING, Ordering::AcqRel);
                if before & TURN != 0 && sharing(before) == 1 {
                    self.promote(&mut self.lock());
                }
            }
            Turn::Exclusive => {
                let mut order = self.lock();
                order.turns.alone = false;
                self.promote(&mut order);
            }
        }
    }

    fn share(&self) -> bool {
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word & TURN == 0).then_some(word + SHARING)
            })
            .is_ok()
    }

    // ── Conditions ───────────────────────────────────────────────────────────────────────────

    /// QUEUE ALGORITHM MODIFIER 0h (SPC-6, Control mode page): SIMPLE commands that come from now
    /// on keep their order.
    pub fn restrict_reordering(&self, on: bool) {
        let mut order = self.lock();
        self.word.fetch_or(ORDER, Ordering::AcqRel);
        order.restricted = on;
        self.promote(&mut order);
    }

    /// A command of `part` ends with CHECK CONDITION: an ACA command clears the condition by
    /// that, and one with NACA establishes one. The ACA command is an ordinary one from now on.
    pub fn check_condition(&self, part: &Part, role: &mut Role, naca: bool) {
        let mut order = self.lock();
        self.word.fetch_or(ORDER, Ordering::AcqRel);
        if *role == Role::Aca && order.faulted(part.id) {
            order.aca = None;
            *role = Role::Simple;
        }
        if naca && order.aca.is_none() {
            order.aca = Some(Aca::of(part.id));
        }
        self.promote(&mut order);
    }

    /// Whether the ACA condition in effect is this nexus's.
    pub fn faulted(&self, part: &Part) -> bool {
        self.lock().faulted(part.id)
    }

    /// Clears it; whether there was one of this nexus.
    pub fn clear_aca(&self, part: &Part) -> bool {
        let mut order = self.lock();
        let faulted = order.faulted(part.id);
        if faulted {
            order.aca = None;
            self.promote(&mut order);
        }
        faulted
    }

    /// Whether an ACA condition is in effect, of whichever nexus.
    pub fn has_aca(&self) -> bool {
        self.lock().aca.is_some()
    }

    fn hold(&self) -> u64 {
        let mut order = self.lock();
        self.word.fetch_or(ORDER, Ordering::AcqRel);
        order.holds += 1;
        self.generation.fetch_add(1, Ordering::AcqRel)
    }

    fn resume(&self) {
        let mut order = self.lock();
        order.holds -= 1;
        self.promote(&mut order);
    }

    // ── The lock's side ──────────────────────────────────────────────────────────────────────

    /// Enables what may run now, gives turns, and opens the word as far as nothing waits.
    ///
    /// Nothing is missed: who leaves finds the bit set and comes here, or left before it was set
    /// and is counted no more.
    fn promote(&self, order: &mut Order) {
        while let Some(Dormant { role, wake, .. }) =
            order.next(enabled(self.word.load(Ordering::Acquire)))
        {
            self.word.fetch_add(ENABLED, Ordering::AcqRel);
            wake(role);
        }
        if !order.closed() {
            self.word.fetch_and(!ORDER, Ordering::AcqRel);
        }
        while let Some((turn, wake)) = order.turns.next(sharing(self.word.load(Ordering::Acquire)))
        {
            if turn == Turn::Shared {
                self.word.fetch_add(SHARING, Ordering::AcqRel);
            }
            wake();
        }
        if !order.turns.closed() {
            self.word.fetch_and(!TURN, Ordering::AcqRel);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as it lives no dormant command is enabled and SIMPLE and ORDERED ones that come wait:
/// what is about to be aborted does not begin.
pub struct Held {
    lu: Arc<Lu>,
    /// Commands with this stamp or a lower one came before.
    pub stamp: u64,
}

impl Held {
    pub fn new(lu: Arc<Lu>) -> Self {
        let stamp = lu.tasks.hold();
        Self { lu, stamp }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lu.tasks.resume();
    }
}

/// The one command that may clear another nexus's ACA condition.
const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
const PREEMPT_AND_ABORT: u8 = 0x05;

/// NACA of the CONTROL byte, whose place follows from the CDB's length.
pub fn naca(cdb: &[u8]) -> bool {
    const NACA: u8 = 0x04;
    let control = match cdb[0] >> 5 {
        0 => 5,
        1 | 2 => 9,
        // Variable length CDBs; group 3 has no others here.
        3 => 1,
        4 => 15,
        5 => 11,
        // Vendor specific.
        _ => return false,
    };
    cdb[control] & NACA != 0
}

fn preempts(cdb: &[u8]) -> bool {
    cdb[0] == PERSISTENT_RESERVE_OUT && cdb[1] & 0x1f == PREEMPT_AND_ABORT
}
