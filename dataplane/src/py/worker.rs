use std::sync::Arc;

use pyo3::prelude::*;

use super::fault::FaultRule;
use super::inbox::Inbox;
use super::lu::{Lu, Nexus};
use super::memory::GuestMemory;
use super::port::Port;
use super::trace::Trace;
use crate::task::Ending;
use crate::worker::{self, Scope};

fn scope(
    port: Option<&Port>,
    lu: Option<&Lu>,
    nexus: Option<&Nexus>,
    tag: Option<u64>,
    until: Option<u64>,
) -> Scope {
    Scope {
        port: port.map(|port| port.0.clone()),
        lu: lu.map(|lu| lu.0.clone()),
        nexus: nexus.map(|nexus| nexus.0.clone()),
        tag,
        until,
        ..Scope::default()
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Worker(pub Arc<worker::Worker>);

#[pymethods]
impl Worker {
    #[new]
    #[pyo3(signature = (inbox, name, *, io_uring=true))]
    fn new(py: Python<'_>, inbox: &Inbox, name: &str, io_uring: bool) -> PyResult<Self> {
        let inbox = inbox.0.clone();
        let worker = py.detach(|| worker::Worker::start(inbox, name, io_uring))?;
        Ok(Self(Arc::new(worker)))
    }

    #[getter]
    fn io_backend(&self) -> &'static str {
        if self.0.has_io_uring() {
            "io_uring"
        } else {
            "threads"
        }
    }

    #[pyo3(signature = (
        token, response, *, status=0, port=None, lu=None, nexus=None, tag=None, until=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn abort(
        &self,
        token: u64,
        response: u8,
        status: u8,
        port: Option<&Port>,
        lu: Option<&Lu>,
        nexus: Option<&Nexus>,
        tag: Option<u64>,
        until: Option<u64>,
    ) {
        let ending = Ending { response, status };
        self.0
            .abort(token, ending, scope(port, lu, nexus, tag, until));
    }

    #[pyo3(signature = (token, *, port=None, lu=None, nexus=None, tag=None, opcodes=Vec::new()))]
    fn query(
        &self,
        token: u64,
        port: Option<&Port>,
        lu: Option<&Lu>,
        nexus: Option<&Nexus>,
        tag: Option<u64>,
        opcodes: Vec<u8>,
    ) {
        let scope = Scope {
            opcodes,
            ..scope(port, lu, nexus, tag, None)
        };
        self.0.query(token, scope);
    }

    #[pyo3(signature = (lu, rule=None))]
    fn release(&self, lu: &Lu, rule: Option<&FaultRule>) {
        self.0
            .release(lu.0.clone(), rule.map(|rule| rule.0.clone()));
    }

    #[pyo3(signature = (token, *, lu=None))]
    fn quiesce(&self, token: u64, lu: Option<&Lu>) {
        self.0.quiesce(token, scope(None, lu, None, None, None));
    }

    fn quiesce_range(&self, token: u64, memory: &GuestMemory, iova: u64, size: u64) {
        self.0.quiesce_range(token, memory.0.clone(), iova, size);
    }

    fn trace(&self, trace: &Trace) {
        self.0.trace(trace.0.clone());
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}
