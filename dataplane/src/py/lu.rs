use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::by_identity;
use super::fault::FaultRule;
use super::inbox::Inbox;
use super::passthrough::Passthrough;
use super::space::Space;
use super::stats::{self, Statistics};
use crate::cache::Flush;
use crate::engine::marked::MarkedEngine;
use crate::engine::watched::WatchedEngine;
use crate::limits::Rate;
use crate::passthrough::engine::PassthroughEngine;
use crate::policy::Qerr;
use crate::{engine, lu, policy, task_set};

pub(super) fn duplicate(fd: i32) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is no file descriptor")));
    }
    // SAFETY: borrowed for the call; Python's caller owns it.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?)
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Engine(pub(super) Arc<dyn engine::Engine>);

#[pymethods]
impl Engine {
    #[staticmethod]
    #[pyo3(signature = (fd, size, *, direct_fd=-1, discard=true, read_only=false))]
    fn file(fd: i32, size: u64, direct_fd: i32, discard: bool, read_only: bool) -> PyResult<Self> {
        let direct = if direct_fd < 0 {
            None
        } else {
            Some(duplicate(direct_fd)?)
        };
        let fd = duplicate(fd)?;
        Ok(Self(Arc::new(engine::file::FileEngine::new(
            fd, direct, size, discard, read_only,
        )?)))
    }

    #[staticmethod]
    fn memory(size: u64) -> PyResult<Self> {
        Ok(Self(Arc::new(engine::memory::MemoryEngine::new(size)?)))
    }

    #[staticmethod]
    fn null(size: u64) -> Self {
        Self(Arc::new(engine::null::NullEngine::new(size)))
    }

    #[staticmethod]
    #[pyo3(signature = (inbox, token, size, *, discard=false))]
    fn python(inbox: &Inbox, token: u64, size: u64, discard: bool) -> Self {
        let inbox = inbox.0.clone();
        Self(Arc::new(engine::python::PythonEngine::new(
            inbox, token, size, discard,
        )))
    }

    #[staticmethod]
    fn passthrough(device: &Passthrough) -> Self {
        Self(Arc::new(PassthroughEngine(device.device.clone())))
    }

    #[getter]
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn resize(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        py.detach(|| self.0.resize(size))?;
        Ok(())
    }

    #[getter]
    fn can_discard(&self) -> bool {
        self.0.can_discard()
    }

    #[getter]
    fn allocated(&self) -> Option<u64> {
        self.0.allocated()
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let flush = engine::Io {
            kind: engine::IoKind::Flush,
            offset: 0,
            len: self.0.size(),
            durable: true,
        };
        py.detach(|| self.0.run(&flush, &[]))?;
        Ok(())
    }

    fn thin(&self, space: &Space) -> PyResult<Self> {
        let engine = engine::thin::ThinEngine::new(self.0.clone(), space.0.clone())?;
        Ok(Self(Arc::new(engine)))
    }
}

#[pyclass(frozen, eq, module = "vscsi_emu._dataplane")]
#[derive(Clone, PartialEq)]
pub struct LunPolicy(policy::LunPolicy);

