//! Sense data of one piece of a split command, made into that of the whole.

const FIXED: [u8; 2] = [0x70, 0x71];
const DESCRIPTOR: [u8; 2] = [0x72, 0x73];
const VALID: u8 = 0x80;
const HEADER_LEN: usize = 8;
const INFORMATION: u8 = 0x00;
const SENSE_KEY_SPECIFIC: u8 = 0x02;
const SKSV: u8 = 0x80;
const COMMAND: u8 = 0x40;

fn response_code(sense: &[u8]) -> u8 {
    sense.first().map_or(0, |byte| byte & 0x7f)
}

pub fn is_descriptor_format(sense: &[u8]) -> bool {
    DESCRIPTOR.contains(&response_code(sense))
}

/// The sense key of a current error.
pub fn sense_key(sense: &[u8]) -> Option<u8> {
    match response_code(sense) {
        0x70 => sense.get(2),
        0x72 => sense.get(1),
        _ => None,
    }
    .map(|byte| byte & 0x0f)
}

/// INFORMATION, where it is valid.
pub fn information(sense: &[u8]) -> Option<u64> {
    if FIXED.contains(&response_code(sense)) {
        let [code, _, _, number @ ..] = sense.first_chunk::<7>()?;
        return (code & VALID != 0).then(|| u32::from_be_bytes(*number).into());
    }
    let mut copy = sense.to_vec();
    let [_, _, flags, _, number @ ..] = *descriptor::<12>(&mut copy, INFORMATION)?;
    (flags & VALID != 0).then(|| u64::from_be_bytes(number))
}

/// Adds to INFORMATION, where it is valid; in fixed format a sum above 32 bits is not.
pub fn add_to_information(sense: &mut [u8], more: u64) {
    if FIXED.contains(&response_code(sense)) {
        let Some((&mut [ref mut code, _, _, ref mut number @ ..], _)) =
            sense.split_first_chunk_mut::<7>()
        else {
            return;
        };
        if *code & VALID == 0 {
            return;
        }
        let sum = u64::from(u32::from_be_bytes(*number)).checked_add(more);
        match sum.and_then(|sum| u32::try_from(sum).ok()) {
            Some(sum) => *number = sum.to_be_bytes(),
            None => *code &= !VALID,
        }
    } else if let Some([_, _, flags, _, number @ ..]) = descriptor::<12>(sense, INFORMATION) {
        if *flags & VALID != 0 {
            *number = u64::from_be_bytes(*number).wrapping_add(more).to_be_bytes();
        }
    }
}

/// Changes a field pointer that points into the parameter list.
pub fn map_parameter_pointer(sense: &mut [u8], map: impl Fn(u16) -> u16) {
    let specific = if FIXED.contains(&response_code(sense)) {
        sense
            .get_mut(15..18)
            .and_then(|bytes| <&mut [u8; 3]>::try_from(bytes).ok())
    } else {
        descriptor::<8>(sense, SENSE_KEY_SPECIFIC)
            .and_then(|bytes| <&mut [u8; 3]>::try_from(&mut bytes[4..7]).ok())
    };
    if let Some([flags, pointer @ ..]) = specific {
        if *flags & SKSV != 0 && *flags & COMMAND == 0 {
            *pointer = map(u16::from_be_bytes(*pointer)).to_be_bytes();
        }
    }
}

/// The first sense data descriptor of this type and length.
fn descriptor<const LEN: usize>(sense: &mut [u8], kind: u8) -> Option<&mut [u8; LEN]> {
    if !is_descriptor_format(sense) {
        return None;
    }
    let mut at = HEADER_LEN;
    while let [found, additional, ..] = *sense.get(at..)? {
        let end = at + 2 + usize::from(additional);
        if found == kind && end - at == LEN {
            return sense.get_mut(at..end)?.try_into().ok();
        }
        at = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sense::{build, key, SenseInfo};

    fn built(info: SenseInfo, descriptor: bool) -> Vec<u8> {
        build(&info, descriptor).as_bytes().to_vec()
    }

    const MISCOMPARE: SenseInfo = SenseInfo::new(key::MISCOMPARE, 0x1d00);
    const INVALID: SenseInfo = SenseInfo::new(key::ILLEGAL_REQUEST, 0x2600);

    #[test]
    fn information_counts_on_in_both_formats() {
        for format in [false, true] {
            let mut sense = built(MISCOMPARE.information(5), format);
            add_to_information(&mut sense, 1000);
            assert_eq!(sense, built(MISCOMPARE.information(1005), format));
            assert_eq!(information(&sense), Some(1005));
            let mut without = built(MISCOMPARE, format);
            add_to_information(&mut without, 1000);
            assert_eq!(without, built(MISCOMPARE, format));
            assert_eq!(information(&without), None);
        }
    }

    #[test]
    fn information_that_no_longer_fits_is_not_valid() {
        let mut sense = built(MISCOMPARE.information(0xffff_ffff), false);
        add_to_information(&mut sense, 1);
        assert_eq!(sense[0], 0x70);
    }

    #[test]
    fn a_pointer_into_the_parameter_list_moves_and_one_into_the_cdb_does_not() {
        for format in [false, true] {
            let mut sense = built(INVALID.parameter_field(24), format);
            map_parameter_pointer(&mut sense, |at| at + 160);
            assert_eq!(sense, built(INVALID.parameter_field(184), format));
            let mut sense = built(INVALID.cdb_field(7, None), format);
            map_parameter_pointer(&mut sense, |at| at + 160);
            assert_eq!(sense, built(INVALID.cdb_field(7, None), format));
        }
    }

    #[test]
    fn cut_off_sense_data_is_left_alone() {
        for format in [false, true] {
            let whole = built(INVALID.information(1).parameter_field(8), format);
            for len in 0..whole.len() {
                let mut cut = whole[..len].to_vec();
                add_to_information(&mut cut, 1 << 40);
                map_parameter_pointer(&mut cut, |_| 0);
                sense_key(&cut);
                information(&cut);
                assert_eq!(cut.len(), len);
            }
        }
    }
}
