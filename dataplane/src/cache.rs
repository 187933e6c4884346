//! What a volatile cache holds, by nexus: who is to be told when it is lost.
//!
//! A flush that fails is an error of the command that asked for it, and the next flush succeeds:
//! what is lost is gone, and nobody finds it out any more. So each nexus that has written since
//! the last flush is told once, by a deferred error or by the flush that it asks for itself.

use std::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError, Weak};

use crate::gate::CLASS_ALL;
use crate::lu::Nexus;

/// Of a logical unit. Flushes are numbered in the order in which they begin.
#[derive(Default)]
pub struct Cache {
    begun: AtomicU64,
    /// What was written before the flush of this number is durable, or it is told that it is not.
    settled: AtomicU64,
    nexuses: Mutex<Vec<Weak<Nexus>>>,
}

/// Of a nexus.
#[derive(Default)]
pub struct Written {
    /// The number of the first flush that covers all that it has written; 0: it has not.
    covered: AtomicU64,
    lost: AtomicBool,
}

/// What a command does to its unit's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    #[default]
    None,
    /// What it writes may stay there.
    Fills,
    Flushes(Flush),
    /// A fault to order makes its errors up: the cache is as it was.
    Pretends,
}

/// A flush under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    pub number: u64,
    /// [`Cache::settled`] when it began: another flush beside it may succeed only because this one
    /// has been told of the loss.
    pub settled: u64,
}

impl Cache {
    /// A nexus to be told of losses, as long as it lives.
    pub fn join(&self, nexus: Weak<Nexus>) {
        let mut nexuses = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        nexuses.retain(|nexus| nexus.strong_count() > 0);
        nexuses.push(nexus);
    }

    /// A flush begins; what it covers has ended already.
    pub fn begin(&self) -> Flush {
        let settled = self.settled();
        let number = self.begun.fetch_add(1, SeqCst) + 1;
        Flush { number, settled }
    }

    /// A flush succeeded, or all that it should have made durable is lost, and was told.
    pub fn settle(&self, flush: Flush) {
        self.settled.fetch_max(flush.number, SeqCst);
    }

    pub fn settled(&self) -> u64 {
        self.settled.load(SeqCst)
    }

    /// What the cache held may be lost. All whose writes it had since flush `settled` are to be
    /// told, but one that knows.
    pub fn lost(&self, settled: u64, but: Option<&Nexus>) {
        let nexuses = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        for nexus in nexuses.iter().filter_map(Weak::upgrade) {
            let knows = but.is_some_and(|but| std::ptr::eq(but, nexus.as_ref()));
            if !knows && nexus.written.covered.load(SeqCst) > settled {
                nexus.written.lost.store(true, SeqCst);
                nexus.close_if_lost();
            }
        }
    }
}

impl Written {
    /// To be called before something is written and after it: a flush between the two may or may
    /// not cover it.
    pub fn note(&self, cache: &Cache) {
        let next = cache.begun.load(SeqCst) + 1;
        if self.covered.load(SeqCst) != next {
            self.covered.store(next, SeqCst);
        }
    }

    /// Whether something is lost that the nexus has not been told of.
    pub fn is_lost(&self) -> bool {
        self.lost.load(SeqCst)
    }

    /// The same, for whoever tells it.
    pub fn take_lost(&self) -> bool {
        self.is_lost() && self.lost.swap(false, SeqCst)
    }
}

impl Nexus {
    /// Opens the gate, unless there is a loss to be told of.
    pub fn open(&self, classes: u8) {
        self.gate.open(classes);
        self.close_if_lost();
    }

    /// Either this sees the loss or [`Cache::lost`] comes after the gate was opened.
    fn close_if_lost(&self) {
        fence(SeqCst);
        if self.written.is_lost() {
            self.gate.close(CLASS_ALL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::null::NullEngine;
    use crate::lu::{Lu, RouteTable};
    use crate::sbc::tests::policy;

    fn nexuses() -> (Arc<Lu>, [Arc<Nexus>; 3]) {
        let routes = RouteTable::new(&[0; 256], &Default::default(), &[]).unwrap();
        let engine = Arc::new(NullEngine::new(4096));
        let lu = Arc::new(Lu::new(engine, policy(512, 8), routes, 0));
        let nexuses = [(); 3].map(|()| Nexus::connect(lu.clone()));
        (lu, nexuses)
    }

    fn lost(nexuses: &[Arc<Nexus>]) -> Vec<bool> {
        nexuses.iter().map(|n| n.written.take_lost()).collect()
    }

    #[test]
    fn those_that_wrote_since_the_last_good_flush_are_told() {
        let (lu, nexuses) = nexuses();
        let [a, b, _] = &nexuses;
        let cache = &lu.cache;
        b.written.note(cache);
        let good = cache.begin();
        cache.settle(good);
        a.written.note(cache);
        let bad = cache.begin();
        cache.lost(bad.settled, None);
        cache.settle(bad);
        assert_eq!(lost(&nexuses), [true, false, false]);
        cache.lost(cache.settled(), None);
        assert_eq!(lost(&nexuses), [false; 3], "told once");
    }

    #[test]
    fn a_write_beside_a_flush_is_not_covered_by_it() {
        let (lu, nexuses) = nexuses();
        let cache = &lu.cache;
        nexuses[0].written.note(cache);
        let good = cache.begin();
        nexuses[0].written.note(cache);
        nexuses[1].written.note(cache);
        cache.settle(good);
        cache.lost(cache.settled(), Some(&nexuses[1]));
        assert_eq!(lost(&nexuses), [true, false, false]);
    }

    #[test]
    fn a_flush_that_succeeds_beside_one_that_fails_proves_nothing() {
        let (lu, nexuses) = nexuses();
        let cache = &lu.cache;
        nexuses[1].written.note(cache);
        let (bad, good) = (cache.begin(), cache.begin());
        cache.settle(good);
        cache.lost(bad.settled, Some(&nexuses[0]));
        assert_eq!(lost(&nexuses), [false, true, false]);
    }

    #[test]
    fn a_gate_stays_closed_until_the_loss_is_told() {
        let (lu, nexuses) = nexuses();
        let nexus = &nexuses[0];
        nexus.written.note(&lu.cache);
        lu.cache.lost(0, None);
        nexus.open(CLASS_ALL);
        assert_eq!(nexus.gate.closed(), CLASS_ALL);
        assert!(nexus.written.take_lost());
        nexus.open(CLASS_ALL);
        assert_eq!(nexus.gate.closed(), 0);
    }
}
