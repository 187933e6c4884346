//! Descriptors that wake somebody: an eventfd of ours, and those a front end hands over.

mod aio;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;

use aio::Aio;

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

/// What a driver wants signalled. Never blocks, however full it is.
pub struct Call {
    foreign: Foreign,
    /// For an eventfd without O_NONBLOCK, a flag that is not ours to set: it would change the
    /// front end's reads too.
    aio: Option<Aio>,
}

impl Call {
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let foreign = Foreign::new(fd, true)?;
        // SAFETY: only asks for flags.
        let flags = unsafe { libc::fcntl(foreign.fd.as_raw_fd(), libc::F_GETFL) };
        let blocks = matches!(foreign.kind, Kind::Eventfd) && flags & libc::O_NONBLOCK == 0;
        // Without kernel AIO (a sandbox) `signal` is left with a look before it writes.
        let aio = if blocks { Aio::new().ok() } else { None };
        Ok(Self { foreign, aio })
    }

    pub fn signal(&self) {
        let fd = self.foreign.fd.as_raw_fd();
        match (&self.foreign.kind, &self.aio) {
            (Kind::Eventfd, Some(aio)) => aio.signal(fd),
            (Kind::Eventfd, None) => {
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
            (Kind::Pipe(pipe), _) => add_one(pipe.as_raw_fd()),
            (Kind::Socket, _) => {
                let one = 1u64.to_ne_bytes();
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: 8 bytes from `one`. A full or closed socket wakes nobody we know.
                unsafe { libc::send(fd, one.as_ptr().cast(), 8, flags) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fd: &OwnedFd) -> u64 {
        let mut value = 0u64;
        // SAFETY: 8 bytes into `value`.
        assert_eq!(
            unsafe { libc::read(fd.as_raw_fd(), (&raw mut value).cast(), 8) },
            8
        );
        value
    }

    fn write(fd: &OwnedFd, value: u64) {
        // SAFETY: 8 bytes from `value`.
        assert_eq!(
            unsafe { libc::write(fd.as_raw_fd(), (&raw const value).cast(), 8) },
            8
        );
    }

    #[test]
    fn an_eventfd_counts_what_it_is_told_and_a_full_one_blocks_nobody() {
        for flags in [0, libc::EFD_NONBLOCK] {
            // SAFETY: plain system call, a descriptor of our own.
            let fd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, flags)) };
            let call = Call::new(fd.as_fd()).unwrap();
            assert_eq!(
                call.aio.is_some(),
                flags == 0,
                "kernel AIO where it may block"
            );
            for _ in 0..3 {
                call.signal();
            }
            assert_eq!(read(&fd), 3);
            write(&fd, u64::MAX - 1);
            for _ in 0..3 {
                call.signal();
            }
        }
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
