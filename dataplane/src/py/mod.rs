//! Python bindings: thin wrappers, no logic. `vscsi_emu/_dataplane.pyi` documents them.

mod copy;
mod fault;
mod hostile;
mod inbox;
mod interrupt;
mod lu;
mod memory;
mod overwrite;
mod passthrough;
mod port;
mod queue;
mod scan;
mod space;
mod stats;
mod trace;
mod volatile;
mod worker;

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    vscsi_emu._dataplane,
    DataplaneError,
    PyException,
    "Base of what the data plane raises."
);
create_exception!(
    vscsi_emu._dataplane,
    GuestMemoryError,
    DataplaneError,
    "An address or length lies outside guest memory, or a region cannot be mapped."
);
create_exception!(
    vscsi_emu._dataplane,
    SourceChangedError,
    DataplaneError,
    "What a copy was to take is not any more what it was."
);
create_exception!(
    vscsi_emu._dataplane,
    RingError,
    DataplaneError,
    "A ring is set up in a way that no driver may ask for."
);

/// Handles of one shared object are equal and hash alike, for `#[pyclass(eq, hash)]`.
macro_rules! by_identity {
    ($type:ty) => {
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.identity() == other.identity()
            }
        }

        impl std::hash::Hash for $type {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.identity().hash(state);
            }
        }
    };
}
use by_identity;

#[pymodule]
#[pyo3(name = "_dataplane")]
mod dataplane {
    use super::*;

    #[pymodule_export]
    use super::copy::{Copy, Watch};
    #[pymodule_export]
    use super::fault::FaultRule;
    #[pymodule_export]
    use super::hostile::Hostility;
    #[pymodule_export]
    use super::inbox::{Command, Control, Inbox, Notice, Transfer};
    #[pymodule_export]
    use super::interrupt::Interrupt;
    #[pymodule_export]
    use super::lu::{Engine, Held, Lu, LunPolicy, Nexus};
    #[pymodule_export]
    use super::memory::GuestMemory;
    #[pymodule_export]
    use super::overwrite::Overwrite;
    #[pymodule_export]
    use super::passthrough::{Passthrough, PassthroughLimits};
    #[pymodule_export]
    use super::port::Port;
    #[pymodule_export]
    use super::queue::{Call, Notifier, Queue};
    #[pymodule_export]
    use super::scan::Scan;
    #[pymodule_export]
    use super::space::Space;
    #[pymodule_export]
    use super::stats::Statistics;
    #[pymodule_export]
    use super::trace::{Trace, TraceRecord};
    #[pymodule_export]
    use super::volatile::VolatileCache;
    #[pymodule_export]
    use super::worker::Worker;
    #[pymodule_export]
    use super::{DataplaneError, GuestMemoryError, RingError, SourceChangedError};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        for (name, value) in [
            ("ROUTE_PYTHON", 0),
            ("ROUTE_READ", 1),
            ("ROUTE_WRITE", 2),
            ("ROUTE_MEDIA", 3),
            ("CLASS_READ", crate::gate::CLASS_READ),
            ("CLASS_WRITE", crate::gate::CLASS_WRITE),
            ("CLASS_MEDIA", crate::gate::CLASS_MEDIA),
            ("CLASS_ALL", crate::gate::CLASS_ALL),
            ("RESET_DEVICE", 0),
            ("RESET_TARGET", 1),
            ("RESET_BUS", 2),
            ("RESET_HOST", 3),
            ("DEVICE_GONE", crate::passthrough::attention::GONE as u8),
            (
                "LIMIT_REFUSED",
                crate::passthrough::attention::REFUSED as u8,
            ),
            ("KIND_CONTROL", 0),
            ("KIND_EVENT", 1),
            ("KIND_REQUEST", 2),
        ] {
            module.add(name, value)?;
        }
        module.add("MAX_WEAR_UNITS", crate::fault::MAX_UNITS)
    }

    /// Sense data: fixed format (18 bytes) or descriptor format, SPC-6.
    #[pyfunction]
    #[pyo3(signature = (key, asc, ascq, *, descriptor=false, deferred=false, information=None, field=None, bit=None, in_cdb=true, progress=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn build_sense(
        key: u8,
        asc: u8,
        ascq: u8,
        descriptor: bool,
        deferred: bool,
        information: Option<u64>,
        field: Option<u16>,
        bit: Option<u8>,
        in_cdb: bool,
        progress: Option<u16>,
    ) -> Vec<u8> {
        let info = crate::sense::SenseInfo {
            key,
            asc,
            ascq,
            information,
            field: field.map(|byte| (byte, bit, in_cdb)),
            progress,
            deferred,
        };
        crate::sense::build(&info, descriptor).as_bytes().to_vec()
    }
}
