//! Which commands are passed on, and what they do to the blocks of the unit.
//!
//! An allow-list: a command that is not here is answered 5/20/00 and reaches no target. Left out on
//! purpose, besides everything of a vendor:
//!
//! - what destroys or changes the unit for all who use it: FORMAT UNIT, SANITIZE, REASSIGN BLOCKS,
//!   WRITE BUFFER (firmware), SEND DIAGNOSTIC, LOG SELECT, SET TARGET PORT GROUPS, SECURITY PROTOCOL,
//!   ACCESS CONTROL, WRITE LONG, ATA PASS-THROUGH;
//! - what reaches other units of the target behind our masking: EXTENDED COPY, RECEIVE COPY RESULTS;
//! - RESERVE and RELEASE of SPC-2: what they reserve is lost with the target's session, unseen by the
//!   guest. PERSISTENT RESERVE takes their place.

use std::ops::Range;

/// What a command does to the blocks of its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing that a second time would change.
    Reads,
    /// Puts its data-out at these blocks, and does nothing else.
    Writes(Range<u64>),
    /// Anything else: not twice, and it may concern any block.
    Changes,
}

impl Effect {
    /// Whether one of them may undo what the other did.
    pub(super) fn touches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Reads, _) | (_, Self::Reads) => false,
            (Self::Writes(one), Self::Writes(other)) => {
                one.start < other.end && other.start < one.end
            }
            (Self::Changes, _) | (_, Self::Changes) => true,
        }
    }
}

/// Who else must have nothing to do with the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Anybody may.
    Nothing,
    /// No other vHBA may have the unit: it changes it for all.
    Alone,
    /// No other vHBA may come to the target under the same name: it reserves for the name.
    OwnNexus,
}

/// A command that is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) effect: Effect,
    pub(super) needs: Needs,
    /// Who sends it shares the unit with others: from then on no write is repeated.
    pub(super) shares: bool,
}

/// Why a command is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// 5/20/00.
    OperationCode,
    /// 5/24/00: cut off, or NACA is set (SAM-5 section 5.9), for which nobody could clear the ACA.
    Field,
}

/// The CDB without what stands behind it: its length goes by the operation code (SPC-4 section 4.2.5.1).
pub(super) fn trimmed(cdb: &[u8]) -> Result<&[u8], Unfit> {
    let opcode = *cdb.first().ok_or(Unfit::Field)?;
    let bytes = match opcode >> 5 {
        0 => 6,
        1 | 2 => 10,
        4 => 16,
        5 => 12,
        _ => return Err(Unfit::OperationCode),
    };
    cdb.get(..bytes).ok_or(Unfit::Field)
}

/// What a [`trimmed`] CDB asks for.
pub(super) fn classify(cdb: &[u8]) -> Result<Class, Unfit> {
    const NACA: u8 = 0x04;
    let class = |effect| Class {
        effect,
        needs: Needs::Nothing,
        shares: false,
    };
    let byte = |at: usize| cdb.get(at).copied().unwrap_or(0);
    let service_action = byte(1) & 0x1f;
    let known = match byte(0) {
        // TEST UNIT READY, REQUEST SENSE, READ 6, INQUIRY, MODE SENSE 6, PREVENT ALLOW
        0x00 | 0x03 | 0x08 | 0x12 | 0x1a | 0x1e
        // READ CAPACITY 10, READ 10, VERIFY 10, PRE-FETCH 10, SYNCHRONIZE CACHE 10
        | 0x25 | 0x28 | 0x2f | 0x34 | 0x35
        // LOG SENSE, MODE SENSE 10, PERSISTENT RESERVE IN
        | 0x4d | 0x5a | 0x5e
        // READ 16, VERIFY 16, PRE-FETCH 16, SYNCHRONIZE CACHE 16, READ 12, VERIFY 12
        | 0x88 | 0x8f | 0x90 | 0x91 | 0xa8 | 0xaf => class(Effect::Reads),
        // READ CAPACITY 16, GET LBA STATUS
        0x9e if matches!(service_action, 0x10 | 0x12) => class(Effect::Reads),
        // REPORT IDENTIFYING INFORMATION, TARGET PORT GROUPS, OPERATION CODES, TMFS, TIMESTAMP
        0xa3 if matches!(service_action, 0x05 | 0x0a | 0x0c | 0x0d | 0x0f) => class(Effect::Reads),
        // WRITE 6, 10, 12, 16, WRITE AND VERIFY 10, 12, 16, WRITE ATOMIC 16
        0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0xae | 0x8e | 0x9c => class(Effect::Writes(blocks(cdb))),
        // WRITE SAME 10, 16, UNMAP, ORWRITE
        0x41 | 0x93 | 0x42 | 0x8b => class(Effect::Changes),
        // COMPARE AND WRITE
        0x89 => Class {
            shares: true,
            ..class(Effect::Changes)
        },
        // PERSISTENT RESERVE OUT
        0x5f => Class {
            needs: Needs::OwnNexus,
            shares: true,
            ..class(Effect::Changes)
        },
        // MODE SELECT 6, 10, START STOP UNIT
        0x15 | 0x55 | 0x1b => Class {
            needs: Needs::Alone,
            ..class(Effect::Changes)
        },
        _ => return Err(Unfit::OperationCode),
    };
    if cdb.last().is_some_and(|control| control & NACA != 0) {
        return Err(Unfit::Field);
    }
    Ok(known)
}

