//! The request and response headers of the request queues (virtio 1.4 5.6.6.1,
//! `linux/virtio_scsi.h`).

/// `virtio_scsi_cmd_req` without its CDB.
pub const CMD_REQ_FIXED: usize = 19;
/// `virtio_scsi_cmd_resp` without its sense area.
pub const CMD_RESP_FIXED: usize = 12;

/// `VIRTIO_SCSI_S_*` as far as workers give them themselves.
pub const S_OK: u8 = 0;
pub const S_OVERRUN: u8 = 1;
pub const S_ABORTED: u8 = 2;
pub const S_BAD_TARGET: u8 = 3;
pub const S_RESET: u8 = 4;
pub const S_BUSY: u8 = 5;
pub const S_TRANSPORT_FAILURE: u8 = 6;
pub const S_TARGET_FAILURE: u8 = 7;
pub const S_NEXUS_FAILURE: u8 = 8;
pub const S_FAILURE: u8 = 9;

/// SAM-6 status codes that workers give themselves.
pub const STATUS_GOOD: u8 = 0;
pub const STATUS_CHECK_CONDITION: u8 = 2;
pub const STATUS_BUSY: u8 = 8;
pub const STATUS_TASK_SET_FULL: u8 = 0x28;
pub const STATUS_ACA_ACTIVE: u8 = 0x30;

#[derive(Clone, Copy, Debug, Default)]
pub struct CmdReq {
    pub lun: [u8; 8],
    pub tag: u64,
    pub task_attr: u8,
    pub prio: u8,
    pub crn: u8,
}

impl CmdReq {
    pub fn parse(bytes: &[u8; CMD_REQ_FIXED], big_endian: bool) -> Self {
        let mut lun = [0; 8];
        lun.copy_from_slice(&bytes[..8]);
        let mut tag = [0; 8];
        tag.copy_from_slice(&bytes[8..16]);
        Self {
            lun,
            tag: if big_endian {
                u64::from_be_bytes(tag)
            } else {
                u64::from_le_bytes(tag)
            },
            task_attr: bytes[16],
            prio: bytes[17],
            crn: bytes[18],
        }
    }
}

/// The fixed part of `virtio_scsi_cmd_resp`; status_qualifier is always 0.
pub fn cmd_resp(
    sense_len: u32,
    resid: u32,
    status: u8,
    response: u8,
    big_endian: bool,
) -> [u8; CMD_RESP_FIXED] {
    let mut bytes = [0; CMD_RESP_FIXED];
    let order = |value: u32| {
        if big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    bytes[..4].copy_from_slice(&order(sense_len));
    bytes[4..8].copy_from_slice(&order(resid));
    bytes[10] = status;
    bytes[11] = response;
    bytes
}
