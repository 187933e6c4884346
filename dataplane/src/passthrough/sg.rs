//! The host's SCSI generic interface: SG_IO on block nodes and `/dev/sgN` (`scsi/sg.h`), and on
//! `/dev/bsg/H:C:T:L` (`linux/bsg.h`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use libc::{c_int, c_uint, c_ulong, c_void, iovec};

use super::node::{Call, Completion, Direction, Node, Reset};
use super::queue::SgQueue;

const SG_IO: c_ulong = 0x2285;
const SG_SCSI_RESET: c_ulong = 0x2284;
const SG_SCSI_RESET_NO_ESCALATE: c_int = 0x100;
/// SCSI_SENSE_BUFFERSIZE is 96 today; more than this no sense data has (SPC-6 4.4).
pub const MAX_SENSE: usize = 252;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `sg_io_hdr`, with iovecs: block nodes and `/dev/sgN`.
    Version3,
    /// `sg_io_v4`, with one buffer: bsg nodes.
    Version4,
}

/// Calls block their thread.
pub struct SgNode {
    fd: OwnedFd,
    interface: Interface,
    queue: Option<SgQueue>,
}

/// `struct sg_io_hdr` (`scsi/sg.h`).
#[repr(C)]
pub struct SgIoHdr {
    interface_id: c_int,
    dxfer_direction: c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: c_uint,
    dxferp: *mut c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: c_uint,
    flags: c_uint,
    pack_id: c_int,
    usr_ptr: *mut c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: c_int,
    duration: c_uint,
    info: c_uint,
}

/// `struct sg_io_v4` (`linux/bsg.h`).
#[repr(C)]
#[derive(Default)]
struct SgIoV4 {
    guard: i32,
    protocol: u32,
    subprotocol: u32,
    request_len: u32,
    request: u64,
    request_tag: u64,
    request_attr: u32,
    request_priority: u32,
    request_extra: u32,
    max_response_len: u32,
    response: u64,
    dout_iovec_count: u32,
    dout_xfer_len: u32,
    din_iovec_count: u32,
    din_xfer_len: u32,
    dout_xferp: u64,
    din_xferp: u64,
    timeout: u32,
    flags: u32,
    usr_ptr: u64,
    spare_in: u32,
    driver_status: u32,
    transport_status: u32,
    device_status: u32,
    retry_delay: u32,
    info: u32,
    duration: u32,
    response_len: u32,
    din_resid: i32,
    dout_resid: i32,
    generated_tag: u64,
    spare_out: u32,
    padding: u32,
}

