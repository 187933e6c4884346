//! What can be wrong with a memory table or an address.

use std::io;

use super::iotlb::Fault;

/// An address or length outside guest memory, or a region that cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("memory region at guest address {guest_address:#x} has size 0")]
    Empty { guest_address: u64 },
    #[error("memory region of {size:#x} bytes at {space} {address:#x} runs past the end of that address space")]
    Wraps {
        space: &'static str,
        address: u64,
        size: u64,
    },
    #[error(
        "memory regions overlap in {space} addresses: {first:#x} + {first_size:#x} and {second:#x}"
    )]
    Overlap {
        space: &'static str,
        first: u64,
        first_size: u64,
        second: u64,
    },
    #[error("{count} memory regions; at most {limit} are possible")]
    TooMany { count: usize, limit: usize },
    #[error("cannot map {size:#x} bytes for guest address {guest_address:#x}: {source}")]
    Map {
        guest_address: u64,
        size: u64,
        source: io::Error,
    },
    #[error("cannot create guest memory of {size:#x} bytes: {source}")]
    Create { size: u64, source: io::Error },
    #[error("no memory region has guest address {guest_address:#x}, user address {user_address:#x} and size {size:#x}")]
    NoSuchRegion {
        guest_address: u64,
        user_address: u64,
        size: u64,
    },
    #[error("{length:#x} bytes at guest address {address:#x} are not all guest memory")]
    Unmapped { address: u64, length: u64 },
    #[error("{length:#x} bytes at user address {user:#x} are not all in memory regions")]
    UserUnmapped { user: u64, length: u64 },
    #[error("a mapping of {size:#x} bytes from I/O address {iova:#x} to user address {user:#x} is empty or runs past the end of an address space")]
    MappingWraps { iova: u64, size: u64, user: u64 },
    #[error("the IOTLB has no translation of I/O address {:#x} for {}", .0.iova, .0.access)]
    Miss(Fault),
    #[error("the IOMMU forbids {} at I/O address {:#x}", .0.access, .0.iova)]
    Denied(Fault),
    #[error("guest address {address:#x} is not aligned to {alignment} bytes")]
    Misaligned { address: u64, alignment: usize },
}