/// The blocks that a write names (SBC-3 section 5).
fn blocks(cdb: &[u8]) -> Range<u64> {
    let number = |bytes: Range<usize>| {
        let bytes = cdb.get(bytes).unwrap_or_default();
        bytes
            .iter()
            .fold(0, |number: u64, byte| number << 8 | u64::from(*byte))
    };
    let (start, count) = match cdb.len() {
        6 => match number(4..5) {
            0 => (number(1..4) & 0x1f_ffff, 256),
            count => (number(1..4) & 0x1f_ffff, count),
        },
        10 => (number(2..6), number(7..9)),
        12 => (number(2..6), number(6..10)),
        // WRITE ATOMIC 16 has its length behind another.
        _ if cdb.first() == Some(&0x9c) => (number(2..10), number(12..14)),
        _ => (number(2..10), number(10..14)),
    };
    start..start.saturating_add(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(cdb: &[u8]) -> Effect {
        classify(trimmed(cdb).unwrap()).unwrap().effect
    }

    #[test]
    fn writes_of_each_length_name_their_blocks() {
        let mut padded = [0; 32];
        padded[..10].copy_from_slice(&[0x2a, 0, 0, 1, 2, 3, 0, 0, 8, 0]);
        assert_eq!(effect(&padded), Effect::Writes(0x01_0203..0x01_020b));
        assert_eq!(
            effect(&[0x0a, 0xe1, 0, 2, 0, 0]),
            Effect::Writes(0x1_0002..0x1_0102)
        );
        let twelve = [0xaa, 0, 0, 0, 0, 9, 0, 1, 0, 0, 0, 0];
        assert_eq!(effect(&twelve), Effect::Writes(9..0x1_0009));
        let mut sixteen = [0; 16];
        (sixteen[0], sixteen[2], sixteen[13]) = (0x8a, 0xff, 4);
        assert_eq!(
            effect(&sixteen),
            Effect::Writes(0xff << 56..(0xff << 56) + 4)
        );
        sixteen[2..10].fill(0xff);
        assert_eq!(effect(&sixteen), Effect::Writes(u64::MAX..u64::MAX));
    }

    #[test]
    fn what_is_not_listed_or_cut_off_or_wants_an_aca_is_not_passed_on() {
        for (name, cdb) in [
            ("FORMAT UNIT", &[0x04, 0, 0, 0, 0, 0][..]),
            ("RESERVE 6", &[0x16, 0, 0, 0, 0, 0]),
            ("SEND DIAGNOSTIC", &[0x1d, 4, 0, 0, 0, 0]),
            ("WRITE BUFFER", &[0x3b, 5, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("SANITIZE", &[0x48, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("EXTENDED COPY", &[0x83; 16]),
            ("ATA PASS-THROUGH", &[0x85; 16]),
            (
                "SET TARGET PORT GROUPS",
                &[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            ("REPORT LUNS", &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("of a vendor", &[0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("variable length", &[0x7f; 32]),
        ] {
            let unfit = trimmed(cdb).and_then(classify);
            assert_eq!(unfit, Err(Unfit::OperationCode), "{name}");
        }
        assert_eq!(trimmed(&[0x28, 0, 0]), Err(Unfit::Field));
        assert_eq!(trimmed(&[]), Err(Unfit::Field));
        let naca = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4];
        assert_eq!(classify(&naca), Err(Unfit::Field));
    }

    #[test]
    fn commands_touch_where_they_overlap() {
        let writes = |range| Effect::Writes(range);
        assert!(writes(0..8).touches(&writes(7..9)));
        assert!(!writes(0..8).touches(&writes(8..9)));
        assert!(writes(0..8).touches(&Effect::Changes));
        assert!(Effect::Changes.touches(&writes(5..6)));
        assert!(!Effect::Reads.touches(&Effect::Changes));
    }
}
