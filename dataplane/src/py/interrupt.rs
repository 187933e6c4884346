use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use pyo3::prelude::*;

use crate::interrupt;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Interrupt(pub Arc<interrupt::Interrupt>);

#[pymethods]
impl Interrupt {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self(Arc::new(interrupt::Interrupt::new()?)))
    }

    #[getter]
    fn status(&self) -> u32 {
        self.0.status()
    }

    #[getter]
    fn level(&self) -> bool {
        self.0.status() != 0
    }

    #[getter]
    fn generation(&self) -> u32 {
        self.0.generation()
    }

    fn acknowledge(&self, mask: u32) {
        self.0.acknowledge(mask);
    }

    fn config_changed(&self) {
        self.0.config_changed();
    }

    fn notify_config(&self) {
        self.0.notify_config();
    }

    fn change_generation(&self) {
        self.0.change_generation();
    }

    fn reset(&self) {
        self.0.reset();
    }

    fn fileno(&self) -> i32 {
        self.0.as_fd().as_raw_fd()
    }

    fn clear(&self) {
        self.0.clear();
    }
}
