use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::ring::hostile::{self, Misdeed};

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Hostility(pub Arc<hostile::Hostility>);

#[pymethods]
impl Hostility {
    #[new]
    #[pyo3(signature = (misdeeds, *, seed, chance=100, armed=true))]
    fn new(misdeeds: Vec<String>, seed: u64, chance: u64, armed: bool) -> PyResult<Self> {
        let named = |name: &String| {
            Misdeed::named(name)
                .ok_or_else(|| PyValueError::new_err(format!("no ring does {name:?}")))
        };
        Ok(Self(Arc::new(hostile::Hostility {
            misdeeds: misdeeds.iter().map(named).collect::<PyResult<_>>()?,
            seed,
            chance,
            armed: AtomicBool::new(armed),
            done: AtomicU64::new(0),
        })))
    }

    fn arm(&self) {
        self.0.armed.store(true, Ordering::Relaxed);
    }

    #[getter]
    fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }
}
