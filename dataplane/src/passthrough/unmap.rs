//! UNMAP parameter lists, cut to what a device takes (SBC-5, UNMAP command).

use super::limits::Limits;

const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// Part of a descriptor of the original list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    lba: u64,
    blocks: u64,
    descriptor: usize,
}

/// Groups of ranges, one a piece.
#[derive(Debug)]
pub struct Pieces {
    groups: Vec<Vec<Range>>,
    next: usize,
}

impl Pieces {
    /// `None`: the device takes the list as it is, or will find what is wrong with it.
    pub fn new(limits: &Limits, list: &[u8]) -> Option<Self> {
        let ranges = parse(list)?;
        let in_bytes = (limits.most() as usize).saturating_sub(HEADER_LEN) / DESCRIPTOR_LEN;
        let descriptors = match limits.max_unmap_descriptors as usize {
            0 => in_bytes,
            most => most.min(in_bytes),
        };
        let blocks = match limits.max_unmap_blocks {
            0 => u64::MAX,
            most => most,
        };
        let sum = ranges
            .iter()
            .fold(0, |sum: u64, range| sum.saturating_add(range.blocks));
        let fits = list.len() as u64 <= limits.most();
        if descriptors == 0 || (fits && ranges.len() <= descriptors && sum <= blocks) {
            return None;
        }
        Some(Self {
            groups: group(&ranges, descriptors, blocks),
            next: 0,
        })
    }

    pub fn is_done(&self) -> bool {
        self.next == self.groups.len()
    }

    pub fn advance(&mut self) {
        self.next += 1;
    }

    /// The parameter list of the next piece.
    pub fn list(&self) -> Vec<u8> {
        let group = &self.groups[self.next];
        let descriptors = (group.len() * DESCRIPTOR_LEN) as u16;
        let mut list = Vec::with_capacity(HEADER_LEN + usize::from(descriptors));
        list.extend_from_slice(&(descriptors + HEADER_LEN as u16 - 2).to_be_bytes());
        list.extend_from_slice(&descriptors.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
        for range in group {
            list.extend_from_slice(&range.lba.to_be_bytes());
            list.extend_from_slice(&(range.blocks as u32).to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        list
    }

    /// Where a byte of the next piece's list is in the original one.
    pub fn original(&self, pointer: u16) -> u16 {
        let Some(inside) = usize::from(pointer).checked_sub(HEADER_LEN) else {
            return pointer;
        };
        match self.groups[self.next].get(inside / DESCRIPTOR_LEN) {
            Some(range) => {
                let at = HEADER_LEN + range.descriptor * DESCRIPTOR_LEN + inside % DESCRIPTOR_LEN;
                at as u16
            }
            None => pointer,
        }
    }
}

/// The shortest of a list's three lengths counts; a descriptor that is not whole is none.
fn parse(list: &[u8]) -> Option<Vec<Range>> {
    let (header, descriptors) = list.split_at_checked(HEADER_LEN)?;
    let number = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let len = number(2)
        .min((number(0) + 2).saturating_sub(HEADER_LEN))
        .min(descriptors.len());
    let ranges = descriptors[..len]
        .chunks_exact(DESCRIPTOR_LEN)
        .enumerate()
        .map(|(descriptor, bytes)| {
            let number = |bytes: &[u8]| {
                bytes
                    .iter()
                    .fold(0, |number: u64, &byte| (number << 8) | u64::from(byte))
            };
            Range {
                lba: number(&bytes[..8]),
                blocks: number(&bytes[8..12]),
                descriptor,
            }
        });
    Some(ranges.collect())
}

/// In order. A range longer than `most_blocks` becomes several.
fn group(ranges: &[Range], most_ranges: usize, most_blocks: u64) -> Vec<Vec<Range>> {
    let mut groups = vec![Vec::new()];
    let mut blocks_left = most_blocks;
    for range in ranges {
        let mut rest = *range;
        loop {
            let group = groups.last_mut().filter(|group| group.len() < most_ranges);
            let Some(group) = group.filter(|_| blocks_left > 0 || rest.blocks == 0) else {
                groups.push(Vec::new());
                blocks_left = most_blocks;
                continue;
            };
            let blocks = rest.blocks.min(blocks_left);
            group.push(Range { blocks, ..rest });
            blocks_left -= blocks;
            rest.blocks -= blocks;
            if rest.blocks == 0 {
                break;
            }
            rest.lba = rest.lba.wrapping_add(blocks);
        }
    }
    groups
}
