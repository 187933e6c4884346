use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::GuestMemoryError;
use crate::memory::{self, Access, MemoryError, RegionSpec};

type Region = (u64, u64, u64, u64, i32);

fn raise(error: MemoryError) -> PyErr {
    GuestMemoryError::new_err(error.to_string())
}

fn spec(region: &Region) -> PyResult<RegionSpec<'_>> {
    let (guest_address, size, user_address, mmap_offset, fd) = *region;
    if fd < 0 {
        return Err(GuestMemoryError::new_err(format!(
            "{fd} is no file descriptor"
        )));
    }
    // SAFETY: borrowed for the call; Python's caller owns it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(RegionSpec {
        guest_address,
        size,
        user_address,
        mmap_offset,
        fd,
    })
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct GuestMemory(pub Arc<memory::GuestMemory>);

#[pymethods]
impl GuestMemory {
    #[new]
    fn new() -> Self {
        Self(Arc::new(memory::GuestMemory::new()))
    }

    #[staticmethod]
    #[pyo3(signature = (size, guest_address=0))]
    fn anonymous(size: u64, guest_address: u64) -> PyResult<Self> {
        let memory = memory::GuestMemory::anonymous(guest_address, size).map_err(raise)?;
        Ok(Self(Arc::new(memory)))
    }

    fn replace(&self, py: Python<'_>, regions: Vec<Region>) -> PyResult<()> {
        let specs = regions.iter().map(spec).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.0.replace(specs)).map_err(raise)
    }

    fn add(&self, py: Python<'_>, region: Region) -> PyResult<()> {
        let spec = spec(&region)?;
        py.detach(|| self.0.add(spec)).map_err(raise)
    }

    fn remove(
        &self,
        py: Python<'_>,
        guest_address: u64,
        user_address: u64,
        size: u64,
    ) -> PyResult<()> {
        py.detach(|| self.0.remove(guest_address, user_address, size))
            .map_err(raise)
    }

    fn user_to_guest(&self, user_address: u64, length: u64) -> PyResult<u64> {
        self.0
            .load()
            .user_to_guest(user_address, length)
            .ok_or_else(|| {
                GuestMemoryError::new_err(format!(
                    "user address {user_address:#x}+{length:#x} is in no memory region"
                ))
            })
    }

    fn iotlb_update(&self, iova: u64, size: u64, user_address: u64, access: u8) -> PyResult<()> {
        let access = Access::from_bits(access).ok_or_else(|| {
            GuestMemoryError::new_err(format!(
                "access {access} is not 1 (read), 2 (write) or 3 (both)"
            ))
        })?;
        self.0
            .iotlb_update(iova, size, user_address, access)
            .map_err(raise)
    }

    fn iotlb_invalidate(&self, iova: u64, size: u64) {
        self.0.iotlb_invalidate(iova, size);
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        address: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let map = self.0.load();
        // Checked before anything is allocated for it.
        map.iovecs(address, length as u64, &mut Vec::new())
            .map_err(raise)?;
        PyBytes::new_with(py, length, |bytes| map.read(address, bytes).map_err(raise))
    }

    fn write(&self, address: u64, data: &[u8]) -> PyResult<()> {
        self.0.load().write(address, data).map_err(raise)
    }

    fn load_u16_acquire(&self, address: u64) -> PyResult<u16> {
        self.0.load().load_u16_acquire(address).map_err(raise)
    }

    fn store_u16_release(&self, address: u64, value: u16) -> PyResult<()> {
        self.0
            .load()
            .store_u16_release(address, value)
            .map_err(raise)
    }

    #[staticmethod]
    fn fence() {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    fn fileno(&self) -> i32 {
        self.0.fd().map_or(-1, |fd| fd.as_raw_fd())
    }

    #[getter]
    fn regions(&self) -> Vec<(u64, u64, u64)> {
        self.0.load().regions().collect()
    }

    #[getter]
    fn dead(&self) -> bool {
        self.0.is_dead()
    }
}
