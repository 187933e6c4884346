//! What each corruption makes of each command on the medium.

use std::sync::Arc;

use super::data::Corruption::{self, Flip, Lost, Misdirected, Torn};
use super::data::{FaultyEngine, Wrong};
use super::Corrupted;
use crate::engine::memory::MemoryEngine;
use crate::engine::testing::Guest;
use crate::engine::{total, trim, Engine, Io, IoKind};
use crate::sbc::tests::policy;
use crate::sbc::{blocks, complete, plan, Blocks, Extent, Outcome, Plan, Touches};
use crate::sense::{key, SenseInfo};

const BLOCK: usize = 512;
const BLOCKS: u64 = 4096;
/// More than a job moves at once.
const MANY: usize = 3000;
const OLD: u8 = 0x11;
const NEW: u8 = 0x33;
const MEDIUM_ERROR: SenseInfo = SenseInfo::new(key::MEDIUM_ERROR, 0x1100);

struct Medium(Arc<dyn Engine>);

impl Medium {
    fn filled() -> Self {
        let engine = Arc::new(MemoryEngine::new(BLOCKS * BLOCK as u64).unwrap());
        let old = Guest::new(&vec![OLD; BLOCKS as usize * BLOCK], &[]);
        engine.run(&io(IoKind::Write, 0, BLOCKS), &old.iov).unwrap();
        Self(engine)
    }

    fn content(&self, lba: u64, count: usize) -> Vec<u8> {
        let guest = Guest::zeroed(count * BLOCK);
        self.0
            .run(&io(IoKind::Read, lba, count as u64), &guest.iov)
            .unwrap();
        guest.content(count * BLOCK)
    }

    /// What a worker does with a command that goes wrong.
    fn execute(&self, cdb: &[u8], data_out: &[u8], wrong: impl Fn(&Plan) -> Wrong) -> Outcome {
        let policy = policy(BLOCK as u32, BLOCKS);
        let out = Guest::new(data_out, &[data_out.len() / 3]);
        let plan = plan(&policy, cdb, &out.iov, total(&out.iov), 0);
        let touches = plan.touches();
        let engine = FaultyEngine::new(self.0.clone(), touches, wrong(&plan), BLOCK as u64);
        match plan {
            Plan::Job(job) => job.run(&policy, &engine, cdb, &out.iov, &[]),
            Plan::Io(io) => {
                let mut iov = match io.kind {
                    IoKind::Write => out.iov.clone(),
                    _ => Vec::new(),
                };
                trim(&mut iov, io.len);
                complete(&policy, cdb, &io, engine.run(&io, &iov))
            }
            other => panic!("nothing to do: {other:?}"),
        }
    }
}

fn io(kind: IoKind, lba: u64, count: u64) -> Io {
    Io {
        kind,
        offset: lba * BLOCK as u64,
        len: count * BLOCK as u64,
        durable: false,
    }
}

/// A command that makes blocks of `OLD` blocks of what it writes.
struct Change {
    name: &'static str,
    cdb: Vec<u8>,
    data_out: Vec<u8>,
    /// First LBA, blocks, and what each byte of them is afterwards.
    ranges: Vec<(u64, usize, u8)>,
    /// It looks at what it has written.
    looks: bool,
}

const AT: u64 = 100;

fn cdb(opcode: u8, byte1: u8, count: usize) -> Vec<u8> {
    let mut cdb = vec![opcode, byte1];
    cdb.extend(AT.to_be_bytes());
    cdb.extend((count as u32).to_be_bytes());
    cdb.extend([0, 0]);
    match opcode {
        0x89 => (cdb[13], cdb[12]) = (count as u8, 0),
        0x9c => (cdb[12], cdb[13]) = (0, count as u8),
        _ => {}
    }
    if matches!(opcode, 0x89 | 0x9c) {
        cdb[10..12].fill(0);
    }
    cdb
}

fn change(name: &'static str, cdb: Vec<u8>, data_out: &[u8], count: usize, after: u8) -> Change {
    Change {
        name,
        cdb,
        data_out: data_out.to_vec(),
        ranges: vec![(AT, count, after)],
        looks: false,
    }
}

