//! A logical unit as workers see it, and the nexuses that lead to it.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::engine::Engine;
use crate::errors::ErrorCounts;
use crate::fault::Rules;
use crate::gate::{self, Gate};
use crate::limits::Limits;
use crate::policy::LunPolicy;
use crate::sbc;
use crate::stats::{Class, Stats};
use crate::task_set::{Part, TaskSet};
use crate::turn::Turn;

/// Where a command goes; values are `ROUTE_*` in Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Python,
    /// To the media functions, by the gate's class.
    Media(u8),
}

impl Route {
    pub fn from_value(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Python,
            1 => Self::Media(gate::CLASS_READ),
            2 => Self::Media(gate::CLASS_WRITE),
            3 => Self::Media(gate::CLASS_MEDIA),
            _ => return None,
        })
    }
}

/// One row of the route table, made from Python's CDB table.
#[derive(Clone, Copy, Debug)]
struct Row {
    route: Route,
    class: Class,
    /// Bits of the first 16 CDB bytes that the command does not define.
    reserved: u128,
}

/// By OPERATION CODE: the route, and which CDB bits may be set on the fast way.
pub struct RouteTable([Row; 256]);

impl RouteTable {
    /// `usage` rows are CDB usage maps (SPC-6): a bit that is 0 there and 1 in a CDB sends
    /// the command to Python, which refuses it with the right field pointer.
    pub fn new(routes: &[u8; 256], usage: &[(u8, Vec<u8>)]) -> Option<Self> {
        let mut rows = [Row {
            route: Route::Python,
            class: Class::Other,
            reserved: 0,
        }; 256];
        for (row, value) in rows.iter_mut().zip(routes) {
            row.route = Route::from_value(*value)?;
            row.class = match row.route {
                Route::Media(gate::CLASS_READ) => Class::Read,
                Route::Media(gate::CLASS_WRITE) => Class::Write,
                _ => Class::Other,
            };
        }
        for (opcode, map) in usage {
            let mut allowed = [0xff; 16];
            let known = map.len().min(16);
            allowed[..known].copy_from_slice(&map[..known]);
            allowed[0] = 0xff;
            rows[usize::from(*opcode)].reserved = !u128::from_ne_bytes(allowed);
        }
        Some(Self(rows))
    }

    pub fn route(&self, cdb: &[u8]) -> Route {
        let row = &self.0[usize::from(cdb[0])];
        let mut head = [0; 16];
        let known = cdb.len().min(16);
        head[..known].copy_from_slice(&cdb[..known]);
        if u128::from_ne_bytes(head) & row.reserved != 0 {
            Route::Python
        } else {
            row.route
        }
    }

    /// What a command counts as in statistics.
    pub fn class(&self, opcode: u8) -> Class {
        self.0[usize::from(opcode)].class
    }
}

pub struct Lu {
    pub engine: Arc<dyn Engine>,
    pub policy: ArcSwap<LunPolicy>,
    pub routes: RouteTable,
    pub tasks: TaskSet,
    pub errors: ErrorCounts,
    pub faults: Rules,
    pub limits: Limits,
}

impl Lu {
    /// Whether a media command runs beside others here, or alone.
    pub fn turn(&self, cdb: &[u8]) -> Turn {
        sbc::turn(cdb, self.engine.counts_space())
    }

    /// `queue_depth`: as for [`TaskSet::new`].
    pub fn new(
        engine: Arc<dyn Engine>,
        policy: LunPolicy,
        routes: RouteTable,
        queue_depth: u32,
    ) -> Self {
        let tasks = TaskSet::new(queue_depth);
        tasks.restrict_reordering(policy.restricted_reordering);
        Self {
            engine,
            policy: ArcSwap::from_pointee(policy),
            routes,
            tasks,
            errors: ErrorCounts::default(),
            faults: Rules::default(),
            limits: Limits::default(),
        }
    }

    /// Commands already started keep the old policy.
    pub fn set_policy(&self, policy: LunPolicy) {
        self.tasks.restrict_reordering(policy.restricted_reordering);
        self.policy.store(Arc::new(policy));
    }
}

/// I_T_L nexus: one port's way to one logical unit.
pub struct Nexus {
    pub lu: Arc<Lu>,
    pub gate: Gate,
    pub part: Part,
    pub stats: Arc<Stats>,
}

impl Nexus {
    pub fn new(lu: Arc<Lu>) -> Self {
        Self {
            lu,
            gate: Gate::default(),
            part: Part::default(),
            stats: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_bit_sends_a_media_command_to_python() {
        let mut routes = [0; 256];
        routes[0x28] = 1;
        let map = vec![0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0];
        let table = RouteTable::new(&routes, &[(0x28, map)]).unwrap();
        let mut cdb = [0; 32];
        cdb[0] = 0x28;
        cdb[1] = 0x18;
        assert_eq!(table.route(&cdb), Route::Media(gate::CLASS_READ));
        cdb[9] = 0x04; // NACA
        assert_eq!(table.route(&cdb), Route::Python);
        cdb[9] = 0;
        cdb[12] = 0xaa; // beyond a 10-byte CDB: not part of the command
        assert_eq!(table.route(&cdb), Route::Media(gate::CLASS_READ));
        cdb[0] = 0x12;
        assert_eq!(table.route(&cdb), Route::Python);
    }
}
