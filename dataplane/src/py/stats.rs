use std::collections::HashMap;

use pyo3::prelude::*;

use crate::stats;

/// (longest latency, commands) of each bucket.
type Latencies = Vec<(u64, u64)>;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct Statistics(pub stats::Snapshot);

/// By queue, what was counted until now.
pub fn by_queue(stats: &stats::Stats) -> HashMap<u16, Statistics> {
    let queues = stats.snapshot().into_iter();
    queues
        .map(|(queue, snapshot)| (queue, Statistics(snapshot)))
        .collect()
}

#[pymethods]
impl Statistics {
    #[getter]
    fn in_flight(&self) -> u64 {
        self.0.in_flight
    }

    #[getter]
    fn bytes(&self) -> (u64, u64, u64) {
        self.0.classes.each_ref().map(|class| class.bytes).into()
    }

    #[getter]
    fn latencies(&self) -> (Latencies, Latencies, Latencies) {
        let bounded = |class: &stats::ClassSnapshot| {
            let bound = |&(bucket, count): &(usize, u64)| (stats::upper_bound(bucket), count);
            class.latencies.iter().map(bound).collect()
        };
        self.0.classes.each_ref().map(bounded).into()
    }

    #[getter]
    fn statuses(&self) -> Vec<(u8, u64)> {
        self.0.statuses.clone()
    }

    #[getter]
    fn responses(&self) -> Vec<(u8, u64)> {
        self.0.responses.clone()
    }
}
