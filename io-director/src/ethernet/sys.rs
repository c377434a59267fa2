//! The ioctls of TAP interfaces (linux/if_tun.h, netdevice(7)): the only unsafe code of the crate.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_char, c_int, c_short, c_uint, ifreq};

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

/// Sets the MTU of `name` through any socket of its namespace.
pub(super) fn set_mtu(socket: &OwnedFd, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    // SAFETY: SIOCSIFMTU reads one `ifreq` through the pointer, which is to a live one; `socket`
    // is open because it is borrowed.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) })
}

/// Sets `name` up through any socket of its namespace.
pub(super) fn set_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: SIOCGIFFLAGS reads and writes one `ifreq` through the pointer, which is to a live
    // one; `socket` is open because it is borrowed.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags =
        flags | c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq` through the pointer, which is to a live one;
    // `socket` is open because it is borrowed.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// The descriptor of an interface of the `tun-tap` crate, which has no `AsFd`.
pub(super) fn interface_fd(interface: &tun_tap::Iface) -> BorrowedFd<'_> {
    // SAFETY: the interface owns the descriptor and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(interface.as_raw_fd()) }
}
