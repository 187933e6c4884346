//! Guest memory: the regions a front end shares, mapped, looked up and swapped while I/O runs.
//!
//! Addresses are guest-physical unless said otherwise; with VIRTIO_F_ACCESS_PLATFORM a driver's are I
//! virtual, and a [`View`] translates them. A [`MemoryMap`] is an immutable snapshot:
//! whoever holds its `Arc` may use the pointers it handed out, whatever happens to the table.

mod error;
mod iommu;
#[cfg(test)]
mod iommu_tests;
mod iotlb;
mod map;
mod mapping;
mod sigbus;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

pub use error::MemoryError;
use iommu::Iommu;
pub use iotlb::{Access, Fault, MAX_MAPPINGS};
pub use map::MemoryMap;
use map::Region;
use mapping::Mapping;
pub use view::View;

/// More regions than any front end uses (vhost-user's libraries stop at 509); bounds look-ups.
pub const MAX_REGIONS: usize = 512;

/// One region as a front end describes it (vhost-user "memory region description").
#[derive(Clone, Copy, Debug)]
pub struct RegionSpec<'a> {
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// Where the front end itself has the region mapped; ring addresses may be given so.
    pub user_address: u64,
    /// Offset of the region in `fd`, bytes; need not be a multiple of the page size.
    pub mmap_offset: u64,
    /// Mapped, not kept. The file may be shorter than the region, now or later.
    pub fd: BorrowedFd<'a>,
}

