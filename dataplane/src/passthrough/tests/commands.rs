//! What goes to the device: pieces in order, data as if the command had gone as one.

use super::*;
use crate::wire::S_OVERRUN;

#[test]
fn what_fits_goes_as_it_is() {
    let bench = Bench::new(limits(8192));
    let guest = Guest::zeroed(8192);
    let cdb = cdb_10(READ_10, 0x18, 16, 16);
    assert_eq!(bench.read(&cdb, &guest), good(8192));
    assert_eq!(guest.content(8192), bench.medium(16, 16));
    assert_eq!(bench.state.lock().unwrap().calls, [(cdb, 8192)]);
    assert_eq!(
        bench
            .device
            .counters
            .split
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[test]
fn a_read_over_the_limit_comes_in_pieces_that_end_at_4_kib() {
    let bench = Bench::new(limits(9000));
    let guest = Guest::zeroed(50 * BLOCK);
    assert_eq!(
        bench.read(&cdb_10(READ_10, 0x10, 5, 50), &guest),
        good(50 * 512)
    );
    assert_eq!(guest.content(50 * BLOCK), bench.medium(5, 50));
    assert_eq!(bench.ranges(), [(5, 11), (16, 16), (32, 16), (48, 7)]);
    let state = bench.state.lock().unwrap();
    assert!(
        state.calls.iter().all(|(cdb, _)| cdb[1] == 0x10),
        "flags stay"
    );
}

#[test]
fn a_6_byte_cdb_keeps_its_256_blocks() {
    let bench = Bench::new(limits(64 << 10));
    let guest = Guest::zeroed(256 * BLOCK);
    assert_eq!(
        bench.read(&[READ_6, 0, 0, 8, 0, 0], &guest),
        good(256 * 512)
    );
    assert_eq!(guest.content(256 * BLOCK), bench.medium(8, 256));
    assert_eq!(bench.ranges(), [(8, 128), (136, 128)]);
}

#[test]
fn a_32_byte_read_in_pieces_expects_the_tags_of_each() {
    let bench = Bench::new(limits(16 * BLOCK as u64));
    let mut cdb = vec![0; 32];
    (cdb[0], cdb[7], cdb[9]) = (VARIABLE_LENGTH_CMD, 0x18, 9);
    (cdb[19], cdb[31]) = (16, 40);
    cdb[20..28].copy_from_slice(&[0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4]);
    let guest = Guest::zeroed(40 * BLOCK);
    assert_eq!(bench.read(&cdb, &guest), good(40 * 512));
    assert_eq!(guest.content(40 * BLOCK), bench.medium(16, 40));
    assert_eq!(bench.ranges(), [(16, 16), (32, 16), (48, 8)]);
    let state = bench.state.lock().unwrap();
    let tags: Vec<_> = state
        .calls
        .iter()
        .map(|(cdb, _)| (number(&cdb[20..24]), number(&cdb[24..28])))
        .collect();
    assert_eq!(
        tags,
        [
            (0xffff_fff0, 0x0102_0304),
            (0, 0x0102_0304),
            (0x10, 0x0102_0304)
        ]
    );
}

#[test]
fn writes_and_verifies_take_their_own_part_of_the_data() {
    let data: Vec<u8> = (0..40 * BLOCK).map(|at| (at / 11) as u8).collect();
    let bench = Bench::new(limits(4096));
    let guest = Guest::new(&data, &[100, 5000, 5000, 12288]);
    assert_eq!(
        bench.write(&cdb_16(WRITE_16, 8, 40), &guest),
        good(40 * 512)
    );
    assert_eq!(bench.medium(8, 40), data);
    let before = bench.calls();
    let verify = cdb_10(VERIFY_10, 0x02, 8, 40);
    assert_eq!(bench.write(&verify, &guest), good(40 * 512));
    assert_eq!(bench.calls() - before, 5);
    // Without BYTCHK there is no data, so no limit of it either.
    let verify = cdb_10(VERIFY_10, 0, 8, 400);
    assert_eq!(bench.write(&verify, &Guest::zeroed(0)), good(0));
    assert_eq!(bench.ranges().last(), Some(&(8, 400)));
}

#[test]
fn write_same_repeats_its_block_for_each_piece() {
    let bench = Bench::new(Limits {
        max_write_same_blocks: 100,
        ..limits(4096)
    });
    let guest = Guest::new(&[0x5a; BLOCK], &[]);
    let cdb = cdb_10(WRITE_SAME_10, 0, 10, 250);
    assert_eq!(bench.write(&cdb, &guest), good(512));
    assert_eq!(bench.ranges(), [(10, 100), (110, 100), (210, 50)]);
    assert_eq!(bench.medium(10, 250), [0x5a; 250 * BLOCK]);
}

fn unmap(ranges: &[(u64, u32)]) -> (Vec<u8>, Guest) {
    let mut list = Vec::new();
    list.extend_from_slice(&(ranges.len() as u16 * 16 + 6).to_be_bytes());
    list.extend_from_slice(&(ranges.len() as u16 * 16).to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    for (lba, blocks) in ranges {
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&blocks.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    let cdb = cdb_10(UNMAP, 0, 0, list.len() as u16);
    (cdb, Guest::new(&list, &[]))
}

#[test]
fn unmap_is_cut_by_descriptors_and_by_blocks() {
    let bench = Bench::new(Limits {
        max_unmap_blocks: 100,
        max_unmap_descriptors: 2,
        ..limits(4096)
    });
    let (cdb, guest) = unmap(&[(0, 10), (20, 10), (40, 150), (200, 1)]);
    let kept = bench.medium(30, 10);
    assert_eq!(bench.write(&cdb, &guest), good(8 + 4 * 16));
    for (lba, blocks) in [(0, 10), (20, 10), (40, 150), (200, 1)] {
        assert_eq!(bench.medium(lba, blocks), vec![0; blocks * BLOCK]);
    }
    assert_eq!(bench.medium(30, 10), kept);
    let state = bench.state.lock().unwrap();
    let sizes: Vec<_> = state.calls.iter().map(|(_, len)| *len).collect();
    assert_eq!(sizes, [40, 24, 40], "2, then 100 blocks, then 50 + 1");
    assert!(state
        .calls
        .iter()
        .all(|(cdb, len)| number(&cdb[7..9]) == *len as usize));
}

#[test]
fn unmap_within_the_limits_is_not_touched() {
    let bench = Bench::new(limits(4096));
    let (cdb, guest) = unmap(&[(0, 10), (20, 10)]);
    assert_eq!(bench.write(&cdb, &guest), good(40));
    assert_eq!(bench.state.lock().unwrap().calls, [(cdb, 40)]);
}

#[test]
fn many_tiny_segments_are_bounced() {
    let data: Vec<u8> = (0..16 * BLOCK).map(|at| (at / 5) as u8).collect();
    let cuts: Vec<usize> = (1..4096).map(|at| at * 2).collect();
    let bench = Bench::new(limits(64 << 10));
    let guest = Guest::new(&data, &cuts);
    assert_eq!(bench.write(&cdb_10(WRITE_10, 0, 0, 16), &guest), good(8192));
    assert_eq!(bench.medium(0, 16), data);
    let back = Guest::new(&vec![0; data.len()], &cuts);
    assert_eq!(bench.read(&cdb_10(READ_10, 0, 0, 16), &back), good(8192));
    assert_eq!(back.content(data.len()), data);
    assert_eq!(
        bench
            .device
            .counters
            .bounced
            .load(std::sync::atomic::Ordering::Relaxed),
        2
    );
}

#[test]
fn data_that_the_cdb_does_not_ask_for_stays_where_it_is() {
    let bench = Bench::new(limits(4096));
    let guest = Guest::zeroed(4 * BLOCK);
    assert_eq!(bench.read(&cdb_10(READ_10, 0, 0, 3), &guest), good(3 * 512));
    assert_eq!(bench.state.lock().unwrap().calls[0].1, 3 * 512);
    assert_eq!(bench.read(&cdb_10(READ_10, 0, 0, 0), &guest), good(0));
}

#[test]
fn data_that_is_not_there_is_an_overrun_and_nothing_happens() {
    let bench = Bench::new(limits(4096));
    let overrun = Passed {
        response: S_OVERRUN,
        ..good(0)
    };
    let short = Guest::zeroed(BLOCK);
    assert_eq!(bench.read(&cdb_10(READ_10, 0, 0, 2), &short), overrun);
    assert_eq!(bench.write(&cdb_10(WRITE_10, 0, 0, 2), &short), overrun);
    assert_eq!(
        bench.write(&cdb_10(READ_10, 0, 0, 1), &short),
        overrun,
        "the other way"
    );
    assert_eq!(bench.calls(), 0);
}

#[test]
fn padding_of_the_cdb_field_does_not_reach_the_device() {
    let bench = Bench::new(limits(4096));
    for (opcode, len) in [(0x00, 6), (0x1a, 6), (0x4d, 10), (0xa0, 12), (0x9e, 16)] {
        bench.write(&[opcode], &Guest::zeroed(0));
        let state = bench.state.lock().unwrap();
        assert_eq!(state.calls.last().unwrap().0.len(), len, "{opcode:#x}");
    }
}

#[test]
fn protection_information_is_part_of_a_block_where_there_is_room_for_it() {
    let bench = Bench::new(limits(4096));
    let guest = Guest::zeroed(2 * 520);
    bench.script([Some(Ok(Completion::default()))]);
    assert_eq!(
        bench.read(&cdb_10(READ_10, 0x20, 0, 2), &guest),
        good(2 * 520)
    );
}
