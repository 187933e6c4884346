//! Commands against a disk that checks each call against the limits it has.

mod commands;
mod errors;
mod model;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use super::limits::Limits;
use super::node::{Call, Completion, Direction, Node, Reset};
use super::{LengthField, Passed, Passthrough, Rule};
use crate::engine::testing::Guest;
use crate::engine::{total, Cursor};

const BLOCK: usize = 512;
const BLOCKS: usize = 512;

const INQUIRY: u8 = 0x12;
const READ_6: u8 = 0x08;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;
const VERIFY_10: u8 = 0x2f;
const WRITE_SAME_10: u8 = 0x41;
const UNMAP: u8 = 0x42;
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;
const COMPARE_AND_WRITE: u8 = 0x89;
const LOG_SENSE: u8 = 0x4d;

const VARIABLE_LENGTH_CMD: u8 = 0x7f;

const BLOCK_COMMANDS: [u8; 10] = [
    READ_6,
    READ_10,
    WRITE_10,
    VERIFY_10,
    WRITE_SAME_10,
    UNMAP,
    READ_16,
    WRITE_16,
    COMPARE_AND_WRITE,
    VARIABLE_LENGTH_CMD,
];

fn limits(max_bytes: u64) -> Limits {
    Limits {
        max_bytes,
        max_segments: 1024,
        dma_alignment: 0,
        virt_boundary: 0,
        scatter: true,
        max_cdb: 32,
        max_write_same_blocks: 0,
        max_unmap_blocks: 0,
        max_unmap_descriptors: 0,
    }
}

#[derive(Default)]
struct State {
    medium: Vec<u8>,
    /// (CDB, bytes of data) of each call that was executed.
    calls: Vec<(Vec<u8>, u32)>,
    /// What becomes of the next calls, before the disk sees them.
    script: VecDeque<Option<io::Result<Completion>>>,
}

/// A disk of `BLOCKS` blocks.
struct Disk {
    state: Arc<Mutex<State>>,
    limits: Limits,
}

fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, &byte| (number << 8) | usize::from(byte))
}

impl Disk {
    /// LBA and number of blocks.
    fn range(cdb: &[u8]) -> (usize, usize) {
        match cdb.len() {
            6 => match number(&cdb[4..5]) {
                0 => (number(&cdb[1..4]) & 0x1f_ffff, 256),
                count => (number(&cdb[1..4]) & 0x1f_ffff, count),
            },
            10 => (number(&cdb[2..6]), number(&cdb[7..9])),
            12 => (number(&cdb[2..6]), number(&cdb[6..10])),
            32 => (number(&cdb[12..20]), number(&cdb[28..32])),
            _ => (number(&cdb[2..10]), number(&cdb[10..14])),
        }
    }

    fn execute(medium: &mut [u8], call: &Call<'_>) {
        let (lba, count) = Self::range(call.cdb);
        let at = lba * BLOCK;
        match call.cdb[0] {
            // READ (32) is the only one of its operation code here.
            READ_6 | READ_10 | READ_16 | VARIABLE_LENGTH_CMD => {
                Cursor::new(call.iov).write(&medium[at..at + count * BLOCK]);
            }
            WRITE_10 | WRITE_16 => {
                Cursor::new(call.iov).read(&mut medium[at..at + count * BLOCK]);
            }
            WRITE_SAME_10 => {
                for block in medium[at..at + count * BLOCK].chunks_mut(BLOCK) {
                    Cursor::new(call.iov).read(block);
                }
            }
            UNMAP => {
                let mut list = vec![0; call.len as usize];
                Cursor::new(call.iov).read(&mut list);
                assert_eq!(number(&list[..2]) + 2, list.len());
                assert_eq!(number(&list[2..4]) + 8, list.len());
                for range in list[8..].chunks(16) {
                    let at = number(&range[..8]) * BLOCK;
                    medium[at..at + number(&range[8..12]) * BLOCK].fill(0);
                }
            }
            _ => {}
        }
    }
}

