//! The ioctls of TAP interfaces (linux/if_tun.h) and the options of packet sockets (packet(7)): the
//! only unsafe code of the Ethernet module.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_char, c_int, c_short, c_uint, ifreq, socklen_t};
use zerocopy::{Immutable, IntoBytes};

/// An ioctl request with a name and arguments; zeroed but for the name.
fn request(name: &str) -> io::Result<ifreq> {
    // SAFETY: `ifreq` is a C structure of integers and a union of such, for which zero is valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL.
    let room = request.ifr_name.len() - 1;
    if name.len() > room || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_le_bytes([byte]);
    }
    Ok(request)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes the opened /dev/net/tun the TAP interface `name` with a virtio-net header.
pub(super) fn set_interface(tun: &File, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq` through the pointer, which is to a live one;
    // `tun` is open because it is borrowed.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Sets the bytes of the virtio-net header in front of every frame.
pub(super) fn set_header_bytes(tun: &File, header_bytes: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one `int` through the pointer, which is to a live one; `tun`
    // is open because it is borrowed.
    check(unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETVNETHDRSZ,
            &raw const header_bytes,
        )
    })
}

/// Says which unfinished frames this side takes: partial checksums and TCP super-frames.
pub(super) fn set_offloads(tun: &File) -> io::Result<()> {
    const OFFLOADS: c_uint =
        libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes its argument by value; `tun` is open because it is borrowed.
    check(unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(OFFLOADS),
        )
    })
}

/// `struct sockaddr_ll` of packet(7).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PacketAddress {
    family: u16,
    /// In network byte order.
    protocol: u16,
    index: i32,
    unused: [u8; 12],
}

/// `struct packet_mreq` of packet(7).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PacketMembership {
    index: i32,
    kind: u16,
    unused: [u8; 10],
}

/// Since Linux 4.20; not in `libc`.
pub(super) const PACKET_IGNORE_OUTGOING: c_int = 23;

fn packet_option<T: IntoBytes + Immutable>(
    socket: &OwnedFd,
    option: c_int,
    value: &T,
) -> io::Result<()> {
    let bytes = value.as_bytes();
    let length = socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: setsockopt reads `length` bytes through the pointer, which is to a live slice of that
    // many, all of them initialized (`IntoBytes`); `socket` is open because it is borrowed.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            bytes.as_ptr().cast(),
            length,
        )
    })
}

/// Switches a flag of a packet socket on.
pub(super) fn set_packet_flag(socket: &OwnedFd, option: c_int) -> io::Result<()> {
    packet_option(socket, option, &1_i32)
}

/// Has an interface take the frames of all stations while `socket` is open.
pub(super) fn take_all_stations(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let membership = PacketMembership {
        index: i32::try_from(index).map_err(io::Error::other)?,
        kind: u16::try_from(libc::PACKET_MR_PROMISC).map_err(io::Error::other)?,
        unused: [0; 10],
    };
    packet_option(socket, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// Has a packet socket hear frames of all protocols of one interface.
pub(super) fn bind_packet(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let address = PacketAddress {
        family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        protocol: u16::try_from(libc::ETH_P_ALL)
            .map_err(io::Error::other)?
            .to_be(),
        index: i32::try_from(index).map_err(io::Error::other)?,
        unused: [0; 12],
    };
    let bytes = address.as_bytes();
    let length = socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: bind reads `length` bytes through the pointer, which is to a live slice of that many,
    // laid out as `sockaddr_ll`, which has no alignment that reading by bytes needs; `socket` is open
    // because it is borrowed.
    check(unsafe { libc::bind(socket.as_raw_fd(), bytes.as_ptr().cast(), length) })
}

/// The descriptor of a socket of the `netlink-sys` crate, which has no `AsFd`.
pub(super) fn socket_fd(socket: &netlink_sys::Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket owns the descriptor and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// The descriptor of an interface of the `tun-tap` crate, which has no `AsFd`.
pub(super) fn interface_fd(interface: &tun_tap::Iface) -> BorrowedFd<'_> {
    // SAFETY: the interface owns the descriptor and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(interface.as_raw_fd()) }
}
