//! The interrupt of one virtio-mmio device (virtio 1.4 4.2.2): its bits, its line, and the
//! generation of its configuration space, in one place that threads on both sides may touch.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::event::Event;

/// A device has used a buffer.
pub const USED_BUFFER: u32 = 1;
/// The configuration space has changed.
pub const CONFIG_CHANGE: u32 = 2;

pub struct Interrupt {
    status: AtomicU32,
    generation: AtomicU32,
    /// Signalled when the line rises; later an irqfd.
    line: Event,
}

impl Interrupt {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            line: Event::new()?,
        })
    }

    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sets bits. The line rises with the first one; it stays up for the others.
    pub fn raise(&self, bits: u32) {
        // Release: whoever sees the bit sees the used entries, or the config, behind it.
        if self.status.fetch_or(bits, Ordering::AcqRel) == 0 {
            self.line.signal();
        }
    }

    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    pub fn change_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub fn config_changed(&self) {
        self.change_generation();
        self.notify_config();
    }

    /// DEVICE_NEEDS_RESET is told by a configuration change notification too (2.1.2), but the
    /// configuration space is as it was.
    pub fn notify_config(&self) {
        self.raise(CONFIG_CHANGE);
    }

    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
    }

    pub fn clear(&self) {
        self.line.clear();
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn rose(interrupt: &Interrupt) -> bool {
        let mut poll = libc::pollfd {
            fd: interrupt.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, no waiting.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) } == 1;
        interrupt.clear();
        ready
    }

    #[test]
    fn the_line_rises_with_the_first_bit_and_falls_with_the_last() {
        let interrupt = Interrupt::new().unwrap();
        assert!(!rose(&interrupt));
        interrupt.raise(USED_BUFFER);
        assert!(rose(&interrupt));
        interrupt.config_changed();
        assert!(!rose(&interrupt), "it is up already");
        assert_eq!((interrupt.status(), interrupt.generation()), (3, 1));
        interrupt.acknowledge(USED_BUFFER);
        assert_eq!(interrupt.status(), CONFIG_CHANGE);
        interrupt.reset();
        assert_eq!((interrupt.status(), interrupt.generation()), (0, 1));
        interrupt.raise(USED_BUFFER);
        assert!(rose(&interrupt));
        interrupt.notify_config();
        assert_eq!((interrupt.status(), interrupt.generation()), (3, 1));
    }
}
