//! How much a logical unit may do in a second: token buckets, one of commands and one of bytes.
//!
//! A command takes its tokens when it comes, whether or not they are there yet, and learns when they
//! will be: so commands of all workers go in the order they came, and nobody asks twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A rate of 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    pub per_second: u64,
    /// What may be taken at once after a pause.
    pub burst: u64,
}

impl Rate {
    fn time(&self, amount: u64) -> Duration {
        Duration::from_secs_f64(amount as f64 / self.per_second as f64)
    }
}

#[derive(Default)]
struct Bucket {
    rate: Rate,
    /// All that was taken is earned by then.
    paid: Option<Instant>,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, paid: None }
    }

    /// When what is taken now may be used.
    fn take(&mut self, amount: u64, now: Instant) -> Instant {
        if self.rate.per_second == 0 {
            return now;
        }
        let paid = self.paid.map_or(now, |paid| paid.max(now));
        self.paid = Some(paid + self.rate.time(amount));
        paid.checked_sub(self.rate.time(self.rate.burst))
            .map_or(now, |ready| ready.max(now))
    }
}

#[derive(Default)]
pub struct Limits {
    some: AtomicBool,
    /// Commands, bytes.
    buckets: Mutex<(Bucket, Bucket)>,
}

impl Limits {
    pub fn set(&self, commands: Rate, bytes: Rate) {
        *self.lock() = (Bucket::new(commands), Bucket::new(bytes));
        let some = commands.per_second > 0 || bytes.per_second > 0;
        self.some.store(some, Ordering::Release);
    }

    pub fn any(&self) -> bool {
        self.some.load(Ordering::Relaxed)
    }

    /// When a command that moves `bytes` may be processed; not before `now`.
    pub fn take(&self, bytes: u64, now: Instant) -> Instant {
        let mut buckets = self.lock();
        let ready = buckets.0.take(1, now);
        ready.max(buckets.1.take(bytes, now))
    }

    fn lock(&self) -> MutexGuard<'_, (Bucket, Bucket)> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(commands: (u64, u64), bytes: (u64, u64)) -> Limits {
        let rate = |(per_second, burst)| Rate { per_second, burst };
        let limits = Limits::default();
        limits.set(rate(commands), rate(bytes));
        limits
    }

    fn milliseconds(limits: &Limits, bytes: u64, now: Instant) -> u128 {
        (limits.take(bytes, now) - now).as_millis()
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let limits = limits((0, 0), (0, 0));
        assert!(!limits.any());
        let now = Instant::now();
        assert_eq!(limits.take(u64::MAX, now), now);
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let limits = limits((100, 3), (0, 0));
        let now = Instant::now();
        let waits: Vec<_> = (0..7).map(|_| milliseconds(&limits, 0, now)).collect();
        assert_eq!(waits, [0, 0, 0, 0, 10, 20, 30]);
        let later = now + Duration::from_secs(5);
        let waits: Vec<_> = (0..5).map(|_| milliseconds(&limits, 0, later)).collect();
        assert_eq!(
            waits,
            [0, 0, 0, 0, 10],
            "a pause earns no more than the burst"
        );
    }

    #[test]
    fn bytes_count_too_and_the_later_of_both_holds() {
        let limits = limits((1000, 0), (10_000, 0));
        let now = Instant::now();
        assert_eq!(milliseconds(&limits, 1000, now), 0, "larger than any burst");
        assert_eq!(milliseconds(&limits, 0, now), 100);
        assert_eq!(milliseconds(&limits, 10, now), 100);
        assert_eq!(milliseconds(&limits, 0, now), 101);
    }
}
