//! Guest memory at a driver's addresses.

use std::sync::RwLockReadGuard;

use libc::iovec;

use super::iotlb::{Access, Fault, Iotlb, Refusal};
use super::{MemoryError, MemoryMap};
use crate::iov::Cursor;

/// The look-ups of a ring, in guest addresses or through the IOTLB. Short-lived: it keeps the
/// IOTLB from changing.
pub struct View<'a> {
    map: &'a MemoryMap,
    iotlb: Option<RwLockReadGuard<'a, Iotlb>>,
    withdrawals: u64,
}

impl<'a> View<'a> {
    /// Addresses are guest-physical.
    pub fn physical(map: &'a MemoryMap) -> Self {
        Self {
            map,
            iotlb: None,
            withdrawals: 0,
        }
    }

    pub(super) fn translated(
        map: &'a MemoryMap,
        iotlb: RwLockReadGuard<'a, Iotlb>,
        withdrawals: u64,
    ) -> Self {
        Self {
            map,
            iotlb: Some(iotlb),
            withdrawals,
        }
    }

    pub fn is_translated(&self) -> bool {
        self.iotlb.is_some()
    }

    pub fn map(&self) -> &MemoryMap {
        self.map
    }

    /// What `GuestMemory::withdrawals` was when this view was made.
    pub fn withdrawals(&self) -> u64 {
        self.withdrawals
    }

    /// As [`MemoryMap::iovecs`]; the pieces are for `access` only.
    pub fn iovecs(
        &self,
        address: u64,
        length: u64,
        access: Access,
        out: &mut Vec<iovec>,
    ) -> Result<(), MemoryError> {
        let Some(iotlb) = &self.iotlb else {
            return self.map.iovecs(address, length, out);
        };
        let before = (out.len(), out.last().map(|last| last.iov_len));
        let result = self.translate(iotlb, address, length, access, out);
        if result.is_err() {
            out.truncate(before.0);
            if let (Some(last), Some(length)) = (out.last_mut(), before.1) {
                last.iov_len = length;
            }
        }
        result
    }

    fn translate(
        &self,
        iotlb: &Iotlb,
        address: u64,
        length: u64,
        access: Access,
        out: &mut Vec<iovec>,
    ) -> Result<(), MemoryError> {
        let Some(rest) = length.checked_sub(1) else {
            return Ok(());
        };
        let last = address
            .checked_add(rest)
            .ok_or(MemoryError::Unmapped { address, length })?;
        let mut iova = address;
        loop {
            let fault = Fault { iova, access };
            let (user, end) = iotlb.find(iova, access).map_err(|refusal| match refusal {
                Refusal::Unknown => MemoryError::Miss(fault),
                Refusal::Denied => MemoryError::Denied(fault),
            })?;
            let end = end.min(last);
            // No overflow: the part is not longer than `length`. A mapping of memory that has
            // gone since is no translation.
            self.map
                .user_iovecs(user, end - iova + 1, out)
                .map_err(|_| MemoryError::Miss(fault))?;
            if end == last {
                return Ok(());
            }
            iova = end + 1;
        }
    }

    /// Copies memory at `address` into `data`; all or nothing. Not atomic.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        if self.iotlb.is_none() {
            return self.map.read(address, data);
        }
        let mut pieces = Vec::new();
        self.iovecs(address, data.len() as u64, Access::READ, &mut pieces)?;
        Cursor::new(&pieces).read(data);
        Ok(())
    }
}
