use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::port::Port;
use crate::fault::data::Corruption;
use crate::fault::{self, Action, Answer, Bad, Delay, Wear, When};
use crate::sense::SenseInfo;

/// A hundred years: no clock goes beyond.
const FOREVER: f64 = 3.2e9;

#[pyclass(frozen, module = "vscsi_emu._dataplane")]
pub struct FaultRule(pub Arc<fault::Rule>);

fn duration(seconds: f64) -> PyResult<Duration> {
    if !(0.0..=FOREVER).contains(&seconds) {
        return Err(PyValueError::new_err(format!(
            "{seconds} is no time in seconds"
        )));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn delay(kind: &str, first: f64, second: f64) -> PyResult<Delay> {
    Ok(match kind {
        "fixed" => Delay::Fixed(first),
        "uniform" => Delay::Uniform {
            least: first,
            most: second,
        },
        "normal" => Delay::Normal {
            mean: first,
            deviation: second,
        },
        "lognormal" => Delay::LogNormal {
            median: first,
            deviation: second,
        },
        _ => return Err(PyValueError::new_err(format!("no distribution {kind:?}"))),
    })
}

fn corruption(name: &str) -> PyResult<Corruption> {
    Ok(match name {
        "flip" => Corruption::Flip,
        "torn" => Corruption::Torn,
        "lost" => Corruption::Lost,
        "misdirected" => Corruption::Misdirected,
        _ => return Err(PyValueError::new_err(format!("no corruption {name:?}"))),
    })
}

#[pymethods]
impl FaultRule {
    #[new]
    #[pyo3(signature = (
        *, opcodes=Vec::new(), actions=Vec::new(), blocks=None, port=None, tag=None, start=0.0,
        duration=None, skip=0, every=1, times=0, probability=None, seed=0, answer=None, sense=None,
        executed=false, bad=None, wear=None, delay=None, hang=false, short=None, corruption=None,
        lose=false,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        opcodes: Vec<u8>,
        actions: Vec<u16>,
        blocks: Option<(u64, u64)>,
        port: Option<&Port>,
        tag: Option<u64>,
        start: f64,
        duration: Option<f64>,
        skip: u64,
        every: u64,
        times: u64,
        probability: Option<f64>,
        seed: u64,
        answer: Option<(u8, u8)>,
        sense: Option<(u8, u16)>,
        executed: bool,
        bad: Option<(bool, u8, u16)>,
        wear: Option<(u64, u32, u64)>,
        delay: Option<(String, f64, f64)>,
        hang: bool,
        short: Option<f64>,
        corruption: Option<&str>,
        lose: bool,
    ) -> PyResult<Self> {
        let from = Instant::now() + self::duration(start)?;
        let length = duration.map(self::duration).transpose()?;
        let delay = delay
            .map(|(kind, first, second)| self::delay(&kind, first, second))
            .transpose()?;
        let all = blocks.unwrap_or((0, u64::MAX));
        let no_units = || PyValueError::new_err("wear of no blocks, or of too many units");
        let wear = wear
            .map(|(unit, writes, spares)| Wear::new(all, unit, writes, spares).ok_or_else(no_units))
            .transpose()?;
        let when = When {
            opcodes,
            actions,
            blocks,
            port: port.map(|port| Arc::downgrade(&port.0)),
            tag,
            from: Some(from),
            until: length.map(|length| from + length),
            skip,
            every,
            times,
            probability,
            seed,
        };
        let then = Action {
            delay,
            hang,
            answer: answer.map(|(response, status)| Answer {
                response,
                status,
                sense: sense.map(|(key, code)| SenseInfo::new(key, code)),
                executed,
            }),
            bad: bad.map(|(reads, key, code)| Bad {
                blocks: all,
                reads,
                sense: SenseInfo::new(key, code),
            }),
            wear,
            short,
            corruption: corruption.map(self::corruption).transpose()?,
            lose,
        };
        Ok(Self(Arc::new(fault::Rule::new(when, then))))
    }

    #[getter]
    fn met(&self) -> u64 {
        self.0.met()
    }

    #[getter]
    fn hits(&self) -> u64 {
        self.0.hits()
    }
}
