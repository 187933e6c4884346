use std::collections::HashMap;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::by_identity;
use super::lu::Nexus;
use super::stats::{self, Statistics};
use crate::{port, task};

/// More than any sense data (SPC-6: 252); bounds what a worker writes for one response.
const MAX_SENSE_SIZE: u32 = 65536;

#[pyclass(frozen, eq, hash, module = "vscsi_emu._dataplane")]
pub struct Port(pub Arc<port::Port>);

impl Port {
    fn identity(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

by_identity!(Port);

#[pymethods]
impl Port {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    #[getter]
    fn cdb_size(&self) -> usize {
        self.0.cdb_size()
    }

    #[setter]
    fn set_cdb_size(&self, size: u32) -> PyResult<()> {
        if size == 0 || size as usize > task::MAX_CDB {
            return Err(PyValueError::new_err(format!(
                "cdb_size {size} is not within 1..={}",
                task::MAX_CDB
            )));
        }
        self.0.set_cdb_size(size);
        Ok(())
    }

    #[getter]
    fn sense_size(&self) -> usize {
        self.0.sense_size()
    }

    #[setter]
    fn set_sense_size(&self, size: u32) -> PyResult<()> {
        if size > MAX_SENSE_SIZE {
            return Err(PyValueError::new_err(format!(
                "sense_size {size} is more than {MAX_SENSE_SIZE}"
            )));
        }
        self.0.set_sense_size(size);
        Ok(())
    }

    #[getter]
    fn inout(&self) -> bool {
        self.0.inout()
    }

    #[setter]
    fn set_inout(&self, on: bool) {
        self.0.set_inout(on);
    }

    #[pyo3(signature = (luns, targets=Vec::new()))]
    fn set_luns(
        &self,
        luns: HashMap<(u8, u16), PyRef<'_, Nexus>>,
        targets: Vec<u8>,
    ) -> PyResult<()> {
        if let Some((target, lun)) = luns.keys().find(|(_, lun)| *lun > 16383) {
            return Err(PyValueError::new_err(format!(
                "LUN {lun} of target {target} is above 16383"
            )));
        }
        self.0.set_luns(
            luns.into_iter()
                .map(|(at, nexus)| (at, nexus.0.clone()))
                .collect(),
            &targets,
        );
        Ok(())
    }

    #[getter]
    fn statistics(&self) -> HashMap<u16, Statistics> {
        stats::by_queue(&self.0.stats)
    }
}
