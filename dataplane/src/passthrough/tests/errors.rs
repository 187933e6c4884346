//! How a command ends: status, sense data and residual count of the whole out of its pieces'.

use super::*;
use crate::passthrough::attention::{GONE, REFUSED};
use crate::wire::{S_BAD_TARGET, S_TRANSPORT_FAILURE};

const ILLEGAL_REQUEST: u8 = 5;

/// Key, ASC and ASCQ, field pointer.
fn refusal(passed: &Passed) -> (u8, u16, [u8; 3]) {
    let sense = &passed.sense;
    assert_eq!((passed.response, passed.status), (0, 2), "{passed:?}");
    let code = u16::from_be_bytes([sense[12], sense[13]]);
    (sense[2], code, sense[15..18].try_into().unwrap())
}

#[test]
fn an_error_ends_the_command_with_what_came_before_it() {
    let bench = Bench::new(limits(4096));
    let error = sense(3, 0x1100, Some(20));
    bench.script([None, None, Some(check_condition(error.clone(), 2048))]);
    let guest = Guest::zeroed(40 * BLOCK);
    let passed = bench.read(&cdb_10(READ_10, 0, 0, 40), &guest);
    assert_eq!(
        passed,
        Passed {
            response: 0,
            status: 2,
            sense: error,
            transferred: 2 * 4096 + 2048,
        }
    );
    assert_eq!(bench.calls(), 3, "nothing goes out after the error");
}

#[test]
fn a_host_that_counts_the_failing_piece_whole_is_not_believed() {
    let bench = Bench::new(limits(4096));
    bench.script([None, Some(check_condition(sense(3, 0x1100, Some(11)), 0))]);
    let passed = bench.read(&cdb_10(READ_10, 0, 0, 40), &Guest::zeroed(40 * BLOCK));
    assert_eq!(passed.transferred, 11 * 512);
}

#[test]
fn a_device_that_is_gone_is_a_bad_target() {
    let bench = Bench::new(limits(4096));
    bench.device.close();
    let passed = bench.read(&cdb_10(READ_10, 0, 0, 1), &Guest::zeroed(BLOCK));
    assert_eq!((passed.response, passed.status), (S_BAD_TARGET, 0));
    assert!(bench.device.reset(Reset::Device).is_err());
}

#[test]
fn a_miscompare_counts_from_the_beginning_of_the_data() {
    let bench = Bench::new(limits(4096));
    bench.script([None, Some(check_condition(sense(0xe, 0x1d00, Some(7)), 0))]);
    let guest = Guest::zeroed(16 * BLOCK);
    let passed = bench.write(&cdb_10(VERIFY_10, 2, 0, 16), &guest);
    assert_eq!(passed.sense, sense(0xe, 0x1d00, Some(4096 + 7)));
}

#[test]
fn recovered_errors_do_not_stop_it_and_are_not_lost() {
    let bench = Bench::new(limits(4096));
    let recovered = sense(1, 0x1701, Some(9));
    bench.script([None, Some(check_condition(recovered.clone(), 0))]);
    let guest = Guest::zeroed(32 * BLOCK);
    let passed = bench.read(&cdb_10(READ_10, 0, 0, 32), &guest);
    assert_eq!(bench.calls(), 4);
    assert_eq!((passed.status, passed.transferred), (2, 32 * 512));
    assert_eq!(passed.sense, recovered);
}

#[test]
fn a_short_piece_is_the_last_one() {
    let bench = Bench::new(limits(4096));
    let short = Completion {
        residual: 96,
        ..Completion::default()
    };
    bench.script([None, Some(Ok(short))]);
    let guest = Guest::zeroed(32 * BLOCK);
    let passed = bench.read(&cdb_10(READ_10, 0, 0, 32), &guest);
    assert_eq!((passed, bench.calls()), (good(8192 - 96), 2));
}

