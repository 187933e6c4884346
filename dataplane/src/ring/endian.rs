//! Byte order of ring fields.

/// Converts between host order and a ring's order; each conversion is its own inverse.
pub trait Endian: Send + 'static {
    fn u16(value: u16) -> u16;
    fn u32(value: u32) -> u32;
    fn u64(value: u64) -> u64;
}

/// Modern rings, and legacy rings of little-endian guests.
pub struct Little;

/// Legacy rings of big-endian guests.
pub struct Big;

impl Endian for Little {
    fn u16(value: u16) -> u16 {
        value.to_le()
    }
    fn u32(value: u32) -> u32 {
        value.to_le()
    }
    fn u64(value: u64) -> u64 {
        value.to_le()
    }
}

impl Endian for Big {
    fn u16(value: u16) -> u16 {
        value.to_be()
    }
    fn u32(value: u32) -> u32 {
        value.to_be()
    }
    fn u64(value: u64) -> u64 {
        value.to_be()
    }
}
