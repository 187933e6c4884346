use std::sync::Arc;

use pyo3::prelude::*;

use super::lu::Lu;
use crate::sbc::scan;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Scan(Arc<scan::Scan>);

#[pymethods]
impl Scan {
    #[new]
    fn new(lu: &Lu) -> Self {
        let engine = lu.0.engine.clone();
        Self(Arc::new(scan::Scan::new(engine, lu.0.policy.load_full())))
    }

    fn run(&self, py: Python<'_>) -> PyResult<Option<(u64, u8, u16)>> {
        let bad = py.detach(|| self.0.run())?;
        Ok(bad.map(|bad| (bad.lba, bad.key, bad.code)))
    }

    #[getter]
    fn progress(&self) -> u16 {
        self.0.progress()
    }

    fn cancel(&self) {
        self.0.cancel();
    }
}
