//! May this nexus take the fast way? One atomic word per I_T_L nexus.

use std::sync::atomic::{AtomicU64, Ordering};

/// Command classes, one bit each (`CLASS_*` in Python).
pub const CLASS_READ: u8 = 1;
pub const CLASS_WRITE: u8 = 2;
pub const CLASS_MEDIA: u8 = 4;
pub const CLASS_ALL: u8 = 7;

const CLOSED: u64 = 0xff;
const WANTED_SHIFT: u32 = 8;
const PENDING_SHIFT: u32 = 32;
const PENDING: u64 = 1 << PENDING_SHIFT;

/// Bits 0–7: classes closed. Bits 8–15: classes to open once nothing is pending. Bits 32–63:
/// commands of this nexus that wait for Python's decision.
///
/// All of it is in one word so that "open when nothing is pending" and "count me as pending
/// because it is closed" are each one compare-and-swap: a command never overtakes one that went
/// to Python before it on the same queue.
#[derive(Debug, Default)]
pub struct Gate(AtomicU64);

impl Gate {
    /// True: take the fast way. False: the command is counted as pending and goes to Python.
    pub fn enter(&self, class: u8) -> bool {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if word & u64::from(class) == 0 {
                return true;
            }
            match self.swap(word, word + PENDING) {
                Ok(()) => return false,
                Err(now) => word = now,
            }
        }
    }

    /// Counts a command that goes to Python whatever the gate says.
    pub fn wait(&self) {
        self.0.fetch_add(PENDING, Ordering::AcqRel);
    }

    /// Python has decided a pending command. The last one opens what `open` asked for.
    pub fn decided(&self) {
        self.update(|word| {
            debug_assert!(word >> PENDING_SHIFT > 0);
            let word = word - PENDING;
            if word >> PENDING_SHIFT == 0 {
                let wanted = (word >> WANTED_SHIFT) & CLOSED;
                word & CLOSED & !wanted
            } else {
                word
            }
        });
    }

    pub fn close(&self, classes: u8) {
        let classes = u64::from(classes);
        self.update(|word| (word | classes) & !(classes << WANTED_SHIFT));
    }

    pub fn open(&self, classes: u8) {
        let classes = u64::from(classes);
        self.update(|word| {
            if word >> PENDING_SHIFT == 0 {
                word & !classes
            } else {
                word | ((word & classes) << WANTED_SHIFT)
            }
        });
    }

    pub fn closed(&self) -> u8 {
        (self.0.load(Ordering::Acquire) & CLOSED) as u8
    }

    pub fn pending(&self) -> u32 {
        (self.0.load(Ordering::Acquire) >> PENDING_SHIFT) as u32
    }

    fn swap(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0
            .compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        let mut word = self.0.load(Ordering::Acquire);
        while let Err(now) = self.swap(word, change(word)) {
            word = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_and_opens_by_class() {
        let gate = Gate::default();
        assert!(gate.enter(CLASS_READ));
        gate.close(CLASS_WRITE);
        assert!(gate.enter(CLASS_READ));
        assert!(!gate.enter(CLASS_WRITE));
        assert_eq!(gate.pending(), 1);
        gate.decided();
        gate.open(CLASS_WRITE);
        assert!(gate.enter(CLASS_WRITE));
    }

    #[test]
    fn opens_only_when_nothing_is_pending() {
        let gate = Gate::default();
        gate.close(CLASS_ALL);
        assert!(!gate.enter(CLASS_READ));
        gate.open(CLASS_ALL);
        assert_eq!(gate.closed(), CLASS_ALL);
        assert!(!gate.enter(CLASS_READ), "overtakes the pending one");
        gate.decided();
        assert_eq!(gate.closed(), CLASS_ALL);
        gate.decided();
        assert_eq!(gate.closed(), 0);
    }

    #[test]
    fn closing_again_takes_back_the_wish_to_open() {
        let gate = Gate::default();
        gate.close(CLASS_ALL);
        gate.wait();
        gate.open(CLASS_ALL);
        gate.close(CLASS_WRITE);
        gate.decided();
        assert_eq!(gate.closed(), CLASS_WRITE);
    }

    #[test]
    fn counts_are_exact_under_contention() {
        let gate = std::sync::Arc::new(Gate::default());
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let gate = gate.clone();
                std::thread::spawn(move || {
                    for i in 0..10_000 {
                        if n == 0 {
                            gate.close(CLASS_READ);
                            gate.open(CLASS_READ);
                        } else if i % 3 == 0 {
                            gate.wait();
                            gate.decided();
                        } else if !gate.enter(CLASS_READ) {
                            gate.decided();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!((gate.pending(), gate.closed()), (0, 0));
    }
}
