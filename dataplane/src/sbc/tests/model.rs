//! Random commands on every engine, against a vector of bytes.

use io_uring::IoUring;

use super::super::cdb::action::*;
use super::super::cdb::opcode::*;
use super::*;
use crate::engine::memory::MemoryEngine;
use crate::engine::null::NullEngine;
use crate::engine::testing::{file_engine, uring, Random};

const BLOCKS: u64 = 64;

struct Model<'a> {
    engine: &'a dyn Engine,
    policy: LunPolicy,
    /// `None`: writes are forgotten.
    oracle: Option<Vec<u8>>,
    ring: Option<IoUring>,
    random: Random,
}

/// SERVICE ACTION of the 32-byte command that does what a 10-byte one does, if there is one.
fn of_32_bytes(ten: u8) -> Option<u16> {
    Some(match ten {
        READ_10 => READ_32,
        WRITE_10 => WRITE_32,
        WRITE_VERIFY => WRITE_VERIFY_32,
        VERIFY => VERIFY_32,
        WRITE_SAME => WRITE_SAME_32,
        _ => return None,
    })
}

impl Model<'_> {
    fn blocks(&self, count: u64) -> usize {
        (count * u64::from(self.policy.block_size)) as usize
    }

    /// A buffer in one to four pieces, half of the time cut anywhere.
    fn guest(&mut self, content: &[u8]) -> Guest {
        let grain = match self.random.below(2) {
            0 => 512,
            _ => 1,
        };
        let mut cuts: Vec<_> = (0..self.random.below(4))
            .map(|_| self.random.below(content.len() as u64 + 1) as usize / grain * grain)
            .collect();
        cuts.sort_unstable();
        Guest::new(content, &cuts)
    }

    fn execute(&mut self, cdb: &[u8], data_out: &Guest, data_in: &Guest) -> Outcome {
        let ring = self.ring.as_mut().filter(|_| self.random.below(2) == 0);
        execute(ring, self.engine, &self.policy, cdb, data_out, data_in)
    }

    fn expect(&self, lba: u64, count: u64) -> Vec<u8> {
        match &self.oracle {
            Some(oracle) => oracle[self.blocks(lba)..][..self.blocks(count)].to_vec(),
            None => vec![0; self.blocks(count)],
        }
    }

    fn store(&mut self, lba: u64, content: &[u8]) {
        let start = self.blocks(lba);
        if let Some(oracle) = &mut self.oracle {
            oracle[start..][..content.len()].copy_from_slice(content);
        }
    }

    fn block_of(&mut self, lba: u64) -> Vec<u8> {
        match self.random.below(3) {
            0 => vec![0; self.blocks(1)],
            1 => self.expect(lba, 1),
            _ => self.random.bytes(self.policy.block_size as usize),
        }
    }

    /// One of the CDBs for a range, and extra room behind the data now and then.
    fn cdb(
        &mut self,
        [six, ten, twelve, sixteen]: [u8; 4],
        flags: u8,
        lba: u64,
        count: u64,
    ) -> Vec<u8> {
        let (lba32, count32) = (lba as u32, count as u32);
        match self.random.below(5) {
            0 if six != 0 && count > 0 && flags == 0 => cdb6(six, lba32, count as u8),
            1 if twelve != 0 => cdb12(twelve, flags, lba32, count32),
            2 => cdb16(sixteen, flags, lba, count32),
            choice => match of_32_bytes(ten).filter(|_| choice == 3) {
                Some(action) => cdb32(action, flags, lba, count32),
                None => cdb10(ten, flags, lba32, count as u16),
            },
        }
    }

    fn step(&mut self) {
        let lba = self.random.below(BLOCKS);
        let count = self
            .random
            .below(BLOCKS - lba + 1)
            .min(self.random.below(BLOCKS));
        let fua = [0, 8][self.random.below(2) as usize];
        let none = no_data();
        match self.random.below(11) {
            0 | 1 => {
                let cdb = self.cdb([READ_6, READ_10, READ_12, READ_16], fua, lba, count);
                let len = self.blocks(count);
                let spare = self.random.below(600) as usize;
                let guest = self.guest(&vec![0xee; len + spare]);
                let outcome = self.execute(&cdb, &none, &guest);
                assert_eq!(outcome, Outcome::good(len as u64), "{cdb:02x?}");
                let mut want = self.expect(lba, count);
                want.resize(len + spare, 0xee);
                assert!(guest.content(len + spare) == want, "{cdb:02x?}");
            }
            2 | 3 => {
                let content = self.random.bytes(self.blocks(count));
                let verify = self.random.below(3);
                let cdb = match verify {
                    0 => {
                        // Null cannot hold what it is to compare.
                        let bytchk = [0, 2][usize::from(self.oracle.is_some())];
                        let codes = [0, WRITE_VERIFY, WRITE_VERIFY_12, WRITE_VERIFY_16];
                        self.cdb(codes, bytchk, lba, count)
                    }
                    _ => self.cdb([WRITE_6, WRITE_10, WRITE_12, WRITE_16], fua, lba, count),
                };
                let guest = self.guest(&content);
                let outcome = self.execute(&cdb, &guest, &none);
                assert_eq!(outcome, Outcome::good(content.len() as u64), "{cdb:02x?}");
                self.store(lba, &content);
            }
            4 => {
                let block = self.block_of(lba);
                let flags = [0, 8][self.random.below(2) as usize];
                let cdb = self.cdb([0, WRITE_SAME, 0, WRITE_SAME_16], flags, lba, count);
                let count = if count == 0 { BLOCKS - lba } else { count };
                let guest = self.guest(&block);
                let outcome = self.execute(&cdb, &guest, &none);
                assert_eq!(outcome, Outcome::good(block.len() as u64), "{cdb:02x?}");
                self.store(lba, &block.repeat(count as usize));
            }
            5 => {
                let mut list = vec![0; 8];
                let mut ranges = Vec::new();
                for _ in 0..self.random.below(4) {
                    let lba = self.random.below(BLOCKS + 1);
                    let count = self.random.below(BLOCKS - lba + 1);
                    list.extend(lba.to_be_bytes());
                    list.extend((count as u32).to_be_bytes());
                    list.extend([0; 4]);
                    ranges.push((lba, count));
                }
                let len = list.len() as u16;
                list[..2].copy_from_slice(&(len - 2).to_be_bytes());
                list[2..4].copy_from_slice(&(len - 8).to_be_bytes());
                let guest = self.guest(&list);
                let outcome = self.execute(&cdb10(UNMAP, 0, 0, len), &guest, &none);
                assert_eq!(outcome, Outcome::good(len.into()));
                for (lba, count) in ranges {
                    self.store(lba, &vec![0; self.blocks(count)]);
                }
            }
            6 => {
                let mut content = self.expect(lba, count);
                let spoilt = count > 0 && self.random.below(2) == 0;
                let at = self.random.below(content.len().max(1) as u64);
                if spoilt {
                    content[at as usize] ^= 0x10;
                }
                let cdb = self.cdb([0, VERIFY, VERIFY_12, VERIFY_16], 1 << 1, lba, count);
                let guest = self.guest(&content);
                let outcome = self.execute(&cdb, &guest, &none);
                if spoilt {
                    let sense = outcome.sense.as_bytes();
                    assert_eq!((sense[0], sense[2]), (0xf0, 0xe), "{cdb:02x?}");
                    assert_eq!(sense[3..7], (at as u32).to_be_bytes());
                } else {
                    assert_eq!(outcome, Outcome::good(content.len() as u64), "{cdb:02x?}");
                }
            }
            7 => {
                let set = self.random.bytes(self.blocks(count));
                let cdb = cdb16(ORWRITE_16, fua, lba, count as u32);
                let guest = self.guest(&set);
                let outcome = self.execute(&cdb, &guest, &none);
                assert_eq!(outcome, Outcome::good(set.len() as u64), "{cdb:02x?}");
                let content: Vec<_> = self
                    .expect(lba, count)
                    .iter()
                    .zip(set)
                    .map(|(a, b)| a | b)
                    .collect();
                self.store(lba, &content);
            }
            8 => {
                let content = self.random.bytes(self.blocks(count));
                let spoilt = count > 0 && self.random.below(2) == 0;
                let at = self.random.below(content.len().max(1) as u64);
                let mut given = self.expect(lba, count);
                if spoilt {
                    given[at as usize] ^= 0x10;
                }
                given.extend(&content);
                let cdb = compare_and_write(fua, lba, count as u8);
                let guest = self.guest(&given);
                let outcome = self.execute(&cdb, &guest, &none);
                if spoilt {
                    let sense = outcome.sense.as_bytes();
                    assert_eq!(
                        (sense[0], sense[2], sense[12]),
                        (0xf0, 0xe, 0x1d),
                        "{cdb:02x?}"
                    );
                    assert_eq!(sense[3..7], (at as u32).to_be_bytes());
                } else {
                    assert_eq!(outcome, Outcome::good(given.len() as u64), "{cdb:02x?}");
                    self.store(lba, &content);
                }
            }
            9 => {
                let (lba, count) = (lba / 4 * 4, count.min(32) / 4 * 4);
                let content = self.random.bytes(self.blocks(count));
                let cdb = write_atomic(fua, lba, count as u16);
                let guest = self.guest(&content);
                let outcome = self.execute(&cdb, &guest, &none);
                assert_eq!(outcome, Outcome::good(content.len() as u64), "{cdb:02x?}");
                self.store(lba, &content);
            }
            _ => {
                let cdb = self.cdb(
                    [0, SYNCHRONIZE_CACHE, 0, SYNCHRONIZE_CACHE_16],
                    0,
                    lba,
                    count,
                );
                assert_eq!(
                    self.execute(&cdb, &none, &none),
                    Outcome::good(0),
                    "{cdb:02x?}"
                );
            }
        }
    }

    fn finish(&mut self) {
        let guest = Guest::zeroed(self.blocks(BLOCKS));
        let cdb = cdb10(READ_10, 0, 0, BLOCKS as u16);
        self.execute(&cdb, &no_data(), &guest);
        assert!(guest.content(usize::MAX) == self.expect(0, BLOCKS));
    }
}