impl SgIoHdr {
    /// `id` comes back with the result of an asynchronous command.
    pub fn new(call: &Call<'_>, sense: &mut [u8; MAX_SENSE], id: usize) -> io::Result<Self> {
        const DXFER_NONE: c_int = -1;
        const DXFER_TO_DEV: c_int = -2;
        const DXFER_FROM_DEV: c_int = -3;
        /// First come, first served, as the other interfaces do.
        const FLAG_Q_AT_TAIL: c_uint = 0x10;
        let (iovec_count, dxferp) = match call.iov {
            [] => (0, ptr::null_mut()),
            [one] => (0, one.iov_base),
            many => (
                u16::try_from(many.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
                many.as_ptr().cast_mut().cast(),
            ),
        };
        Ok(Self {
            interface_id: c_int::from(b'S'),
            dxfer_direction: match call.direction {
                Direction::None => DXFER_NONE,
                Direction::ToDevice => DXFER_TO_DEV,
                Direction::FromDevice => DXFER_FROM_DEV,
            },
            cmd_len: u8::try_from(call.cdb.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            mx_sb_len: MAX_SENSE as u8,
            iovec_count,
            dxfer_len: call.len,
            dxferp,
            cmdp: call.cdb.as_ptr(),
            sbp: sense.as_mut_ptr(),
            timeout: call.timeout_ms,
            flags: FLAG_Q_AT_TAIL,
            usr_ptr: ptr::without_provenance_mut(id),
            ..Self::empty()
        })
    }

    pub fn empty() -> Self {
        Self {
            interface_id: 0,
            dxfer_direction: 0,
            cmd_len: 0,
            mx_sb_len: 0,
            iovec_count: 0,
            dxfer_len: 0,
            dxferp: ptr::null_mut(),
            cmdp: ptr::null(),
            sbp: ptr::null_mut(),
            timeout: 0,
            flags: 0,
            pack_id: 0,
            usr_ptr: ptr::null_mut(),
            status: 0,
            masked_status: 0,
            msg_status: 0,
            sb_len_wr: 0,
            host_status: 0,
            driver_status: 0,
            resid: 0,
            duration: 0,
            info: 0,
        }
    }

    pub fn id(&self) -> usize {
        self.usr_ptr.addr()
    }

    pub fn completion(&self, sense: &[u8]) -> Completion {
        Completion {
            host: self.host_status,
            driver: self.driver_status,
            status: self.status,
            sense: sense[..usize::from(self.sb_len_wr).min(sense.len())].to_vec(),
            residual: residual(self.resid),
        }
    }
}

impl SgNode {
    pub fn new(fd: OwnedFd, interface: Interface) -> Self {
        Self {
            fd,
            interface,
            queue: None,
        }
    }

    /// A `/dev/sgN` with so many commands in flight, which keep no thread waiting.
    pub fn asynchronous(fd: OwnedFd, depth: usize) -> io::Result<Self> {
        let queue = Some(SgQueue::new(&fd, depth)?);
        Ok(Self {
            fd,
            interface: Interface::Version3,
            queue,
        })
    }

    fn version_3(&self, call: &Call<'_>) -> io::Result<Completion> {
        let mut sense = [0; MAX_SENSE];
        let mut header = SgIoHdr::new(call, &mut sense, 0)?;
        self.ioctl(SG_IO, (&raw mut header).cast())?;
        Ok(header.completion(&sense))
    }

    fn version_4(&self, call: &Call<'_>) -> io::Result<Completion> {
        let mut sense = [0; MAX_SENSE];
        let [data, empty] = match call.iov {
            [] => [0; 2],
            [one] => [one.iov_base as u64, 0],
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let (din, dout) = match call.direction {
            Direction::None => ((0, empty), (0, empty)),
            Direction::FromDevice => ((call.len, data), (0, empty)),
            Direction::ToDevice => ((0, empty), (call.len, data)),
        };
        let mut header = SgIoV4 {
            guard: i32::from(b'Q'),
            request_len: call.cdb.len() as u32,
            request: call.cdb.as_ptr() as u64,
            max_response_len: MAX_SENSE as u32,
            response: sense.as_mut_ptr() as u64,
            din_xfer_len: din.0,
            din_xferp: din.1,
            dout_xfer_len: dout.0,
            dout_xferp: dout.1,
            timeout: call.timeout_ms,
            ..SgIoV4::default()
        };
        self.ioctl(SG_IO, (&raw mut header).cast())?;
        Ok(Completion {
            host: header.transport_status as u16,
            driver: header.driver_status as u16,
            status: header.device_status as u8,
            sense: sense[..(header.response_len as usize).min(MAX_SENSE)].to_vec(),
            residual: residual(match call.direction {
                Direction::FromDevice => header.din_resid,
                _ => header.dout_resid,
            }),
        })
    }

    fn ioctl(&self, request: c_ulong, argument: *mut c_void) -> io::Result<()> {
        loop {
            // SAFETY: `argument` is the structure that `request` takes, and all it points to lives.
            let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request as _, argument) };
            if result >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // Only before the command has begun: the wait for it cannot be interrupted.
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Devices that transfer more than they may report a negative number.
fn residual(resid: c_int) -> u32 {
    u32::try_from(resid).unwrap_or(0)
}

impl Node for SgNode {
    fn call(&self, call: &Call<'_>) -> io::Result<Completion> {
        match self.interface {
            Interface::Version3 => self.version_3(call),
            Interface::Version4 => self.version_4(call),
        }
    }

    fn queue(&self) -> Option<&SgQueue> {
        self.queue.as_ref()
    }

    fn reset(&self, scope: Reset) -> io::Result<()> {
        let number: c_int = match scope {
            Reset::Device => 1,
            Reset::Bus => 2,
            Reset::Host => 3,
            Reset::Target => 4,
        };
        let mut argument = number | SG_SCSI_RESET_NO_ESCALATE;
        self.ioctl(SG_SCSI_RESET, (&raw mut argument).cast())
    }
}

const _: () = {
    // As in the kernel's headers for this word size.
    #[cfg(target_pointer_width = "64")]
    assert!(std::mem::size_of::<SgIoHdr>() == 88);
    assert!(std::mem::size_of::<SgIoV4>() == 160);
    assert!(std::mem::size_of::<iovec>() == 2 * std::mem::size_of::<usize>());
};
