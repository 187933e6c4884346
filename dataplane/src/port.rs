//! An HBA's initiator port: the layout of its requests and its LUN map.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::lu::Nexus;
use crate::stats::Stats;

/// virtio 1.4 5.6.4: defaults of the two fields that a driver may write.
pub const DEFAULT_CDB_SIZE: u32 = 32;
pub const DEFAULT_SENSE_SIZE: u32 = 96;

#[derive(Default)]
struct LunMap {
    units: HashMap<(u8, u16), Arc<Nexus>>,
    targets: HashSet<u8>,
}

/// What a request's `lun` field leads to.
pub enum Route {
    Unit(Arc<Nexus>),
    /// A known target but no such LUN, or a well-known logical unit: Python answers.
    Python,
    BadTarget,
}

pub struct Port {
    cdb_size: AtomicU32,
    sense_size: AtomicU32,
    inout: AtomicBool,
    luns: ArcSwap<LunMap>,
    /// Of commands for no unit: to addresses where there is none, to a well-known one, malformed.
    pub stats: Arc<Stats>,
}

impl Default for Port {
    fn default() -> Self {
        Self {
            cdb_size: AtomicU32::new(DEFAULT_CDB_SIZE),
            sense_size: AtomicU32::new(DEFAULT_SENSE_SIZE),
            inout: AtomicBool::new(false),
            luns: ArcSwap::default(),
            stats: Arc::default(),
        }
    }
}

impl Port {
    pub fn cdb_size(&self) -> usize {
        self.cdb_size.load(Ordering::Acquire) as usize
    }

    pub fn set_cdb_size(&self, size: u32) {
        self.cdb_size.store(size, Ordering::Release);
    }

    pub fn sense_size(&self) -> usize {
        self.sense_size.load(Ordering::Acquire) as usize
    }

    pub fn set_sense_size(&self, size: u32) {
        self.sense_size.store(size, Ordering::Release);
    }

    pub fn inout(&self) -> bool {
        self.inout.load(Ordering::Acquire)
    }

    pub fn set_inout(&self, on: bool) {
        self.inout.store(on, Ordering::Release);
    }

    /// `empty`: targets that may have no unit.
    pub fn set_luns(&self, units: HashMap<(u8, u16), Arc<Nexus>>, empty: &[u8]) {
        let targets = units.keys().map(|(target, _)| *target);
        let targets = targets.chain(empty.iter().copied()).collect();
        self.luns.store(Arc::new(LunMap { units, targets }));
    }

    /// virtio 1.4 5.6.6.1: byte 0 is 1, byte 1 the target, bytes 2–3 a single-level LUN
    /// structure, the rest 0. The only other unit is REPORT LUNS at C1 01.
    pub fn route(&self, lun: &[u8; 8]) -> Route {
        let luns = self.luns.load();
        if *lun == [0xc1, 1, 0, 0, 0, 0, 0, 0] {
            return Route::Python;
        }
        if lun[0] != 1 || lun[4..] != [0; 4] || !luns.targets.contains(&lun[1]) {
            return Route::BadTarget;
        }
        let number = match lun[2] >> 6 {
            0 if lun[2] == 0 => u16::from(lun[3]), // peripheral device addressing, bus 0
            1 => u16::from_be_bytes([lun[2] & 0x3f, lun[3]]), // flat space addressing
            _ => return Route::Python,
        };
        match luns.units.get(&(lun[1], number)) {
            Some(nexus) => Route::Unit(nexus.clone()),
            None => Route::Python,
        }
    }
}