impl Node for Disk {
    fn call(&self, call: &Call<'_>) -> io::Result<Completion> {
        assert_eq!(total(call.iov), u64::from(call.len));
        assert_eq!(call.direction == Direction::None, call.len == 0);
        assert!(
            u64::from(call.len) <= self.limits.most(),
            "{} bytes",
            call.len
        );
        let mut state = self.state.lock().unwrap();
        if let Some(Some(result)) = state.script.pop_front() {
            if result.is_ok() {
                state.calls.push((call.cdb.to_vec(), call.len));
            }
            return result;
        }
        if !call.iov.is_empty() && !self.limits.take(call.iov) {
            // Never the guest's own buffers; ours are made to fit.
            assert_eq!(call.iov.len(), 1);
        }
        state.calls.push((call.cdb.to_vec(), call.len));
        Self::execute(&mut state.medium, call);
        Ok(Completion::default())
    }

    fn reset(&self, _scope: Reset) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    device: Passthrough,
    state: Arc<Mutex<State>>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let state = Arc::new(Mutex::new(State {
            medium: (0..BLOCK * BLOCKS).map(|at| (at / 7) as u8).collect(),
            ..State::default()
        }));
        let disk = Disk {
            state: state.clone(),
            limits: limits.clone(),
        };
        let mut rules = [Rule {
            timeout_s: 60,
            blocks: false,
            length: None,
        }; 256];
        for opcode in BLOCK_COMMANDS {
            rules[usize::from(opcode)].blocks = true;
        }
        rules[usize::from(INQUIRY)].length = Some(LengthField { at: 3, size: 2 });
        let device = Passthrough::new(Box::new(disk), Box::new(rules), limits, 4);
        device.set_capacity(BLOCK as u32, BLOCKS as u64);
        Self { device, state }
    }

    fn script(&self, script: impl IntoIterator<Item = Option<io::Result<Completion>>>) {
        self.state.lock().unwrap().script.extend(script);
    }

    fn read(&self, cdb: &[u8], guest: &Guest) -> Passed {
        self.device.run(&padded(cdb), &[], &guest.iov)
    }

    fn write(&self, cdb: &[u8], guest: &Guest) -> Passed {
        self.device.run(&padded(cdb), &guest.iov, &[])
    }

    fn medium(&self, lba: usize, count: usize) -> Vec<u8> {
        self.state.lock().unwrap().medium[lba * BLOCK..][..count * BLOCK].to_vec()
    }

    /// LBA and blocks of each call.
    fn ranges(&self) -> Vec<(usize, usize)> {
        let state = self.state.lock().unwrap();
        state
            .calls
            .iter()
            .map(|(cdb, _)| Disk::range(cdb))
            .collect()
    }

    fn calls(&self) -> usize {
        self.state.lock().unwrap().calls.len()
    }
}

/// As it comes from a guest.
fn padded(cdb: &[u8]) -> Vec<u8> {
    let mut padded = cdb.to_vec();
    padded.resize(32, 0);
    padded
}

fn cdb_10(opcode: u8, byte1: u8, lba: u32, count: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, byte1];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.push(0);
    cdb.extend_from_slice(&count.to_be_bytes());
    cdb.push(0);
    cdb
}

fn cdb_16(opcode: u8, lba: u64, count: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&count.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

fn good(transferred: u64) -> Passed {
    Passed {
        response: 0,
        status: 0,
        sense: vec![],
        transferred,
    }
}

/// Fixed format sense data.
fn sense(key: u8, code: u16, information: Option<u32>) -> Vec<u8> {
    let mut info = crate::sense::SenseInfo::new(key, code);
    if let Some(information) = information {
        info = info.information(information.into());
    }
    crate::sense::build(&info, false).as_bytes().to_vec()
}

fn check_condition(sense: Vec<u8>, residual: u32) -> io::Result<Completion> {
    Ok(Completion {
        status: 2,
        sense,
        residual,
        ..Completion::default()
    })
}
