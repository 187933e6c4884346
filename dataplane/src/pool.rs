//! Threads for what blocks: media jobs of several steps, all I/O where io_uring is refused, and
//! commands of devices whose nodes only know calls that block.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Enough to keep a device busy, few enough not to matter: the worst case is one thread a
/// blocked request.
const MAX_THREADS: usize = 32;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// Threads start on demand and stay, idle, until it is dropped; what was begun ends all the same.
pub struct Pool {
    shared: Arc<Shared>,
    max_threads: usize,
}

/// The pool of this process.
pub fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(MAX_THREADS))
}

impl Pool {
    pub fn new(max_threads: usize) -> Self {
        Self {
            shared: Arc::default(),
            max_threads,
        }
    }

    pub fn run(&self, work: Work) {
        let mut state = self.shared.lock();
        state.work.push_back(work);
        if state.idle >= state.work.len() || state.threads >= self.max_threads {
            // Whom it wakes needs the lock next.
            drop(state);
            self.shared.wake.notify_one();
            return;
        }
        let shared = self.shared.clone();
        let started = std::thread::Builder::new()
            .name("vscsi-pool".into())
            .spawn(move || shared.serve());
        match started {
            Ok(_) => state.threads += 1,
            Err(_) if state.threads > 0 => self.shared.wake.notify_one(),
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
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            while let Some(work) = state.work.pop_front() {
                drop(state);
                work();
                state = self.lock();
            }
            if state.closed {
                return;
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
