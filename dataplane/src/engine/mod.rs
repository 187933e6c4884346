//! Storage engines: what holds the bytes of a logical unit. They know bytes, not blocks or CDBs.
//!
//! An `iovec` handed to an engine is a promise: it describes mapped memory that stays mapped until
//! the call returns or, for [`Engine::sqe`], until the completion arrives. Its bytes may belong to
//! a guest that changes them meanwhile, so engines only copy them with raw pointers.

mod aligned;
pub mod file;
pub mod marked;
pub mod memory;
pub mod null;
mod pages;
mod probe;
pub mod python;
pub mod space;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod thin;
pub mod volatile;
pub mod watched;

use std::io;
use std::sync::Arc;

use libc::iovec;

use crate::passthrough::Passthrough;

pub use crate::iov::{total, trim, Cursor};
pub use aligned::AlignedBuffer;

/// Upper bound of one transfer through private memory, and so of memory held for one command.
pub const CHUNK: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    Read,
    Write,
    /// All completed writes reach stable storage; the range is a hint.
    Flush,
    /// Frees the range, which reads as zeros afterwards.
    Discard,
    /// The range reads as zeros afterwards; it may stay allocated.
    Zero,
    /// The range will be read soon; a hint.
    Prefetch,
    /// The range reads as an error until it is written; [`marked::MarkedEngine`] does it.
    Mark,
}

/// One engine call; `offset` and `len` in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    pub kind: IoKind,
    pub offset: u64,
    pub len: u64,
    /// A change is on stable storage before it ends; a read returns nothing that is not.
    pub durable: bool,
}

impl Io {
    /// Whether blocks may read differently afterwards.
    pub fn changes(&self) -> bool {
        use IoKind::{Discard, Mark, Write, Zero};
        matches!(self.kind, Write | Discard | Zero | Mark)
    }

    /// Whether the buffers take part.
    pub fn moves_data(&self) -> bool {
        matches!(self.kind, IoKind::Read | IoKind::Write)
    }

    /// Whether this result of an io_uring completion stands. Anything else, an error or a short
    /// transfer, is a hint: let [`Engine::run`] do it again and give the verdict. But a failed
    /// flush is not repeated: the next one would report success for data that is lost.
    pub fn completed_by(&self, result: i32) -> bool {
        match u64::try_from(result) {
            Ok(moved) if self.moves_data() => moved == self.len,
            Ok(_) => true,
            Err(_) => {
                let try_again = [-libc::EINTR, -libc::EAGAIN, -libc::EOPNOTSUPP];
                self.kind == IoKind::Flush && !try_again.contains(&result)
            }
        }
    }

    /// Whether this error of it may be the only news that writes in a volatile cache are lost.
    /// Of changes that are to be durable too: the file system reports what went wrong before with
    /// whatever reaches the medium next.
    pub fn loses_cache(&self, error: &io::Error) -> bool {
        let (_, error) = Partial::split(error);
        if error
            .get_ref()
            .is_some_and(|inner| inner.is::<NotFlushed>())
        {
            return true;
        }
        let code = error.raw_os_error();
        match self.kind {
            IoKind::Flush => !matches!(code, Some(libc::EAGAIN | libc::ENOMEM | libc::EINTR)),
            IoKind::Write | IoKind::Discard | IoKind::Zero => {
                self.durable && matches!(code, Some(libc::EIO | libc::ENODATA | libc::EUCLEAN))
            }
            _ => false,
        }
    }

    /// Refuses what an engine of this size must not touch. Callers check before, with better
    /// errors; here a slip would corrupt memory or grow a file.
    fn check(&self, size: u64, iov: &[iovec]) -> io::Result<()> {
        let inside = self
            .offset
            .checked_add(self.len)
            .is_some_and(|end| end <= size);
        if !inside || (self.moves_data() && total(iov) != self.len) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(())
    }
}

/// What a read has to make durable first could not be.
#[derive(Debug)]
pub struct NotFlushed;

impl std::fmt::Display for NotFlushed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("what was written before cannot be made durable")
    }
}

impl std::error::Error for NotFlushed {}

pub trait Engine: Send + Sync {
    /// Capacity in bytes.
    fn size(&self) -> u64;

    /// Another capacity, for a unit that nothing uses meanwhile. What is beyond the end is lost;
    /// what is new reads as zeros. A file has the new length already if it grows, and still the
    /// old one if it shrinks.
    fn resize(&self, _size: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether [`IoKind::Discard`] really frees space (probed at open).
    fn can_discard(&self) -> bool;

    /// The device that commands pass to, in place of the calls below.
    fn passthrough(&self) -> Option<&Arc<Passthrough>> {
        None
    }

    /// Whether the bytes from `offset` on are mapped (else deallocated), and how many more are alike.
    /// All are, where nobody can say.
    fn extent(&self, offset: u64) -> io::Result<(bool, u64)> {
        Ok((true, self.size().saturating_sub(offset)))
    }

    /// Bytes of space taken, where that can be told.
    fn allocated(&self) -> Option<u64> {
        None
    }

    /// Whether it must have the logical unit to itself while it frees space, to count it exactly.
    fn counts_space(&self) -> bool {
        false
    }

    /// From now on `watch` learns of changes. False: nobody here can tell.
    fn watch(&self, _watch: &Arc<watched::Watch>) -> bool {
        false
    }

    /// Does it now if that needs no waiting. `None`: use [`Engine::sqe`] or [`Engine::run`].
    fn try_now(&self, io: &Io, iov: &[iovec]) -> Option<io::Result<u64>>;

    /// A submission that does it, if one can. `iov` and the engine outlive the I/O; see
    /// [`Io::completed_by`] for its result. `None`: use [`Engine::run`].
    fn sqe(&self, io: &Io, iov: &[iovec]) -> Option<io_uring::squeue::Entry>;

    /// Does it, however long it takes; `Ok` is always `io.len`. For a pool thread.
    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64>;
}

/// An I/O error that struck after some of the bytes had been moved.
#[derive(Debug, thiserror::Error)]
#[error("{source} after {done} bytes")]
pub struct Partial {
    pub done: u64,
    pub source: io::Error,
}

impl Partial {
    /// The error of a step that began `before` bytes into the whole; itself while that is 0.
    fn after(before: u64, error: io::Error) -> io::Error {
        match error.downcast::<Self>() {
            Ok(Self { done, source }) => io::Error::other(Self {
                done: before + done,
                source,
            }),
            Err(error) if before == 0 => error,
            Err(source) => io::Error::other(Self {
                done: before,
                source,
            }),
        }
    }

    /// Takes apart what an engine returned: bytes done, if it knows, and the bare error.
    pub fn split(error: &io::Error) -> (Option<u64>, &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(Self { done, source }) => (Some(*done), source),
            None => (None, error),
        }
    }
}
