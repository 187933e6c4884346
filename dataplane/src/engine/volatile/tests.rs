use super::super::memory::MemoryEngine;
use super::super::testing::{drive, Guest, Random};
use super::*;

const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCKS * LINE;
const ROOMY: u64 = 1 << 20;

fn io(kind: IoKind, block: u64, blocks: u64, durable: bool) -> Io {
    Io {
        kind,
        offset: block * LINE,
        len: blocks * LINE,
        durable,
    }
}

fn cache(capacity: u64, tear: u64) -> VolatileCache {
    let medium = Arc::new(MemoryEngine::new(SIZE).unwrap());
    VolatileCache::new(medium, capacity, tear).unwrap()
}

/// As a worker does it.
fn act(engine: &dyn Engine, io: Io, content: &[u8]) -> Vec<u8> {
    let guest = Guest::new(content, &[content.len() / 3]);
    assert_eq!(drive(None, engine, &io, &guest.iov).unwrap(), io.len);
    guest.content(content.len())
}

fn write(engine: &dyn Engine, block: u64, blocks: u64, fill: u8, durable: bool) {
    let content = vec![fill; (blocks * LINE) as usize];
    act(engine, io(IoKind::Write, block, blocks, durable), &content);
}

fn read(engine: &dyn Engine) -> Vec<u8> {
    act(
        engine,
        io(IoKind::Read, 0, BLOCKS, false),
        &[0xee; SIZE as usize],
    )
}

fn flush(engine: &dyn Engine) {
    act(engine, io(IoKind::Flush, 0, BLOCKS, true), &[]);
}

fn fail(cache: &VolatileCache, seed: u64) -> Losses {
    let losses = cache.fail(seed).unwrap();
    cache.power_on();
    losses
}

/// What each byte of the disk may be after a failure: every value since it was last made durable,
/// the newest last.
struct Model(Vec<Vec<u8>>);

impl Model {
    fn new() -> Self {
        Self(vec![vec![0]; SIZE as usize])
    }

    fn bytes(&mut self, block: u64, blocks: u64) -> impl Iterator<Item = &mut Vec<u8>> {
        self.0[(block * LINE) as usize..((block + blocks) * LINE) as usize].iter_mut()
    }

    fn settle(values: &mut Vec<u8>) {
        values.drain(..values.len() - 1);
    }

    fn newest(&self) -> Vec<u8> {
        self.0
            .iter()
            .map(|values| *values.last().unwrap())
            .collect()
    }

    /// The disk is one of those that are possible; from now on it is the only one.
    fn check(&mut self, found: &[u8], tear: usize) {
        for (at, (byte, values)) in found.iter().zip(&self.0).enumerate() {
            assert!(values.contains(byte), "byte {at}: {byte} of {values:?}");
        }
        // Every write fills what it covers with one value, so a mixed piece was torn.
        let whole = tear.min(LINE as usize);
        for (at, piece) in found.chunks(whole).enumerate() {
            let mixed = piece.iter().any(|byte| byte != &piece[0]);
            assert!(!mixed, "piece {at} of {whole} bytes is torn");
        }
        self.0 = found.iter().map(|byte| vec![*byte]).collect();
    }
}

/// Random commands and failures; every one of them leaves what its past allows.
fn random_life(seed: u64, capacity: u64, tear: u64) {
    let cache = cache(capacity, tear);
    let mut model = Model::new();
    let mut random = Random(seed);
    for step in 0..400 {
        let block = random.below(BLOCKS);
        let blocks = 1 + random.below((BLOCKS - block).min(12));
        let fill = random.next() as u8;
        match random.below(100) {
            roll @ 0..=69 => {
                let durable = roll > 60;
                write(&cache, block, blocks, fill, durable);
                for values in model.bytes(block, blocks) {
                    values.push(fill);
                    if durable {
                        Model::settle(values);
                    }
                }
            }
            70..=74 => {
                flush(&cache);
                model.bytes(0, BLOCKS).for_each(Model::settle);
            }
            75..=77 => {
                act(&cache, io(IoKind::Discard, block, blocks, false), &[]);
                // It may reach the medium at any time, as a write may.
                model.bytes(block, blocks).for_each(|values| values.push(0));
            }
            78..=81 => {
                let content = vec![0xee; (blocks * LINE) as usize];
                let got = act(&cache, io(IoKind::Read, block, blocks, true), &content);
                let newest = model.newest();
                let range = (block * LINE) as usize..((block + blocks) * LINE) as usize;
                assert_eq!(got, newest[range], "step {step}");
                // What was read with FUA is there to stay.
                model.bytes(block, blocks).for_each(Model::settle);
            }
            82..=95 => assert_eq!(read(&cache), model.newest(), "step {step}"),
            _ => {
                fail(&cache, random.next());
                model.check(&read(&cache), tear as usize);
            }
        }
    }
}

