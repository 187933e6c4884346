//! Sense data (SPC-6): the one place that lays out its bytes.

/// Sense keys (SPC-6, sense key table).
pub mod key {
    pub const NO_SENSE: u8 = 0x0;
    pub const RECOVERED_ERROR: u8 = 0x1;
    pub const NOT_READY: u8 = 0x2;
    pub const MEDIUM_ERROR: u8 = 0x3;
    pub const HARDWARE_ERROR: u8 = 0x4;
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const ABORTED_COMMAND: u8 = 0xb;
    pub const MISCOMPARE: u8 = 0xe;
}

const FIXED_LEN: usize = 18;
const HEADER_LEN: usize = 8;
const INFORMATION_LEN: usize = 12;
const SENSE_KEY_SPECIFIC_LEN: usize = 8;
const MAX_LEN: usize = HEADER_LEN + INFORMATION_LEN + SENSE_KEY_SPECIFIC_LEN;

/// Byte offset, bit number, and whether they point into the CDB (else the parameter list).
pub type FieldPointer = (u16, Option<u8>, bool);

/// What sense data says, before a format is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenseInfo {
    pub key: u8,
    pub asc: u8,
    pub ascq: u8,
    pub information: Option<u64>,
    /// Used with ILLEGAL REQUEST only: other keys give these bytes another meaning.
    pub field: Option<FieldPointer>,
    /// Of an operation in parts of 65536; used with NO SENSE and NOT READY only.
    pub progress: Option<u16>,
    /// The error belongs to a command that already ended (response codes 71h and 73h).
    pub deferred: bool,
}

impl SenseInfo {
    /// `code` is ASC and ASCQ as SPC writes them: 0x2400 is 24h/00h.
    pub const fn new(key: u8, code: u16) -> Self {
        let [asc, ascq] = code.to_be_bytes();
        Self {
            key,
            asc,
            ascq,
            information: None,
            field: None,
            progress: None,
            deferred: false,
        }
    }

    /// As [`Sense::code`] returns it.
    pub const fn of((key, code): (u8, u16)) -> Self {
        Self::new(key, code)
    }

    pub const fn information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// Points at a field of the CDB; `bit` is its most significant bit.
    pub const fn cdb_field(mut self, byte: u16, bit: Option<u8>) -> Self {
        self.field = Some((byte, bit, true));
        self
    }

    /// Points at a field of the parameter list in the data-out buffer.
    pub const fn parameter_field(mut self, byte: u16) -> Self {
        self.field = Some((byte, None, false));
        self
    }

    /// The three bytes of the sense-key-specific field, if it says anything.
    fn sense_key_specific(&self) -> Option<[u8; 3]> {
        const SKSV: u8 = 0x80;
        const COMMAND: u8 = 0x40;
        const BIT_POINTER_VALID: u8 = 0x08;
        if let (key::NO_SENSE | key::NOT_READY, Some(progress)) = (self.key, self.progress) {
            let [high, low] = progress.to_be_bytes();
            return Some([SKSV, high, low]);
        }
        let (byte, bit, in_cdb) = self.field?;
        if self.key != key::ILLEGAL_REQUEST {
            return None;
        }
        let mut flags = SKSV;
        if in_cdb {
            flags |= COMMAND;
        }
        if let Some(bit) = bit {
            flags |= BIT_POINTER_VALID | (bit & 7);
        }
        let [high, low] = byte.to_be_bytes();
        Some([flags, high, low])
    }
}

/// Sense data as the initiator sees it; at most 28 bytes, none for [`Sense::NONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    bytes: [u8; MAX_LEN],
    len: u8,
}

impl Sense {
    pub const NONE: Self = Self {
        bytes: [0; MAX_LEN],
        len: 0,
    };

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Sense key, and ASC and ASCQ as one number; None without sense data.
    pub fn code(&self) -> Option<(u8, u16)> {
        let (key, code) = match self.as_bytes() {
            // VALID may be set in fixed format.
            [0x70 | 0x71 | 0xf0 | 0xf1, _, key, rest @ ..] => (key, rest.get(9..11)?),
            [0x72 | 0x73, key, code @ ..] => (key, code.get(..2)?),
            _ => return None,
        };
        Some((key & 0xf, u16::from_be_bytes([code[0], code[1]])))
    }

    fn append(&mut self, part: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + part.len()].copy_from_slice(part);
        self.len += part.len() as u8;
    }
}

/// Fixed format (70h, 71h) or, with `descriptor`, descriptor format (72h, 73h). Fixed format holds
/// INFORMATION of 32 bits; a larger one leaves VALID at 0.
pub fn build(info: &SenseInfo, descriptor: bool) -> Sense {
    if descriptor {
        build_descriptor(info)
    } else {
        build_fixed(info)
    }
}

