//! Commands that pass to a SCSI device of the host.
//!
//! [`Passthrough`] is the device, with its limits and what Python's tables say of its commands. A
//! [`transfer::Transfer`] is one command on its way: cut into pieces that the host takes, each a
//! [`node::Call`], whose results it puts together.

pub mod attention;
mod command;
pub mod engine;
pub mod limits;
pub mod node;
mod queue;
mod sense;
pub mod sg;
mod status;
#[cfg(test)]
mod tests;
mod transfer;
mod unmap;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use libc::iovec;

use attention::Attention;
use limits::Limits;
use node::{Node, Reset};
use queue::Ended;
use transfer::{Next, Transfer};

use crate::pool::Pool;

/// Where a CDB keeps the length of its data: the first byte of the field, and its size in bytes; 0
/// where the number in it is not one of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LengthField {
    pub at: u8,
    pub size: u8,
}

/// What must be known of an operation code, from Python's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub timeout_s: u32,
    /// Its CDB is SBC's: it may be cut at block boundaries.
    pub blocks: bool,
    pub length: Option<LengthField>,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            timeout_s: 60,
            blocks: false,
            length: None,
        }
    }
}

/// How many commands did not go as they came.
#[derive(Debug, Default)]
pub struct Counters {
    pub split: AtomicU64,
    pub bounced: AtomicU64,
}

/// How a command ended, as the guest is to see it.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// `VIRTIO_SCSI_S_*`.
    pub response: u8,
    /// SAM status.
    pub status: u8,
    pub sense: Vec<u8>,
    /// Bytes of data-out consumed or of data-in produced.
    pub transferred: u64,
}

/// A device of the host.
pub struct Passthrough {
    /// None once it is closed, or gone.
    way: ArcSwapOption<Way>,
    rules: Box<[Rule; 256]>,
    limits: ArcSwap<Limits>,
    /// Bytes; 0 where the device has none, or they are not known.
    block_size: AtomicU32,
    /// Capacity; 0 where it is not known.
    blocks: AtomicU64,
    /// The format of sense data of our own: that of the device's.
    descriptor_sense: AtomicBool,
    pub attention: Attention,
    pub counters: Counters,
}

/// How commands get there.
struct Way {
    node: Box<dyn Node>,
    /// For calls that block; its own, so that a device that hangs holds up no other.
    pool: Pool,
}

impl Passthrough {
    /// `threads`: commands in flight, where the node's calls block.
    pub fn new(
        node: Box<dyn Node>,
        rules: Box<[Rule; 256]>,
        limits: Limits,
        threads: usize,
    ) -> Self {
        Self {
            way: ArcSwapOption::from_pointee(Way {
                node,
                pool: Pool::new(threads),
            }),
            rules,
            limits: ArcSwap::from_pointee(limits),
            block_size: AtomicU32::new(0),
            blocks: AtomicU64::new(0),
            descriptor_sense: AtomicBool::new(false),
            attention: Attention::default(),
            counters: Counters::default(),
        }
    }

    /// Commands that begin from now on end with BAD_TARGET; the node is closed with the last of
    /// those that run.
    pub fn close(&self) {
        self.way.store(None);
        self.attention.close();
    }

    pub fn reset(&self, scope: Reset) -> io::Result<()> {
        self.with_node(|node| node.reset(scope))
    }

    fn with_node<T>(&self, ask: impl FnOnce(&dyn Node) -> io::Result<T>) -> io::Result<T> {
        match self.way.load_full() {
            Some(way) => ask(way.node.as_ref()),
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    /// For commands that begin from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    pub fn set_capacity(&self, block_size: u32, blocks: u64) {
        self.block_size.store(block_size, Ordering::Relaxed);
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// Runs a command; `done` is called with its end, on another thread.
    ///
    /// # Safety
    /// The memory of the iovecs stays mapped until then.
    pub unsafe fn start(
        self: &Arc<Self>,
        cdb: &[u8],
        data_out: &[iovec],
        data_in: &[iovec],
        done: impl FnOnce(Passed) + Send + 'static,
    ) {
        let transfer = match Transfer::new(self, cdb, data_out, data_in) {
            Ok(transfer) => transfer,
            Err(passed) => return done(passed),
        };
        let device = self.clone();
        match self.way.load_full() {
            Some(way) if way.node.queue().is_none() => way
                .pool
                .run(Box::new(move || done(device.finish(transfer)))),
            _ => self.fly(transfer, Box::new(done)),
        }
    }

    /// Piece after piece, none of which keeps a thread waiting.
    fn fly(self: &Arc<Self>, mut transfer: Transfer, done: Box<dyn FnOnce(Passed) + Send>) {
        let piece = match transfer.next(self) {
            Next::Piece(piece) => piece,
            Next::Done(passed) => return done(passed),
        };
        let device = self.clone();
        let ended: Ended = Box::new(move |piece, result| {
            transfer.ended(&device, &piece, result);
            drop(piece);
            device.fly(transfer, done);
        });
        let way = self.way.load_full();
        match way.as_ref().and_then(|way| way.node.queue()) {
            Some(queue) => queue.submit(piece, ended),
            None => ended(piece, Err(io::Error::from_raw_os_error(libc::ENODEV))),
        }
    }

    /// Runs a command to its end, blocking. `cdb` may be longer than the command.
    pub fn run(&self, cdb: &[u8], data_out: &[iovec], data_in: &[iovec]) -> Passed {
        match Transfer::new(self, cdb, data_out, data_in) {
            Ok(transfer) => self.finish(transfer),
            Err(passed) => passed,
        }
    }

    fn finish(&self, mut transfer: Transfer) -> Passed {
        loop {
            let piece = match transfer.next(self) {
                Next::Piece(piece) => piece,
                Next::Done(passed) => return passed,
            };
            let result = self.with_node(|node| node.call(&piece.call()));
            transfer.ended(self, &piece, result);
        }
    }

    fn descriptor_sense(&self) -> bool {
        self.descriptor_sense.load(Ordering::Relaxed)
    }
}
