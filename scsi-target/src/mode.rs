//! Mode parameters and MODE SENSE (SPC-4 6.13, 6.14, 7.5; SBC-3 6.4).
//!
//! Four bits can be changed, [`ModeParameters`]; everything else in the pages is fixed. Pages
//! are always made by [`ModePage::encode`], so the mask of changeable bits is what differs
//! between all bits set and all clear, and cannot disagree with the pages.

use crate::command::CommandContext;
use crate::logical_unit::LogicalUnit;
use crate::opcode;
use crate::sense::{AdditionalSense, SENSE_BYTES_MAX, Sense, SenseFormat};

/// What MODE SELECT can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModeParameters {
    /// WCE: writes are answered before they are durable.
    pub(crate) write_cache: bool,
    /// RCD: initiators want no read cache. The core has none, so it is only remembered.
    pub(crate) read_cache_disabled: bool,
    /// D_SENSE: sense data in descriptor format.
    pub(crate) descriptor_sense: bool,
    /// SWP: writes are refused.
    pub(crate) software_write_protect: bool,
}

impl ModeParameters {
    /// At power on and after a reset.
    pub(crate) const DEFAULT: Self = Self {
        write_cache: true,
        ..Self::all(false)
    };

    const fn all(value: bool) -> Self {
        Self {
            write_cache: value,
            read_cache_disabled: value,
            descriptor_sense: value,
            software_write_protect: value,
        }
    }

    pub(crate) const fn sense_format(self) -> SenseFormat {
        if self.descriptor_sense {
            SenseFormat::Descriptor
        } else {
            SenseFormat::Fixed
        }
    }
}

/// SPF of byte 0 of a page: it has the long header of subpages.
pub(crate) const SPF: u8 = 0x40;
const WCE: u8 = 0x04;
const RCD: u8 = 0x01;
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// The pages there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModePage {
    /// 01h.
    ReadWriteErrorRecovery,
    /// 08h.
    Caching,
    /// 0Ah.
    Control,
    /// 0Ah, subpage 01h.
    ControlExtension,
    /// 1Ch.
    InformationalExceptions,
}

impl ModePage {
    /// Ascending, as "all pages" must be.
    const ALL: [Self; 5] = [
        Self::ReadWriteErrorRecovery,
        Self::Caching,
        Self::Control,
        Self::ControlExtension,
        Self::InformationalExceptions,
    ];

    /// Page code and subpage code.
    const fn code(self) -> (u8, u8) {
        match self {
            Self::ReadWriteErrorRecovery => (0x01, 0),
            Self::Caching => (0x08, 0),
            Self::Control => (0x0A, 0),
            Self::ControlExtension => (0x0A, 1),
            Self::InformationalExceptions => (0x1C, 0),
        }
    }

    /// The page of a code and a subpage code.
    pub(crate) fn of_code(code: u8, subpage: u8) -> Option<Self> {
        let mut pages = Self::ALL.into_iter();
        pages.find(|page| page.code() == (code, subpage))
    }

    /// Bytes of page code, subpage code and length: the long form is that of subpages.
    pub(crate) const fn header_bytes(self) -> usize {
        if self.code().1 == 0 { 2 } else { 4 }
    }

