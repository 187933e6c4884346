use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::lu::Lu;
use crate::sbc::overwrite::{self, Fill};

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Overwrite(Arc<overwrite::Overwrite>);

#[pymethods]
impl Overwrite {
    #[new]
    #[pyo3(signature = (lu, pattern=None, *, passes=1, invert=false))]
    fn new(lu: &Lu, pattern: Option<&[u8]>, passes: u32, invert: bool) -> PyResult<Self> {
        let policy = lu.0.policy.load();
        let block_size = policy.block_size as usize;
        let fill = match pattern {
            None => Fill::Erase,
            Some(pattern) if pattern.is_empty() || pattern.len() > block_size || passes == 0 => {
                return Err(PyValueError::new_err(format!(
                    "a pattern of {} bytes and {passes} passes; 1 to {block_size} bytes and at \
                     least one pass are possible",
                    pattern.len()
                )));
            }
            Some(pattern) => Fill::Pattern {
                block: pattern.iter().copied().cycle().take(block_size).collect(),
                passes,
                invert,
            },
        };
        let len = policy.blocks * u64::from(policy.block_size);
        let engine = lu.0.engine.clone();
        Ok(Self(Arc::new(overwrite::Overwrite::new(engine, len, fill))))
    }

    fn run(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.0.run())?)
    }

    #[getter]
    fn progress(&self) -> u16 {
        self.0.progress()
    }

    fn cancel(&self) {
        self.0.cancel();
    }
}