/// RAM of one guest: the table in force, shared by all queues of a session.
pub struct GuestMemory {
    map: ArcSwap<MemoryMap>,
    /// The pointer in `map`, for a comparison that costs one load.
    current: AtomicPtr<MemoryMap>,
    /// Serialises changes; readers never take it.
    changing: Mutex<()>,
    iommu: Iommu,
    dead: Arc<AtomicBool>,
    fd: Option<OwnedFd>,
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestMemory {
    /// No regions yet.
    pub fn new() -> Self {
        let map = Arc::new(MemoryMap::default());
        Self {
            current: AtomicPtr::new(Arc::as_ptr(&map).cast_mut()),
            map: ArcSwap::new(map),
            changing: Mutex::new(()),
            iommu: Iommu::default(),
            dead: Arc::default(),
            fd: None,
        }
    }

    /// Memory of our own: a memfd of `size` bytes whose user addresses are its guest addresses.
    pub fn anonymous(guest_address: u64, size: u64) -> Result<Self, MemoryError> {
        let file = memfd(size).map_err(|source| MemoryError::Create { size, source })?;
        let mut memory = Self::new();
        memory.add(RegionSpec {
            guest_address,
            size,
            user_address: guest_address,
            mmap_offset: 0,
            fd: file.as_fd(),
        })?;
        memory.fd = Some(file.into());
        Ok(memory)
    }

    /// The memfd of [`GuestMemory::anonymous`].
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Puts a whole new table in force, or leaves the old one if anything is wrong with it.
    pub fn replace(&self, specs: Vec<RegionSpec<'_>>) -> Result<(), MemoryError> {
        let _changing = self.lock();
        let regions = specs.iter().map(|spec| self.region(spec));
        self.publish(MemoryMap::new(regions.collect::<Result<_, _>>()?)?);
        Ok(())
    }

    /// Adds a region that overlaps none in force, neither in guest nor in user addresses.
    pub fn add(&self, spec: RegionSpec<'_>) -> Result<(), MemoryError> {
        let _changing = self.lock();
        let mut regions = self.map.load().to_vec();
        regions.push(self.region(&spec)?);
        self.publish(MemoryMap::new(regions)?);
        Ok(())
    }

    /// Removes the region with exactly these. It stays mapped until I/O in flight lets go of it.
    pub fn remove(
        &self,
        guest_address: u64,
        user_address: u64,
        size: u64,
    ) -> Result<(), MemoryError> {
        let _changing = self.lock();
        let mut regions = self.map.load().to_vec();
        let before = regions.len();
        regions.retain(|region| region.key() != (guest_address, size, user_address));
        if regions.len() == before {
            return Err(MemoryError::NoSuchRegion {
                guest_address,
                user_address,
                size,
            });
        }
        self.publish(MemoryMap::new(regions)?);
        Ok(())
    }

    /// The table in force.
    pub fn load(&self) -> Arc<MemoryMap> {
        self.map.load_full()
    }

    /// Whether `map`, from [`GuestMemory::load`], is still the table in force.
    pub fn is_current(&self, map: &Arc<MemoryMap>) -> bool {
        // The caller's Arc keeps the address from being reused, so equal means the same. Acquire:
        // who sees a new pointer here also sees it in `map`, which was stored before.
        std::ptr::eq(self.current.load(Ordering::Acquire), Arc::as_ptr(map))
    }

    /// True once a region was found truncated: zero pages stand in for it, the session is over.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// The kernel found guest memory gone (EFAULT) where a look of ours would have met SIGBUS.
    pub fn condemn(&self) {
        self.dead.store(true, Ordering::Release);
    }

    // ── VIRTIO_F_ACCESS_PLATFORM ─────────────────────────────────────────────────────────────

    /// A driver's view of `map`: its addresses are guest-physical, or I/O virtual if `translated`.
    pub fn view<'a>(&'a self, map: &'a MemoryMap, translated: bool) -> View<'a> {
        if !translated {
            return View::physical(map);
        }
        let table = self.iommu.table();
        // With the table locked: the count belongs to what is found there.
        let withdrawals = self.iommu.withdrawals();
        View::translated(map, table, withdrawals)
    }

    /// Counts what may have taken a translation away. Who resolved I/O addresses at another count
    /// must do so again before the next use.
    pub fn withdrawals(&self) -> u64 {
        self.iommu.withdrawals()
    }

    /// Maps `size` bytes of I/O addresses to a front end's addresses, which lie in its regions;
    /// replaces what overlaps. Whoever waits for one of them is woken.
    pub fn iotlb_update(
        &self,
        iova: u64,
        size: u64,
        user: u64,
        access: Access,
    ) -> Result<(), MemoryError> {
        let last = |start: u64| start.checked_add(size.checked_sub(1)?);
        let (Some(iova_last), Some(_)) = (last(iova), last(user)) else {
            return Err(MemoryError::MappingWraps { iova, size, user });
        };
        self.load().user_iovecs(user, size, &mut Vec::new())?;
        self.iommu.update(iova, iova_last, user, access);
        Ok(())
    }

    /// Forgets `size` bytes of I/O addresses; 0, or too many, mean all from `iova` on. No look-up
    /// finds them once this returns; chains and rings that found them before may still be in use.
    pub fn iotlb_invalidate(&self, iova: u64, size: u64) {
        self.iommu
            .invalidate(iova, iova.saturating_add(size.wrapping_sub(1)));
    }

    /// Calls `wake` once `fault.iova` is mapped. False: it is already, or it is forbidden now, so
    /// look again. One wait an `id`.
    pub fn wait(&self, id: u64, fault: Fault, wake: impl FnOnce() + Send + 'static) -> bool {
        let missing = || {
            let map = self.load();
            let view = self.view(&map, true);
            let found = view.iovecs(fault.iova, 1, fault.access, &mut Vec::new());
            matches!(found, Err(MemoryError::Miss(_)))
        };
        self.iommu.wait(id, fault, missing, Box::new(wake))
    }

    /// Ends the wait of `id`, if there is one.
    pub fn forget(&self, id: u64) {
        self.iommu.forget(id);
    }

    fn region(&self, spec: &RegionSpec<'_>) -> Result<Region, MemoryError> {
        let mapping = Mapping::new(spec, Arc::clone(&self.dead))?;
        Ok(Region::new(spec, Arc::new(mapping)))
    }

    fn publish(&self, map: MemoryMap) {
        let map = Arc::new(map);
        let pointer = Arc::as_ptr(&map).cast_mut();
        self.map.store(map);
        self.current.store(pointer, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A memfd of `size` bytes.
fn memfd(size: u64) -> std::io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(size)?;
    Ok(file)
}
