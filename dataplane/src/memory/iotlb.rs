//! A table of I/O virtual addresses, as a front end or a software IOMMU fills it.

use std::collections::BTreeMap;
use std::fmt;

/// Mappings kept. A full table forgets some, which are asked for again when they are needed.
pub const MAX_MAPPINGS: usize = 1 << 16;

/// What is wanted of memory, or allowed: VHOST_ACCESS_* of linux/vhost_types.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    pub const READ: Self = Self(1);
    pub const WRITE: Self = Self(2);

    /// None unless there is at least one of the two, and nothing else.
    pub fn from_bits(bits: u8) -> Option<Self> {
        (1..=3).contains(&bits).then_some(Self(bits))
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    fn allows(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "reading",
            2 => "writing",
            _ => "reading and writing",
        })
    }
}

/// The first address of a range that has no translation, or not for this access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub iova: u64,
    pub access: Access,
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Unknown,
    Denied,
}

#[derive(Clone, Copy)]
struct Mapping {
    /// Last address; the whole space from 0 to 2^64 - 1 fits.
    last: u64,
    /// User address of the first one.
    user: u64,
    access: Access,
}

impl Mapping {
    /// Whether this mapping, which begins at `first`, would go on with one from `next` to `user`.
    fn continues(&self, first: u64, next: u64, user: u64, access: Access) -> bool {
        let user_last = self.user + (self.last - first);
        self.access == access
            && self.last.checked_add(1) == Some(next)
            && user_last.checked_add(1) == Some(user)
    }
}

/// Mappings by their first address, without overlaps. What continues its neighbour is joined to it.
#[derive(Default)]
pub(super) struct Iotlb {
    mappings: BTreeMap<u64, Mapping>,
    /// Where the next mapping is taken from when the table is full.
    hand: u64,
}

impl Iotlb {
    /// User address of `iova` and the last address up to which the translation continues.
    pub(super) fn find(&self, iova: u64, access: Access) -> Result<(u64, u64), Refusal> {
        match self.mappings.range(..=iova).next_back() {
            Some((first, mapping)) if iova <= mapping.last => {
                if mapping.access.allows(access) {
                    Ok((mapping.user + (iova - first), mapping.last))
                } else {
                    Err(Refusal::Denied)
                }
            }
            _ => Err(Refusal::Unknown),
        }
    }

    /// Maps [first, last] to `user` and on, instead of what was there; true: there was something.
    /// The user addresses do not wrap around.
    pub(super) fn insert(&mut self, first: u64, last: u64, user: u64, access: Access) -> bool {
        let replaced = self.remove(first, last);
        let (mut first, mut last, mut user) = (first, last, user);
        if let Some((&start, left)) = self.mappings.range(..first).next_back() {
            if left.continues(start, first, user, access) {
                (first, user) = (start, left.user);
            }
        }
        let mapping = Mapping { last, user, access };
        if let Some(next) = last.checked_add(1) {
            if let Some(&right) = self.mappings.get(&next) {
                if mapping.continues(first, next, right.user, right.access) {
                    last = right.last;
                    self.mappings.remove(&next);
                }
            }
        }
        self.mappings.insert(first, Mapping { last, ..mapping });
        self.evict();
        replaced
    }

    /// Forgets [first, last]; true: there was something.
    pub(super) fn remove(&mut self, first: u64, last: u64) -> bool {
        let from = match self.mappings.range(..first).next_back() {
            Some((&start, mapping)) if mapping.last >= first => start,
            _ => first,
        };
        let hit: Vec<_> = self
            .mappings
            .range(from..=last)
            .map(|(&s, &m)| (s, m))
            .collect();
        for &(start, mapping) in &hit {
            self.mappings.remove(&start);
            if start < first {
                let last = first - 1;
                self.mappings.insert(start, Mapping { last, ..mapping });
            }
            if mapping.last > last {
                let user = mapping.user + (last + 1 - start);
                self.mappings.insert(last + 1, Mapping { user, ..mapping });
            }
        }
        self.evict();
        !hit.is_empty()
    }

    /// In turn, so that what was just added stays for long.
    fn evict(&mut self) {
        while self.mappings.len() > MAX_MAPPINGS {
            let victim = self.mappings.range(self.hand..).next();
            let Some((&first, mapping)) = victim.or_else(|| self.mappings.first_key_value()) else {
                return;
            };
            self.hand = mapping.last;
            self.mappings.remove(&first);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.mappings.len()
    }
}
