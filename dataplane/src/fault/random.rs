//! Random numbers that anybody can draw again.

use std::f64::consts::TAU;
use std::time::Duration;

/// A command is not kept longer than this by one rule: an hour.
const LONGEST: f64 = 3600.0;

/// What is drawn for one command: independent numbers, the same whenever they are asked for.
pub struct Draw(u64);

/// A finalizer that spreads each bit over all others (Steele, Lea, Flood: SplitMix).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// 53 bits make a float in [0, 1).
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

impl Draw {
    pub fn new(seed: u64, number: u64) -> Self {
        Self(mix(mix(seed) ^ number))
    }

    fn nth(&self, n: u64) -> u64 {
        mix(self.0.wrapping_add(n))
    }

    /// In [0, 1): whether to do it at all.
    pub fn chance(&self) -> f64 {
        unit(self.nth(0))
    }

    /// Any number: where to do it.
    pub fn number(&self) -> u64 {
        self.nth(1)
    }

    fn uniform(&self) -> f64 {
        unit(self.nth(2))
    }

    /// Of the standard normal distribution (Box and Muller).
    fn normal(&self) -> f64 {
        let radius = (-2.0 * (1.0 - unit(self.nth(3))).ln()).sqrt();
        radius * (TAU * unit(self.nth(4))).cos()
    }
}

/// How long a command is kept, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delay {
    Fixed(f64),
    Uniform {
        least: f64,
        most: f64,
    },
    Normal {
        mean: f64,
        deviation: f64,
    },
    /// Its logarithm is normal, with this deviation.
    LogNormal {
        median: f64,
        deviation: f64,
    },
}

impl Delay {
    pub fn draw(&self, draw: &Draw) -> Duration {
        let seconds = match *self {
            Self::Fixed(seconds) => seconds,
            Self::Uniform { least, most } => least + (most - least) * draw.uniform(),
            Self::Normal { mean, deviation } => mean + deviation * draw.normal(),
            Self::LogNormal { median, deviation } => median * (deviation * draw.normal()).exp(),
        };
        Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)).unwrap_or_default()
    }
}
