//! Signals a foreign eventfd without ever blocking.
//!
//! A write to a blocking eventfd waits while its counter is at the maximum, and its other owner
//! can put it there between our look and our write. But the completion of a kernel AIO request may
//! be told to an eventfd (`IOCB_FLAG_RESFD`), and the kernel's own signal adds up to the maximum
//! and never waits (`eventfd_signal` in `fs/eventfd.c`). So: complete a request that does nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::null_mut;

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` (`linux/aio_abi.h`) on a little-endian machine; reads nothing from `null`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fildes: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

pub struct Aio {
    context: libc::c_ulong,
    null: File,
}

impl Aio {
    pub fn new() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: fills `context`.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { context, null })
    }

    /// Adds one to the counter of `eventfd`, as far as it can take it.
    pub fn signal(&self, eventfd: RawFd) {
        let mut request = Iocb {
            opcode: IOCB_CMD_PREAD,
            fildes: self.null.as_raw_fd() as u32,
            flags: IOCB_FLAG_RESFD,
            resfd: eventfd as u32,
            ..Iocb::default()
        };
        let mut list = [&raw mut request];
        let mut event = IoEvent::default();
        // SAFETY: one request, which reads zero bytes and is complete on return; one event.
        unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr());
            let timeout = null_mut::<libc::timespec>();
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                1,
                &raw mut event,
                timeout,
            );
        }
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: ours, and used by nobody else any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
