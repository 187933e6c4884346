//! How a ring can be broken.

use crate::memory::{Fault, MemoryError};

/// A ring set up as no driver may, or an invariant that the driver broke.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("queue size {0} is not a power of two from 1 to 32768")]
    Size(u16),
    #[error("{area} at {address:#x} is not aligned to {alignment} bytes")]
    Misaligned {
        area: &'static str,
        address: u64,
        alignment: usize,
    },
    #[error("{area} cannot be reached: {source}")]
    Unmapped {
        area: &'static str,
        source: MemoryError,
    },
    #[error("guest memory was truncated under the ring")]
    Truncated,
    #[error("available index {index} is more than the queue size {size} past {next_avail}")]
    AvailIndex {
        index: u16,
        next_avail: u16,
        size: u16,
    },
    #[error("the driver offers a chain while all {size} descriptors are in flight")]
    Overcommitted { size: u16 },
    #[error("head {head} is not below the queue size {size}")]
    Head { head: u16, size: u16 },
    #[error("chain {head}: next descriptor {next} is not below the table's length {length}")]
    Next { head: u16, next: u16, length: usize },
    #[error("chain {head} loops or has more than {limit} descriptors")]
    TooLong { head: u16, limit: u16 },
    #[error("chain {head}: a device-readable descriptor follows a device-writable one")]
    ReadableAfterWritable { head: u16 },
    #[error("chain {head}: an indirect descriptor, but VIRTIO_F_INDIRECT_DESC is not negotiated")]
    IndirectNotNegotiated { head: u16 },
    #[error("chain {head}: a descriptor has both INDIRECT and NEXT")]
    IndirectWithNext { head: u16 },
    #[error("chain {head}: an indirect descriptor inside an indirect table")]
    NestedIndirect { head: u16 },
    #[error("chain {head}: an indirect table of {length} bytes is not a positive number of 16-byte descriptors")]
    IndirectLength { head: u16, length: u32 },
    #[error("chain {head}: an indirect table of {entries} descriptors, more than {limit}")]
    IndirectTooLong { head: u16, entries: u32, limit: u16 },
    #[error("chain {head}: its indirect table cannot be reached: {source}")]
    IndirectUnmapped { head: u16, source: MemoryError },
    #[error("chain {head} has more than 2^32 bytes")]
    TooManyBytes { head: u16 },
    #[error("chain {head}: its data cannot be reached: {source}")]
    DataUnmapped { head: u16, source: MemoryError },
    #[error("chain {head}: its data is scattered over more than {limit} pieces of memory")]
    Scattered { head: u16, limit: usize },
}

impl RingError {
    fn memory(&self) -> Option<&MemoryError> {
        match self {
            Self::Unmapped { source, .. }
            | Self::IndirectUnmapped { source, .. }
            | Self::DataUnmapped { source, .. } => Some(source),
            _ => None,
        }
    }

    /// The address to ask the IOMMU for, if that is all that is missing.
    pub fn miss(&self) -> Option<Fault> {
        match self.memory()? {
            MemoryError::Miss(fault) => Some(*fault),
            _ => None,
        }
    }

    /// The address that the IOMMU forbids.
    pub fn denied(&self) -> Option<Fault> {
        match self.memory()? {
            MemoryError::Denied(fault) => Some(*fault),
            _ => None,
        }
    }
}
