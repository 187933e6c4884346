//! The place of an engine at a logical unit whose commands pass to a device.

use std::io;
use std::sync::Arc;

use io_uring::squeue;
use libc::iovec;

use super::Passthrough;
use crate::engine::{Engine, Io};

/// Its only content is the device: what a medium holds is read and written by commands.
pub struct PassthroughEngine(pub Arc<Passthrough>);

impl Engine for PassthroughEngine {
    /// One block, so that a policy can be made: nothing here obeys it.
    fn size(&self) -> u64 {
        512
    }

    fn can_discard(&self) -> bool {
        false
    }

    fn passthrough(&self) -> Option<&Arc<Passthrough>> {
        Some(&self.0)
    }

    fn try_now(&self, _io: &Io, _iov: &[iovec]) -> Option<io::Result<u64>> {
        None
    }

    fn sqe(&self, _io: &Io, _iov: &[iovec]) -> Option<squeue::Entry> {
        None
    }

    fn run(&self, _io: &Io, _iov: &[iovec]) -> io::Result<u64> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
}
