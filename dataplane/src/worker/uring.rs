//! A worker's io_uring.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{squeue, IoUring};

const ENTRIES: u32 = 256;

pub(crate) struct Uring {
    ring: IoUring,
    in_flight: u32,
    unsubmitted: bool,
}

impl Uring {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(ENTRIES)?,
            in_flight: 0,
            unsubmitted: false,
        })
    }

    /// Readable while completions wait.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// False: no room, do it another way. In flight never exceeds the completion queue, so no
    /// completion is ever lost.
    ///
    /// # Safety
    /// What the entry points to stays valid until its completion.
    pub unsafe fn push(&mut self, entry: squeue::Entry, user_data: u64) -> bool {
        if self.in_flight >= self.ring.params().cq_entries() {
            return false;
        }
        let entry = entry.user_data(user_data);
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.submit();
            // SAFETY: as above.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return false;
            }
        }
        self.in_flight += 1;
        self.unsubmitted = true;
        true
    }

    /// Hands what was pushed to the kernel. An error leaves it pushed: the next turn tries again.
    pub fn submit(&mut self) {
        if self.unsubmitted && self.ring.submit().is_ok() {
            self.unsubmitted = !self.ring.submission().is_empty();
        }
    }

    /// Whether something still has to be submitted (the kernel was short of memory).
    pub fn must_retry(&self) -> bool {
        self.unsubmitted
    }

    /// What has ended: user data and result of each.
    pub fn completed(&mut self, out: &mut Vec<(u64, i32)>) {
        out.extend(
            self.ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result())),
        );
        self.in_flight -= out.len() as u32;
    }
}
