//! What the commands of one nexus cost, or a port's that are for no unit: counts, bytes and
//! latencies, a shard for each queue.
//!
//! A queue belongs to one worker, so each counter has one writer: it adds with a load and a store,
//! and no cache line goes back and forth. Readers see each counter as it was a moment ago.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

/// Of a command, by its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    Read,
    Write,
    /// Not of the medium's blocks, or of no data, or for no unit.
    Other,
}

pub const CLASSES: usize = 3;

/// Latencies are counted in units of 64 ns, up to 16 units one by one, then in 16 buckets for each
/// power of two (a bucket is at most 1/16 of what it counts wide), up to 2^30 units: 68 s. The
/// last bucket counts all that took longer too.
pub const UNIT_BITS: u32 = 6;
const SUB_BITS: u32 = 4;
const TOP_BITS: u32 = 30;
pub const BUCKETS: usize = ((TOP_BITS - SUB_BITS + 1) << SUB_BITS) as usize;

/// Queues of the first chunk; each further one has as many as all before it.
const FIRST_CHUNK: usize = 16;
/// All 65536 queues that virtio can number.
const CHUNKS: usize = 13;

fn add(counter: &AtomicU64, value: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(value),
        Ordering::Relaxed,
    );
}

/// The bucket that counts a latency of so many nanoseconds.
pub fn bucket(nanoseconds: u64) -> usize {
    let units = (nanoseconds >> UNIT_BITS).min((1 << TOP_BITS) - 1);
    // Highest set bit, at least the one that begins the logarithmic part.
    let top = (units | (1 << SUB_BITS)).ilog2();
    let shift = top - SUB_BITS;
    ((u64::from(shift) << SUB_BITS) + (units >> shift)) as usize
}

/// The longest latency, in nanoseconds, that a bucket counts.
pub fn upper_bound(bucket: usize) -> u64 {
    let sub = 1 << SUB_BITS;
    let shift = (bucket >> SUB_BITS).saturating_sub(1);
    let units = bucket as u64 - ((shift as u64) << SUB_BITS);
    debug_assert!(units < 2 * sub);
    (((units + 1) << shift) << UNIT_BITS) - 1
}

/// Of one class.
struct Sums {
    bytes: AtomicU64,
    latencies: [AtomicU64; BUCKETS],
}

impl Sums {
    fn new() -> Box<Self> {
        Box::new(Self {
            bytes: AtomicU64::new(0),
            latencies: [const { AtomicU64::new(0) }; BUCKETS],
        })
    }
}

/// Commands that did not end with response OK and status GOOD.
struct Failures {
    statuses: [AtomicU64; 256],
    responses: [AtomicU64; 256],
}

impl Failures {
    fn new() -> Box<Self> {
        Box::new(Self {
            statuses: [const { AtomicU64::new(0) }; 256],
            responses: [const { AtomicU64::new(0) }; 256],
        })
    }
}

/// Of one queue. Aligned so that no two share a cache line, nor the pair that is fetched with it.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    /// Commands that were or are in flight, and those of them that have ended.
    begun: AtomicU64,
    ended: AtomicU64,
    classes: [OnceLock<Box<Sums>>; CLASSES],
    failures: OnceLock<Box<Failures>>,
}

/// Commands of one queue and latency that ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ended {
    /// By [`Class`]: how many, and the data that they moved, either way.
    pub classes: [(u64, u64); CLASSES],
    /// Of them, those that had been counted as in flight.
    pub in_flight: u64,
}

impl Ended {
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(|(commands, _)| *commands == 0)
    }

    pub fn add(&mut self, class: Class, bytes: u64) {
        let (commands, moved) = &mut self.classes[class as usize];
        *commands += 1;
        *moved += bytes;
    }
}

/// What a class of commands has cost until now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassSnapshot {
    pub bytes: u64,
    /// Bucket and count of those that counted anything.
    pub latencies: Vec<(usize, u64)>,
}

/// All of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub in_flight: u64,
    pub classes: [ClassSnapshot; CLASSES],
    /// SAM status other than GOOD, and how often.
    pub statuses: Vec<(u8, u64)>,
    /// `VIRTIO_SCSI_S_*` other than OK, and how often.
    pub responses: Vec<(u8, u64)>,
}

type Chunk = Box<[OnceLock<Box<Shard>>]>;

/// By queue. Memory is taken as it is needed: some 4 KiB a queue and class.
#[derive(Default)]
pub struct Stats([OnceLock<Chunk>; CHUNKS]);

/// The chunk of a queue, and its place there.
fn place(queue: u16) -> (usize, usize) {
    let queue = usize::from(queue);
    let chunk = (queue / FIRST_CHUNK)
        .checked_ilog2()
        .map_or(0, |log| log as usize + 1);
    (chunk, queue - first(chunk))
}

/// The first queue of a chunk.
fn first(chunk: usize) -> usize {
    match chunk {
        0 => 0,
        _ => FIRST_CHUNK << (chunk - 1),
    }
}

fn new_chunk(chunk: usize) -> Chunk {
    let size = FIRST_CHUNK.max(first(chunk));
    std::iter::repeat_with(OnceLock::new).take(size).collect()
}

impl Stats {
    fn shard(&self, queue: u16) -> &Shard {
        let (chunk, at) = place(queue);
        let chunk = self.0[chunk].get_or_init(|| new_chunk(chunk));
        chunk[at].get_or_init(Box::default)
    }