#[pymethods]
impl LunPolicy {
    #[new]
    #[pyo3(signature = (
        *, block_size, blocks, write_protected=false, write_cache=true, descriptor_sense=false,
        max_transfer_blocks=0, max_write_same_blocks=0, max_unmap_blocks=0,
        max_unmap_descriptors=0, unmap=false, max_compare_and_write_blocks=0,
        max_atomic_blocks=0, atomic_granularity_blocks=0, qerr=0, restricted_reordering=false,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        block_size: u32,
        blocks: u64,
        write_protected: bool,
        write_cache: bool,
        descriptor_sense: bool,
        max_transfer_blocks: u32,
        max_write_same_blocks: u64,
        max_unmap_blocks: u32,
        max_unmap_descriptors: u32,
        unmap: bool,
        max_compare_and_write_blocks: u32,
        max_atomic_blocks: u32,
        atomic_granularity_blocks: u32,
        qerr: u8,
        restricted_reordering: bool,
    ) -> PyResult<Self> {
        if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
            return Err(PyValueError::new_err(format!(
                "block_size {block_size} is not a power of two from 512 to 65536"
            )));
        }
        if blocks == 0
            || blocks
                .checked_mul(u64::from(block_size))
                .is_none_or(|n| n > i64::MAX as u64)
        {
            return Err(PyValueError::new_err(format!(
                "{blocks} blocks of {block_size} bytes are no capacity a file can have"
            )));
        }
        let qerr = match qerr {
            0 => Qerr::Nothing,
            1 => Qerr::AbortsAll,
            3 => Qerr::AbortsOwn,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "qerr {qerr} is not 0, 1 or 3"
                )))
            }
        };
        Ok(Self(policy::LunPolicy {
            block_size,
            blocks,
            write_protected,
            write_cache,
            descriptor_sense,
            max_transfer_blocks,
            max_write_same_blocks,
            max_unmap_blocks,
            max_unmap_descriptors,
            unmap,
            max_compare_and_write_blocks,
            max_atomic_blocks,
            atomic_granularity_blocks,
            qerr,
            restricted_reordering,
        }))
    }

    #[getter]
    fn block_size(&self) -> u32 {
        self.0.block_size
    }

    #[getter]
    fn blocks(&self) -> u64 {
        self.0.blocks
    }

    #[getter]
    fn write_protected(&self) -> bool {
        self.0.write_protected
    }

    #[getter]
    fn write_cache(&self) -> bool {
        self.0.write_cache
    }

    #[getter]
    fn descriptor_sense(&self) -> bool {
        self.0.descriptor_sense
    }

    #[getter]
    fn max_transfer_blocks(&self) -> u32 {
        self.0.max_transfer_blocks
    }

    #[getter]
    fn max_write_same_blocks(&self) -> u64 {
        self.0.max_write_same_blocks
    }

    #[getter]
    fn max_unmap_blocks(&self) -> u32 {
        self.0.max_unmap_blocks
    }

    #[getter]
    fn max_unmap_descriptors(&self) -> u32 {
        self.0.max_unmap_descriptors
    }

    #[getter]
    fn unmap(&self) -> bool {
        self.0.unmap
    }

    #[getter]
    fn max_compare_and_write_blocks(&self) -> u32 {
        self.0.max_compare_and_write_blocks
    }

    #[getter]
    fn max_atomic_blocks(&self) -> u32 {
        self.0.max_atomic_blocks
    }

    #[getter]
    fn atomic_granularity_blocks(&self) -> u32 {
        self.0.atomic_granularity_blocks
    }

    #[getter]
    fn qerr(&self) -> u8 {
        match self.0.qerr {
            Qerr::Nothing => 0,
            Qerr::AbortsAll => 1,
            Qerr::AbortsOwn => 3,
        }
    }

    #[getter]
    fn restricted_reordering(&self) -> bool {
        self.0.restricted_reordering
    }

    #[pyo3(signature = (**changes))]
    fn replace(&self, changes: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut copy = self.0.clone();
        let mut qerr = self.qerr();
        let Some(changes) = changes else {
            return Ok(Self(copy));
        };
        for (name, value) in changes {
            let name: String = name.extract()?;
            match name.as_str() {
                "block_size" => copy.block_size = value.extract()?,
                "blocks" => copy.blocks = value.extract()?,
                "write_protected" => copy.write_protected = value.extract()?,
                "write_cache" => copy.write_cache = value.extract()?,
                "descriptor_sense" => copy.descriptor_sense = value.extract()?,
                "max_transfer_blocks" => copy.max_transfer_blocks = value.extract()?,
                "max_write_same_blocks" => copy.max_write_same_blocks = value.extract()?,
                "max_unmap_blocks" => copy.max_unmap_blocks = value.extract()?,
                "max_unmap_descriptors" => copy.max_unmap_descriptors = value.extract()?,
                "unmap" => copy.unmap = value.extract()?,
                "max_compare_and_write_blocks" => {
                    copy.max_compare_and_write_blocks = value.extract()?;
                }
                "max_atomic_blocks" => copy.max_atomic_blocks = value.extract()?,
                "atomic_granularity_blocks" => copy.atomic_granularity_blocks = value.extract()?,
                "qerr" => qerr = value.extract()?,
                "restricted_reordering" => copy.restricted_reordering = value.extract()?,
                _ => {
                    return Err(PyTypeError::new_err(format!(
                        "LunPolicy has no field {name:?}"
                    )))
                }
            }
        }
        // Checked by the one constructor.
        Self::new(
            copy.block_size,
            copy.blocks,
            copy.write_protected,
            copy.write_cache,
            copy.descriptor_sense,
            copy.max_transfer_blocks,
            copy.max_write_same_blocks,
            copy.max_unmap_blocks,
            copy.max_unmap_descriptors,
            copy.unmap,
            copy.max_compare_and_write_blocks,
            copy.max_atomic_blocks,
            copy.atomic_granularity_blocks,
            qerr,
            copy.restricted_reordering,
        )
    }
}

#[pyclass(frozen, eq, hash, module = "vscsi_emu._dataplane")]
pub struct Lu(pub Arc<lu::Lu>);

