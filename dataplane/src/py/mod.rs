//! Python bindings: thin wrappers, no logic.

use pyo3::prelude::*;

#[pymodule]
#[pyo3(name = "_dataplane")]
mod dataplane {}