    /// A command from `queue` is in flight. Called by its worker alone, as are those that follow.
    pub fn begin(&self, queue: u16) {
        add(&self.shard(queue).begun, 1);
    }

    pub fn end(&self, queue: u16, nanoseconds: u64, ended: &Ended) {
        let shard = self.shard(queue);
        for (sums, &(commands, bytes)) in shard.classes.iter().zip(&ended.classes) {
            if commands > 0 {
                let sums = sums.get_or_init(Sums::new);
                add(&sums.bytes, bytes);
                add(&sums.latencies[bucket(nanoseconds)], commands);
            }
        }
        if ended.in_flight > 0 {
            add(&shard.ended, ended.in_flight);
        }
    }

    #[cold]
    /// One of them ended with this status and response, not GOOD and OK both.
    pub fn fail(&self, queue: u16, status: u8, response: u8) {
        let failures = self.shard(queue).failures.get_or_init(Failures::new);
        add(&failures.statuses[usize::from(status)], 1);
        add(&failures.responses[usize::from(response)], 1);
    }

    /// By queue, those that had commands.
    pub fn snapshot(&self) -> Vec<(u16, Snapshot)> {
        let chunks = self.0.iter().enumerate();
        let chunks = chunks.filter_map(|(number, chunk)| Some((first(number), chunk.get()?)));
        let shards = chunks.flat_map(|(first, chunk)| {
            let shards = (first..).zip(chunk.iter());
            shards.filter_map(|(queue, shard)| Some((queue as u16, shard.get()?.snapshot())))
        });
        shards.collect()
    }
}

impl Shard {
    fn snapshot(&self) -> Snapshot {
        let classes = self.classes.each_ref().map(|class| match class.get() {
            Some(class) => ClassSnapshot {
                bytes: class.bytes.load(Ordering::Relaxed),
                latencies: counted(&class.latencies, 0).collect(),
            },
            None => ClassSnapshot::default(),
        });
        let ended = self.ended.load(Ordering::Relaxed);
        let codes = |counters| counted(counters, 1).map(|(code, count)| (code as u8, count));
        let failures = self.failures.get();
        Snapshot {
            // Read last: what began and ended in between is no more than in flight.
            in_flight: self.begun.load(Ordering::Relaxed).saturating_sub(ended),
            statuses: failures.map_or_else(Vec::new, |f| codes(&f.statuses).collect()),
            responses: failures.map_or_else(Vec::new, |f| codes(&f.responses).collect()),
            classes,
        }
    }
}

/// Counters that are not 0, from index `first` on.
fn counted(counters: &[AtomicU64], first: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
    let values = counters
        .iter()
        .map(|counter| counter.load(Ordering::Relaxed));
    let numbered = values.enumerate().skip(first);
    numbered.filter(|(_, count)| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(class: Class, commands: u64) -> Ended {
        let mut ended = Ended::default();
        ended.classes[class as usize] = (commands, commands * 512);
        ended.in_flight = commands;
        ended
    }

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        let mut lower = 0;
        for number in 0..BUCKETS {
            let upper = upper_bound(number);
            assert_eq!(bucket(lower), number);
            assert_eq!(bucket(upper), number);
            let width = upper + 1 - lower;
            assert!(width == 64 || width * 16 <= lower, "{lower} to {upper}");
            lower = upper + 1;
        }
        assert_eq!(lower, 1 << (TOP_BITS + UNIT_BITS));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn each_queue_and_class_is_counted_by_itself() {
        let stats = Stats::default();
        for _ in 0..4 {
            stats.begin(2);
        }
        stats.begin(200);
        stats.end(2, 1000, &ended(Class::Read, 2));
        stats.end(2, 2_000_000, &ended(Class::Write, 1));
        stats.end(200, 0, &ended(Class::Other, 1));
        let [(2, second), (200, last)] = &stats.snapshot()[..] else {
            panic!("{:?}", stats.snapshot());
        };
        assert_eq!((second.in_flight, last.in_flight), (1, 0));
        assert_eq!(second.classes[0].latencies, [(bucket(1000), 2)]);
        assert_eq!(second.classes[1].latencies, [(bucket(2_000_000), 1)]);
        assert_eq!(second.classes[2], ClassSnapshot::default());
        assert_eq!(last.classes[2].bytes, 512);
    }

    #[test]
    fn failures_are_counted_by_queue_status_and_response() {
        let stats = Stats::default();
        for (status, response) in [(2, 0), (2, 0), (8, 0), (0, 9)] {
            stats.fail(2, status, response);
        }
        stats.fail(3, 0x18, 0);
        let [(2, second), (3, third)] = &stats.snapshot()[..] else {
            panic!("{:?}", stats.snapshot());
        };
        assert_eq!(second.statuses, [(2, 2), (8, 1)]);
        assert_eq!(second.responses, [(9, 1)]);
        assert_eq!(third.statuses, [(0x18, 1)]);
    }

    #[test]
    fn every_queue_has_a_place_of_its_own() {
        let places: Vec<_> = (0..=u16::MAX).map(place).collect();
        assert!(places.is_sorted_by(|one, next| one < next));
        let stats = Stats::default();
        let queues = [0, 15, 16, 31, 32, 255, 256, 32768, u16::MAX];
        for queue in queues {
            stats.begin(queue);
        }
        let counted: Vec<_> = stats.snapshot().iter().map(|(queue, _)| *queue).collect();
        assert_eq!(counted, queues);
    }
}
