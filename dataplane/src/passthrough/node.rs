//! A device node of the host that takes CDBs.

use std::io;

use libc::iovec;

use super::queue::SgQueue;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    None,
    ToDevice,
    FromDevice,
}

/// One command for the device. The iovecs keep the promise that engines are given.
#[derive(Debug)]
pub struct Call<'a> {
    pub cdb: &'a [u8],
    pub direction: Direction,
    pub iov: &'a [iovec],
    /// Bytes in `iov`.
    pub len: u32,
    pub timeout_ms: u32,
}

/// How the host says that a command ended (`sg_io_hdr`, `sg_io_v4`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// DID_*.
    pub host: u16,
    /// DRIVER_*, which kernels before 5.14 use.
    pub driver: u16,
    /// SAM status.
    pub status: u8,
    pub sense: Vec<u8>,
    /// Bytes of `Call::len` that were not transferred.
    pub residual: u32,
}

/// What the host resets; it does not go on to the next wider scope by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    Device,
    Target,
    Bus,
    Host,
}

pub trait Node: Send + Sync {
    /// Blocks until the command has ended. An error: the host did not take it.
    fn call(&self, call: &Call<'_>) -> io::Result<Completion>;

    /// Where commands can wait without a thread.
    fn queue(&self) -> Option<&SgQueue> {
        None
    }

    fn reset(&self, scope: Reset) -> io::Result<()>;
}
