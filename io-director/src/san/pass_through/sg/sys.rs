//! The ioctls of SCSI generic devices (scsi/sg.h, version 3).

use std::ffi::{c_int, c_uint, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

const SG_GET_VERSION_NUM: libc::Ioctl = 0x2282;
const SG_SCSI_RESET: libc::Ioctl = 0x2284;
const SG_IO: libc::Ioctl = 0x2285;
/// Of the device alone: others share the bus.
const SG_SCSI_RESET_DEVICE_ONLY: c_int = 1 | 0x100;
const SG_DXFER_NONE: c_int = -1;
const SG_DXFER_TO_DEV: c_int = -2;
const SG_DXFER_FROM_DEV: c_int = -3;
/// As others queue; without it the last that came would run first.
const SG_FLAG_Q_AT_TAIL: c_uint = 0x10;
const SENSE_BYTES: u8 = 252;

/// `struct sg_io_hdr`.
#[repr(C)]
struct SgIoHdr {
    interface_id: c_int,
    dxfer_direction: c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: c_uint,
    dxferp: *mut c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: c_uint,
    flags: c_uint,
    pack_id: c_int,
    usr_ptr: *mut c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: c_int,
    duration: c_uint,
    info: c_uint,
}

// As the kernel has it on 64-bit machines.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<SgIoHdr>() == 88);

/// Which way the data go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    None,
    In,
    Out,
}

/// What the kernel says of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// SAM status.
    pub(super) status: u8,
    /// `DID_*`.
    pub(super) host_status: u16,
    pub(super) residual_bytes: usize,
    pub(super) sense: Vec<u8>,
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether `file` is a device that takes version 3.
pub(super) fn version(file: &File) -> io::Result<()> {
    let mut version: c_int = 0;
    // SAFETY: the descriptor is open for the call; the ioctl writes one int behind the pointer,
    // which is that of a local int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), SG_GET_VERSION_NUM, &raw mut version) })?;
    if version < 30_000 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(())
}

/// LOGICAL UNIT RESET; waits for it.
pub(super) fn reset_device(file: &File) -> io::Result<()> {
    let mut what = SG_SCSI_RESET_DEVICE_ONLY;
    // SAFETY: the descriptor is open for the call; the ioctl reads one int behind the pointer, which
    // is that of a local int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), SG_SCSI_RESET, &raw mut what) })
}

/// Executes a command and waits for it; `data` is what goes, or where it comes.
pub(super) fn execute(
    file: &File,
    cdb: &[u8],
    transfer: Transfer,
    data: &mut [u8],
    timeout: Duration,
) -> io::Result<Ended> {
    let invalid = |_error| io::Error::from(io::ErrorKind::InvalidInput);
    let mut sense = [0; SENSE_BYTES as usize];
    let mut header = SgIoHdr {
        interface_id: c_int::from(b'S'),
        dxfer_direction: match transfer {
            Transfer::None => SG_DXFER_NONE,
            Transfer::In => SG_DXFER_FROM_DEV,
            Transfer::Out => SG_DXFER_TO_DEV,
        },
        cmd_len: u8::try_from(cdb.len()).map_err(invalid)?,
        mx_sb_len: SENSE_BYTES,
        iovec_count: 0,
        dxfer_len: c_uint::try_from(data.len()).map_err(invalid)?,
        dxferp: data.as_mut_ptr().cast(),
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: c_uint::try_from(timeout.as_millis()).unwrap_or(c_uint::MAX),
        flags: SG_FLAG_Q_AT_TAIL,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the descriptor is open for the call; the header is a whole `struct sg_io_hdr` of a
    // local variable; its pointers lead to `data`, `cdb` and `sense`, which are as long as
    // `dxfer_len`, `cmd_len` and `mx_sb_len` say, live as long as this function, and of which the
    // first and the last are ours to write. The ioctl waits for the command, and maps or copies what
    // it does not wait for, so that nothing of them is used after it has returned.
    check(unsafe { libc::ioctl(file.as_raw_fd(), SG_IO, &raw mut header) })?;
    let sense = sense.get(..usize::from(header.sb_len_wr));
    Ok(Ended {
        status: header.status,
        host_status: header.host_status,
        residual_bytes: usize::try_from(header.resid).unwrap_or(0),
        sense: sense.unwrap_or_default().to_vec(),
    })
}
