use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::inbox::Inbox;
use super::lu::duplicate;
use crate::engine::AlignedBuffer;
use crate::inbox::Notice;
use crate::passthrough::limits::Limits;
use crate::passthrough::node::Reset;
use crate::passthrough::sg::{Interface, SgNode};
use crate::passthrough::{self, LengthField, Rule};

/// More than any command has that Python sends.
const MAX_DATA: usize = 1 << 20;
const MAX_DEPTH: usize = 256;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct PassthroughLimits(Limits);

#[pymethods]
impl PassthroughLimits {
    #[new]
    #[pyo3(signature = (
        *, max_bytes, max_segments, dma_alignment=0, virt_boundary=0, max_cdb=32,
        max_write_same_blocks=0, max_unmap_blocks=0, max_unmap_descriptors=0,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        max_bytes: u64,
        max_segments: u32,
        dma_alignment: u64,
        virt_boundary: u64,
        max_cdb: u32,
        max_write_same_blocks: u64,
        max_unmap_blocks: u64,
        max_unmap_descriptors: u32,
    ) -> PyResult<Self> {
        if max_bytes == 0 || max_segments == 0 || max_cdb == 0 {
            return Err(PyValueError::new_err(
                "a device takes at least one byte, one segment and a CDB",
            ));
        }
        Ok(Self(Limits {
            max_bytes,
            max_segments,
            dma_alignment,
            virt_boundary,
            scatter: true,
            max_cdb,
            max_write_same_blocks,
            max_unmap_blocks,
            max_unmap_descriptors,
        }))
    }

    #[getter]
    fn most(&self) -> u64 {
        self.0.most()
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Passthrough {
    pub device: Arc<passthrough::Passthrough>,
    interface: Interface,
}

impl Passthrough {
    fn limits(&self, limits: &PassthroughLimits) -> Limits {
        Limits {
            scatter: self.interface == Interface::Version3,
            ..limits.0.clone()
        }
    }
}

#[pymethods]
impl Passthrough {
    #[new]
    #[pyo3(signature = (fd, interface, limits, *, depth, rules, asynchronous=false))]
    fn new(
        fd: i32,
        interface: u8,
        limits: &PassthroughLimits,
        depth: usize,
        rules: HashMap<u8, (u32, bool, u8, u8)>,
        asynchronous: bool,
    ) -> PyResult<Self> {
        let interface = match interface {
            3 => Interface::Version3,
            4 => Interface::Version4,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "interface {interface} is neither 3 (sg_io_hdr) nor 4 (sg_io_v4)"
                )))
            }
        };
        if !(1..=MAX_DEPTH).contains(&depth) {
            return Err(PyValueError::new_err(format!(
                "{depth} commands in flight are not within 1 to {MAX_DEPTH}"
            )));
        }
        let mut table = Box::new([Rule::default(); 256]);
        for (opcode, (timeout_s, blocks, at, size)) in rules {
            table[usize::from(opcode)] = Rule {
                timeout_s,
                blocks,
                length: (at > 0).then_some(LengthField { at, size }),
            };
        }
        let fd = duplicate(fd)?;
        let node = Box::new(if asynchronous {
            SgNode::asynchronous(fd, depth)?
        } else {
            SgNode::new(fd, interface)
        });
        let limits = Limits {
            scatter: interface == Interface::Version3,
            ..limits.0.clone()
        };
        Ok(Self {
            device: Arc::new(passthrough::Passthrough::new(node, table, limits, depth)),
            interface,
        })
    }

    fn close(&self) {
        self.device.close();
    }

    fn watch(&self, inbox: &Inbox, token: u64) {
        let inbox = inbox.0.clone();
        self.device.attention.listen(move |value| {
            inbox.notice(Notice::Done { token, value });
        });
    }

    fn set_limits(&self, limits: &PassthroughLimits) {
        self.device.set_limits(self.limits(limits));
    }

    fn set_capacity(&self, block_size: u32, blocks: u64) {
        self.device.set_capacity(block_size, blocks);
    }

    #[pyo3(signature = (cdb, *, data_out=&[] as &[u8], data_in_length=0))]
    fn execute<'py>(
        &self,
        py: Python<'py>,
        cdb: &[u8],
        data_out: &[u8],
        data_in_length: usize,
    ) -> PyResult<(u8, u8, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        if cdb.is_empty() || data_in_length > MAX_DATA || data_out.len() > MAX_DATA {
            return Err(PyValueError::new_err(format!(
                "a CDB and at most {MAX_DATA} bytes of data are needed"
            )));
        }
        let mut padded = cdb.to_vec();
        padded.resize(cdb.len().max(16), 0);
        let mut outgoing = AlignedBuffer::zeroed(data_out.len())?;
        outgoing[..data_out.len()].copy_from_slice(data_out);
        let mut incoming = AlignedBuffer::zeroed(data_in_length)?;
        let passed = py.detach(|| {
            let out = [outgoing.iovec(data_out.len())];
            let data_in = [incoming.iovec(data_in_length)];
            self.device.run(&padded, &out, &data_in)
        });
        let received = (passed.transferred as usize).min(data_in_length);
        Ok((
            passed.response,
            passed.status,
            PyBytes::new(py, &passed.sense),
            PyBytes::new(py, &incoming[..received]),
        ))
    }

    fn reset(&self, py: Python<'_>, scope: u8) -> PyResult<()> {
        let scope = match scope {
            0 => Reset::Device,
            1 => Reset::Target,
            2 => Reset::Bus,
            3 => Reset::Host,
            _ => return Err(PyValueError::new_err(format!("{scope} is no RESET_*"))),
        };
        Ok(py.detach(|| self.device.reset(scope))?)
    }

    #[getter]
    fn split(&self) -> u64 {
        self.device.counters.split.load(Ordering::Relaxed)
    }

    #[getter]
    fn bounced(&self) -> u64 {
        self.device.counters.bounced.load(Ordering::Relaxed)
    }
}
