//! What the host takes in one command.

use libc::iovec;

const PAGE: usize = 4096;
/// UIO_MAXIOV.
const MAX_IOVECS: usize = 1024;

/// Limits of a device and of the way to it. 0 is "no limit" except for the first two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a command's data.
    pub max_bytes: u64,
    /// Physical pieces of memory of a command's data.
    pub max_segments: u32,
    /// Bits that must be 0 in addresses and lengths.
    pub dma_alignment: u64,
    /// Bits that must be 0 where one piece ends and the next begins.
    pub virt_boundary: u64,
    /// Whether the node takes iovecs; else one buffer.
    pub scatter: bool,
    pub max_cdb: u32,
    pub max_write_same_blocks: u64,
    pub max_unmap_blocks: u64,
    pub max_unmap_descriptors: u32,
}

impl Limits {
    /// Bytes that fit wherever the pages of a buffer lie in physical memory.
    pub fn most(&self) -> u64 {
        let pages = u64::from(self.max_segments).saturating_mul(PAGE as u64);
        self.max_bytes.min(pages).min(u64::from(u32::MAX))
    }

    /// Whether the host takes these pieces as they are.
    pub fn take(&self, iov: &[iovec]) -> bool {
        let most = if self.scatter { MAX_IOVECS } else { 1 };
        if iov.len() > most {
            return false;
        }
        let (mut segments, mut end) = (0, None);
        for piece in iov {
            let (start, len) = (piece.iov_base as usize, piece.iov_len);
            if (start | len) as u64 & self.dma_alignment != 0 {
                return false;
            }
            let gap = end.map_or(0, |end: usize| end | start) as u64;
            if gap & self.virt_boundary != 0 {
                return false;
            }
            end = Some(start + len);
            segments += (start + len).div_ceil(PAGE) - start / PAGE;
        }
        segments as u64 <= u64::from(self.max_segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            max_bytes: 1 << 20,
            max_segments: 4,
            dma_alignment: 0,
            virt_boundary: 0,
            scatter: true,
            max_cdb: 32,
            max_write_same_blocks: 0,
            max_unmap_blocks: 0,
            max_unmap_descriptors: 0,
        }
    }

    fn list(pieces: &[(usize, usize)]) -> Vec<iovec> {
        pieces
            .iter()
            .map(|&(start, len)| iovec {
                iov_base: std::ptr::without_provenance_mut(start),
                iov_len: len,
            })
            .collect()
    }

    #[test]
    fn every_page_may_be_a_segment() {
        assert_eq!(limits().most(), 4 * 4096);
        assert!(limits().take(&list(&[(0x1000, 0x4000)])));
        assert!(!limits().take(&list(&[(0x1200, 0x4000)])), "5 pages");
        assert!(limits().take(&list(&[(0x1000, 1), (0x2000, 1), (0x3000, 1), (0x4000, 1)])));
        assert!(!limits().take(&list(&[(0x1000, 1); 5])));
    }

    #[test]
    fn alignment_and_boundary() {
        let aligned = Limits {
            dma_alignment: 511,
            ..limits()
        };
        assert!(aligned.take(&list(&[(0x1200, 0x200)])));
        assert!(!aligned.take(&list(&[(0x1204, 0x200)])));
        assert!(!aligned.take(&list(&[(0x1200, 0x204)])));
        let bounded = Limits {
            virt_boundary: 4095,
            ..limits()
        };
        assert!(bounded.take(&list(&[(0x1200, 0xe00), (0x4000, 0x10)])));
        assert!(!bounded.take(&list(&[(0x1200, 0x200), (0x4000, 0x10)])));
        assert!(!bounded.take(&list(&[(0x1200, 0xe00), (0x4010, 0x10)])));
    }

    #[test]
    fn one_buffer_where_the_node_takes_no_iovecs() {
        let flat = Limits {
            scatter: false,
            ..limits()
        };
        assert!(flat.take(&list(&[(0x1000, 0x1000)])));
        assert!(!flat.take(&list(&[(0x1000, 0x800), (0x1800, 0x800)])));
    }
}
