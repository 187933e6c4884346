use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::hostile::Hostility;
use super::interrupt::Interrupt;
use super::memory::GuestMemory;
use super::port::Port;
use super::worker::Worker;
use super::{by_identity, RingError};
use crate::event::{self, Kick};
use crate::notifier;
use crate::ring::RingConfig;
use crate::worker::{Kind, QueueConfig, QueueRef};

/// Feature bits that change how a ring is read (virtio 1.4 6).
const RING_F_INDIRECT_DESC: u64 = 1 << 28;
const RING_F_EVENT_IDX: u64 = 1 << 29;
const F_ACCESS_PLATFORM: u64 = 1 << 33;

fn borrow(fd: i32) -> PyResult<BorrowedFd<'static>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is no file descriptor")));
    }
    // SAFETY: used for the length of a call only; Python's caller owns the descriptor.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

fn kick(fd: i32) -> PyResult<Option<Kick>> {
    if fd < 0 {
        return Ok(None);
    }
    let kick = Kick::new(borrow(fd)?);
    kick.map(Some)
        .map_err(|error| PyValueError::new_err(format!("kick descriptor: {error}")))
}

fn call(fd: i32) -> PyResult<event::Call> {
    event::Call::new(borrow(fd)?)
        .map_err(|error| PyValueError::new_err(format!("call descriptor: {error}")))
}

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Call(event::Call);

#[pymethods]
impl Call {
    #[new]
    fn new(fd: i32) -> PyResult<Self> {
        Ok(Self(call(fd)?))
    }

    fn signal(&self) {
        self.0.signal();
    }
}

/// Used once: a queue takes it over.
#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Notifier(Mutex<Option<notifier::Notifier>>);

impl Notifier {
    fn made(notifier: notifier::Notifier) -> Self {
        Self(Mutex::new(Some(notifier)))
    }

    fn take(&self) -> PyResult<notifier::Notifier> {
        let taken = self.0.lock().ok().and_then(|mut notifier| notifier.take());
        taken.ok_or_else(|| PyValueError::new_err("this Notifier belongs to a queue already"))
    }
}

#[pymethods]
impl Notifier {
    #[staticmethod]
    fn none() -> Self {
        Self::made(notifier::Notifier::None)
    }

    #[staticmethod]
    fn fd(fd: i32) -> PyResult<Self> {
        Ok(Self::made(notifier::Notifier::Fd(call(fd)?)))
    }

    #[staticmethod]
    fn interrupt(interrupt: &Interrupt) -> Self {
        Self::made(notifier::Notifier::Interrupt(interrupt.0.clone()))
    }

    #[staticmethod]
    fn inband(token: u64) -> Self {
        Self::made(notifier::Notifier::Inband(token))
    }
}

#[pyclass(frozen, eq, hash, module = "vscsi_emu._dataplane")]
pub struct Queue(pub QueueRef);

impl Queue {
    fn identity(&self) -> usize {
        self.0.id() as usize
    }
}

by_identity!(Queue);

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (
        worker, port, memory, *, index, kind, size, desc, driver, device, features,
        next_avail=0, next_used=None, enabled=true, notifier=None, kick_fd=-1, poll=false,
        big_endian=false, hostility=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        worker: &Worker,
        port: &Port,
        memory: &GuestMemory,
        index: u16,
        kind: u8,
        size: u16,
        desc: u64,
        driver: u64,
        device: u64,
        features: u64,
        next_avail: u16,
        next_used: Option<u16>,
        enabled: bool,
        notifier: Option<&Notifier>,
        kick_fd: i32,
        poll: bool,
        big_endian: bool,
        hostility: Option<&Hostility>,
    ) -> PyResult<Self> {
        let kind = match kind {
            0 => Kind::Control,
            1 => Kind::Event,
            2 => Kind::Request,
            _ => return Err(PyValueError::new_err(format!("{kind} is no KIND_*"))),
        };
        let config = QueueConfig {
            index,
            kind,
            ring: RingConfig {
                size,
                desc,
                driver,
                device,
                next_avail,
                next_used,
                event_idx: features & RING_F_EVENT_IDX != 0,
                indirect: features & RING_F_INDIRECT_DESC != 0,
                translated: features & F_ACCESS_PLATFORM != 0,
            },
            big_endian,
            enabled,
            notifier: notifier.map_or(Ok(notifier::Notifier::None), Notifier::take)?,
            kick: kick(kick_fd)?,
            poll,
            hostility: hostility.map(|hostility| hostility.0.clone()),
        };
        QueueRef::start(&worker.0, port.0.clone(), memory.0.clone(), config)
            .map(Self)
            .map_err(|error| RingError::new_err(format!("queue {index}: {error}")))
    }

    #[getter]
    fn index(&self) -> u16 {
        self.0.index()
    }

    #[getter]
    fn kind(&self) -> u8 {
        match self.0.kind() {
            Kind::Control => 0,
            Kind::Event => 1,
            Kind::Request => 2,
        }
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_notifier(&self, notifier: &Notifier) -> PyResult<()> {
        self.0.set_notifier(notifier.take()?);
        Ok(())
    }

    #[pyo3(signature = (fd, *, poll=false))]
    fn set_kick_fd(&self, fd: i32, poll: bool) -> PyResult<()> {
        self.0.set_kick(kick(fd)?, poll);
        Ok(())
    }

    fn kick(&self) {
        self.0.kick();
    }

    fn fail(&self, text: String) {
        self.0.fail(text);
    }

    fn notify(&self) {
        self.0.notify();
    }

    fn push_event(&self, token: u64, event: Vec<u8>) {
        self.0.push_event(token, event);
    }

    fn want_event_buffers(&self) {
        self.0.want_event_buffers();
    }

    #[pyo3(signature = (token, *, abort=None))]
    fn stop(&self, token: u64, abort: Option<u8>) {
        self.0.stop(token, abort, false);
    }

    fn discard(&self, token: u64) {
        self.0.stop(token, None, true);
    }
}