impl Lu {
    fn identity(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

by_identity!(Lu);

#[pymethods]
impl Lu {
    #[new]
    #[pyo3(signature = (
        engine, policy, routes, usage_maps=None, variable_length=Vec::new(), *, queue_depth=0,
    ))]
    fn new(
        engine: &Engine,
        policy: &LunPolicy,
        routes: &[u8],
        usage_maps: Option<HashMap<u8, Vec<u8>>>,
        variable_length: Vec<(u16, u8, Vec<u8>)>,
        queue_depth: u32,
    ) -> PyResult<Self> {
        let routes: &[u8; 256] = routes
            .try_into()
            .map_err(|_| PyValueError::new_err("routes must be 256 ROUTE_* values"))?;
        let usage = usage_maps.unwrap_or_default();
        let routes = lu::RouteTable::new(routes, &usage, &variable_length).ok_or_else(|| {
            PyValueError::new_err("a route is no ROUTE_*, or a usage map has a 0 behind byte 15")
        })?;
        let engine = WatchedEngine::new(Arc::new(MarkedEngine::new(engine.0.clone())));
        Ok(Self(Arc::new(lu::Lu::new(
            Arc::new(engine),
            policy.0.clone(),
            routes,
            queue_depth,
        ))))
    }

    #[getter]
    fn policy(&self) -> LunPolicy {
        LunPolicy(self.0.policy.load().as_ref().clone())
    }

    #[setter]
    fn set_policy(&self, policy: &LunPolicy) {
        self.0.set_policy(policy.0.clone());
    }

    fn flush_begins(&self) -> (u64, u64) {
        let Flush { number, settled } = self.0.cache.begin();
        (number, settled)
    }

    #[pyo3(signature = (flush, good, *, by=None))]
    fn flush_ended(&self, flush: (u64, u64), good: bool, by: Option<&Nexus>) {
        let (number, settled) = flush;
        if !good {
            let knows = by.map(|nexus| nexus.0.as_ref());
            self.0.cache.lost(settled, knows);
        }
        self.0.cache.settle(Flush { number, settled });
    }

    fn hold(&self) -> Held {
        Held(Mutex::new(Some(task_set::Held::new(self.0.clone()))))
    }

    #[getter]
    fn aca(&self) -> bool {
        self.0.tasks.has_aca()
    }

    fn mark_bad(&self, offset: u64, length: u64) -> PyResult<()> {
        let mark = engine::Io {
            kind: engine::IoKind::Mark,
            offset,
            len: length,
            durable: false,
        };
        self.0.engine.run(&mark, &[])?;
        Ok(())
    }

    #[getter]
    fn engine(&self) -> Engine {
        Engine(self.0.engine.clone())
    }

    fn set_faults(&self, rules: Vec<PyRef<'_, FaultRule>>) {
        let rules = rules.iter().map(|rule| rule.0.clone());
        self.0.faults.set(rules.collect());
    }

    fn set_limits(&self, commands: (u64, u64), bytes: (u64, u64)) {
        let rate = |(per_second, burst)| Rate { per_second, burst };
        self.0.limits.set(rate(commands), rate(bytes));
    }

    #[getter]
    fn errors(&self) -> (u64, u64, u64, u64) {
        self.0.errors.load().into()
    }
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Held(Mutex<Option<task_set::Held>>);

#[pymethods]
impl Held {
    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyTuple>) {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(held);
    }
}

#[pyclass(frozen, eq, hash, module = "vscsi_emu._dataplane")]
pub struct Nexus(pub Arc<lu::Nexus>);

impl Nexus {
    fn identity(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

by_identity!(Nexus);

#[pymethods]
impl Nexus {
    #[new]
    fn new(lu: &Lu) -> Self {
        Self(lu::Nexus::connect(lu.0.clone()))
    }

    #[getter]
    fn lu(&self) -> Lu {
        Lu(self.0.lu.clone())
    }

    fn close(&self, classes: u8) {
        self.0.gate.close(classes);
    }

    fn open(&self, classes: u8) {
        self.0.open(classes);
    }

    #[getter]
    fn lost(&self) -> bool {
        self.0.written.is_lost()
    }

    fn take_lost(&self) -> bool {
        self.0.written.take_lost()
    }

    fn wrote(&self) {
        self.0.written.note(&self.0.lu.cache);
    }

    #[getter]
    fn closed(&self) -> u8 {
        self.0.gate.closed()
    }

    #[getter]
    fn pending(&self) -> u32 {
        self.0.gate.pending()
    }

    #[getter]
    fn statistics(&self) -> HashMap<u16, Statistics> {
        stats::by_queue(&self.0.stats)
    }

    #[getter]
    fn faulted(&self) -> bool {
        self.0.lu.tasks.faulted(&self.0.part)
    }

    fn clear_aca(&self) -> bool {
        self.0.lu.tasks.clear_aca(&self.0.part)
    }
}