#[test]
fn statuses_without_sense_end_it_too() {
    for status in [0x08, 0x18, 0x28, 0x40] {
        let bench = Bench::new(limits(4096));
        let completion = Completion {
            status,
            residual: 4096,
            ..Completion::default()
        };
        bench.script([None, Some(Ok(completion))]);
        let passed = bench.read(&cdb_10(READ_10, 0, 0, 32), &Guest::zeroed(32 * BLOCK));
        assert_eq!((passed.status, passed.transferred), (status, 4096));
    }
}

#[test]
fn a_transport_error_is_the_transports() {
    let bench = Bench::new(limits(4096));
    let lost = Completion {
        host: 0x0e,
        residual: 4096,
        ..Completion::default()
    };
    bench.script([None, Some(Ok(lost))]);
    let passed = bench.read(&cdb_10(READ_10, 0, 0, 32), &Guest::zeroed(32 * BLOCK));
    assert_eq!(
        (passed.response, passed.transferred),
        (S_TRANSPORT_FAILURE, 4096)
    );
}

#[test]
fn a_split_write_beyond_the_end_writes_nothing() {
    let bench = Bench::new(limits(4096));
    let passed = bench.write(
        &cdb_10(WRITE_10, 0, BLOCKS as u32 - 8, 16),
        &Guest::zeroed(16 * BLOCK),
    );
    assert_eq!(refusal(&passed), (ILLEGAL_REQUEST, 0x2100, [0xc0, 0, 2]));
    assert_eq!(bench.calls(), 0);
}

#[test]
fn what_cannot_be_split_is_refused_at_its_length() {
    let bench = Bench::new(limits(4096));
    let table = [
        (padded(&[INQUIRY, 0, 0, 0x20, 0, 0]), 3),
        (cdb_10(LOG_SENSE, 0, 0, 0x2000), 7),
        (cdb_16(0x9e, 0, 0x2000), 10),
    ];
    for (cdb, at) in table {
        let passed = bench.read(&cdb, &Guest::zeroed(8192));
        assert_eq!(refusal(&passed), (ILLEGAL_REQUEST, 0x2400, [0xc0, 0, at]));
    }
    let mut compare = cdb_16(COMPARE_AND_WRITE, 0, 0);
    compare[13] = 8;
    let passed = bench.write(&compare, &Guest::zeroed(16 * BLOCK));
    assert_eq!(refusal(&passed), (ILLEGAL_REQUEST, 0x2400, [0xc0, 0, 13]));
    assert_eq!(bench.calls(), 0);
}

#[test]
fn a_block_that_is_over_the_limit_is_refused() {
    let bench = Bench::new(limits(256));
    let passed = bench.read(&cdb_10(READ_10, 0, 0, 1), &Guest::zeroed(BLOCK));
    assert_eq!(refusal(&passed), (ILLEGAL_REQUEST, 0x2400, [0xc0, 0, 7]));
}

#[test]
fn a_cdb_that_the_host_cannot_take_is_refused() {
    let bench = Bench::new(Limits {
        max_cdb: 12,
        ..limits(4096)
    });
    let passed = bench.read(&cdb_16(READ_16, 0, 1), &Guest::zeroed(BLOCK));
    assert_eq!(refusal(&passed), (ILLEGAL_REQUEST, 0x2000, [0xc0, 0, 0]));
    let passed = bench.read(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18], &Guest::zeroed(BLOCK));
    assert_eq!(refusal(&passed), (ILLEGAL_REQUEST, 0x2400, [0xc0, 0, 7]));
}

fn refused(errno: i32) -> Option<io::Result<Completion>> {
    Some(Err(io::Error::from_raw_os_error(errno)))
}

#[test]
fn a_limit_that_was_lowered_meanwhile_is_found_out() {
    let bench = Bench::new(limits(64 << 10));
    // First in the guest's own buffers, then in one of ours, then halves of it.
    bench.script([refused(libc::EINVAL), refused(libc::EIO)]);
    let guest = Guest::zeroed(64 * BLOCK);
    assert_eq!(
        bench.read(&cdb_10(READ_10, 0, 0, 64), &guest),
        good(64 * 512)
    );
    assert_eq!(bench.ranges(), [(0, 32), (32, 32)]);
    assert_eq!(guest.content(64 * BLOCK), bench.medium(0, 64));
}