#[test]
fn after_a_failure_each_piece_is_one_that_was_written_since_the_last_flush() {
    for seed in 0..10 {
        for tear in [LINE, 64, 4096] {
            random_life(seed, ROOMY, tear);
        }
    }
}

#[test]
fn a_small_cache_writes_the_oldest_back_and_forgets_no_more_than_a_large_one() {
    for seed in 0..10 {
        random_life(seed, 5 * 4096, LINE);
        random_life(seed, 0, LINE);
    }
}

#[test]
fn seeds_lose_all_or_nothing_or_tear_or_let_the_later_write_through_only() {
    let mut seen = [false; 5];
    for seed in 0..200 {
        let cache = cache(ROOMY, 64);
        write(&cache, 0, 8, 1, false);
        write(&cache, 8, 8, 2, false);
        let losses = fail(&cache, seed);
        let disk = read(&cache);
        let (first, second) = disk[..16 * LINE as usize].split_at(8 * LINE as usize);
        let has = |bytes: &[u8], value| bytes.contains(&value);
        assert_eq!(
            losses.survived + losses.torn + losses.lost,
            2,
            "seed {seed}"
        );
        assert_eq!(
            losses.lost == 2,
            !has(first, 1) && !has(second, 2),
            "seed {seed}"
        );
        let wholly = |bytes: &[u8], value| bytes.iter().all(|byte| *byte == value);
        let outcomes = [
            losses.lost == 2,
            wholly(first, 1) && wholly(second, 2),
            has(first, 0) && has(first, 1),
            !has(first, 1) && wholly(second, 2),
            first
                .chunks(LINE as usize)
                .any(|block| has(block, 0) && has(block, 1)),
        ];
        for (seen, outcome) in seen.iter_mut().zip(outcomes) {
            *seen |= outcome;
        }
    }
    assert_eq!(seen, [true; 5]);
}

#[test]
fn a_seed_does_the_same_again() {
    let disk = |seed| {
        let cache = cache(ROOMY, LINE);
        (0..20).for_each(|n| write(&cache, n * 3, 4, n as u8 + 1, false));
        (fail(&cache, seed), read(&cache))
    };
    for seed in 0..20 {
        assert_eq!(disk(seed), disk(seed));
    }
    assert!((1..20).any(|seed| disk(seed) != disk(0)));
}

#[test]
fn without_power_nothing_is_done() {
    let cache = cache(ROOMY, LINE);
    write(&cache, 0, 1, 1, true);
    cache.fail(0).unwrap();
    for (kind, durable) in [
        (IoKind::Write, false),
        (IoKind::Write, true),
        (IoKind::Read, false),
        (IoKind::Flush, true),
        (IoKind::Discard, false),
    ] {
        let io = io(kind, 0, 1, durable);
        let guest = Guest::new(&[9; LINE as usize], &[]);
        let iov = if io.moves_data() { &guest.iov[..] } else { &[] };
        let error = drive(None, &cache, &io, iov).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{kind:?}");
    }
    assert!(cache.extent(0).is_err());
    cache.power_on();
    assert_eq!(read(&cache)[..LINE as usize], [1; LINE as usize]);
}

#[test]
fn what_is_cached_counts_as_mapped() {
    let cache = cache(ROOMY, LINE);
    assert!(!cache.extent(0).unwrap().0);
    write(&cache, 0, 1, 1, false);
    assert!(cache.extent(0).unwrap().0);
}

#[test]
fn a_medium_that_fails_keeps_what_it_did_not_take_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let file = std::fs::File::open(&path).unwrap(); // may not be written
    let medium = super::super::file::FileEngine::new(file.into(), None, SIZE, false, false);
    let cache = VolatileCache::new(Arc::new(medium.unwrap()), ROOMY, LINE).unwrap();
    write(&cache, 3, 1, 7, false);
    let flush = io(IoKind::Flush, 0, BLOCKS, true);
    assert!(cache.run(&flush, &[]).is_err());
    assert_eq!(read(&cache)[3 * LINE as usize], 7);
}
