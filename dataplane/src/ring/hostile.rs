//! A device that misbehaves towards its driver, as a malicious host would: for those who harden
//! drivers. Wraps the ring of a queue, from the queue's start, where somebody chose that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use super::{Chain, Ring, RingError};
use crate::random::Random;

/// What it does, in the place of an honest used element or beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// The id is no descriptor of the queue.
    IdOutOfRange,
    /// The id is a descriptor that heads no chain in flight.
    IdNotInFlight,
    /// More bytes than the chain has room for.
    LengthTooLong,
    /// Fewer bytes than were written.
    LengthTooShort,
    /// The element twice.
    Double,
    /// The index moves by more than there are elements.
    IndexJump,
    /// The index moves back.
    IndexBack,
    /// No element.
    Lost,
}

impl Misdeed {
    const NAMES: [(&'static str, Self); 8] = [
        ("used-id-out-of-range", Self::IdOutOfRange),
        ("used-id-not-in-flight", Self::IdNotInFlight),
        ("used-length-too-long", Self::LengthTooLong),
        ("used-length-too-short", Self::LengthTooShort),
        ("used-twice", Self::Double),
        ("used-index-jump", Self::IndexJump),
        ("used-index-back", Self::IndexBack),
        ("used-never", Self::Lost),
    ];

    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, misdeed)| *misdeed)
    }
}

/// What a queue is to do, and what it did; shared with whoever chose it.
#[derive(Debug)]
pub struct Hostility {
    pub misdeeds: Vec<Misdeed>,
    pub seed: u64,
    /// Of 100 elements, this many are chosen.
    pub chance: u64,
    /// Honest until then.
    pub armed: AtomicBool,
    pub done: AtomicU64,
}

pub struct HostileRing {
    inner: Box<dyn Ring>,
    hostility: Arc<Hostility>,
    random: Random,
    size: u16,
    /// Head → room, of chains in flight.
    in_flight: HashMap<u16, u64>,
}

impl HostileRing {
    pub fn new(inner: Box<dyn Ring>, hostility: Arc<Hostility>, size: u16) -> Self {
        let random = Random(hostility.seed);
        Self {
            inner,
            hostility,
            random,
            size,
            in_flight: HashMap::new(),
        }
    }

    fn choose(&mut self) -> Option<Misdeed> {
        let Hostility {
            misdeeds, chance, ..
        } = &*self.hostility;
        let armed = self.hostility.armed.load(Ordering::Relaxed);
        if !armed || misdeeds.is_empty() || !self.random.chance(*chance) {
            return None;
        }
        let chosen = self.random.below(misdeeds.len() as u64);
        Some(misdeeds[chosen as usize])
    }

    fn below(&mut self, bound: u16) -> u16 {
        self.random.below(u64::from(bound)) as u16
    }

    /// `None`: every descriptor heads a chain.
    fn not_in_flight(&mut self) -> Option<u16> {
        let start = self.below(self.size);
        let mut all = (start..self.size).chain(0..start);
        all.find(|head| !self.in_flight.contains_key(head))
    }

    fn misbehave(
        &mut self,
        misdeed: Misdeed,
        head: u16,
        len: u32,
        room: u64,
    ) -> Result<(), RingError> {
        match misdeed {
            Misdeed::IdOutOfRange => {
                let id = self.size.saturating_add(self.below(u16::MAX - self.size));
                self.inner.push_used(id, len)
            }
            Misdeed::IdNotInFlight => {
                let id = self.not_in_flight().unwrap_or(u16::MAX);
                self.inner.push_used(id, len)
            }
            Misdeed::LengthTooLong => {
                let more = room + 1 + self.random.below(1 << 20);
                self.inner
                    .push_used(head, u32::try_from(more).unwrap_or(u32::MAX))
            }
            Misdeed::LengthTooShort => {
                let less = self.random.below(u64::from(len.min(12)).max(1));
                self.inner.push_used(head, less as u32)
            }
            Misdeed::Double => {
                self.inner.push_used(head, len)?;
                self.inner.push_used(head, len)
            }
            Misdeed::IndexJump => {
                self.inner.push_used(head, len)?;
                // Beyond what can be in flight, short of what looks like a step back.
                let most = (u16::MAX / 2).saturating_sub(self.size).max(1);
                let by = self.size + self.below(most);
                self.inner.skip_used(by);
                Ok(())
            }
            Misdeed::IndexBack => {
                self.inner.push_used(head, len)?;
                let by = 2 + self.below(self.size);
                self.inner.skip_used(by.wrapping_neg());
                Ok(())
            }
            Misdeed::Lost => Ok(()),
        }
    }
}