#[test]
fn what_the_host_never_takes_ends_all_the_same() {
    let table = [
        (libc::EINVAL, (0, 2)),
        (libc::ENOMEM, (0, 8)),
        (libc::EBUSY, (0, 8)),
        (libc::ENODEV, (S_BAD_TARGET, 0)),
        (libc::EPERM, (0, 2)),
        (libc::EPIPE, (S_TRANSPORT_FAILURE, 0)),
    ];
    for (errno, want) in table {
        let bench = Bench::new(limits(64 << 10));
        bench.script((0..20).map(|_| refused(errno)));
        let passed = bench.read(&cdb_10(READ_10, 0, 0, 64), &Guest::zeroed(64 * BLOCK));
        assert_eq!((passed.response, passed.status), want, "errno {errno}");
        assert_eq!(passed.transferred, 0);
    }
}

#[test]
fn sense_data_of_our_own_follows_the_devices_format() {
    let bench = Bench::new(limits(4096));
    let descriptor =
        crate::sense::build(&crate::sense::SenseInfo::new(ILLEGAL_REQUEST, 0x2500), true);
    bench.script([Some(check_condition(descriptor.as_bytes().to_vec(), 0))]);
    bench.write(&[0], &Guest::zeroed(0));
    let passed = bench.read(&cdb_10(LOG_SENSE, 0, 0, 0x2000), &Guest::zeroed(8192));
    assert_eq!(passed.sense[..4], [0x72, ILLEGAL_REQUEST, 0x24, 0]);
}

#[test]
fn field_pointers_of_unmap_name_the_descriptor_of_the_guests_list() {
    let bench = Bench::new(Limits {
        max_unmap_descriptors: 1,
        ..limits(4096)
    });
    let mut list = vec![0, 6 + 48, 0, 48, 0, 0, 0, 0];
    for lba in [0u64, 10, 20] {
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
    }
    let info = crate::sense::SenseInfo::new(ILLEGAL_REQUEST, 0x2100).parameter_field(8);
    let sense = crate::sense::build(&info, false).as_bytes().to_vec();
    bench.script([None, None, Some(check_condition(sense, 0))]);
    let cdb = cdb_10(UNMAP, 0, 0, list.len() as u16);
    let passed = bench.write(&cdb, &Guest::new(&list, &[]));
    assert_eq!(passed.sense[15..18], [0x80, 0, 8 + 2 * 16]);
}

/// What a bench's device has to tell; once only, as it has a listener then.
fn told(bench: &Bench) -> u64 {
    let (sender, receiver) = std::sync::mpsc::channel();
    let listener = move |what| {
        let _ = sender.send(what);
    };
    bench.device.attention.listen(listener);
    receiver.try_recv().unwrap_or(0)
}

#[test]
fn a_command_that_finds_no_device_has_somebody_look() {
    let no_connect = Completion {
        host: 0x01,
        ..Completion::default()
    };
    let errors = [
        Some(Err(io::Error::from_raw_os_error(libc::ENODEV))),
        Some(Err(io::Error::from_raw_os_error(libc::ENXIO))),
        Some(Ok(no_connect)),
    ];
    for error in errors {
        let bench = Bench::new(limits(4096));
        bench.script([error]);
        assert_eq!(bench.read(&[0; 6], &Guest::zeroed(0)).response, 3);
        assert_eq!(told(&bench), GONE);
    }
}

#[test]
fn a_refused_length_has_somebody_look_and_what_succeeds_has_not() {
    let read = cdb_10(READ_10, 0, 0, 16);
    let cases = [
        (None, read.clone(), 8192, 0),
        (refused(libc::EINVAL), read, 8192, REFUSED),
        (refused(libc::EINVAL), vec![0; 6], 0, 0),
    ];
    for (first, cdb, len, expected) in cases {
        let bench = Bench::new(limits(8192));
        bench.script([first]);
        bench.read(&cdb, &Guest::zeroed(len));
        assert_eq!(told(&bench), expected, "{cdb:?}");
    }
}
