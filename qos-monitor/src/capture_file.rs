//! A capture as a file that Wireshark opens: pcapng with Fibre Channel or Ethernet frames.

use std::io::{self, Write};
use std::time::Duration;

use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::frames::{CaptureInterface, Captured, CapturedFrame, FrameDirection, FrameKind};

/// `if_tsresol`: times are in units of 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// `epb_flags`: the direction, in its lowest two bits.
const fn flags(direction: FrameDirection) -> u32 {
    match direction {
        FrameDirection::Inbound => 1,
        FrameDirection::Outbound => 2,
    }
}

/// Writes one capture of one vHBA, vNIC or port.
pub struct CaptureFile<W: Write> {
    writer: PcapNgWriter<W>,
    last_nanos: u64,
    seen: u64,
    dropped: u64,
}

impl<W: Write> CaptureFile<W> {
    /// Begins a file with the headers.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(out: W, interface: &CaptureInterface) -> io::Result<Self> {
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication("orimono-qos".into())],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(out, section).map_err(failed)?;
        let block = InterfaceDescriptionBlock {
            linktype: match interface.kind {
                FrameKind::FibreChannel => DataLink::FC_2,
                FrameKind::Ethernet => DataLink::ETHERNET,
            },
            snaplen: interface.snap_bytes,
            options: vec![
                InterfaceDescriptionOption::IfName(interface.name.clone().into()),
                InterfaceDescriptionOption::IfDescription(interface.description.clone().into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        write(&mut writer, block.into_block())?;
        Ok(Self {
            writer,
            last_nanos: 0,
            seen: 0,
            dropped: 0,
        })
    }

    /// Adds what was captured since the last time.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, captured: &Captured) -> io::Result<()> {
        (self.seen, self.dropped) = (captured.seen, captured.dropped);
        for frame in &captured.frames {
            self.last_nanos = frame.at_nanos;
            write(&mut self.writer, packet(frame).into_block())?;
        }
        Ok(())
    }

    /// Has what was added reach a reader.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    /// Ends the file: says how many frames there were and how many are missing.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        let block = InterfaceStatisticsBlock {
            interface_id: 0,
            // The upper half comes first, in a file whose numbers are little-endian.
            timestamp: self.last_nanos.rotate_left(32),
            options: vec![
                InterfaceStatisticsOption::IsbIfRecv(self.seen),
                InterfaceStatisticsOption::IsbIfDrop(self.dropped),
            ],
        };
        write(&mut self.writer, block.into_block())?;
        Ok(self.writer.into_inner())
    }
}

impl<W: Write> std::fmt::Debug for CaptureFile<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureFile")
            .field("seen", &self.seen)
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

fn packet(frame: &CapturedFrame) -> EnhancedPacketBlock<'_> {
    let comment = frame.comment.as_deref();
    let comment = comment.map(|comment| EnhancedPacketOption::Comment(comment.into()));
    let direction = frame.direction.map(flags).map(EnhancedPacketOption::Flags);
    let dropped =
        (frame.dropped_before > 0).then_some(EnhancedPacketOption::DropCount(frame.dropped_before));
    EnhancedPacketBlock {
        interface_id: 0,
        timestamp: Duration::from_nanos(frame.at_nanos),
        original_len: frame.original_bytes,
        data: (&frame.bytes).into(),
        options: comment
            .into_iter()
            .chain(direction)
            .chain(dropped)
            .collect(),
    }
}

fn write<W: Write>(writer: &mut PcapNgWriter<W>, block: Block<'_>) -> io::Result<()> {
    writer.write_block(&block).map(drop).map_err(failed)
}

fn failed(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
