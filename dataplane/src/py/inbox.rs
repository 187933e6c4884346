use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::lu::Nexus;
use super::port::Port;
use super::queue::Queue;
use crate::engine::python::{self, Refused};
use crate::engine::IoKind;
use crate::inbox;
use crate::sense::SenseInfo;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Command(inbox::Command);

#[pymethods]
impl Command {
    #[getter]
    fn port(&self) -> Port {
        Port(self.0.port.clone())
    }

    #[getter]
    fn queue(&self) -> Queue {
        Queue(self.0.queue.clone())
    }

    #[getter]
    fn nexus(&self) -> Option<Nexus> {
        self.0.nexus.clone().map(Nexus)
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
    fn priority(&self) -> u8 {
        self.0.header.prio
    }

    #[getter]
    fn crn(&self) -> u8 {
        self.0.header.crn
    }

    #[getter]
    fn cdb<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.cdb)
    }

    #[getter]
    fn data_out<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.data_out)
    }

    #[getter]
    fn data_out_length(&self) -> u64 {
        self.0.data_out_length
    }

    #[getter]
    fn data_in_length(&self) -> u64 {
        self.0.data_in_length
    }

    #[pyo3(signature = (status, *, data_in=Vec::new(), sense=Vec::new()))]
    fn finish(&self, status: u8, data_in: Vec<u8>, sense: Vec<u8>) {
        self.0.reply.finish(status, sense, data_in);
    }

    fn execute(&self) {
        self.0.reply.execute();
    }

    fn fail(&self, response: u8) {
        self.0.reply.fail(response);
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Control(inbox::Control);

#[pymethods]
impl Control {
    #[getter]
    fn port(&self) -> Port {
        Port(self.0.port.clone())
    }

    #[getter]
    fn queue(&self) -> Queue {
        Queue(self.0.queue.clone())
    }

    #[getter]
    fn request<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.request)
    }

    #[getter]
    fn reply_capacity(&self) -> u64 {
        self.0.reply_capacity
    }

    fn finish(&self, reply: Vec<u8>) {
        self.0.reply.control(reply);
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Notice(inbox::Notice);

#[pymethods]
impl Notice {
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0 {
            inbox::Notice::Done { .. } => "done",
            inbox::Notice::Call { .. } => "call",
            inbox::Notice::Event { .. } => "event",
            inbox::Notice::Miss { .. } => "miss",
            inbox::Notice::Denied { .. } => "denied",
            inbox::Notice::Broken { .. } => "broken",
            inbox::Notice::Warning { .. } => "warning",
            inbox::Notice::Fault { .. } => "fault",
        }
    }

    #[getter]
    fn token(&self) -> u64 {
        match self.0 {
            inbox::Notice::Done { token, .. } | inbox::Notice::Call { token, .. } => token,
            inbox::Notice::Miss { fault, .. } | inbox::Notice::Denied { fault, .. } => {
                fault.access.bits().into()
            }
            _ => 0,
        }
    }

    #[getter]
    fn value(&self) -> u64 {
        match self.0 {
            inbox::Notice::Done { value, .. } => value,
            inbox::Notice::Call { queue, .. } => queue.into(),
            inbox::Notice::Fault { ref held, .. } => held.stamp,
            inbox::Notice::Miss { fault, .. } | inbox::Notice::Denied { fault, .. } => fault.iova,
            _ => 0,
        }
    }

    #[getter]
    fn queue(&self) -> Option<Queue> {
        match &self.0 {
            inbox::Notice::Event { queue }
            | inbox::Notice::Miss { queue, .. }
            | inbox::Notice::Denied { queue, .. }
            | inbox::Notice::Broken { queue, .. } => Some(Queue(queue.clone())),
            _ => None,
        }
    }

    #[getter]
    fn port(&self) -> Option<Port> {
        match &self.0 {
            inbox::Notice::Fault { port, .. } => Some(Port(port.clone())),
            _ => None,
        }
    }

    #[getter]
    fn nexus(&self) -> Option<Nexus> {
        match &self.0 {
            inbox::Notice::Fault { nexus, .. } => Some(Nexus(nexus.clone())),
            _ => None,
        }
    }

    #[getter]
    fn text(&self) -> &str {
        match &self.0 {
            inbox::Notice::Broken { text, .. } | inbox::Notice::Warning { text } => text,
            _ => "",
        }
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Transfer(python::Transfer);

#[pymethods]
impl Transfer {
    #[getter]
    fn token(&self) -> u64 {
        self.0.token
    }

    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            IoKind::Read => "read",
            IoKind::Write => "write",
            IoKind::Flush => "flush",
            IoKind::Discard => "discard",
            IoKind::Zero | IoKind::Prefetch | IoKind::Mark => unreachable!("never sent"),
        }
    }

    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset
    }

    #[getter]
    fn length(&self) -> u64 {
        self.0.len
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.data)
    }

    #[pyo3(signature = (data=Vec::new()))]
    fn finish(&self, data: Vec<u8>) {
        self.0.answer(Ok(data));
    }

    fn fail(&self, errno: i32) {
        self.0.answer(Err(io::Error::from_raw_os_error(errno)));
    }

    fn refuse(&self, key: u8, asc: u8, ascq: u8) {
        let info = SenseInfo::new(key, u16::from_be_bytes([asc, ascq]));
        self.0.answer(Err(io::Error::other(Refused(info))));
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Inbox(pub Arc<inbox::Inbox>);

#[pymethods]
impl Inbox {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self(Arc::new(inbox::Inbox::new()?)))
    }

    fn fileno(&self) -> i32 {
        self.0.as_fd().as_raw_fd()
    }

    #[pyo3(signature = (limit=256))]
    fn take<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.0
            .take(limit)
            .into_iter()
            .map(|message| {
                Ok(match message {
                    inbox::Message::Command(command) => {
                        Bound::new(py, Command(command))?.into_any()
                    }
                    inbox::Message::Control(control) => {
                        Bound::new(py, Control(control))?.into_any()
                    }
                    inbox::Message::Notice(notice) => Bound::new(py, Notice(notice))?.into_any(),
                    inbox::Message::Transfer(transfer) => {
                        Bound::new(py, Transfer(transfer))?.into_any()
                    }
                })
            })
            .collect()
    }
}
