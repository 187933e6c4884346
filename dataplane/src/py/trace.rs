use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::lu::Lu;
use super::port::Port;
use crate::trace;

/// Most records in a worker's buffer, and most bytes of data in a record.
const MAX_CAPACITY: usize = 1 << 20;
const MAX_DATA: usize = 1 << 20;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Trace(pub Arc<trace::Trace>);

#[pymethods]
impl Trace {
    #[new]
    #[pyo3(signature = (
        capacity, *, units=Vec::new(), opcodes=Vec::new(), actions=Vec::new(), errors=false,
        min_nanoseconds=0, data_bytes=0, keep_newest=false,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        capacity: usize,
        units: Vec<PyRef<'_, Lu>>,
        opcodes: Vec<u8>,
        actions: Vec<u16>,
        errors: bool,
        min_nanoseconds: u64,
        data_bytes: usize,
        keep_newest: bool,
    ) -> Self {
        let mut filter = trace::Filter {
            units: units.iter().map(|unit| Arc::downgrade(&unit.0)).collect(),
            actions,
            errors,
            min_nanoseconds,
            ..trace::Filter::default()
        };
        for opcode in opcodes {
            filter.want_opcode(opcode);
        }
        let full = if keep_newest {
            trace::Full::DropOld
        } else {
            trace::Full::DropNew
        };
        let capacity = capacity.min(MAX_CAPACITY);
        let data_bytes = data_bytes.min(MAX_DATA);
        Self(Arc::new(trace::Trace::new(
            filter, capacity, full, data_bytes,
        )))
    }

    fn take(&self, py: Python<'_>) -> Vec<TraceRecord> {
        let records = py.detach(|| self.0.take());
        records.into_iter().map(TraceRecord).collect()
    }

    fn peek(&self, py: Python<'_>) -> Vec<TraceRecord> {
        let records = py.detach(|| self.0.peek());
        records.into_iter().map(TraceRecord).collect()
    }

    fn take_lost(&self) -> u64 {
        self.0.take_lost()
    }

    fn end(&self) {
        self.0.end();
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct TraceRecord(trace::Record);

#[pymethods]
impl TraceRecord {
    #[getter]
    fn time(&self) -> u64 {
        self.0.time
    }

    #[getter]
    fn nanoseconds(&self) -> u64 {
        self.0.nanoseconds
    }

    #[getter]
    fn port(&self) -> Port {
        Port(self.0.port.clone())
    }

    #[getter]
    fn queue(&self) -> u16 {
        self.0.queue
    }

    #[getter]
    fn lun<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.header.lun)
    }

    #[getter]
    fn tag(&self) -> u64 {
        self.0.header.tag
    }

    #[getter]
    fn task_attribute(&self) -> u8 {
        self.0.header.task_attr
    }

    #[getter]
    fn cdb<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.cdb)
    }

    #[getter]
    fn data_out_length(&self) -> u64 {
        self.0.data_out_length
    }

    #[getter]
    fn data_in_length(&self) -> u64 {
        self.0.data_in_length
    }

    #[getter]
    fn data_out_moved(&self) -> u64 {
        self.0.data_out_moved
    }

    #[getter]
    fn data_in_moved(&self) -> u64 {
        self.0.data_in_moved
    }

    #[getter]
    fn status(&self) -> u8 {
        self.0.status
    }

    #[getter]
    fn response(&self) -> u8 {
        self.0.response
    }

    #[getter]
    fn sense<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.sense)
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.data)
    }
}