fn changes() -> Vec<Change> {
    let new = vec![NEW; MANY * BLOCK];
    let atomic = &new[..8 * BLOCK];
    let compared = [vec![OLD; 9 * BLOCK], vec![NEW; 9 * BLOCK]].concat();
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for (lba, count) in [(AT + 50, 7u32), (AT, 20)] {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    let mut unmap = vec![0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
    unmap.resize(16, 0);
    vec![
        change("WRITE", cdb(0x8a, 0, MANY), &new, MANY, NEW),
        change("WRITE SAME", cdb(0x93, 0, MANY), &new[..BLOCK], MANY, NEW),
        change("WRITE SAME, zeros", cdb(0x93, 1, MANY), &[], MANY, 0),
        change("WRITE SAME, UNMAP", cdb(0x93, 9, MANY), &[], MANY, 0),
        change("ORWRITE", cdb(0x8b, 0, MANY), &new, MANY, OLD | NEW),
        change("WRITE ATOMIC", cdb(0x9c, 0, 8), atomic, 8, NEW),
        change("COMPARE AND WRITE", cdb(0x89, 0, 9), &compared, 9, NEW),
        change(
            "WRITE AND VERIFY, blind",
            cdb(0x8e, 0, MANY),
            &new,
            MANY,
            NEW,
        ),
        Change {
            looks: true,
            ..change("WRITE AND VERIFY", cdb(0x8e, 2, MANY), &new, MANY, NEW)
        },
        Change {
            name: "UNMAP",
            cdb: unmap,
            data_out: list,
            ranges: vec![(AT + 50, 7, 0), (AT, 20, 0)],
            looks: false,
        },
    ]
}

impl Change {
    fn len(&self) -> usize {
        let counts = self.ranges.iter().map(|(_, count, _)| count);
        counts.sum::<usize>() * BLOCK
    }

    fn before(&self) -> Vec<u8> {
        vec![OLD; self.len()]
    }

    fn after(&self) -> Vec<u8> {
        let each = self.ranges.iter();
        each.flat_map(|(_, count, byte)| vec![*byte; count * BLOCK])
            .collect()
    }

    /// Its ranges, one behind the other.
    fn seen(&self, medium: &Medium) -> Vec<u8> {
        let each = self.ranges.iter();
        each.flat_map(|(lba, count, _)| medium.content(*lba, *count))
            .collect()
    }

    fn execute(&self, medium: &Medium, what: Corruption, random: u64) -> Outcome {
        medium.execute(&self.cdb, &self.data_out, |plan| {
            let corrupted = Corrupted {
                what,
                blocks: (0, u64::MAX),
                random,
            };
            Wrong::corruption(&corrupted, &plan.touches(), BLOCK as u64).unwrap()
        })
    }
}

fn is_miscompare(outcome: &Outcome) -> bool {
    outcome.sense.code() == Some((key::MISCOMPARE, 0x1d00))
}

/// It ended well, or noticed.
fn check(change: &Change, outcome: &Outcome) {
    let noticed = change.looks && is_miscompare(outcome);
    assert!(
        noticed || (!change.looks && outcome.status == 0),
        "{}: {outcome:?}",
        change.name
    );
    if !noticed {
        let given = change.data_out.len() as u64;
        assert_eq!(outcome.transferred, given, "{}", change.name);
    }
}

#[test]
fn a_lost_change_leaves_all_as_it_was() {
    for change in changes() {
        let medium = Medium::filled();
        check(&change, &change.execute(&medium, Lost, 7));
        assert_eq!(
            medium.content(0, BLOCKS as usize),
            vec![OLD; BLOCKS as usize * BLOCK]
        );
    }
}

#[test]
fn a_flipped_bit_is_the_only_one_that_is_wrong() {
    for change in changes() {
        let bits = change.len() as u64 * 8;
        for random in [0, bits / 2 + 12345, bits - 1, bits + 9] {
            let medium = Medium::filled();
            check(&change, &change.execute(&medium, Flip, random));
            let seen = change.seen(&medium);
            let wrong: Vec<_> = (0..)
                .zip(seen.iter().zip(change.after()))
                .filter(|(_, (a, b))| **a != *b)
                .collect();
            let bit = (random % bits) as usize;
            // What looks stops at the first error, with what is behind not yet written.
            let (at, (is, should)) = &wrong[0];
            assert_eq!(
                (*at, *is ^ should),
                (bit / 8, 1 << (bit % 8)),
                "{}",
                change.name
            );
            assert!(wrong.len() == 1 || change.looks, "{}", change.name);
        }
    }
}

#[test]
fn a_bit_flips_within_the_blocks_that_are_named() {
    for change in changes() {
        // The last block of its first range, and others that it does not touch.
        let (lba, count, _) = change.ranges[0];
        let bad = lba + count as u64 - 1;
        for random in [0, 1234, u64::MAX] {
            let medium = Medium::filled();
            medium.execute(&change.cdb, &change.data_out, |plan| {
                let corrupted = Corrupted {
                    what: Flip,
                    blocks: (bad, bad + BLOCKS),
                    random,
                };
                Wrong::corruption(&corrupted, &plan.touches(), BLOCK as u64).unwrap()
            });
            let wrong: Vec<_> = change
                .seen(&medium)
                .iter()
                .zip(change.after())
                .enumerate()
                .filter(|(_, (is, should))| **is != *should)
                .map(|(at, _)| at / BLOCK)
                .collect();
            assert_eq!(wrong, [count - 1], "{}", change.name);
        }
    }
    let none = Corrupted {
        what: Flip,
        blocks: (0, 0),
        random: 9,
    };
    let elsewhere = Touches {
        extents: vec![Extent {
            offset: 512,
            len: 512,
        }],
        reads: true,
        changes: false,
    };
    assert!(Wrong::corruption(&none, &elsewhere, 512).is_none());
}

#[test]
fn a_torn_change_ends_at_a_sector() {
    for change in changes() {
        for random in [0, 1, 3, u64::MAX] {
            let medium = Medium::filled();
            check(&change, &change.execute(&medium, Torn, random));
            let (seen, before, after) = (change.seen(&medium), change.before(), change.after());
            let cut = seen.iter().zip(&after).take_while(|(a, b)| a == b).count();
            assert!(
                cut > 0 && cut < seen.len() && cut % 512 == 0,
                "{}: {cut}",
                change.name
            );
            assert_eq!(seen[cut..], before[cut..], "{}", change.name);
        }
    }
}

#[test]
fn a_misdirected_change_is_elsewhere() {
    for change in changes()
        .into_iter()
        .filter(|change| change.ranges.len() == 1)
    {
        for random in [0, 1, 500, u64::MAX] {
            let medium = Medium::filled();
            check(&change, &change.execute(&medium, Misdirected, random));
            let content = medium.content(0, BLOCKS as usize);
            let at = content.iter().take_while(|byte| **byte == OLD).count();
            assert_ne!(at, AT as usize * BLOCK, "{}", change.name);
            let len = content[at..]
                .iter()
                .take_while(|byte| **byte != OLD)
                .count();
            // What looks stops behind the first piece.
            assert!(
                len == change.len() || change.looks && len == 1 << 20,
                "{}",
                change.name
            );
            assert!(content[at + len..].iter().all(|byte| *byte == OLD));
        }
    }
}

#[test]
fn unmap_frees_what_it_names_elsewhere() {
    let change = changes().pop().unwrap();
    let medium = Medium::filled();
    change.execute(&medium, Misdirected, 1000);
    let content = medium.content(0, BLOCKS as usize);
    let freed = content.iter().filter(|byte| **byte == 0).count();
    assert_eq!(freed, change.len());
    assert_eq!(change.seen(&medium), change.before());
}

#[test]
fn verify_reads_a_wrong_bit() {
    let data = vec![OLD; MANY * BLOCK];
    for (byte1, fails) in [(2, true), (0, false)] {
        let medium = Medium::filled();
        let bit = 8 * (MANY as u64 * BLOCK as u64 - 5);
        let outcome = medium.execute(&cdb(0x8f, byte1, MANY), &data, |_| Wrong::Flip(bit));
        assert_eq!(is_miscompare(&outcome), fails);
        assert_eq!(outcome.status == 0, !fails);
        assert_eq!(medium.content(AT, MANY), data);
    }
}

#[test]
fn what_comes_before_a_bad_block_is_done() {
    let bad = AT + 5;
    for change in changes() {
        for reads in [false, true] {
            let medium = Medium::filled();
            let (first, last) = (bad * BLOCK as u64, bad * BLOCK as u64 + 511);
            let wrong = Wrong::Bad {
                first,
                last,
                reads,
                sense: MEDIUM_ERROR,
            };
            let outcome = medium.execute(&change.cdb, &change.data_out, |_| wrong);
            let sense = outcome.sense.as_bytes();
            assert_eq!(outcome.sense.code(), Some((3, 0x1100)), "{}", change.name);
            assert_eq!(sense[3..7], (bad as u32).to_be_bytes(), "{}", change.name);
            let after = change.ranges.last().unwrap().2;
            let seen = medium.content(AT, 6);
            let (front, rest) = seen.split_at(5 * BLOCK);
            // Or has written all before it looked.
            let written = reads && change.cdb[0] == 0x8e;
            assert_eq!(rest, vec![if written { after } else { OLD }; BLOCK]);
            // Those that read first have not begun to write; an atomic write is taken back.
            let reads_first = reads && matches!(change.cdb[0], 0x89 | 0x8b);
            let whole = change.cdb[0] == 0x9c;
            let done = if reads_first || whole { OLD } else { after };
            assert_eq!(front, vec![done; 5 * BLOCK], "{} {reads}", change.name);
        }
    }
}

#[test]
fn a_miscompare_comes_before_a_block_that_cannot_be_written() {
    let medium = Medium::filled();
    let data = [vec![NEW; BLOCK], vec![OLD; BLOCK]].concat();
    let (first, last) = (AT * BLOCK as u64, AT * BLOCK as u64);
    for (reads, miscompare) in [(false, true), (true, false)] {
        let wrong = Wrong::Bad {
            first,
            last,
            reads,
            sense: MEDIUM_ERROR,
        };
        let outcome = medium.execute(&cdb(0x89, 0, 1), &data, |_| wrong);
        assert_eq!(is_miscompare(&outcome), miscompare);
    }
}

#[test]
fn blocks_of_a_parameter_list() {
    let change = changes().pop().unwrap();
    let named = |list: &[u8]| blocks(&change.cdb, &Guest::new(list, &[]).iov);
    let ranges = [(AT + 50, 7), (AT, 20)].map(|(lba, count)| Blocks { lba, count });
    assert_eq!(named(&change.data_out), ranges);
    assert_eq!(
        named(&change.data_out[..30]),
        [
            ranges[0],
            Blocks {
                lba: AT >> 16 << 16,
                count: 0
            }
        ]
    );
    assert_eq!(named(&[]), []);
    let mut short = change.cdb.clone();
    short[8] = 3;
    assert_eq!(blocks(&short, &Guest::new(&change.data_out, &[]).iov), []);
}
