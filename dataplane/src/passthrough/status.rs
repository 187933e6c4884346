//! What the host's verdict on a command is to a guest: the reverse of the table in Linux's
//! virtio_scsi driver (`virtscsi_complete_cmd`), so that the guest's mid-layer gets, as far as
//! virtio can say it, the host byte that the host's got.

use super::node::Completion;
use crate::sense::{self, key, SenseInfo};
use crate::wire::{
    S_ABORTED, S_BAD_TARGET, S_BUSY, S_NEXUS_FAILURE, S_OK, S_RESET, S_TARGET_FAILURE,
    S_TRANSPORT_FAILURE,
};

/// SAM status codes that are no failure.
pub const GOOD: u8 = 0x00;
pub const CHECK_CONDITION: u8 = 0x02;
pub const CONDITION_MET: u8 = 0x04;
pub const BUSY: u8 = 0x08;
/// SAM-6 status codes have neither bit 0 nor bit 7, where older hosts put things of their own.
const STATUS_MASK: u8 = 0x7e;

/// `DRIVER_*` of kernels before 5.14; the upper bits suggested what to do.
const DRIVER_MASK: u16 = 0x0f;
const DRIVER_BUSY: u16 = 1;
const DRIVER_SOFT: u16 = 2;
const DRIVER_TIMEOUT: u16 = 6;
const DRIVER_SENSE: u16 = 8;

/// LOGICAL UNIT COMMUNICATION FAILURE: a CHECK CONDITION whose sense data got lost.
const NO_SENSE_CAME: SenseInfo = SenseInfo::new(key::ABORTED_COMMAND, 0x0800);

/// Virtio response, SAM status and sense data.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub response: u8,
    pub status: u8,
    pub sense: Vec<u8>,
}

/// `None`: the device's status decides.
fn response_of_host(host: u16) -> Option<u8> {
    Some(match host {
        0x00 => return None,                 // DID_OK
        0x01 | 0x04 => S_BAD_TARGET,         // DID_NO_CONNECT, DID_BAD_TARGET
        0x02 | 0x0b | 0x0c | 0x0d => S_BUSY, // BUS_BUSY, SOFT_ERROR, IMM_RETRY, REQUEUE
        0x05 => S_ABORTED,                   // DID_ABORT
        0x08 => S_RESET,                     // DID_RESET
        0x0a => return None,                 // DID_PASSTHROUGH
        // DID_TARGET_FAILURE, DID_NEXUS_FAILURE: what the kernel made of status and sense.
        0x10 => S_TARGET_FAILURE,
        0x11 => S_NEXUS_FAILURE,
        // DID_ALLOC_FAILURE, DID_MEDIUM_ERROR: likewise, but virtio has no response of its own.
        0x12 | 0x13 => return None,
        // DID_TIME_OUT, PARITY, ERROR, BAD_INTR, TRANSPORT_DISRUPTED, TRANSPORT_FAILFAST,
        // TRANSPORT_MARGINAL and what is to come: something between the host and the device.
        _ => S_TRANSPORT_FAILURE,
    })
}

fn response_of_driver(driver: u16) -> Option<u8> {
    match driver & DRIVER_MASK {
        0 | DRIVER_SENSE => None,
        DRIVER_BUSY | DRIVER_SOFT => Some(S_BUSY),
        DRIVER_TIMEOUT => Some(S_TRANSPORT_FAILURE),
        _ => Some(S_TRANSPORT_FAILURE),
    }
}

