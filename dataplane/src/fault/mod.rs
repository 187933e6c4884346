//! Faults to order: rules of a logical unit that say which commands go wrong, and how.
//!
//! Matching is deterministic: what is drawn at random follows from a rule's seed and from how many
//! commands it has met before, on whatever worker.

pub mod data;
mod random;
#[cfg(test)]
mod tests;
mod wear;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::port::Port;
use crate::sbc::cdb::variable_action;
use crate::sbc::{self, Blocks};
use crate::sense::{key, SenseInfo};
use data::Corruption;
pub use random::Delay;
use random::Draw;
use wear::Worn;
pub use wear::{Wear, MAX_UNITS};

/// WRITE ERROR - RECOVERED WITH AUTO REALLOCATION.
const REALLOCATED: SenseInfo = SenseInfo::new(key::RECOVERED_ERROR, 0x0c01);
/// WRITE ERROR - AUTO REALLOCATION FAILED.
const REALLOCATION_FAILED: SenseInfo = SenseInfo::new(key::MEDIUM_ERROR, 0x0c02);
const CHECK_CONDITION: u8 = sbc::status::CHECK_CONDITION;

/// What a rule is for. All that is given must hold.
#[derive(Default)]
pub struct When {
    /// OPERATION CODEs; none here nor in `actions`: all.
    pub opcodes: Vec<u8>,
    /// SERVICE ACTIONs of variable-length CDBs.
    pub actions: Vec<u16>,
    /// First and last LBA: media commands that touch one of these blocks.
    pub blocks: Option<(u64, u64)>,
    pub port: Option<Weak<Port>>,
    pub tag: Option<u64>,
    pub from: Option<Instant>,
    pub until: Option<Instant>,
    /// Of the commands for which all this holds, the first ones that it spares,
    pub skip: u64,
    /// and then it takes the first of so many each time; 0 and 1: all.
    pub every: u64,
    /// The most that it takes; 0: no limit.
    pub times: u64,
    /// Of those so far, the part that it takes.
    pub probability: Option<f64>,
    pub seed: u64,
}

/// How a command ends instead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer {
    /// `VIRTIO_SCSI_S_*`.
    pub response: u8,
    pub status: u8,
    pub sense: Option<SenseInfo>,
    /// It is executed all the same.
    pub executed: bool,
}

impl Answer {
    pub fn check(sense: SenseInfo) -> Self {
        Self {
            status: CHECK_CONDITION,
            sense: Some(sense),
            ..Self::default()
        }
    }

    fn executed(sense: SenseInfo) -> Self {
        Self {
            executed: true,
            ..Self::check(sense)
        }
    }
}

/// Blocks that fail: what comes before the first one of a command is done, and INFORMATION is its
/// address.
#[derive(Clone, Copy, Debug)]
pub struct Bad {
    /// First and last LBA.
    pub blocks: (u64, u64),
    /// Where a command both reads and changes blocks, whether reads fail.
    pub reads: bool,
    pub sense: SenseInfo,
}

/// What happens to a command.
#[derive(Default)]
pub struct Action {
    pub delay: Option<Delay>,
    /// It waits until it is released.
    pub hang: bool,
    pub answer: Option<Answer>,
    pub bad: Option<Bad>,
    /// It is a write, and this says how it ends.
    pub wear: Option<Wear>,
    /// The part of its data that is transferred.
    pub short: Option<f64>,
    pub corruption: Option<Corruption>,
    /// It is executed, but the driver never learns of that.
    pub lose: bool,
}

pub struct Rule {
    when: When,
    then: Action,
    met: AtomicU64,
    hits: AtomicU64,
}

impl Rule {
    pub fn new(when: When, then: Action) -> Self {
        Self {
            when,
            then,
            met: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        }
    }

    /// Commands that fit, whether or not their number did.
    pub fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }

    /// Commands that it took.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    fn fits(&self, command: &Command<'_>) -> bool {
        let when = &self.when;
        let named = when.opcodes.contains(&command.cdb[0])
            || variable_action(command.cdb).is_some_and(|action| when.actions.contains(&action));
        (named || (when.opcodes.is_empty() && when.actions.is_empty()))
            && when
                .port
                .as_ref()
                .is_none_or(|port| std::ptr::eq(port.as_ptr(), Arc::as_ptr(command.port)))
            && when.tag.is_none_or(|tag| tag == command.tag)
            && when.from.is_none_or(|from| command.now >= from)
            && when.until.is_none_or(|until| command.now < until)
            && when.blocks.is_none_or(|(first, last)| {
                let mut ranges = command.blocks.iter();
                ranges.any(|blocks| blocks.lba <= last && blocks.end() > first)
            })
    }

    /// Whether this command, which fits, is one to take; and what is drawn for it, and met.
    fn take(&self, command: &Command<'_>) -> Option<(Draw, Option<Worn>)> {
        let when = &self.when;
        let number = self.met.fetch_add(1, Ordering::Relaxed);
        let draw = Draw::new(when.seed, number);
        let after = number.checked_sub(when.skip)?;
        let counted = after % when.every.max(1) == 0;
        if !counted || when.probability.is_some_and(|part| draw.chance() >= part) {
            return None;
        }
        let worn = match &self.then.wear {
            Some(wear) => Some(wear.write(&command.blocks)?),
            None => None,
        };
        self.hits
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |hits| {
                (when.times == 0 || hits < when.times).then_some(hits + 1)
            })
            .ok()
            .map(|_| (draw, worn))
    }
}

