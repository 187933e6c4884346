//! What can be wrong with a memory table or an address.

use std::io;

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
    #[error("guest address {address:#x} is not aligned to {alignment} bytes")]
    Misaligned { address: u64, alignment: usize },
}
