//! A network interface that is there already as an Ethernet port's medium: a packet socket
//! (packet(7)) that takes every frame which arrives there, and sends ours.
//!
//! With offloads each frame has a virtio-net header (`PACKET_VNET_HDR`), so that super-frames and
//! partial checksums pass unfinished. The kernel takes a frame's VLAN tag off and tells it beside the
//! frame; it is put back. The machine's own use of the interface goes on: it gets the same frames,
//! and what it sends itself the port does not see.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use fabric_payload::ethernet::{FLAG_NEEDS_CSUM, HEADER_BYTES, Offloads, VirtioNetHeader};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socket,
};
use nix::sys::uio::writev;
use zerocopy::FromBytes;

use super::sys;
use super::tap::OFFLOADING;
use super::vlan::TAG_BYTES;

/// Bytes of the kernel's header: ours without its last field, `num_buffers`.
const KERNEL_HEADER_BYTES: usize = HEADER_BYTES - 2;
/// Bytes of both addresses: a tag stands behind them.
const ADDRESSES_BYTES: usize = 12;
/// Where the fields of `struct tpacket_auxdata` (linux/if_packet.h) stand.
const AUXILIARY_STATUS: usize = 0;
const AUXILIARY_TCI: usize = 16;
const AUXILIARY_TPID: usize = 18;
const CUSTOMER_TAG: u16 = 0x8100;

/// A packet socket on one interface.
pub(super) struct PacketSocket {
    socket: OwnedFd,
    offloads: bool,
    /// For what the kernel tells beside a frame; only the port's thread reads.
    beside: Mutex<Vec<u8>>,
}

impl PacketSocket {
    /// Takes the frames of the interface with this number, all of them, and never waits.
    pub(super) fn open(index: u32, offloads: bool) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol, it hears nothing before it is bound: no other interface's frames.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        if offloads {
            sys::set_packet_flag(&socket, libc::PACKET_VNET_HDR)?;
        }
        sys::set_packet_flag(&socket, libc::PACKET_AUXDATA)?;
        sys::set_packet_flag(&socket, sys::PACKET_IGNORE_OUTGOING)?;
        sys::take_all_stations(&socket, index)?;
        sys::bind_packet(&socket, index)?;
        Ok(Self {
            socket,
            offloads,
            beside: Mutex::new(nix::cmsg_space!([u8; 64])),
        })
    }

    fn header_bytes(&self) -> usize {
        if self.offloads {
            KERNEL_HEADER_BYTES
        } else {
            0
        }
    }

    pub(super) fn offloads(&self) -> Offloads {
        if self.offloads {
            OFFLOADING
        } else {
            Offloads::default()
        }
    }

    /// Reads one header and frame.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `Interrupted` when it was one that no virtio-net header
    /// describes, which is gone; any other: the socket is of no use.
    pub(super) fn read(&self, payload: &mut [u8]) -> io::Result<usize> {
        let Some((header, frame)) = payload.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        *header = [0; HEADER_BYTES];
        // Room for the tag, which is put in afterwards: few frames have one.
        let room = frame.len().checked_sub(TAG_BYTES);
        let room = room.filter(|room| *room >= ADDRESSES_BYTES);
        let Some(space) = room.and_then(|room| frame.get_mut(..room)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (kernel, _num_buffers) = header.split_at_mut(KERNEL_HEADER_BYTES);
        let header_bytes = self.header_bytes();
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = kernel.get_mut(..header_bytes).unwrap_or_default();
        let mut pieces = [IoSliceMut::new(kernel), IoSliceMut::new(space)];
        let message = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut pieces,
            Some(&mut beside),
            MsgFlags::empty(),
        );
        let message = message.map_err(|error| match error {
            // Told once when the interface goes down; it may come up again.
            nix::Error::ENETDOWN => io::ErrorKind::WouldBlock.into(),
            nix::Error::EINVAL => io::ErrorKind::Interrupted.into(),
            error => io::Error::from(error),
        })?;
        let bytes = message.bytes.saturating_sub(header_bytes);
        let tag = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Unknown(known) => tag(&known.data_bytes),
            _ => None,
        });
        drop(beside);
        let Some(tag) = tag else {
            return Ok(HEADER_BYTES + bytes);
        };
        frame.copy_within(
            ADDRESSES_BYTES..bytes.max(ADDRESSES_BYTES),
            ADDRESSES_BYTES + TAG_BYTES,
        );
        if let Some(place) = frame.get_mut(ADDRESSES_BYTES..ADDRESSES_BYTES + TAG_BYTES) {
            place.copy_from_slice(&tag);
        }
        behind_tag(header);
        Ok(HEADER_BYTES + bytes + TAG_BYTES)
    }

    /// Writes one header and frame in two pieces, as [`Tap::write`](super::tap::Tap::write).
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full; any other: the kernel refused this frame.
    pub(super) fn write(&self, pieces: [&[u8]; 2]) -> io::Result<()> {
        let (first, tail) = match pieces {
            [[], whole] => (whole, &[][..]),
            [head, tail] => (head, tail),
        };
        let (header, frame) = first.split_at_checked(HEADER_BYTES).unwrap_or_default();
        let header = header.get(..self.header_bytes()).unwrap_or_default();
        match writev(&self.socket, &[header, frame, tail].map(IoSlice::new)) {
            Ok(_bytes) => Ok(()),
            // The interface's queue has no room.
            Err(nix::Error::ENOBUFS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The tag that the kernel took off, as it stands in a frame.
#[expect(clippy::host_endian_bytes, reason = "the kernel writes them so")]
fn tag(auxiliary: &[u8]) -> Option<[u8; TAG_BYTES]> {
    let status = auxiliary.get(AUXILIARY_STATUS..)?.first_chunk::<4>()?;
    let status = u32::from_ne_bytes(*status);
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let half = |at: usize| Some(u16::from_ne_bytes(*auxiliary.get(at..)?.first_chunk()?));
    let tpid = match status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => CUSTOMER_TAG,
        _ => half(AUXILIARY_TPID)?,
    };
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), half(AUXILIARY_TCI)?.to_be_bytes());
    Some([a, b, c, d])
}

/// What the header counts from the frame's beginning is one tag later now.
fn behind_tag(bytes: &mut [u8; HEADER_BYTES]) {
    let Ok(header) = VirtioNetHeader::mut_from_bytes(bytes) else {
        return;
    };
    let later = |value: u16| value.saturating_add(u16::try_from(TAG_BYTES).unwrap_or_default());
    if header.flags & FLAG_NEEDS_CSUM != 0 {
        header.csum_start.set(later(header.csum_start.get()));
    }
    if header.header_len.get() != 0 {
        header.header_len.set(later(header.header_len.get()));
    }
}
