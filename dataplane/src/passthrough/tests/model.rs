//! Random requests against random limits do what one disk without limits does.

use super::*;
use crate::engine::testing::Random;

fn random_limits(random: &mut Random) -> Limits {
    Limits {
        max_bytes: 512 << random.below(9),
        max_segments: 1 + random.below(16) as u32,
        dma_alignment: [0, 3, 511][random.below(3) as usize],
        virt_boundary: [0, 4095][random.below(2) as usize],
        scatter: random.below(4) > 0,
        max_write_same_blocks: random.below(3) * 37,
        max_unmap_blocks: random.below(3) * 41,
        max_unmap_descriptors: random.below(4) as u32,
        ..limits(0)
    }
}

/// Ascending places to cut a buffer at.
fn cuts(random: &mut Random, len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..random.below(20))
        .map(|_| random.below(len as u64 + 1) as usize)
        .collect();
    cuts.sort_unstable();
    cuts
}

#[test]
fn the_medium_and_the_guest_hold_what_one_command_would_have_left() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let bench = Bench::new(random_limits(&mut random));
        for _ in 0..8 {
            step(seed, &mut random, &bench);
        }
    }
}

fn step(seed: u64, random: &mut Random, bench: &Bench) {
    let count = 1 + random.below(100) as usize;
    let lba = random.below((BLOCKS - count) as u64) as usize;
    let mut expected = bench.medium(0, BLOCKS);
    let range = lba * BLOCK..(lba + count) * BLOCK;
    let from = bench.calls();
    match random.below(4) {
        0 => {
            let cuts = cuts(random, count * BLOCK);
            let guest = Guest::new(&vec![0xee; count * BLOCK], &cuts);
            let passed = bench.read(&cdb_16(READ_16, lba as u64, count as u32), &guest);
            assert_eq!(passed, good((count * BLOCK) as u64), "seed {seed}");
            assert_eq!(guest.content(count * BLOCK), expected[range], "seed {seed}");
        }
        1 => {
            let data = random.bytes(count * BLOCK);
            let guest = Guest::new(&data, &cuts(random, data.len()));
            let passed = bench.write(&cdb_10(WRITE_10, 0, lba as u32, count as u16), &guest);
            assert_eq!(passed, good(data.len() as u64), "seed {seed}");
            expected[range].copy_from_slice(&data);
        }
        2 => {
            let block = random.bytes(BLOCK);
            let guest = Guest::new(&block, &[]);
            let cdb = cdb_10(WRITE_SAME_10, 0, lba as u32, count as u16);
            assert_eq!(bench.write(&cdb, &guest), good(BLOCK as u64), "seed {seed}");
            expected[range].copy_from_slice(&block.repeat(count));
        }
        _ => return unmap(seed, random, bench),
    }
    assert_eq!(bench.medium(0, BLOCKS), expected, "seed {seed}");
    // In order, without a gap.
    let mut next = lba;
    for (at, blocks) in &bench.ranges()[from..] {
        assert_eq!(*at, next, "seed {seed}");
        next += blocks;
    }
    assert_eq!(next, lba + count, "seed {seed}");
}

fn unmap(seed: u64, random: &mut Random, bench: &Bench) {
    let mut expected = bench.medium(0, BLOCKS);
    let ranges = random.below(9) as usize;
    let mut list = vec![0; 8];
    list[..2].copy_from_slice(&(ranges as u16 * 16 + 6).to_be_bytes());
    list[2..4].copy_from_slice(&(ranges as u16 * 16).to_be_bytes());
    for _ in 0..ranges {
        let count = random.below(120) as usize;
        let lba = random.below((BLOCKS - count) as u64) as usize;
        list.extend_from_slice(&(lba as u64).to_be_bytes());
        list.extend_from_slice(&(count as u32).to_be_bytes());
        list.extend_from_slice(&[0; 4]);
        expected[lba * BLOCK..(lba + count) * BLOCK].fill(0);
    }
    let guest = Guest::new(&list, &cuts(random, list.len()));
    let cdb = cdb_10(UNMAP, 0, 0, list.len() as u16);
    assert_eq!(
        bench.write(&cdb, &guest),
        good(list.len() as u64),
        "seed {seed}"
    );
    assert_eq!(bench.medium(0, BLOCKS), expected, "seed {seed}");
}
