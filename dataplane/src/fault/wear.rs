//! A medium that wears out: each of its erase units can be written so often, then a spare one takes
//! its place, and when there is none left the next write of it fails.

use std::sync::{Mutex, PoisonError};

use crate::sbc::Blocks;

/// A counter each: 4 MiB.
pub const MAX_UNITS: u64 = 1 << 20;

pub struct Wear {
    /// The first block, and blocks in a unit.
    first: u64,
    unit: u64,
    writes: u32,
    state: Mutex<State>,
}

struct State {
    /// Of each unit, since it was new.
    written: Vec<u32>,
    spares: u64,
}

/// What a write of worn units met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worn {
    Remapped,
    /// First and last LBA of the first unit that has no spare.
    Failed(u64, u64),
}

impl Wear {
    /// For the blocks from `first` to `last`, in units of `unit` blocks. None: no such units, or
    /// more than [`MAX_UNITS`].
    pub fn new((first, last): (u64, u64), unit: u64, writes: u32, spares: u64) -> Option<Self> {
        let units = last.checked_sub(first)?.checked_div(unit)?;
        if units >= MAX_UNITS {
            return None;
        }
        Some(Self {
            first,
            unit,
            writes,
            state: Mutex::new(State {
                written: vec![0; units as usize + 1],
                spares,
            }),
        })
    }

    /// Blocks are written. A unit counts once a range, however much of it is.
    pub fn write(&self, ranges: &[Blocks]) -> Option<Worn> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { written, spares } = &mut *state;
        let mut worn = None;
        for range in ranges.iter().filter(|range| range.count > 0) {
            let Some(end) = range.end().checked_sub(self.first).filter(|end| *end > 0) else {
                continue;
            };
            let from = range.lba.saturating_sub(self.first) / self.unit;
            let to = (end - 1) / self.unit;
            let touched = (0..).zip(written.iter_mut()).skip(from as usize);
            for (unit, count) in touched.take_while(|(unit, _)| *unit <= to) {
                if *count < self.writes {
                    *count += 1;
                } else if *spares > 0 {
                    *spares -= 1;
                    *count = 1;
                    worn = Some(Worn::Remapped);
                } else {
                    let first = self.first + unit * self.unit;
                    return Some(Worn::Failed(first, first + self.unit - 1));
                }
            }
        }
        worn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(lba: u64, count: u64) -> [Blocks; 1] {
        [Blocks { lba, count }]
    }

    #[test]
    fn units_wear_each_by_itself_and_share_the_spares() {
        let wear = Wear::new((8, 23), 8, 2, 2).unwrap();
        for (number, (lba, count, result)) in [
            (8, 1, None),
            (15, 2, None), // of one unit the second time, of the other the first
            (0, 8, None),  // not of the range
            (9, 1, Some(Worn::Remapped)),
            (24, 8, None), // neither
            (16, 1, None),
            (10, 1, None),                        // the spare's second time
            (0, 100, Some(Worn::Failed(16, 23))), // both are worn, and there is one spare
            (23, 1, Some(Worn::Failed(16, 23))),
            (8, 1, None),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(wear.write(&blocks(lba, count)), result, "step {number}");
        }
    }

    #[test]
    fn units_that_cannot_be_counted() {
        for (range, unit) in [((0, 9), 0), ((9, 0), 1), ((0, MAX_UNITS), 1)] {
            assert!(Wear::new(range, unit, 1, 1).is_none());
        }
        assert!(Wear::new((1, MAX_UNITS), 1, 1, 1).is_some());
    }

    #[test]
    fn a_medium_that_is_worn_from_the_beginning() {
        let wear = Wear::new((0, u64::MAX / 2), 1 << 62, 0, 1).unwrap();
        assert_eq!(wear.write(&blocks(5, 0)), None);
        assert_eq!(wear.write(&blocks(5, 1)), Some(Worn::Remapped));
        let failed = Worn::Failed(0, (1 << 62) - 1);
        assert_eq!(wear.write(&blocks(5, u64::MAX)), Some(failed));
    }
}
