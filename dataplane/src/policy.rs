//! What Python decides once and workers obey for every command.

/// What a CHECK CONDITION does to other commands (QERR of the Control mode page, SPC-6 7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qerr {
    #[default]
    Nothing,
    AbortsAll,
    /// Those of the same nexus.
    AbortsOwn,
}

/// Mode- and limit-dependent facts of one logical unit; immutable, swapped atomically.
/// A limit of 0 means: no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunPolicy {
    pub block_size: u32,
    pub blocks: u64,
    pub write_protected: bool,
    pub write_cache: bool,
    pub descriptor_sense: bool,
    pub max_transfer_blocks: u32,
    pub max_write_same_blocks: u64,
    pub max_unmap_blocks: u32,
    pub max_unmap_descriptors: u32,
    /// UNMAP and WRITE SAME with UNMAP deallocate; deallocated blocks read as zeros.
    pub unmap: bool,
    pub max_compare_and_write_blocks: u32,
    pub max_atomic_blocks: u32,
    /// Of WRITE ATOMIC's length, and of its LBA (alignment).
    pub atomic_granularity_blocks: u32,
    pub qerr: Qerr,
    /// QUEUE ALGORITHM MODIFIER 0h: SIMPLE commands keep their order.
    pub restricted_reordering: bool,
}
