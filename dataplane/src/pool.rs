//! Threads for what blocks: media jobs of several steps, and all I/O where io_uring is refused.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Enough to keep a device busy, few enough not to matter: the worst case is one thread a
/// blocked request.
const MAX_THREADS: usize = 32;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
pub struct Pool {
    state: Mutex<State>,
    wake: Condvar,
}

/// The pool of this process. Threads start on demand and stay: idle ones only wait.
pub fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(Pool::default)
}

impl Pool {
    pub fn run(&'static self, work: Work) {
        let mut state = self.lock();
        state.work.push_back(work);
        if state.idle >= state.work.len() || state.threads >= MAX_THREADS {
            self.wake.notify_one();
            return;
        }
        let started = std::thread::Builder::new()
            .name("vscsi-pool".into())
            .spawn(move || self.serve());
        match started {
            Ok(_) => state.threads += 1,
            Err(_) if state.threads > 0 => self.wake.notify_one(),
            Err(_) => {
                // No thread at all can be had: slow beats never.
                let work = state.work.pop_back();
                drop(state);
                if let Some(work) = work {
                    work();
                }
            }
        }
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            while let Some(work) = state.work.pop_front() {
                drop(state);
                work();
                state = self.lock();
            }
            state.idle += 1;
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
