//! Collecting one chain of a split ring (virtio 2.7.5).

use zerocopy::{FromZeros, IntoBytes};

use super::areas::{Areas, Desc, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use super::{Chain, Endian, RingConfig, RingError};
use crate::memory::{Access, View};

/// A chain describes at most this many bytes (virtio 2.7.5.2).
const MAX_BYTES: u64 = 1 << 32;
/// An indirect table may have as many descriptors as the biggest ring served over vhost-user, even
/// in a smaller one: Linux's virtio_scsi sizes its tables by `seg_max` alone.
const MAX_INDIRECT: u16 = 1024;
/// Borders of I/O mappings in one chain: 64 MiB in pages of 4 KiB, twice the `max_sectors` of
/// virtio-scsi.
const MAX_FRAGMENTS: usize = 1 << 14;

/// What is at hand while a chain is collected.
pub(super) struct Walk<'a, E> {
    pub view: View<'a>,
    pub areas: &'a Areas<E>,
    pub config: &'a RingConfig,
    /// The indirect table, copied so that each descriptor is read once.
    pub table: &'a mut Vec<Desc>,
}

impl<E: Endian> Walk<'_, E> {
    /// The chain of `head`, through at most one indirect table at its end.
    pub fn collect(mut self, head: u16, chain: &mut Chain) -> Result<(), RingError> {
        let mut indirect = false;
        let mut index = head;
        let mut count = 0;
        loop {
            let desc = match indirect {
                true => self.table[usize::from(index)].swap::<E>(),
                false => self.areas.desc(index),
            };
            if desc.flags & DESC_F_INDIRECT != 0 {
                self.load_table(head, desc, indirect)?;
                indirect = true;
                index = 0;
                continue;
            }
            let limit = self.limit(indirect);
            count += 1;
            if count > limit {
                return Err(RingError::TooLong { head, limit });
            }
            self.append(head, desc, chain)?;
            self.check_pieces(head, limit, chain)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            let length = match indirect {
                true => self.table.len(),
                false => self.config.size.into(),
            };
            index = desc.next;
            if usize::from(index) >= length {
                return Err(RingError::Next {
                    head,
                    next: index,
                    length,
                });
            }
        }
    }

    /// Most descriptors of a chain.
    fn limit(&self, indirect: bool) -> u16 {
        match indirect {
            true => self.config.size.max(MAX_INDIRECT),
            false => self.config.size,
        }
    }

    fn check_pieces(&self, head: u16, descriptors: u16, chain: &Chain) -> Result<(), RingError> {
        // Honest buffers do not overlap, so each region border is crossed at most once.
        let mut limit = usize::from(descriptors) + self.view.map().regions().len();
        if self.view.is_translated() {
            limit += MAX_FRAGMENTS;
        }
        if chain.readable.len() + chain.writable.len() > limit {
            return Err(RingError::Scattered { head, limit });
        }
        Ok(())
    }

    /// Copies the table that `desc` points to; its WRITE flag means nothing (virtio 2.7.5.3.2).
    fn load_table(&mut self, head: u16, desc: Desc, nested: bool) -> Result<(), RingError> {
        if nested {
            return Err(RingError::NestedIndirect { head });
        }
        if !self.config.indirect {
            return Err(RingError::IndirectNotNegotiated { head });
        }
        if desc.flags & DESC_F_NEXT != 0 {
            return Err(RingError::IndirectWithNext { head });
        }
        if desc.len == 0 || desc.len % Desc::SIZE as u32 != 0 {
            return Err(RingError::IndirectLength {
                head,
                length: desc.len,
            });
        }
        let entries = desc.len / Desc::SIZE as u32;
        let limit = self.limit(true);
        if entries > limit.into() {
            return Err(RingError::IndirectTooLong {
                head,
                entries,
                limit,
            });
        }
        self.table.resize_with(entries as usize, Desc::new_zeroed);
        self.view
            .read(desc.addr, self.table.as_mut_bytes())
            .map_err(|source| RingError::IndirectUnmapped { head, source })
    }

    fn append(&self, head: u16, desc: Desc, chain: &mut Chain) -> Result<(), RingError> {
        if desc.len == 0 {
            return Ok(());
        }
        let writable = desc.flags & DESC_F_WRITE != 0;
        let (pieces, bytes, access) = if writable {
            (&mut chain.writable, &mut chain.writable_len, Access::WRITE)
        } else {
            (&mut chain.readable, &mut chain.readable_len, Access::READ)
        };
        let length = u64::from(desc.len);
        self.view
            .iovecs(desc.addr, length, access, pieces)
            .map_err(|source| RingError::DataUnmapped { head, source })?;
        *bytes += length;
        if self.view.is_translated() {
            // No overflow: the whole range was translated.
            chain.iova.push((desc.addr, desc.addr + (length - 1)));
        }
        if !writable && chain.writable_len > 0 {
            return Err(RingError::ReadableAfterWritable { head });
        }
        if chain.readable_len + chain.writable_len > MAX_BYTES {
            return Err(RingError::TooManyBytes { head });
        }
        Ok(())
    }
}
