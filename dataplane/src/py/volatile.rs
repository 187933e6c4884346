use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::lu::Engine;
use crate::engine::volatile;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct VolatileCache(Arc<volatile::VolatileCache>);

#[pymethods]
impl VolatileCache {
    #[new]
    #[pyo3(signature = (medium, *, capacity, tear))]
    fn new(medium: &Engine, capacity: u64, tear: u64) -> PyResult<Self> {
        let cache =
            volatile::VolatileCache::new(medium.0.clone(), capacity, tear).map_err(|_| {
                PyValueError::new_err(format!(
                "tear {tear} is no power of two, or the medium's {} bytes are not blocks of 512",
                medium.0.size()
            ))
            })?;
        Ok(Self(Arc::new(cache)))
    }

    #[getter]
    fn engine(&self) -> Engine {
        Engine(self.0.clone())
    }

    fn fail(&self, py: Python<'_>, seed: u64) -> PyResult<(u64, u64, u64)> {
        let losses = py.detach(|| self.0.fail(seed))?;
        Ok((losses.survived, losses.torn, losses.lost))
    }

    fn power_on(&self, py: Python<'_>) {
        py.detach(|| self.0.power_on());
    }
}
