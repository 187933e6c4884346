//! What the commands of one nexus cost: counts, bytes and latencies, a shard for each queue.
//!
//! A queue belongs to one worker, so each counter has one writer: it adds with a load and a store,
//! and no cache line goes back and forth. Readers see each counter as it was a moment ago.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

/// Classes of commands, by their route: reads, writes, all others.
pub const CLASSES: usize = 3;

/// Latencies are counted in units of 64 ns, up to 16 units one by one, then in 16 buckets for each
/// power of two (a bucket is at most 1/16 of what it counts wide), up to 2^30 units: 68 s. The
/// last bucket counts all that took longer too.
pub const UNIT_BITS: u32 = 6;
const SUB_BITS: u32 = 4;
const TOP_BITS: u32 = 30;
pub const BUCKETS: usize = ((TOP_BITS - SUB_BITS + 1) << SUB_BITS) as usize;

/// Queues whose index is higher are not counted; vhost-user has no more.
const QUEUES: usize = 256;
const CHUNK: usize = 16;

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

struct Class {
    bytes: AtomicU64,
    latencies: [AtomicU64; BUCKETS],
}

impl Class {
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
    begun: AtomicU64,
    classes: [OnceLock<Box<Class>>; CLASSES],
    failures: OnceLock<Box<Failures>>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Index of its class: 0 read, 1 write, 2 other.
    pub class: usize,
    /// Data moved, either way.
    pub bytes: u64,
    pub nanoseconds: u64,
    pub status: u8,
    pub response: u8,
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

type Chunk = [OnceLock<Box<Shard>>; CHUNK];

/// Of one nexus, by queue. Memory is taken as it is needed: some 4 KiB a queue and class.
#[derive(Default)]
pub struct Stats([OnceLock<Box<Chunk>>; QUEUES / CHUNK]);

impl Stats {
    fn shard(&self, queue: u16) -> Option<&Shard> {
        let queue = usize::from(queue);
        let chunk = self.0.get(queue / CHUNK)?.get_or_init(Box::default);
        Some(chunk[queue % CHUNK].get_or_init(Box::default))
    }

    /// A command is taken from `queue`. Called by its worker alone, as [`Stats::end`].
    pub fn begin(&self, queue: u16) {
        if let Some(shard) = self.shard(queue) {
            add(&shard.begun, 1);
        }
    }

    pub fn end(&self, queue: u16, end: &End) {
        let Some(shard) = self.shard(queue) else {
            return;
        };
        let class = shard.classes[end.class].get_or_init(Class::new);
        add(&class.bytes, end.bytes);
        add(&class.latencies[bucket(end.nanoseconds)], 1);
        if end.status != 0 || end.response != 0 {
            let failures = shard.failures.get_or_init(Failures::new);
            add(&failures.statuses[usize::from(end.status)], 1);
            add(&failures.responses[usize::from(end.response)], 1);
        }
    }

    /// By queue, those that had commands.
    pub fn snapshot(&self) -> Vec<(u16, Snapshot)> {
        let queues = (0u16..).zip(0..QUEUES);
        let shards = queues.filter_map(|(index, at)| {
            let chunk = self.0[at / CHUNK].get()?;
            Some((index, chunk[at % CHUNK].get()?.snapshot()))
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
        let latencies = classes.iter().flat_map(|class| &class.latencies);
        let ended: u64 = latencies.map(|(_, count)| count).sum();
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

    fn end(class: usize, nanoseconds: u64) -> End {
        End {
            class,
            bytes: 512,
            nanoseconds,
            status: 0,
            response: 0,
        }
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
        for _ in 0..3 {
            stats.begin(2);
        }
        stats.begin(200);
        stats.end(2, &end(0, 1000));
        stats.end(2, &end(1, 2_000_000));
        stats.end(200, &end(2, 0));
        let [(2, second), (200, last)] = &stats.snapshot()[..] else {
            panic!("{:?}", stats.snapshot());
        };
        assert_eq!((second.in_flight, last.in_flight), (1, 0));
        assert_eq!(second.classes[0].latencies, [(bucket(1000), 1)]);
        assert_eq!(second.classes[1].latencies, [(bucket(2_000_000), 1)]);
        assert_eq!(second.classes[2], ClassSnapshot::default());
        assert_eq!(last.classes[2].bytes, 512);
    }

    #[test]
    fn failures_are_counted_by_status_and_response() {
        let stats = Stats::default();
        for (status, response) in [(2, 0), (2, 0), (8, 0), (0, 9), (0, 0)] {
            let end = End {
                status,
                response,
                ..end(0, 0)
            };
            stats.begin(2);
            stats.end(2, &end);
        }
        let (_, snapshot) = stats.snapshot().remove(0);
        assert_eq!(snapshot.statuses, [(2, 2), (8, 1)]);
        assert_eq!(snapshot.responses, [(9, 1)]);
        assert_eq!(snapshot.in_flight, 0);
    }

    #[test]
    fn a_queue_beyond_all_is_not_counted() {
        let stats = Stats::default();
        stats.begin(256);
        stats.end(256, &end(0, 0));
        assert!(stats.snapshot().is_empty());
    }
}