/// A command as rules see it.
pub struct Command<'a> {
    pub port: &'a Arc<Port>,
    pub tag: u64,
    pub cdb: &'a [u8],
    /// Those that it names.
    pub blocks: Vec<Blocks>,
    pub now: Instant,
}

/// How much of a command's data is transferred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    Fraction(f64),
    Bytes(u64),
}

impl Part {
    /// Bytes. Of any fraction at least one block: a driver that goes on where a command ended gets
    /// on.
    pub fn of(self, len: u64, block_size: u64) -> u64 {
        match self {
            Self::Fraction(part) => {
                let bytes = (len as f64 * part) as u64;
                bytes
                    .div_ceil(block_size)
                    .saturating_mul(block_size)
                    .min(len)
            }
            Self::Bytes(bytes) => bytes.min(len),
        }
    }
}

/// How a command's data go wrong.
#[derive(Clone, Copy, Debug)]
pub struct Corrupted {
    pub what: Corruption,
    /// First and last LBA that the rule is for.
    pub blocks: (u64, u64),
    /// Drawn for it.
    pub random: u64,
}

/// What is to happen to one command, of all rules that took it.
#[derive(Default)]
pub struct Planned {
    pub hang: Option<Arc<Rule>>,
    pub delay: Duration,
    pub answer: Option<Answer>,
    pub bad: Option<Bad>,
    pub part: Option<Part>,
    pub corruption: Option<Corrupted>,
    pub lose: bool,
}

impl Planned {
    /// Delays add up; of the rest the first rule's stands.
    fn add(&mut self, rule: &Arc<Rule>, draw: &Draw, worn: Option<Worn>) {
        let then = &rule.then;
        if then.hang && self.hang.is_none() {
            self.hang = Some(rule.clone());
        }
        if let Some(delay) = &then.delay {
            self.delay += delay.draw(draw);
        }
        if self.answer.is_none() && self.bad.is_none() {
            (self.answer, self.bad) = match worn {
                None => (then.answer, then.bad),
                Some(Worn::Remapped) => (Some(Answer::executed(REALLOCATED)), None),
                Some(Worn::Failed(first, last)) => (
                    None,
                    Some(Bad {
                        blocks: (first, last),
                        reads: false,
                        sense: REALLOCATION_FAILED,
                    }),
                ),
            };
        }
        self.part = self.part.or(then.short.map(Part::Fraction));
        let corruption = then.corruption.map(|what| Corrupted {
            what,
            blocks: rule.when.blocks.unwrap_or((0, u64::MAX)),
            random: draw.number(),
        });
        self.corruption = self.corruption.or(corruption);
        self.lose |= then.lose;
    }
}

/// The rules of a logical unit. While there are none, nobody pays for them.
#[derive(Default)]
pub struct Rules {
    some: AtomicBool,
    list: ArcSwap<Vec<Arc<Rule>>>,
}

impl Rules {
    pub fn set(&self, rules: Vec<Arc<Rule>>) {
        let some = !rules.is_empty();
        self.list.store(Arc::new(rules));
        self.some.store(some, Ordering::Release);
    }

    pub fn any(&self) -> bool {
        self.some.load(Ordering::Relaxed)
    }

    pub fn plan(&self, command: &Command<'_>) -> Option<Box<Planned>> {
        let mut planned = None;
        for rule in self.list.load().iter().filter(|rule| rule.fits(command)) {
            if let Some((draw, worn)) = rule.take(command) {
                let planned: &mut Box<Planned> = planned.get_or_insert_default();
                planned.add(rule, &draw, worn);
            }
        }
        planned
    }
}

#[cfg(test)]
mod matching {
    use super::*;

    fn fits(when: When, cdb: &[u8]) -> bool {
        Rule::new(when, Action::default()).fits(&Command {
            port: &Arc::default(),
            tag: 0,
            cdb,
            blocks: sbc::blocks(cdb, &[]),
            now: Instant::now(),
        })
    }

    #[test]
    fn variable_length_cdbs_are_named_by_service_action() {
        let variable = |action, lba| {
            let mut cdb = [0; 32];
            (cdb[0], cdb[7], cdb[9], cdb[19], cdb[31]) = (0x7f, 0x18, action, lba, 2);
            cdb
        };
        let (read, write) = (variable(0x09, 5), variable(0x0b, 5));
        let reads = || When {
            opcodes: vec![0x28],
            actions: vec![0x09],
            ..When::default()
        };
        assert!(fits(reads(), &read));
        assert!(!fits(reads(), &write));
        assert!(fits(reads(), &[0x28; 16]));
        assert!(!fits(reads(), &[0x2a; 16]));
        for opcodes in [vec![], vec![0x7f]] {
            let when = || When {
                opcodes: opcodes.clone(),
                blocks: Some((6, 9)),
                ..When::default()
            };
            assert!(fits(when(), &read) && fits(when(), &write));
            assert!(!fits(when(), &variable(0x0b, 4)));
        }
        let only = When {
            actions: vec![0x09],
            ..When::default()
        };
        assert!(!fits(only, &[0x28; 16]));
    }
}
