use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::inbox::Inbox;
use crate::engine::space;
use crate::inbox::Notice;

#[pyclass(frozen, weakref, module = "vscsi_emu._dataplane")]
pub struct Space(pub Arc<space::Space>);

#[pymethods]
impl Space {
    #[new]
    fn new(limit: u64) -> PyResult<Self> {
        if limit == 0 {
            return Err(PyValueError::new_err("a limit of 0 bytes holds nothing"));
        }
        Ok(Self(Arc::new(space::Space::new(limit))))
    }

    #[getter]
    fn limit(&self) -> u64 {
        self.0.limit()
    }

    #[getter]
    fn used(&self) -> u64 {
        self.0.used()
    }

    #[pyo3(signature = (inbox, token, level, *, rising))]
    fn watch(&self, inbox: &Inbox, token: u64, level: u64, rising: bool) {
        let inbox = inbox.0.clone();
        self.0.watch(token, level, rising, move |value| {
            inbox.notice(Notice::Done { token, value });
        });
    }

    fn unwatch(&self, token: u64) {
        self.0.unwatch(token);
    }
}
