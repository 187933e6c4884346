//! Time as workers measure it: a few nanoseconds a look.

use std::sync::OnceLock;
use std::time::Duration;

/// Ticks of the fastest clock that can be trusted here.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The processor's time stamp counter instead of CLOCK_MONOTONIC.
    counter: bool,
    /// Nanoseconds a tick, times 2^32.
    rate: u64,
}

/// How long the counter is held against CLOCK_MONOTONIC: an error of some 50 ns at both ends.
const CALIBRATION: Duration = Duration::from_millis(2);
/// Of looks at both, the quickest counts: another thread may run in the middle of one.
const LOOKS: usize = 16;

impl Clock {
    /// The process's clock; the first call takes 2 ms.
    pub fn get() -> Self {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| counter_clock().unwrap_or(Self::MONOTONIC))
    }

    const MONOTONIC: Self = Self {
        counter: false,
        rate: 1 << 32,
    };

    pub fn ticks(self) -> u64 {
        if self.counter {
            counter()
        } else {
            monotonic()
        }
    }

    /// From `start` to `end`, both of [`Clock::ticks`].
    pub fn nanoseconds(self, start: u64, end: u64) -> u64 {
        // Counters of two processors may differ by a few ticks.
        let ticks = end.saturating_sub(start);
        ((u128::from(ticks) * u128::from(self.rate)) >> 32) as u64
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: one timespec. It cannot fail: the clock exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: every x86_64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    monotonic()
}

/// Ticks and CLOCK_MONOTONIC at one time.
fn both(ticks: impl Fn() -> u64) -> (u64, u64) {
    let look = |_| {
        let before = ticks();
        let time = monotonic();
        let took = ticks().saturating_sub(before);
        (took, before + took / 2, time)
    };
    let (_, ticks, time) = (1..LOOKS).map(look).fold(look(0), Ord::min);
    (ticks, time)
}

/// Linux has found the counters to be constant and in step if it keeps its own time by them.
fn counter_clock() -> Option<Clock> {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    if std::fs::read_to_string(source).ok()?.trim() != "tsc" {
        return None;
    }
    let (start, from) = both(counter);
    std::thread::sleep(CALIBRATION);
    let (end, to) = both(counter);
    let ticks = u128::from(end.checked_sub(start)?);
    let rate = (u128::from(to - from) << 32).checked_div(ticks)?;
    Some(Clock {
        counter: true,
        rate: u64::try_from(rate).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_nanoseconds_are_those_of_the_monotonic_clock() {
        let clock = Clock::get();
        let look = || both(|| clock.ticks());
        let (start, from) = look();
        std::thread::sleep(Duration::from_millis(50));
        let (end, to) = look();
        let (ours, theirs) = (clock.nanoseconds(start, end), to - from);
        assert!(ours.abs_diff(theirs) < theirs / 1000, "{ours} {theirs}");
    }

    #[test]
    fn time_does_not_run_backwards() {
        assert_eq!(Clock::get().nanoseconds(5, 3), 0);
    }
}