    /// Page code and length, then:
    ///
    /// | page | byte | field |
    /// | --- | --- | --- |
    /// | 01h | 2 | AWRE, ARRE: bad blocks are the store's business |
    /// | 08h | 2 | WCE, RCD |
    /// | 0Ah | 2 | TST 001b (a task set for each nexus), D_SENSE, GLTSD |
    /// | 0Ah | 3 | queue algorithm modifier 1: unrestricted reordering |
    /// | 0Ah | 4 | SWP |
    /// | 0Ah/01h | 4 | IALUAE: access states change by themselves |
    /// | 0Ah/01h | 6 | most bytes of sense data |
    /// | 1Ch | 2 | DEXCPT: no informational exceptions |
    pub(crate) fn encode(self, parameters: ModeParameters) -> Vec<u8> {
        let bit = |set: bool, mask: u8| if set { mask } else { 0 };
        let (fields, page_bytes): ([u8; 3], u8) = match self {
            Self::Caching => {
                let flags =
                    bit(parameters.write_cache, WCE) | bit(parameters.read_cache_disabled, RCD);
                ([flags, 0, 0], 0x12)
            }
            Self::Control => {
                let flags = 0x22 | bit(parameters.descriptor_sense, D_SENSE);
                (
                    [flags, 0x10, bit(parameters.software_write_protect, SWP)],
                    0x0A,
                )
            }
            Self::ReadWriteErrorRecovery => ([0xC0, 0, 0], 0x0A),
            Self::ControlExtension => {
                let sense_bytes = u8::try_from(SENSE_BYTES_MAX).unwrap_or(u8::MAX);
                ([0x01, 0, sense_bytes], 0x1C)
            }
            Self::InformationalExceptions => ([0x08, 0, 0], 0x0A),
        };
        let mut page = match self.code() {
            (code, 0) => vec![code, page_bytes],
            (code, subpage) => vec![SPF | code, subpage, 0, page_bytes],
        };
        page.extend(fields);
        page.resize(self.header_bytes() + usize::from(page_bytes), 0);
        page
    }

    /// The changeable bits, behind the page's header.
    pub(crate) fn changeable(self) -> Vec<u8> {
        let clear = self.encode(ModeParameters::all(false));
        let set = self.encode(ModeParameters::all(true));
        let mask = clear.iter().zip(&set).map(|(clear, set)| clear ^ set);
        let header = clear.iter().copied().take(self.header_bytes());
        header.chain(mask.skip(self.header_bytes())).collect()
    }

    /// Takes the changeable bits of a page into `parameters`.
    pub(crate) fn decode(self, page: &[u8], parameters: &mut ModeParameters) {
        let has = |at: usize, mask: u8| page.get(at).is_some_and(|byte| byte & mask != 0);
        match self {
            Self::Caching => {
                parameters.write_cache = has(2, WCE);
                parameters.read_cache_disabled = has(2, RCD);
            }
            Self::Control => {
                parameters.descriptor_sense = has(2, D_SENSE);
                parameters.software_write_protect = has(4, SWP);
            }
            Self::ReadWriteErrorRecovery
            | Self::ControlExtension
            | Self::InformationalExceptions => {}
        }
    }
}

/// Bytes of the short LBA mode parameter block descriptor.
pub(crate) const SHORT_DESCRIPTOR_BYTES: u8 = 8;

/// MODE SENSE, both lengths.
///
/// The header says WP, DPOFUA and whether a block descriptor follows: none with DBD, the long
/// one with LLBAA of MODE SENSE(10), else the short one.
pub(crate) fn mode_sense(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let cdb = context.cdb;
    let unit = context.unit();
    let ten = cdb.opcode() == opcode::MODE_SENSE_10;
    let pages = selected_pages(cdb.byte(2) & 0x3F, cdb.byte(3))?;
    let parameters = unit.state().mode;
    let make: Box<dyn Fn(ModePage) -> Vec<u8>> = match cdb.byte(2) >> 6 {
        0 => Box::new(|page| page.encode(parameters)),
        1 => Box::new(ModePage::changeable),
        2 => Box::new(|page| page.encode(ModeParameters::DEFAULT)),
        _ => return Err(Sense::illegal(AdditionalSense::SAVING_NOT_SUPPORTED)),
    };
    // LLBAA; the table refuses the bit in MODE SENSE(6).
    let long = cdb.has(1, 0x10);
    let descriptor = if cdb.has(1, 0x08) {
        Vec::new()
    } else {
        block_descriptor(unit, long)
    };
    let mut body = descriptor.clone();
    for page in pages {
        body.extend(make(page));
    }
    let write_protected = unit.read_only() || parameters.software_write_protect;
    let device_specific = if write_protected { 0x90 } else { 0x10 };
    // At most 8 + 16 + 12 + 20 + 12 + 32 + 12 bytes, so a length of one byte always holds it.
    let descriptor_bytes = u8::try_from(descriptor.len()).unwrap_or(u8::MAX);
    let body_bytes = u8::try_from(body.len()).unwrap_or(u8::MAX);
    let mut data;
    let allocation_bytes;
    if ten {
        let long_flag = u8::from(long && descriptor_bytes > 0);
        data = vec![0, body_bytes.saturating_add(6), 0, device_specific];
        data.extend([long_flag, 0, 0, descriptor_bytes]);
        allocation_bytes = cdb.uint(7..9);
    } else {
        data = vec![
            body_bytes.saturating_add(3),
            0,
            device_specific,
            descriptor_bytes,
        ];
        allocation_bytes = cdb.uint(4..5);
    }
    data.extend(body);
    context.reply(&data, allocation_bytes);
    Ok(())
}

