//! Whose turn is it on a logical unit? Most media commands run side by side; an exclusive one
//! (COMPARE AND WRITE and its like) runs alone. Nobody blocks: who cannot enter is told later.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Shared,
    Exclusive,
}

/// Called when a turn has come; it may run on any thread, under the lock, so it only posts.
type Wake = Box<dyn FnOnce() + Send>;

const CLOSED: u64 = 1 << 63;

/// One a logical unit. First come, first served, so that neither side starves the other.
///
/// `word` counts those who run side by side; its `CLOSED` bit sends everyone through the queue. The
/// bit changes under the lock only: it is set as long as an exclusive one runs or anyone waits.
#[derive(Default)]
pub struct Turns {
    word: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// An exclusive one runs.
    alone: bool,
    waiting: VecDeque<(Turn, Wake)>,
}

impl Turns {
    /// True: it is this one's turn. False: `wake` will be called when it is. Either way each turn
    /// ends with one [`Turns::leave`].
    pub fn enter<W: FnOnce() + Send + 'static>(
        &self,
        turn: Turn,
        wake: impl FnOnce() -> W,
    ) -> bool {
        if turn == Turn::Shared && self.share() {
            return true;
        }
        let mut queue = self.lock();
        match turn {
            // Open again meanwhile: only the lock's holder could close it, and that is us.
            Turn::Shared if self.share() => return true,
            Turn::Shared => (),
            Turn::Exclusive => {
                if self.word.fetch_or(CLOSED, Ordering::AcqRel) == 0 {
                    queue.alone = true;
                    return true;
                }
            }
        }
        queue.waiting.push_back((turn, Box::new(wake())));
        false
    }

    pub fn leave(&self, turn: Turn) {
        match turn {
            Turn::Shared => {
                // The last one out lets in who waits for just that.
                if self.word.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
                    self.promote(&mut self.lock());
                }
            }
            Turn::Exclusive => {
                let mut queue = self.lock();
                queue.alone = false;
                self.promote(&mut queue);
            }
        }
    }

    fn share(&self) -> bool {
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word & CLOSED == 0).then_some(word + 1)
            })
            .is_ok()
    }

    /// Gives turns to the head of the queue as far as they go together.
    fn promote(&self, queue: &mut Queue) {
        while !queue.alone {
            match queue.waiting.front() {
                None => {
                    self.word.fetch_and(!CLOSED, Ordering::AcqRel);
                    return;
                }
                Some((Turn::Shared, _)) => {
                    self.word.fetch_add(1, Ordering::AcqRel);
                }
                // Whoever still shares promotes when leaving.
                Some((Turn::Exclusive, _)) if self.word.load(Ordering::Acquire) != CLOSED => return,
                Some((Turn::Exclusive, _)) => queue.alone = true,
            }
            if let Some((_, wake)) = queue.waiting.pop_front() {
                wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{mpsc, Arc};

    use super::*;

    /// Enters and says whether at once; later turns are noted under `name`.
    fn enter(turns: &Turns, turn: Turn, name: char, log: &Arc<Mutex<String>>) -> bool {
        let log = log.clone();
        turns.enter(turn, || move || log.lock().unwrap().push(name))
    }

    #[test]
    fn shared_ones_run_together_and_an_exclusive_one_alone() {
        let (turns, log) = (Turns::default(), Arc::default());
        assert!(enter(&turns, Turn::Shared, 'a', &log));
        assert!(enter(&turns, Turn::Shared, 'b', &log));
        assert!(!enter(&turns, Turn::Exclusive, 'c', &log));
        turns.leave(Turn::Shared);
        assert_eq!(*log.lock().unwrap(), "");
        turns.leave(Turn::Shared);
        assert_eq!(*log.lock().unwrap(), "c");
        assert!(!enter(&turns, Turn::Shared, 'd', &log));
        assert!(!enter(&turns, Turn::Exclusive, 'e', &log));
        turns.leave(Turn::Exclusive);
        assert_eq!(*log.lock().unwrap(), "cd");
        turns.leave(Turn::Shared);
        turns.leave(Turn::Exclusive);
        assert_eq!(*log.lock().unwrap(), "cde");
        assert!(enter(&turns, Turn::Exclusive, 'f', &log), "open again");
    }

    #[test]
    fn nobody_overtakes() {
        let (turns, log) = (Turns::default(), Arc::default());
        assert!(enter(&turns, Turn::Exclusive, 'a', &log));
        for (turn, name) in [
            (Turn::Shared, 'b'),
            (Turn::Shared, 'c'),
            (Turn::Exclusive, 'd'),
            (Turn::Shared, 'e'),
        ] {
            assert!(!enter(&turns, turn, name, &log));
        }
        turns.leave(Turn::Exclusive);
        assert_eq!(*log.lock().unwrap(), "bc");
        assert!(!enter(&turns, Turn::Shared, 'f', &log));
        turns.leave(Turn::Shared);
        turns.leave(Turn::Shared);
        assert_eq!(*log.lock().unwrap(), "bcd");
        turns.leave(Turn::Exclusive);
        assert_eq!(*log.lock().unwrap(), "bcdef");
    }

    #[test]
    fn exclusive_under_contention() {
        let turns = Arc::new(Turns::default());
        // Low half: exclusive ones inside, high half: shared ones.
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let (turns, inside) = (turns.clone(), inside.clone());
                std::thread::spawn(move || {
                    let (told, mine) = mpsc::channel();
                    for i in 0..5_000 {
                        let (turn, me) = match (i + n) % 3 {
                            0 => (Turn::Exclusive, 1),
                            _ => (Turn::Shared, 1 << 32),
                        };
                        let told = told.clone();
                        if !turns.enter(turn, || move || told.send(()).unwrap()) {
                            mine.recv_timeout(std::time::Duration::from_secs(10))
                                .expect("its turn never comes");
                        }
                        let before = inside.fetch_add(me, Ordering::SeqCst);
                        match turn {
                            Turn::Exclusive => assert_eq!(before, 0),
                            Turn::Shared => assert_eq!(before & 0xffff_ffff, 0),
                        }
                        inside.fetch_sub(me, Ordering::SeqCst);
                        turns.leave(turn);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(turns.word.load(Ordering::SeqCst), 0);
    }
}
