//! Virtqueues (virtio 1.4, 2.6 and 2.7): the device's side, and the driver's twin beside it.

mod areas;
pub mod driver;
mod endian;
mod error;
pub mod hostile;
mod split;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::Arc;

use crate::memory::{GuestMemory, MemoryMap};

pub use endian::{Big, Endian, Little};
pub use error::RingError;
pub use split::SplitRing;

/// Queue Size is at most this (virtio 2.7).
pub const MAX_SIZE: u16 = 32768;

/// What a driver made available at once: a buffer of readable, then writable pieces.
///
/// Reused from pop to pop, so that its vectors keep their capacity.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of the first descriptor; what `push_used` takes back.
    pub head: u16,
    pub readable: Vec<libc::iovec>,
    pub writable: Vec<libc::iovec>,
    /// Bytes in `readable`.
    pub readable_len: u64,
    /// Bytes in `writable`.
    pub writable_len: u64,
    /// I/O addresses, first and last, that the pieces were translated from.
    pub iova: Vec<(u64, u64)>,
    /// Keeps what the pieces point to mapped; they are void without it.
    pub map: Option<Arc<MemoryMap>>,
}

// SAFETY: the pieces are addresses in a mapping that belongs to no thread and that `map` keeps.
unsafe impl Send for Chain {}

impl Chain {
    /// Empty again, letting go of guest memory.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
        self.iova.clear();
        self.map = None;
    }

    /// Whether a piece was translated from any address of [first, last].
    pub fn uses(&self, first: u64, last: u64) -> bool {
        self.iova
            .iter()
            .any(|&(start, end)| start <= last && first <= end)
    }
}

/// Where a ring lies and what was negotiated for it.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Queue Size: descriptors, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table (Descriptor Area).
    pub desc: u64,
    /// Guest address of the available ring (Driver Area).
    pub driver: u64,
    /// Guest address of the used ring (Device Area).
    pub device: u64,
    pub next_avail: u16,
    /// None: what the used ring says.
    pub next_used: Option<u16>,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_ACCESS_PLATFORM: addresses, those above too, are I/O virtual.
    pub translated: bool,
}

/// The device's side of a virtqueue. After an error the ring is broken: stop it. Only a miss of the
/// IOTLB ([`RingError::miss`]) is none: nothing was consumed or lost, so try again once it is mapped.
pub trait Ring: Send {
    /// Takes the next chain into `chain`; false: there is none, and `chain` is empty.
    fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError>;

    /// Gives back the chain of `head` with `len` bytes written; the driver sees it on `publish`.
    /// Never a miss: what cannot be written now is kept for `publish`.
    fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError>;

    /// Moves the used index as if that many elements had been pushed, modulo 2^16. No device may;
    /// see [`hostile`].
    fn skip_used(&mut self, by: u16);

    /// Shows the driver all that was pushed; true: it wants a notification for that.
    fn publish(&mut self) -> Result<bool, RingError>;

    /// Asks the driver not to kick (a hint: it still may).
    fn suppress_kicks(&mut self) -> Result<(), RingError>;

    /// Asks for a kick with the next chain; true: chains are there already, pop before sleeping.
    fn want_kicks(&mut self) -> Result<bool, RingError>;

    /// Available index of the chain that `pop` takes next.
    fn next_avail(&self) -> u16;

    /// Used index of what `push_used` writes next.
    fn next_used(&self) -> u16;

    /// Chains waiting to be popped.
    fn available(&mut self) -> Result<u16, RingError>;
}

/// A split ring whose fields are in the given byte order (big only for legacy drivers).
pub fn open(
    memory: Arc<GuestMemory>,
    config: RingConfig,
    big_endian: bool,
) -> Result<Box<dyn Ring>, RingError> {
    Ok(if big_endian {
        Box::new(SplitRing::<Big>::new(memory, config)?)
    } else {
        Box::new(SplitRing::<Little>::new(memory, config)?)
    })
}

/// Whether moving an index from `old` to `new` passes the other side's `event` (virtio 2.7.7,
/// 2.7.10): whether an entry went in at `event`. All modulo 2^16.
fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
