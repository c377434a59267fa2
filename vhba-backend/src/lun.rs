//! Logical unit numbers as virtio-scsi writes them, and as SAM does.
//!
//! | virtio-scsi (virtio 1.2 section 5.6.6.1) | SAM-5 section 4.7 |
//! | --- | --- |
//! | `01 TT 40\|hi lo 00 00 00 00`, or `01 TT 00 lo ...` | flat: `40\|hi lo 00 ...` |
//! | `C1 01 00 ...` | REPORT LUNS well known logical unit, unchanged |

use fabric_payload::scsi::LunBytes;

/// First byte of an address on this bus.
const SINGLE_LEVEL: u8 = 1;
/// The only target there is.
const TARGET: u8 = 0;
/// Addressing method in the upper bits of a SAM LUN's first byte.
const METHOD_MASK: u8 = 0xc0;
const METHOD_FLAT: u8 = 0x40;
/// LUNs below this one are written in the peripheral form in events, the only one that Linux
/// recognizes there.
const PERIPHERAL_LUNS: u16 = 256;

const REPORT_LUNS_WELL_KNOWN: LunBytes = [0xc1, 1, 0, 0, 0, 0, 0, 0];

/// The SAM address of what a guest addresses; `None` if no such target exists.
///
/// Bytes 4 to 7 are not looked at, as in QEMU.
pub(crate) fn from_guest(guest: LunBytes) -> Option<LunBytes> {
    if guest == REPORT_LUNS_WELL_KNOWN {
        return Some(guest);
    }
    let [SINGLE_LEVEL, TARGET, high, low, ..] = guest else {
        return None;
    };
    let high = match (high & METHOD_MASK, high & !METHOD_MASK) {
        // The peripheral form has a bus number here, and there is one bus.
        (0, 0) => 0,
        (METHOD_FLAT, high) => high,
        _ => return None,
    };
    Some([METHOD_FLAT | high, low, 0, 0, 0, 0, 0, 0])
}

/// The address that an event carries for a SAM address; `None` for one that guests do not know.
pub(crate) fn to_event(lun: LunBytes) -> Option<LunBytes> {
    let [high, low, 0, 0, 0, 0, 0, 0] = lun else {
        return None;
    };
    let number = match high & METHOD_MASK {
        METHOD_FLAT => u16::from_be_bytes([high & !METHOD_MASK, low]),
        0 if high == 0 => low.into(),
        _ => return None,
    };
    let [high, low] = number.to_be_bytes();
    let high = if number < PERIPHERAL_LUNS {
        0
    } else {
        METHOD_FLAT | high
    };
    Some([SINGLE_LEVEL, TARGET, high, low, 0, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn s04_address_forms_of_a_request() {
        let flat = |high: u8, low| Some([0x40 | high, low, 0, 0, 0, 0, 0, 0]);
        // As Linux writes them.
        assert_eq!(from_guest([1, 0, 0x40, 5, 0, 0, 0, 0]), flat(0, 5));
        assert_eq!(from_guest([1, 0, 0x41, 0x02, 0, 0, 0, 0]), flat(1, 2));
        assert_eq!(from_guest([1, 0, 0x7f, 0xff, 0, 0, 0, 0]), flat(0x3f, 0xff));
        assert_eq!(from_guest([1, 0, 0, 5, 0, 0, 0, 0]), flat(0, 5));
        assert_eq!(
            from_guest([0xc1, 1, 0, 0, 0, 0, 0, 0]),
            Some([0xc1, 1, 0, 0, 0, 0, 0, 0])
        );
        for nobody in [
            [1, 1, 0x40, 0, 0, 0, 0, 0],
            [1, 255, 0x40, 0, 0, 0, 0, 0],
            [0, 0, 0x40, 0, 0, 0, 0, 0],
            [1, 0, 0x80, 0, 0, 0, 0, 0],
            [1, 0, 0xc1, 1, 0, 0, 0, 0],
            [1, 0, 1, 0, 0, 0, 0, 0],
            [0xc1, 2, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(from_guest(nobody), None, "{nobody:02x?}");
        }
    }

    #[test]
    fn events_use_the_form_that_linux_recognizes() {
        assert_eq!(
            to_event([0x40, 5, 0, 0, 0, 0, 0, 0]),
            Some([1, 0, 0, 5, 0, 0, 0, 0])
        );
        assert_eq!(
            to_event([0, 5, 0, 0, 0, 0, 0, 0]),
            Some([1, 0, 0, 5, 0, 0, 0, 0])
        );
        assert_eq!(
            to_event([0x41, 5, 0, 0, 0, 0, 0, 0]),
            Some([1, 0, 0x41, 5, 0, 0, 0, 0])
        );
        assert_eq!(to_event([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(to_event([0x40, 5, 0x40, 5, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn an_event_names_the_unit_that_a_request_addresses(number in 0_u16..0x4000) {
            let [high, low] = number.to_be_bytes();
            let lun = [0x40 | high, low, 0, 0, 0, 0, 0, 0];
            prop_assert_eq!(to_event(lun).and_then(from_guest), Some(lun));
        }
    }
}
