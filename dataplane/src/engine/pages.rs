//! Which pages of memory have been written: the kernel's own answer (SEEK_DATA) counts those too
//! that were only read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of memory that one bit stands for.
pub const PAGE: u64 = 4096;

/// One bit a page. Set it after writing, clear it before freeing: then a page with data in it is
/// never taken for a hole, however writes and discards meet.
pub struct Pages(Vec<AtomicU64>);

impl Pages {
    pub fn new(bytes: u64) -> Self {
        let words = bytes.div_ceil(64 * PAGE);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Bytes of all pages that are set.
    pub fn bytes(&self) -> u64 {
        let words = self.0.iter();
        words.map(|word| count(word.load(Ordering::Acquire))).sum()
    }

    /// Bytes of pages that have a byte in the range and are not set.
    pub fn missing(&self, offset: u64, len: u64) -> u64 {
        let mut missing = 0;
        for_each_word(
            offset / PAGE,
            (offset + len).div_ceil(PAGE),
            |word, bits| missing += count(bits & !self.0[word].load(Ordering::Acquire)),
        );
        missing
    }

    /// The same for `bytes` bytes: what is beyond was never written.
    pub fn resized(&self, bytes: u64) -> Self {
        let copy = Self::new(bytes);
        for (new, old) in copy.0.iter().zip(&self.0) {
            new.store(old.load(Ordering::Acquire), Ordering::Release);
        }
        let end = copy.0.len() as u64 * 64 * PAGE;
        copy.clear(bytes, end - bytes);
        copy
    }

    /// Every page that has a byte in the range; bytes of those that this call has set.
    pub fn set(&self, offset: u64, len: u64) -> u64 {
        let mut set = 0;
        for_each_word(
            offset / PAGE,
            (offset + len).div_ceil(PAGE),
            |word, bits| {
                // Mostly it is set already, and a load does not take the cache line from others.
                if self.0[word].load(Ordering::Acquire) & bits != bits {
                    set += count(bits & !self.0[word].fetch_or(bits, Ordering::AcqRel));
                }
            },
        );
        set
    }

    /// Every page that lies in the range whole; bytes of those that this call has cleared.
    pub fn clear(&self, offset: u64, len: u64) -> u64 {
        let mut cleared = 0;
        for_each_word(
            offset.div_ceil(PAGE),
            (offset + len) / PAGE,
            |word, bits| cleared += count(bits & self.0[word].fetch_and(!bits, Ordering::AcqRel)),
        );
        cleared
    }

    /// Whether the byte at `offset` is in a written page, and how many bytes up to `size` are alike.
    pub fn extent(&self, offset: u64, size: u64) -> (bool, u64) {
        let mut page = offset / PAGE;
        let written = |page: u64| {
            let word = self.0.get((page / 64) as usize)?.load(Ordering::Acquire);
            Some((word, word >> (page % 64) & 1 != 0))
        };
        let first = written(page).is_some_and(|(_, written)| written);
        // A whole word of one kind is passed at once.
        let alike = if first { u64::MAX } else { 0 };
        while let Some((word, written)) = written(page) {
            if page * PAGE >= size || written != first {
                break;
            }
            page += if page % 64 == 0 && word == alike {
                64
            } else {
                1
            };
        }
        (first, (page * PAGE).min(size).saturating_sub(offset))
    }
}

fn count(bits: u64) -> u64 {
    u64::from(bits.count_ones()) * PAGE
}

/// The words that hold bits `from..to`, with a mask of those bits in each.
fn for_each_word(from: u64, to: u64, mut act: impl FnMut(usize, u64)) {
    let mut bit = from;
    while bit < to {
        let count = (64 - bit % 64).min(to - bit);
        let mask = u64::MAX >> (64 - count) << (bit % 64);
        act((bit / 64) as usize, mask);
        bit += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_ranges() {
        let size = 1000 * PAGE - 512;
        let pages = Pages::new(size);
        assert_eq!(pages.extent(0, size), (false, size));
        assert_eq!(pages.missing(64 * PAGE - 1, 100 * PAGE), 101 * PAGE);
        assert_eq!(pages.set(64 * PAGE - 1, 100 * PAGE), 101 * PAGE);
        assert_eq!(pages.set(64 * PAGE, 101 * PAGE), PAGE);
        assert_eq!(pages.clear(164 * PAGE, PAGE), PAGE);
        assert_eq!(pages.missing(63 * PAGE, 102 * PAGE), PAGE);
        assert_eq!(pages.bytes(), 101 * PAGE);
        assert_eq!(pages.extent(512, size), (false, 63 * PAGE - 512));
        assert_eq!(pages.extent(63 * PAGE, size), (true, 101 * PAGE));
        pages.set(999 * PAGE, 3584);
        assert_eq!(pages.extent(999 * PAGE + 512, size), (true, 3072));
        assert_eq!(pages.extent(164 * PAGE, size), (false, 835 * PAGE));
        // Only whole pages are free again.
        assert_eq!(pages.clear(70 * PAGE - 1, 2 * PAGE + 1), 2 * PAGE);
        assert_eq!(pages.clear(70 * PAGE - 1, 2 * PAGE + 1), 0);
        assert_eq!(pages.clear(80 * PAGE, PAGE - 1), 0);
        assert_eq!(pages.extent(63 * PAGE, size), (true, 7 * PAGE));
        assert_eq!(pages.extent(70 * PAGE, size), (false, 2 * PAGE));
        assert_eq!(pages.extent(72 * PAGE, size), (true, 92 * PAGE));
    }

    #[test]
    fn no_bytes_set_no_page() {
        let pages = Pages::new(PAGE);
        pages.set(PAGE, 0);
        pages.set(0, 0);
        pages.clear(PAGE, 0);
        assert_eq!(pages.extent(0, PAGE), (false, PAGE));
    }
}
