//! The data plane of vscsi-emu: guest memory, vrings, media commands, block I/O.
//!
//! Python decides, this crate moves data. Everything but `py` builds and tests without an
//! interpreter (`cargo test --no-default-features`).

pub mod engine;
pub mod memory;
pub mod policy;
pub mod ring;
pub mod sbc;
pub mod sense;
pub mod worker;

#[cfg(feature = "python")]
mod py;
