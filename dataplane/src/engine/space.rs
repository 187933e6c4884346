//! Space that thin provisioned units take as they are written: a budget of one unit, or a pool of
//! several (SBC-5 4.7.3.6, 4.7.3.7).

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a write that could not have space may have it soon: some is being freed.
#[derive(Debug, thiserror::Error)]
#[error("space is being freed")]
pub struct SpaceSoon;

/// Called once when a level is reached; on any thread, under the lock, so it only posts.
type Reached = Box<dyn FnOnce(u64) + Send>;

struct Watch {
    id: u64,
    level: u64,
    rising: bool,
    reached: Reached,
}

impl Watch {
    fn is_reached(&self, used: u64) -> bool {
        match self.rising {
            true => used >= self.level,
            false => used < self.level,
        }
    }
}

pub struct Space {
    limit: u64,
    used: AtomicU64,
    /// Calls under way that will give space back.
    freeing: AtomicUsize,
    /// Some watch is reached outside [below, above), so that mostly nobody takes the lock.
    below: AtomicU64,
    above: AtomicU64,
    watches: Mutex<Vec<Watch>>,
}

impl Space {
    /// Of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            freeing: AtomicUsize::new(0),
            below: AtomicU64::new(0),
            above: AtomicU64::new(u64::MAX),
            watches: Mutex::default(),
        }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes taken: more than the limit if that much was there from the beginning.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// Takes bytes, all of them or none.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        let taken = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                used.checked_add(bytes).filter(|used| *used <= self.limit)
            });
        match taken {
            Ok(before) => {
                self.look(before + bytes);
                Ok(())
            }
            Err(_) if self.freeing.load(Ordering::SeqCst) > 0 => Err(io::Error::other(SpaceSoon)),
            Err(_) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    /// Takes what is in use already, whatever the limit.
    pub fn adopt(&self, bytes: u64) {
        let before = self.used.fetch_add(bytes, Ordering::SeqCst);
        self.look(before + bytes);
    }

    pub fn give(&self, bytes: u64) {
        if bytes > 0 {
            let before = self.used.fetch_sub(bytes, Ordering::SeqCst);
            self.look(before - bytes);
        }
    }

    /// Runs what frees space and says how much: who finds none meanwhile is asked to try again.
    pub fn freeing<T>(&self, free: impl FnOnce() -> (u64, T)) -> T {
        self.freeing.fetch_add(1, Ordering::SeqCst);
        let (bytes, result) = free();
        self.give(bytes);
        self.freeing.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Calls `reached` with the bytes in use once they are at least `level` (`rising`) or fewer,
    /// which may be now; unless `unwatch` comes before.
    pub fn watch(
        &self,
        id: u64,
        level: u64,
        rising: bool,
        reached: impl FnOnce(u64) + Send + 'static,
    ) {
        let mut watches = self.lock();
        watches.push(Watch {
            id,
            level,
            rising,
            reached: Box::new(reached),
        });
        self.fire(&mut watches);
    }

    pub fn unwatch(&self, id: u64) {
        let mut watches = self.lock();
        watches.retain(|watch| watch.id != id);
        self.fire(&mut watches);
    }

    fn look(&self, used: u64) {
        // SeqCst, with `fire`: either it sees the new number or we see the new bounds.
        if used < self.below.load(Ordering::SeqCst) || used >= self.above.load(Ordering::SeqCst) {
            self.fire(&mut self.lock());
        }
    }

    fn fire(&self, watches: &mut Vec<Watch>) {
        let falling = watches.iter().filter(|watch| !watch.rising);
        let rising = watches.iter().filter(|watch| watch.rising);
        let below = falling.map(|watch| watch.level).max().unwrap_or(0);
        let above = rising.map(|watch| watch.level).min().unwrap_or(u64::MAX);
        self.below.store(below, Ordering::SeqCst);
        self.above.store(above, Ordering::SeqCst);
        let used = self.used();
        let mut fired = false;
        while let Some(at) = watches.iter().position(|watch| watch.is_reached(used)) {
            (watches.swap_remove(at).reached)(used);
            fired = true;
        }
        if fired {
            self.fire(watches);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn all_or_nothing() {
        let space = Space::new(100);
        space.take(60).unwrap();
        let error = space.take(41).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        space.take(40).unwrap();
        space.give(1);
        space.take(1).unwrap();
        assert_eq!(space.used(), 100);
        assert!(space.take(u64::MAX).is_err());
    }

    #[test]
    fn what_was_there_before_counts_but_is_not_refused() {
        let space = Space::new(100);
        space.adopt(150);
        assert!(space.take(1).is_err());
        space.give(51);
        space.take(1).unwrap();
    }

    #[test]
    fn space_that_is_being_freed_comes_soon() {
        let space = Space::new(100);
        space.take(100).unwrap();
        space.freeing(|| {
            let error = space.take(1).unwrap_err();
            assert!(error.get_ref().is_some_and(|inner| inner.is::<SpaceSoon>()));
            (10, ())
        });
        space.take(10).unwrap();
        let error = space.take(1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn watches_are_told_once() {
        let (space, log) = (Space::new(100), Arc::new(Mutex::new(Vec::new())));
        let watch = |id, level, rising| {
            let log = log.clone();
            space.watch(id, level, rising, move |used| {
                log.lock().unwrap().push((id, used));
            });
        };
        watch(1, 50, true);
        watch(2, 80, true);
        watch(3, 80, true);
        space.take(49).unwrap();
        assert!(log.lock().unwrap().is_empty());
        space.take(1).unwrap();
        space.unwatch(3);
        space.take(40).unwrap();
        assert_eq!(*log.lock().unwrap(), [(1, 50), (2, 90)]);
        watch(4, 30, false);
        space.give(60);
        space.give(1);
        space.take(71).unwrap();
        assert_eq!(log.lock().unwrap()[2..], [(4, 29)]);
        watch(5, 100, true);
        assert_eq!(log.lock().unwrap()[3..], [(5, 100)], "at once");
    }

    #[test]
    fn counts_are_exact_under_contention() {
        let space = Arc::new(Space::new(3));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let space = space.clone();
                std::thread::spawn(move || {
                    for _ in 0..5_000 {
                        if space.take(1).is_ok() {
                            assert!(space.used() <= 3);
                            space.give(1);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(space.used(), 0);
    }
}