/// The pages of a page code and subpage code: 3Fh means all pages, FFh also their subpages.
fn selected_pages(code: u8, subpage: u8) -> Result<Vec<ModePage>, Sense> {
    let of_code = |page: &ModePage| code == 0x3F || page.code().0 == code;
    let mut pages: Vec<_> = ModePage::ALL.into_iter().filter(of_code).collect();
    if pages.is_empty() {
        return Err(Sense::cdb_field(2, Some(5)));
    }
    if code == 0x3F && !matches!(subpage, 0x00 | 0xFF) {
        return Err(Sense::cdb_field(3, Some(7)));
    }
    pages.retain(|page| subpage == 0xFF || page.code().1 == subpage);
    if pages.is_empty() {
        return Err(Sense::cdb_field(3, Some(7)));
    }
    Ok(pages)
}

/// Short: number of blocks (4, FFFFFFFFh when more), reserved, block length (3).
/// Long: number of blocks (8), reserved (4), block length (4).
pub(crate) fn block_descriptor(unit: &LogicalUnit, long: bool) -> Vec<u8> {
    let blocks = unit.block_count();
    let [_, high, middle, low] = unit.block_bytes().to_be_bytes();
    if long {
        let mut descriptor = blocks.to_be_bytes().to_vec();
        descriptor.extend([0, 0, 0, 0, 0, high, middle, low]);
        descriptor
    } else {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let mut descriptor = blocks.to_be_bytes().to_vec();
        descriptor.extend([0, high, middle, low]);
        descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_their_length_and_only_four_bits_change() {
        for (page, length) in [
            (ModePage::Caching, 20),
            (ModePage::Control, 12),
            (ModePage::InformationalExceptions, 12),
            (ModePage::ReadWriteErrorRecovery, 12),
            (ModePage::ControlExtension, 32),
        ] {
            let bytes = page.encode(ModeParameters::DEFAULT);
            assert_eq!(bytes.len(), length);
            let header_bytes = page.header_bytes();
            assert_eq!(usize::from(bytes[header_bytes - 1]) + header_bytes, length);
        }
        assert_eq!(ModePage::Caching.changeable()[..4], [0x08, 0x12, 0x05, 0]);
        assert_eq!(
            ModePage::Control.changeable()[..6],
            [0x0A, 0x0A, 0x04, 0, 0x08, 0]
        );
        assert_eq!(
            ModePage::InformationalExceptions.changeable(),
            [0x1C, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn decoding_a_page_gives_back_what_was_encoded() {
        for bits in 0..16_u8 {
            let parameters = ModeParameters {
                write_cache: bits & 1 != 0,
                read_cache_disabled: bits & 2 != 0,
                descriptor_sense: bits & 4 != 0,
                software_write_protect: bits & 8 != 0,
            };
            let mut decoded = ModeParameters::DEFAULT;
            for page in ModePage::ALL {
                page.decode(&page.encode(parameters), &mut decoded);
            }
            assert_eq!(decoded, parameters);
        }
    }
}
