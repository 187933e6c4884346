//! A logical unit as workers see it, and the nexuses that lead to it.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::cache::{Cache, Written};
use crate::engine::Engine;
use crate::errors::ErrorCounts;
use crate::fault::Rules;
use crate::gate::{self, Gate};
use crate::limits::Limits;
use crate::policy::LunPolicy;
use crate::sbc;
use crate::sbc::cdb::variable_action;
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

impl Row {
    /// `usage` is a CDB usage map (SPC-6): a bit that is 0 there and 1 in a CDB sends the command
    /// to Python, which refuses it with the right field pointer.
    fn new(route: u8, usage: &[u8]) -> Option<Self> {
        let mut allowed = [0xff; HEAD];
        let known = usage.len().min(HEAD);
        allowed[..known].copy_from_slice(&usage[..known]);
        allowed[0] = 0xff;
        // What follows is looked at by nobody.
        let rest = &usage[known..];
        let route = Route::from_value(route).filter(|_| rest.iter().all(|&bits| bits == 0xff))?;
        Some(Self {
            route,
            class: match route {
                Route::Media(gate::CLASS_READ) => Class::Read,
                Route::Media(gate::CLASS_WRITE) => Class::Write,
                _ => Class::Other,
            },
            reserved: !u128::from_ne_bytes(allowed),
        })
    }
}

const HEAD: usize = 16;

/// By OPERATION CODE, and SERVICE ACTION where the CDB is of variable length: the route, and which
/// CDB bits may be set on the fast way.
pub struct RouteTable {
    rows: [Row; 256],
    variable: Vec<(u16, Row)>,
}

impl RouteTable {
    /// `usage`: by operation code. `variable`: service action, route and usage map of each
    /// variable-length CDB; others take the row of their operation code.
    pub fn new(
        routes: &[u8; 256],
        usage: &HashMap<u8, Vec<u8>>,
        variable: &[(u16, u8, Vec<u8>)],
    ) -> Option<Self> {
        let mut rows = [Row::new(0, &[])?; 256];
        for (opcode, (row, &route)) in (0..=u8::MAX).zip(rows.iter_mut().zip(routes)) {
            *row = Row::new(route, usage.get(&opcode).map_or(&[], Vec::as_slice))?;
        }
        let variable = variable
            .iter()
            .map(|(action, route, usage)| Some((*action, Row::new(*route, usage)?)))
            .collect::<Option<_>>()?;
        Some(Self { rows, variable })
    }

    fn row(&self, cdb: &[u8]) -> &Row {
        let variable = variable_action(cdb)
            .and_then(|wanted| self.variable.iter().find(|(action, _)| *action == wanted));
        variable.map_or(&self.rows[usize::from(cdb[0])], |(_, row)| row)
    }

    pub fn route(&self, cdb: &[u8]) -> Route {
        let row = self.row(cdb);
        let mut head = [0; HEAD];
        let known = cdb.len().min(HEAD);
        head[..known].copy_from_slice(&cdb[..known]);
        if u128::from_ne_bytes(head) & row.reserved != 0 {
            Route::Python
        } else {
            row.route
        }
    }

    /// What a command counts as in statistics.
    pub fn class(&self, cdb: &[u8]) -> Class {
        self.row(cdb).class
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
    pub cache: Cache,
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
            cache: Cache::default(),
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
    pub written: Written,
}

impl Nexus {
    pub fn new(lu: Arc<Lu>) -> Self {
        Self {
            lu,
            gate: Gate::default(),
            part: Part::default(),
            stats: Arc::default(),
            written: Written::default(),
        }
    }

    /// A new nexus, which is told when what it wrote is lost.
    pub fn connect(lu: Arc<Lu>) -> Arc<Self> {
        let nexus = Arc::new(Self::new(lu));
        nexus.lu.cache.join(Arc::downgrade(&nexus));
        nexus
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
        let table = RouteTable::new(&routes, &HashMap::from([(0x28, map)]), &[]).unwrap();
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

    #[test]
    fn variable_length_cdbs_are_routed_by_service_action() {
        let mut usage = vec![0xff; 32];
        usage[2..7].fill(0);
        let usage = usage;
        let actions = [(9, 1, usage.clone()), (0x10b, 2, usage.clone())];
        let none = HashMap::new();
        let table = RouteTable::new(&[0; 256], &none, &actions).unwrap();
        let mut cdb = [0; 32];
        cdb[0] = 0x7f;
        for (action, route, class) in [
            ([0, 9], Route::Media(gate::CLASS_READ), Class::Read),
            ([1, 0x0b], Route::Media(gate::CLASS_WRITE), Class::Write),
            ([0, 0x0b], Route::Python, Class::Other),
            ([9, 0], Route::Python, Class::Other),
        ] {
            cdb[8..10].copy_from_slice(&action);
            assert_eq!(table.route(&cdb), route, "{action:?}");
            assert_eq!(table.class(&cdb), class, "{action:?}");
        }
        cdb[8..10].copy_from_slice(&[0, 9]);
        cdb[6] = 1;
        assert_eq!(table.route(&cdb), Route::Python);
        assert_eq!(table.route(&cdb[..1]), Route::Python);

        let mut late = usage;
        late[20] = 0xfe;
        assert!(RouteTable::new(&[0; 256], &none, &[(9, 1, late)]).is_none());
    }
}
