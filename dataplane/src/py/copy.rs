use std::io;
use std::sync::Arc;

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;

use super::lu::Lu;
use super::SourceChangedError;
use crate::copy::{self, Run, SourceChanged};
use crate::engine::space::SpaceSoon;
use crate::engine::{watched, Partial};

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Watch(Arc<watched::Watch>);

#[pymethods]
impl Watch {
    #[new]
    fn new(lu: &Lu, ranges: Vec<(u64, u64)>) -> PyResult<Self> {
        let watch = Arc::new(watched::Watch::new(ranges));
        match lu.0.engine.watch(&watch) {
            true => Ok(Self(watch)),
            false => Err(PyRuntimeError::new_err("this unit's changes go unnoticed")),
        }
    }

    #[getter]
    fn changed(&self) -> bool {
        self.0.changed()
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Copy(copy::Copy);

#[pymethods]
impl Copy {
    #[new]
    #[pyo3(signature = (target, source, runs, *, durable, unless=None))]
    fn new(
        target: &Lu,
        source: Option<&Lu>,
        runs: Vec<(u64, u64, u64)>,
        durable: bool,
        unless: Option<&Watch>,
    ) -> Self {
        let runs = runs.into_iter();
        Self(copy::Copy::new(
            target.0.clone(),
            source.map(|source| source.0.clone()),
            runs.map(|(from, to, len)| Run { from, to, len }).collect(),
            durable,
            unless.map(|watch| watch.0.clone()),
        ))
    }

    fn run(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.run()).map_err(|error| raised(&error))
    }

    #[getter]
    fn runs(&self) -> Vec<(u64, u64, u64)> {
        let runs = self.0.runs().iter();
        runs.map(|run| (run.from, run.to, run.len)).collect()
    }

    #[getter]
    fn copied(&self) -> u64 {
        self.0.copied()
    }

    fn cancel(&self) {
        self.0.cancel();
    }
}

/// With the errno that is behind it.
fn raised(error: &io::Error) -> PyErr {
    let (_, bare) = Partial::split(error);
    match bare.get_ref() {
        Some(inner) if inner.is::<SourceChanged>() => {
            return SourceChangedError::new_err(inner.to_string());
        }
        Some(inner) if inner.is::<SpaceSoon>() => {
            return PyOSError::new_err((libc::EAGAIN, inner.to_string()));
        }
        _ => {}
    }
    match bare.raw_os_error() {
        // Python makes the right subclass of it.
        Some(errno) => PyOSError::new_err((errno, bare.to_string())),
        None => io::Error::new(bare.kind(), bare.to_string()).into(),
    }
}