impl Ring for HostileRing {
    fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        let popped = self.inner.pop(chain)?;
        if popped {
            self.in_flight.insert(chain.head, chain.writable_len);
        }
        Ok(popped)
    }

    fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let result = match self.choose() {
            Some(misdeed) => {
                self.hostility.done.fetch_add(1, Ordering::Relaxed);
                let room = self.in_flight.get(&head).copied().unwrap_or(0);
                self.misbehave(misdeed, head, len, room)
            }
            None => self.inner.push_used(head, len),
        };
        self.in_flight.remove(&head);
        result
    }

    fn skip_used(&mut self, by: u16) {
        self.inner.skip_used(by);
    }

    fn publish(&mut self) -> Result<bool, RingError> {
        self.inner.publish()
    }

    fn suppress_kicks(&mut self) -> Result<(), RingError> {
        self.inner.suppress_kicks()
    }

    fn want_kicks(&mut self) -> Result<bool, RingError> {
        self.inner.want_kicks()
    }

    fn next_avail(&self) -> u16 {
        self.inner.next_avail()
    }

    fn next_used(&self) -> u16 {
        self.inner.next_used()
    }

    fn available(&mut self) -> Result<u16, RingError> {
        self.inner.available()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const SIZE: u16 = 8;
    const ROOM: u64 = 100;

    /// Elements, and by how much the index was moved besides.
    type Seen = (Vec<(u16, u32)>, u16);

    /// An honest ring with chains 0 to 3 to pop; what is pushed and skipped can be seen.
    #[derive(Default)]
    struct Honest {
        next: u16,
        seen: Arc<Mutex<Seen>>,
    }

    impl Ring for Honest {
        fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
            chain.head = self.next;
            chain.writable_len = ROOM;
            self.next += 1;
            Ok(true)
        }

        fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
            self.seen.lock().unwrap().0.push((head, len));
            Ok(())
        }

        fn skip_used(&mut self, by: u16) {
            self.seen.lock().unwrap().1 = by;
        }

        fn publish(&mut self) -> Result<bool, RingError> {
            Ok(true)
        }

        fn suppress_kicks(&mut self) -> Result<(), RingError> {
            Ok(())
        }

        fn want_kicks(&mut self) -> Result<bool, RingError> {
            Ok(false)
        }

        fn next_avail(&self) -> u16 {
            self.next
        }

        fn next_used(&self) -> u16 {
            0
        }

        fn available(&mut self) -> Result<u16, RingError> {
            Ok(0)
        }
    }

    fn hostility(misdeeds: &[Misdeed], seed: u64, chance: u64, armed: bool) -> Arc<Hostility> {
        Arc::new(Hostility {
            misdeeds: misdeeds.to_vec(),
            seed,
            chance,
            armed: AtomicBool::new(armed),
            done: AtomicU64::new(0),
        })
    }

    /// Elements and skipped indices after chain 1 of 4 was used with 20 bytes.
    fn used(hostility: &Arc<Hostility>) -> Seen {
        let honest = Honest::default();
        let seen = honest.seen.clone();
        let mut ring = HostileRing::new(Box::new(honest), hostility.clone(), SIZE);
        for _ in 0..4 {
            ring.pop(&mut Chain::default()).unwrap();
        }
        ring.push_used(1, 20).unwrap();
        let seen = seen.lock().unwrap().clone();
        seen
    }

    #[test]
    fn each_misdeed_is_what_its_name_says() {
        for seed in 0..100 {
            for (name, misdeed) in Misdeed::NAMES {
                let (elements, skipped) = used(&hostility(&[misdeed], seed, 100, true));
                let text = format!("{name}, seed {seed}: {elements:?}, {skipped}");
                let (id, len) = elements.first().copied().unwrap_or_default();
                let right = match misdeed {
                    Misdeed::IdOutOfRange => id >= SIZE && len == 20,
                    Misdeed::IdNotInFlight => (4..SIZE).contains(&id) && len == 20,
                    Misdeed::LengthTooLong => id == 1 && u64::from(len) > ROOM,
                    Misdeed::LengthTooShort => id == 1 && len < 12,
                    Misdeed::Double => elements == [(1, 20), (1, 20)],
                    Misdeed::IndexJump => (SIZE..0x8000 + SIZE).contains(&skipped),
                    Misdeed::IndexBack => skipped > 0x8000 && elements == [(1, 20)],
                    Misdeed::Lost => elements.is_empty(),
                };
                assert!(right, "{text}");
                assert_eq!(Misdeed::named(name), Some(misdeed));
            }
        }
    }

    #[test]
    fn honest_until_armed_and_but_for_the_chosen() {
        let lost = hostility(&[Misdeed::Lost], 1, 100, false);
        assert_eq!(used(&lost).0, [(1, 20)]);
        lost.armed.store(true, Ordering::Relaxed);
        assert_eq!(used(&lost).0, []);
        assert_eq!(lost.done.load(Ordering::Relaxed), 1);
        let often = |chance| {
            let kept = (0..1000).filter(|seed| {
                let lost = hostility(&[Misdeed::Lost], *seed, chance, true);
                !used(&lost).0.is_empty()
            });
            kept.count()
        };
        assert_eq!((often(0), often(100)), (1000, 0));
        assert!((600..900).contains(&often(25)));
    }

    #[test]
    fn a_seed_does_the_same_again() {
        let all: Vec<_> = Misdeed::NAMES.iter().map(|(_, misdeed)| *misdeed).collect();
        let run = |seed| used(&hostility(&all, seed, 100, true));
        assert!((0..50).all(|seed| run(seed) == run(seed)));
        assert!((1..50).any(|seed| run(seed) != run(0)));
    }
}
