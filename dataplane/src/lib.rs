//! The data plane of vscsi-emu: guest memory, vrings, media commands, block I/O.
//!
//! Python decides, this crate moves data. Everything but `py` builds and tests without an
//! interpreter (`cargo test --no-default-features`).

pub mod cache;
pub mod clock;
pub mod copy;
pub mod engine;
pub mod errors;
pub mod event;
pub mod fault;
pub mod gate;
pub mod inbox;
pub mod interrupt;
pub mod iov;
pub mod limits;
pub mod lu;
pub mod memory;
pub mod notifier;
pub mod passthrough;
pub mod policy;
pub mod pool;
pub mod port;
mod random;
pub mod ring;
pub mod sbc;
pub mod sense;
pub mod stats;
pub mod task;
pub mod task_set;
pub mod trace;
pub mod turn;
pub mod wire;
pub mod worker;

#[cfg(feature = "python")]
mod py;
