//! Who may see what of guest memory, and who waits to: the IOTLB of one guest.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::iotlb::{Access, Fault, Iotlb};

/// Called once, from whatever thread changes the table.
type Wake = Box<dyn FnOnce() + Send>;

/// The table is one for all queues, behind a lock that is held for look-ups and changes only: an
/// update costs the same however many mappings there are, and pointers handed out do not need the
/// table any more (the memory map keeps what they point to).
#[derive(Default)]
pub(super) struct Iommu {
    table: RwLock<Iotlb>,
    /// Counts what took a translation away; written with `table` locked.
    withdrawals: AtomicU64,
    waiting: Mutex<HashMap<u64, (Fault, Wake)>>,
}

impl Iommu {
    pub(super) fn table(&self) -> RwLockReadGuard<'_, Iotlb> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Iotlb> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, (Fault, Wake)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever resolved addresses at another count must do so again.
    pub(super) fn withdrawals(&self) -> u64 {
        self.withdrawals.load(Ordering::Acquire)
    }

    pub(super) fn update(&self, first: u64, last: u64, user: u64, access: Access) {
        {
            let mut table = self.table_mut();
            if table.insert(first, last, user, access) {
                self.withdrawals.fetch_add(1, Ordering::Release);
            }
        }
        // After the table: who finds nothing there and then waits is found here.
        let woken: Vec<Wake> = {
            let mut waiting = self.waiting();
            let hit = waiting
                .iter()
                .filter(|(_, (fault, _))| (first..=last).contains(&fault.iova));
            let ids: Vec<_> = hit.map(|(&id, _)| id).collect();
            let taken = ids.iter().filter_map(|id| waiting.remove(id));
            taken.map(|(_, wake)| wake).collect()
        };
        for wake in woken {
            wake();
        }
    }

    pub(super) fn invalidate(&self, first: u64, last: u64) {
        let mut table = self.table_mut();
        table.remove(first, last);
        // Even if nothing was there: an evicted mapping may still be in use where it was resolved.
        self.withdrawals.fetch_add(1, Ordering::Release);
    }

    /// Calls `wake` once `fault.iova` is mapped, unless `missing` says that there is no need to
    /// wait any more.
    pub(super) fn wait(
        &self,
        id: u64,
        fault: Fault,
        missing: impl FnOnce() -> bool,
        wake: Wake,
    ) -> bool {
        let mut waiting = self.waiting();
        let wait = missing();
        if wait {
            waiting.insert(id, (fault, wake));
        }
        wait
    }

    pub(super) fn forget(&self, id: u64) {
        self.waiting().remove(&id);
    }
}