fn build_fixed(info: &SenseInfo) -> Sense {
    const VALID: u8 = 0x80;
    let mut bytes = [0; FIXED_LEN];
    bytes[0] = 0x70 | u8::from(info.deferred);
    if let Some(Ok(information)) = info.information.map(u32::try_from) {
        bytes[0] |= VALID;
        bytes[3..7].copy_from_slice(&information.to_be_bytes());
    }
    bytes[2] = info.key & 0x0f;
    bytes[7] = (FIXED_LEN - HEADER_LEN) as u8;
    bytes[12] = info.asc;
    bytes[13] = info.ascq;
    if let Some(specific) = info.sense_key_specific() {
        bytes[15..18].copy_from_slice(&specific);
    }
    let mut sense = Sense::NONE;
    sense.append(&bytes);
    sense
}

fn build_descriptor(info: &SenseInfo) -> Sense {
    const INFORMATION: u8 = 0x00;
    const SENSE_KEY_SPECIFIC: u8 = 0x02;
    const VALID: u8 = 0x80;
    let mut sense = Sense::NONE;
    let code = 0x72 | u8::from(info.deferred);
    sense.append(&[code, info.key & 0x0f, info.asc, info.ascq, 0, 0, 0, 0]);
    if let Some(information) = info.information {
        sense.append(&[INFORMATION, INFORMATION_LEN as u8 - 2, VALID, 0]);
        sense.append(&information.to_be_bytes());
    }
    if let Some([flags, high, low]) = info.sense_key_specific() {
        let additional = SENSE_KEY_SPECIFIC_LEN as u8 - 2;
        sense.append(&[SENSE_KEY_SPECIFIC, additional, 0, 0, flags, high, low, 0]);
    }
    sense.bytes[7] = sense.len - HEADER_LEN as u8;
    sense
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVALID_FIELD: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x2400);

    fn fixed(info: SenseInfo) -> Vec<u8> {
        build(&info, false).as_bytes().to_vec()
    }

    fn descriptor(info: SenseInfo) -> Vec<u8> {
        build(&info, true).as_bytes().to_vec()
    }

    #[test]
    fn none_is_empty() {
        assert!(Sense::NONE.as_bytes().is_empty());
    }

    #[test]
    fn fixed_format_points_at_a_bit_of_the_cdb() {
        assert_eq!(
            fixed(INVALID_FIELD.cdb_field(1, Some(7))),
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1]
        );
    }

    #[test]
    fn fixed_format_points_into_the_parameter_list() {
        let info = SenseInfo::new(key::ILLEGAL_REQUEST, 0x2600).parameter_field(0x0102);
        assert_eq!(
            fixed(info),
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x80, 1, 2]
        );
    }

    #[test]
    fn fixed_format_holds_32_bits_of_information() {
        let info = SenseInfo::new(key::MEDIUM_ERROR, 0x1100);
        assert_eq!(
            fixed(info.information(0xffff_fffe)),
            [0xf0, 0, 3, 0xff, 0xff, 0xff, 0xfe, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
        );
        assert_eq!(fixed(info.information(1 << 32)), fixed(info));
        assert_eq!(fixed(info)[0], 0x70);
    }

    #[test]
    fn deferred_errors_have_their_own_response_codes() {
        let info = SenseInfo {
            deferred: true,
            ..SenseInfo::new(key::MEDIUM_ERROR, 0x0c00)
        };
        assert_eq!(fixed(info)[0], 0x71);
        assert_eq!(descriptor(info)[0], 0x73);
    }

    #[test]
    fn descriptor_format_without_descriptors_is_a_header() {
        let info = SenseInfo::new(key::DATA_PROTECT, 0x2707);
        assert_eq!(descriptor(info), [0x72, 7, 0x27, 7, 0, 0, 0, 0]);
    }

    #[test]
    fn descriptor_format_holds_64_bits_and_a_field_pointer() {
        assert_eq!(
            descriptor(
                INVALID_FIELD
                    .information(0x0102_0304_0506_0708)
                    .cdb_field(10, None)
            ),
            [
                0x72, 5, 0x24, 0, 0, 0, 0, 20, // header
                0x00, 0x0a, 0x80, 0, 1, 2, 3, 4, 5, 6, 7, 8, // information
                0x02, 0x06, 0, 0, 0xc0, 0, 10, 0, // sense key specific
            ]
        );
    }

    #[test]
    fn a_field_pointer_needs_illegal_request() {
        let info = SenseInfo::new(key::MISCOMPARE, 0x1d00).cdb_field(2, None);
        assert_eq!(fixed(info)[15..], [0, 0, 0]);
        assert_eq!(descriptor(info).len(), HEADER_LEN);
    }
}