pub fn judge(completion: Completion, descriptor_sense: bool) -> Verdict {
    const TARGET_FAILURE: u16 = 0x10;
    const NEXUS_FAILURE: u16 = 0x11;
    let status = completion.status & STATUS_MASK;
    let derived = matches!(completion.host, TARGET_FAILURE | NEXUS_FAILURE) && status != GOOD;
    let failure = match response_of_host(completion.host) {
        // The guest's kernel draws the same conclusion from the status itself.
        Some(_) if derived => None,
        Some(response) => Some(response),
        None => response_of_driver(completion.driver),
    };
    if let Some(response) = failure {
        return Verdict {
            response,
            status: GOOD,
            sense: Vec::new(),
        };
    }
    let sense = match status {
        CHECK_CONDITION if completion.sense.is_empty() => {
            sense::build(&NO_SENSE_CAME, descriptor_sense)
                .as_bytes()
                .to_vec()
        }
        CHECK_CONDITION => completion.sense,
        _ => Vec::new(),
    };
    Verdict {
        response: S_OK,
        status,
        sense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(host: u16, driver: u16, status: u8) -> (u8, u8) {
        let completion = Completion {
            host,
            driver,
            status,
            sense: vec![0x70, 0, 3],
            residual: 0,
        };
        let verdict = judge(completion, false);
        (verdict.response, verdict.status)
    }

    #[test]
    fn each_host_byte_has_a_response_and_none_is_failure() {
        let table = [
            (0x00, S_OK),
            (0x01, S_BAD_TARGET),
            (0x02, S_BUSY),
            (0x03, S_TRANSPORT_FAILURE),
            (0x04, S_BAD_TARGET),
            (0x05, S_ABORTED),
            (0x06, S_TRANSPORT_FAILURE),
            (0x07, S_TRANSPORT_FAILURE),
            (0x08, S_RESET),
            (0x09, S_TRANSPORT_FAILURE),
            (0x0a, S_OK),
            (0x0b, S_BUSY),
            (0x0c, S_BUSY),
            (0x0d, S_BUSY),
            (0x0e, S_TRANSPORT_FAILURE),
            (0x0f, S_TRANSPORT_FAILURE),
            (0x10, S_TARGET_FAILURE),
            (0x11, S_NEXUS_FAILURE),
            (0x12, S_OK),
            (0x13, S_OK),
            (0x14, S_TRANSPORT_FAILURE),
            (0x55, S_TRANSPORT_FAILURE),
        ];
        for (host, response) in table {
            assert_eq!(
                judged(host, 0, GOOD),
                (response, GOOD),
                "host byte {host:#x}"
            );
        }
    }

    #[test]
    fn a_transport_error_carries_neither_status_nor_sense() {
        let completion = Completion {
            host: 0x0e,
            status: CHECK_CONDITION,
            sense: vec![0x70, 0, 3],
            ..Completion::default()
        };
        let verdict = judge(completion, false);
        assert_eq!(verdict.response, S_TRANSPORT_FAILURE);
        assert_eq!((verdict.status, verdict.sense), (GOOD, vec![]));
    }

    #[test]
    fn what_the_kernel_derived_from_a_status_is_the_status() {
        for host in [0x10, 0x11, 0x12, 0x13] {
            assert_eq!(judged(host, 8, CHECK_CONDITION), (S_OK, CHECK_CONDITION));
        }
        assert_eq!(judged(0x11, 0, 0x18), (S_OK, 0x18), "RESERVATION CONFLICT");
    }

    #[test]
    fn driver_bytes_of_old_kernels() {
        assert_eq!(judged(0, 0x08, CHECK_CONDITION), (S_OK, CHECK_CONDITION));
        assert_eq!(judged(0, 0x06, GOOD), (S_TRANSPORT_FAILURE, GOOD));
        assert_eq!(judged(0, 0x11, GOOD), (S_BUSY, GOOD), "with a suggestion");
    }

    #[test]
    fn check_condition_never_comes_without_sense() {
        let completion = Completion {
            status: CHECK_CONDITION,
            ..Completion::default()
        };
        let verdict = judge(completion, false);
        assert_eq!(verdict.sense[2..3], [key::ABORTED_COMMAND]);
        assert_eq!(verdict.sense[12..14], [0x08, 0x00]);
    }
}