fn random_commands(engine: &dyn Engine, block_size: u32, forgets: bool) {
    for write_cache in [true, false] {
        let size = BLOCKS as usize * block_size as usize;
        let mut model = Model {
            engine,
            policy: LunPolicy {
                write_cache,
                ..policy(block_size, BLOCKS)
            },
            oracle: (!forgets).then(|| vec![0; size]),
            ring: uring(),
            random: Random(block_size.into()),
        };
        // The first round leaves the disk as it found it: zeros.
        let zeros = cdb16(WRITE_SAME_16, 1, 0, 0);
        model.execute(&zeros, &no_data(), &no_data());
        for _ in 0..1500 {
            model.step();
        }
        model.finish();
    }
}

#[test]
fn memory_behaves_like_the_model() {
    for block_size in [512, 4096] {
        let engine = MemoryEngine::new(BLOCKS * u64::from(block_size)).unwrap();
        random_commands(&engine, block_size, false);
    }
}

#[test]
fn null_behaves_like_the_model() {
    for block_size in [512, 4096] {
        let engine = NullEngine::new(BLOCKS * u64::from(block_size));
        random_commands(&engine, block_size, true);
    }
}

#[test]
fn files_behave_like_the_model() {
    let test_binary = std::env::current_exe().unwrap();
    for parent in [test_binary.parent().unwrap(), "/dev/shm".as_ref()] {
        for (block_size, direct) in [(512, false), (512, true), (4096, false), (4096, true)] {
            let dir = tempfile::tempdir_in(parent).unwrap();
            let engine = file_engine(dir.path(), BLOCKS * u64::from(block_size), direct);
            random_commands(&engine, block_size, false);
        }
    }
}
