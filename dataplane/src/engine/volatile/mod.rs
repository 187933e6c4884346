//! A write cache that forgets: what is written stays in memory until it is flushed, and a power
//! failure takes it. Wraps the engine that is the medium.
//!
//! It obeys what commands promise and no more: a durable write, and all that was written before a
//! flush, is on the medium when the call ends. Deallocated and zeroed ranges go there at once.

mod failure;
mod log;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use io_uring::squeue;
use libc::iovec;

use self::failure::Fates;
pub use self::failure::Losses;
use self::log::{Log, LINE};
use super::{AlignedBuffer, Cursor, Engine, Io, IoKind};

pub struct VolatileCache {
    inner: Arc<dyn Engine>,
    /// Bytes of memory that it takes; above it the oldest writes reach the medium.
    capacity: u64,
    /// Bytes that the medium writes whole, a power of two.
    tear: u64,
    /// Held over calls of the medium: a write never overtakes another, and a failure falls between
    /// two calls.
    state: Mutex<State>,
}

struct State {
    log: Log,
    powered: bool,
}

impl VolatileCache {
    pub fn new(inner: Arc<dyn Engine>, capacity: u64, tear: u64) -> io::Result<Self> {
        if !tear.is_power_of_two() || inner.size() % LINE != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            inner,
            capacity,
            tear,
            state: Mutex::new(State {
                log: Log::default(),
                powered: true,
            }),
        })
    }

    /// The power goes: by `seed`, each write that was not flushed has reached the medium, or a part
    /// of it has, or nothing. Calls fail until [`VolatileCache::power_on`].
    pub fn fail(&self, seed: u64) -> io::Result<Losses> {
        let mut state = self.lock();
        state.powered = false;
        let mut fates = Fates::new(seed, state.log.len(), self.tear);
        let mut failure = Ok(());
        while let Some(write) = state.log.pop() {
            // What cannot be written is lost; nobody was promised it.
            let result = fates.decide(write, self.inner.as_ref());
            failure = failure.and(result);
        }
        failure?;
        self.inner.run(&self.flush_all(), &[])?;
        Ok(fates.losses)
    }

    pub fn power_on(&self) {
        self.lock().powered = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `EAGAIN` while the power is off: a command that it met may be tried again.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if !state.powered {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        Ok(state)
    }

    fn check(&self, io: &Io, iov: &[iovec]) -> io::Result<()> {
        io.check(self.size(), iov)?;
        if io.moves_data() && (io.offset % LINE != 0 || io.len % LINE != 0) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(())
    }

    /// Whether a write may stay here.
    fn holds(&self, io: &Io) -> bool {
        io.kind == IoKind::Write && !io.durable && log::footprint(io.len) <= self.capacity
    }

    fn flush_all(&self) -> Io {
        Io {
            kind: IoKind::Flush,
            offset: 0,
            len: self.size(),
            durable: true,
        }
    }

    /// The `count` oldest writes reach the medium, though not yet stable storage.
    fn write_back(&self, log: &mut Log, count: usize) -> io::Result<()> {
        for _ in 0..count {
            let Some(write) = log.oldest() else { break };
            let (io, iov) = write.as_io();
            self.inner.run(&io, &[iov])?;
            log.pop();
        }
        Ok(())
    }

    /// What must not reach the medium after a change of this range, as it came before it.
    fn write_back_before(&self, log: &mut Log, io: &Io) -> io::Result<()> {
        let count = log.up_to(io.offset, io.len);
        self.write_back(log, count)
    }

    fn hold(&self, log: &mut Log, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        let mut data = AlignedBuffer::zeroed(io.len as usize)?;
        Cursor::new(iov).read(&mut data);
        while log.footprint() + log::footprint(io.len) > self.capacity {
            self.write_back(log, 1)?;
        }
        log.push(io.offset, data);
        Ok(io.len)
    }
}

impl Engine for VolatileCache {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let mut state = self.powered()?;
        let all = state.log.len();
        self.write_back(&mut state.log, all)?;
        self.inner.resize(size)
    }

    fn can_discard(&self) -> bool {
        self.inner.can_discard()
    }

    /// The medium knows; what is here takes its place there first.
    fn extent(&self, offset: u64) -> io::Result<(bool, u64)> {
        let mut state = self.powered()?;
        let all = state.log.len();
        self.write_back(&mut state.log, all)?;
        self.inner.extent(offset)
    }

    fn allocated(&self) -> Option<u64> {
        self.inner.allocated()
    }

    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if !state.powered || self.check(io, iov).is_err() {
            return None;
        }
        let log = &mut state.log;
        let fits = log.footprint() + log::footprint(io.len) <= self.capacity;
        match io.kind {
            IoKind::Write if self.holds(io) && fits => Some(self.hold(log, io, iov)),
            IoKind::Read if log.up_to(io.offset, io.len) == 0 => self.inner.try_now(io, iov),
            IoKind::Prefetch => self.inner.try_now(io, iov),
            _ => None,
        }
    }

    fn sqe(&self, _io: &Io, _iov: &[iovec]) -> Option<squeue::Entry> {
        None
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        self.check(io, iov)?;
        let mut state = self.powered()?;
        let log = &mut state.log;
        match io.kind {
            IoKind::Write if self.holds(io) => self.hold(log, io, iov),
            IoKind::Write | IoKind::Discard | IoKind::Zero => {
                self.write_back_before(log, io)?;
                self.inner.run(io, iov)
            }
            IoKind::Read => {
                if io.durable {
                    self.write_back_before(log, io)?;
                }
                self.inner.run(io, iov)?;
                log.overlay(io.offset, io.len, iov);
                Ok(io.len)
            }
            IoKind::Flush => {
                let all = log.len();
                self.write_back(log, all)?;
                self.inner.run(io, iov)
            }
            IoKind::Prefetch | IoKind::Mark => self.inner.run(io, iov),
        }
    }
}
