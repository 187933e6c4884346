//! Errors of a logical unit's media commands, as its log pages count them (SPC-4 7.3).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sbc::{self, Fault, Outcome};

/// Since the unit was made; they never wrap in practice.
#[derive(Debug, Default)]
pub struct ErrorCounts {
    write: AtomicU64,
    read: AtomicU64,
    verify: AtomicU64,
    other: AtomicU64,
}

impl ErrorCounts {
    /// Counts how a command ended, if it was an error of the medium or of our own.
    pub fn note(&self, cdb: &[u8], outcome: &Outcome) {
        let counter = match sbc::fault(cdb, outcome) {
            None => return,
            Some(Fault::Write) => &self.write,
            Some(Fault::Read) => &self.read,
            Some(Fault::Verify) => &self.verify,
            Some(Fault::Other) => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Uncorrected errors of writes, of reads and of verifications, and non-medium errors.
    pub fn load(&self) -> [u64; 4] {
        [&self.write, &self.read, &self.verify, &self.other]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::LunPolicy;
    use crate::sense::{key, SenseInfo};

    fn counted(opcode: u8, key: u8, code: u16, descriptor_sense: bool) -> [u64; 4] {
        let policy = LunPolicy {
            block_size: 512,
            blocks: 1,
            write_protected: false,
            write_cache: true,
            descriptor_sense,
            max_transfer_blocks: 0,
            max_write_same_blocks: 0,
            max_unmap_blocks: 0,
            max_unmap_descriptors: 0,
            unmap: false,
            max_compare_and_write_blocks: 0,
            max_atomic_blocks: 0,
            atomic_granularity_blocks: 0,
            qerr: crate::policy::Qerr::Nothing,
            restricted_reordering: false,
        };
        let counts = ErrorCounts::default();
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        counts.note(&cdb, &Outcome::good(0));
        counts.note(
            &cdb,
            &Outcome::check(&policy, &SenseInfo::new(key, code), 0),
        );
        counts.load()
    }

    #[test]
    fn each_error_has_its_counter() {
        let medium = key::MEDIUM_ERROR;
        for descriptor in [false, true] {
            for (opcode, key, code, counts) in [
                (0x88, medium, 0x1100, [0, 1, 0, 0]),
                (0x8a, medium, 0x0c00, [1, 0, 0, 0]),
                // COMPARE AND WRITE may fail in either half.
                (0x89, medium, 0x1100, [0, 1, 0, 0]),
                (0x89, medium, 0x0c00, [1, 0, 0, 0]),
                (0x8f, medium, 0x1100, [0, 0, 1, 0]),
                (0x8e, medium, 0x1100, [0, 0, 1, 0]),
                (0x8e, medium, 0x0c00, [1, 0, 0, 0]),
                (0x88, key::HARDWARE_ERROR, 0x4400, [0, 0, 0, 1]),
                // Marked bad by an application client, and no error at all.
                (0x88, medium, 0x1114, [0; 4]),
                (0x88, key::ILLEGAL_REQUEST, 0x2100, [0; 4]),
            ] {
                assert_eq!(counted(opcode, key, code, descriptor), counts, "{code:04x}");
            }
        }
    }
}
