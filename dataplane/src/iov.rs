//! Lists of host memory pieces (`iovec`s that point into guest memory).
//!
//! Another process writes to this memory at will: it is only ever copied through raw pointers,
//! never borrowed.

use libc::iovec;

pub fn total(iov: &[iovec]) -> u64 {
    iov.iter().map(|piece| piece.iov_len as u64).sum()
}

/// The pieces of `iov` from byte `skip` on, appended to `out`.
pub fn skip(iov: &[iovec], skip: usize, out: &mut Vec<iovec>) {
    let mut left = skip;
    for piece in iov {
        if left >= piece.iov_len {
            left -= piece.iov_len;
            continue;
        }
        out.push(iovec {
            iov_base: piece.iov_base.cast::<u8>().wrapping_add(left).cast(),
            iov_len: piece.iov_len - left,
        });
        left = 0;
    }
}

/// Walks `len` bytes of `iov` in pieces: (host pointer, offset so far, piece length).
fn walk(iov: &[iovec], len: usize, mut each: impl FnMut(*mut u8, usize, usize)) -> usize {
    let mut done = 0;
    for piece in iov {
        let take = piece.iov_len.min(len - done);
        if take > 0 {
            each(piece.iov_base.cast(), done, take);
            done += take;
        }
    }
    done
}

/// Copies from the start of `iov`; returns the bytes copied (less than `to` if `iov` is shorter).
///
/// # Safety
/// The pieces are mapped for the length they say.
pub unsafe fn read(iov: &[iovec], to: &mut [u8]) -> usize {
    walk(iov, to.len(), |piece, done, take| {
        // SAFETY: the caller's promise; `done + take` is within `to`.
        unsafe { std::ptr::copy_nonoverlapping(piece, to.as_mut_ptr().add(done), take) }
    })
}

/// Copies to the start of `iov`; returns the bytes copied.
///
/// # Safety
/// The pieces are mapped for the length they say.
pub unsafe fn write(iov: &[iovec], from: &[u8]) -> usize {
    walk(iov, from.len(), |piece, done, take| {
        // SAFETY: the caller's promise; `done + take` is within `from`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().add(done), piece, take) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(buffer: &mut [u8], lengths: &[usize]) -> Vec<iovec> {
        let mut at = 0;
        lengths
            .iter()
            .map(|len| {
                let piece = iovec {
                    iov_base: buffer[at..].as_mut_ptr().cast(),
                    iov_len: *len,
                };
                at += len;
                piece
            })
            .collect()
    }

    #[test]
    fn copies_and_skips_over_piece_borders() {
        let mut buffer: Vec<u8> = (0..10).collect();
        let iov = pieces(&mut buffer, &[3, 0, 4, 3]);
        assert_eq!(total(&iov), 10);
        let mut rest = Vec::new();
        skip(&iov, 5, &mut rest);
        let mut out = [0; 8];
        // SAFETY: the pieces lie in `buffer`.
        assert_eq!(unsafe { read(&rest, &mut out) }, 5);
        assert_eq!(out, [5, 6, 7, 8, 9, 0, 0, 0]);
        // SAFETY: as above.
        assert_eq!(unsafe { write(&iov, &[9; 4]) }, 4);
        assert_eq!(buffer, [9, 9, 9, 9, 4, 5, 6, 7, 8, 9]);
    }
}
