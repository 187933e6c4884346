//! Scatter lists over memory that others may change while we look.

use libc::iovec;

/// Bytes in all; saturates.
pub fn total(iov: &[iovec]) -> u64 {
    iov.iter()
        .fold(0, |sum: u64, v| sum.saturating_add(v.iov_len as u64))
}

/// Cuts the list down to its first `len` bytes.
pub fn trim(iov: &mut Vec<iovec>, len: u64) {
    let mut left = len;
    let mut used = 0;
    for vec in iov.iter_mut() {
        if left == 0 {
            break;
        }
        vec.iov_len = usize::try_from(left).map_or(vec.iov_len, |left| vec.iov_len.min(left));
        left -= vec.iov_len as u64;
        used += 1;
    }
    iov.truncate(used);
}

/// A position in a scatter list. Copies are of raw bytes: no reference to the memory is made.
#[derive(Clone)]
pub struct Cursor<'a> {
    rest: &'a [iovec],
    /// Bytes of `rest[0]` already passed.
    skip: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(iov: &'a [iovec]) -> Self {
        Self { rest: iov, skip: 0 }
    }

    /// The next contiguous piece, at most `limit` bytes; `None` at the end of the list.
    fn piece(&mut self, limit: usize) -> Option<(*mut u8, usize)> {
        loop {
            let (first, others) = self.rest.split_first()?;
            let left = first.iov_len - self.skip;
            if left == 0 {
                (self.rest, self.skip) = (others, 0);
                continue;
            }
            let start = first.iov_base.cast::<u8>().wrapping_add(self.skip);
            let len = left.min(limit);
            self.skip += len;
            return Some((start, len));
        }
    }

    /// Calls `each` with the pieces of the next `len` bytes and their offsets from here; returns
    /// how many bytes there were.
    fn advance(&mut self, len: usize, mut each: impl FnMut(usize, *mut u8, usize)) -> usize {
        let mut done = 0;
        while done < len {
            let Some((start, piece)) = self.piece(len - done) else {
                break;
            };
            each(done, start, piece);
            done += piece;
        }
        done
    }

    pub fn skip(&mut self, len: usize) -> usize {
        self.advance(len, |_, _, _| ())
    }

    /// Copies out of the list; returns the bytes copied, fewer than `len` at its end.
    ///
    /// # Safety
    /// `to` is valid for writes of `len` bytes and does not overlap the list.
    pub unsafe fn copy_to(&mut self, to: *mut u8, len: usize) -> usize {
        self.advance(len, |at, piece, n| {
            // SAFETY: `piece` is mapped (the promise of an iovec); `to` by the caller.
            unsafe { std::ptr::copy_nonoverlapping(piece, to.add(at), n) }
        })
    }

    /// Copies into the list; returns the bytes copied, fewer than `len` at its end.
    ///
    /// # Safety
    /// `from` is valid for reads of `len` bytes and does not overlap the list.
    pub unsafe fn copy_from(&mut self, from: *const u8, len: usize) -> usize {
        self.advance(len, |at, piece, n| {
            // SAFETY: `piece` is mapped (the promise of an iovec); `from` by the caller.
            unsafe { std::ptr::copy_nonoverlapping(from.add(at), piece, n) }
        })
    }

    /// A private copy of the next bytes; returns how many there were.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        // SAFETY: a `&mut` slice is writable and overlaps nothing.
        unsafe { self.copy_to(into.as_mut_ptr(), into.len()) }
    }

    pub fn write(&mut self, from: &[u8]) -> usize {
        // SAFETY: `from` is readable; private memory never overlaps an iovec.
        unsafe { self.copy_from(from.as_ptr(), from.len()) }
    }

    pub fn fill_zero(&mut self, len: usize) -> usize {
        self.advance(len, |_, piece, n| {
            // SAFETY: `piece` is mapped (the promise of an iovec).
            unsafe { std::ptr::write_bytes(piece, 0, n) }
        })
    }

    /// Appends what is left to `out`, without empty pieces in front (they would spoil the
    /// alignment that direct I/O asks for).
    pub fn rest(&self, out: &mut Vec<iovec>) {
        let Some((first, others)) = self.rest.split_first() else {
            return;
        };
        if first.iov_len > self.skip {
            out.push(iovec {
                iov_base: first.iov_base.wrapping_byte_add(self.skip),
                iov_len: first.iov_len - self.skip,
            });
        }
        out.extend_from_slice(others);
    }

    /// What is left, as a list of at most `max` entries.
    pub fn batch(&self, max: usize) -> Vec<iovec> {
        let mut batch = self.rest[..self.rest.len().min(max)].to_vec();
        if let Some(first) = batch.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(self.skip);
            first.iov_len -= self.skip;
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(parts: &mut [Vec<u8>]) -> Vec<iovec> {
        parts
            .iter_mut()
            .map(|part| iovec {
                iov_base: part.as_mut_ptr().cast(),
                iov_len: part.len(),
            })
            .collect()
    }

    #[test]
    fn trim_cuts_inside_an_entry_and_drops_the_rest() {
        let mut parts = [vec![0; 3], vec![0; 5], vec![0; 7]];
        for (len, want) in [
            (0, vec![]),
            (3, vec![3]),
            (4, vec![3, 1]),
            (15, vec![3, 5, 7]),
            (99, vec![3, 5, 7]),
        ] {
            let mut iov = list(&mut parts);
            trim(&mut iov, len);
            let lens: Vec<_> = iov.iter().map(|v| v.iov_len).collect();
            assert_eq!(lens, want, "trimmed to {len}");
        }
    }

    #[test]
    fn total_saturates() {
        let huge = iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: usize::MAX,
        };
        assert_eq!(total(&[huge, huge]), u64::MAX);
    }

    #[test]
    fn a_cursor_crosses_entries_and_empty_ones() {
        let mut parts = [vec![1, 2, 3], vec![], vec![4, 5, 6, 7]];
        let iov = list(&mut parts);
        let mut cursor = Cursor::new(&iov);
        assert_eq!(cursor.skip(2), 2);
        let mut copy = [0; 3];
        assert_eq!(cursor.read(&mut copy), 3);
        assert_eq!(copy, [3, 4, 5]);
        let mut appended = vec![iov[0]];
        cursor.rest(&mut appended);
        assert_eq!(
            appended.iter().map(|v| v.iov_len).collect::<Vec<_>>(),
            [3, 2]
        );
        let mut behind = Cursor::new(&iov);
        behind.skip(3);
        appended.clear();
        behind.rest(&mut appended);
        assert_eq!(
            appended.iter().map(|v| v.iov_len).collect::<Vec<_>>(),
            [0, 4]
        );
        let rest = cursor.batch(9);
        assert_eq!(rest.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [2]);
        assert_eq!(cursor.write(&[8, 9, 10]), 2);
        assert_eq!(cursor.read(&mut copy), 0);
        assert_eq!(Cursor::new(&iov).fill_zero(1), 1);
        assert_eq!(parts, [vec![0, 2, 3], vec![], vec![4, 5, 8, 9]]);
    }
}
