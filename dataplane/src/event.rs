//! Descriptors that wake somebody: an eventfd of ours, and those a front end hands over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;

/// A non-blocking eventfd of our own.
pub struct Event(OwnedFd);

impl Event {
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn signal(&self) {
        add_one(self.0.as_raw_fd());
    }

    pub fn clear(&self) {
        let mut value = 0u64;
        // SAFETY: 8 bytes into `value`. EAGAIN (nothing to clear) is fine.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut value).cast(), 8) };
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn add_one(fd: RawFd) {
    let one = 1u64;
    // SAFETY: 8 bytes from `one`. EAGAIN means a full counter or pipe: the reader wakes anyway.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}

enum Kind {
    Eventfd,
    /// The pipe, opened anew: O_NONBLOCK is then ours alone.
    Pipe(File),
    /// Of stream type (User-Mode Linux wants calls there).
    Socket,
}

/// A descriptor that a front end handed over. It may be of any kind and may block.
struct Foreign {
    fd: OwnedFd,
    kind: Kind,
}

impl Foreign {
    fn new(fd: BorrowedFd<'_>, write: bool) -> io::Result<Self> {
        let fd = fd.try_clone_to_owned()?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let link = std::fs::read_link(&path)?;
        let kind = if link.as_os_str() == "anon_inode:[eventfd]" {
            Kind::Eventfd
        } else if std::fs::metadata(&path)?.file_type().is_fifo() {
            use std::os::unix::fs::OpenOptionsExt;
            Kind::Pipe(
                File::options()
                    .read(!write)
                    .write(write)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path)?,
            )
        } else if std::fs::metadata(&path)?.file_type().is_socket() {
            Kind::Socket
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} is neither an eventfd nor a pipe or socket",
                    link.display()
                ),
            ));
        };
        Ok(Self { fd, kind })
    }
}

/// What a driver kicks. Watched edge-triggered, so an eventfd is never read: its value means
/// nothing (vhost-user), and a read could block if somebody else read it first.
pub struct Kick(Foreign);

impl Kick {
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Foreign::new(fd, false).map(Self)
    }

    /// Makes room in a pipe, so that the driver can kick again.
    pub fn clear(&self) {
        let mut sink = [0u8; 4096];
        // A pipe or socket holds 1 MiB at most, unless an administrator raised that.
        for _ in 0..256 {
            let (data, size) = (sink.as_mut_ptr().cast(), sink.len());
            // SAFETY: both read at most `size` bytes into `sink`, without blocking.
            let got = match &self.0.kind {
                Kind::Eventfd => return,
                Kind::Pipe(pipe) => unsafe { libc::read(pipe.as_raw_fd(), data, size) },
                Kind::Socket => unsafe {
                    libc::recv(self.0.fd.as_raw_fd(), data, size, libc::MSG_DONTWAIT)
                },
            };
            if got <= 0 {
                return;
            }
        }
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0.kind {
            Kind::Eventfd | Kind::Socket => self.0.fd.as_fd(),
            Kind::Pipe(pipe) => pipe.as_fd(),
        }
    }
}

/// What a driver wants signalled.
pub struct Call(Foreign);

impl Call {
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Foreign::new(fd, true).map(Self)
    }

    /// Never blocks on a pipe, a socket or an eventfd with O_NONBLOCK. The flag is not ours to set on
    /// the front end's eventfd (it would change its reads too), so a blocking one is asked first;
    /// a front end that fills it in between blocks only the queues of its own worker, until it
    /// leaves.
    pub fn signal(&self) {
        match &self.0.kind {
            Kind::Pipe(pipe) => add_one(pipe.as_raw_fd()),
            Kind::Socket => {
                let one = 1u64.to_ne_bytes();
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: 8 bytes from `one`. A full or closed socket wakes nobody we know.
                unsafe { libc::send(self.0.fd.as_raw_fd(), one.as_ptr().cast(), 8, flags) };
            }
            Kind::Eventfd => {
                let fd = self.0.fd.as_raw_fd();
                let mut poll = libc::pollfd {
                    fd,
                    events: libc::POLLOUT,
                    revents: 0,
                };
                // SAFETY: one pollfd, no waiting.
                if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 {
                    add_one(fd);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_blocking_eventfd_does_not_block_us() {
        // SAFETY: plain system calls on our own descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) };
        let full = u64::MAX - 1;
        // SAFETY: as above.
        unsafe { libc::write(fd.as_raw_fd(), (&raw const full).cast(), 8) };
        Call::new(fd.as_fd()).unwrap().signal();
    }

    #[test]
    fn a_full_blocking_pipe_does_not_block_us() {
        let mut ends = [0; 2];
        // SAFETY: fills `ends`.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: both just made.
        let (read, write) =
            unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        let call = Call::new(write.as_fd()).unwrap();
        for _ in 0..20_000 {
            call.signal();
        }
        Kick::new(read.as_fd()).unwrap().clear();
    }

    #[test]
    fn a_full_blocking_socket_does_not_block_us() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let call = Call::new(ours.as_fd()).unwrap();
        for _ in 0..200_000 {
            call.signal();
        }
        Kick::new(theirs.as_fd()).unwrap().clear();
        drop(theirs);
        call.signal();
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let file = tempfile::tempfile().unwrap();
        let Err(error) = Kick::new(file.as_fd()) else {
            panic!("accepted a regular file")
        };
        assert!(error.to_string().contains("neither an eventfd nor a pipe"));
    }
}
