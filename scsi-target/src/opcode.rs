//! Operation codes and service actions (SPC-4 annex E.4, SBC-3 annex).

pub(crate) const TEST_UNIT_READY: u8 = 0x00;
pub(crate) const REQUEST_SENSE: u8 = 0x03;
pub(crate) const FORMAT_UNIT: u8 = 0x04;
pub(crate) const READ_6: u8 = 0x08;
pub(crate) const WRITE_6: u8 = 0x0A;
pub(crate) const INQUIRY: u8 = 0x12;
pub(crate) const MODE_SELECT_6: u8 = 0x15;
pub(crate) const RESERVE_6: u8 = 0x16;
pub(crate) const RELEASE_6: u8 = 0x17;
pub(crate) const MODE_SENSE_6: u8 = 0x1A;
pub(crate) const START_STOP_UNIT: u8 = 0x1B;
pub(crate) const SEND_DIAGNOSTIC: u8 = 0x1D;
pub(crate) const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1E;
pub(crate) const READ_CAPACITY_10: u8 = 0x25;
pub(crate) const READ_10: u8 = 0x28;
pub(crate) const WRITE_10: u8 = 0x2A;
pub(crate) const WRITE_AND_VERIFY_10: u8 = 0x2E;
pub(crate) const VERIFY_10: u8 = 0x2F;
pub(crate) const PRE_FETCH_10: u8 = 0x34;
pub(crate) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
pub(crate) const WRITE_SAME_10: u8 = 0x41;
pub(crate) const UNMAP: u8 = 0x42;
pub(crate) const SANITIZE: u8 = 0x48;
pub(crate) const LOG_SENSE: u8 = 0x4D;
pub(crate) const MODE_SELECT_10: u8 = 0x55;
pub(crate) const RESERVE_10: u8 = 0x56;
pub(crate) const RELEASE_10: u8 = 0x57;
pub(crate) const MODE_SENSE_10: u8 = 0x5A;
pub(crate) const PERSISTENT_RESERVE_IN: u8 = 0x5E;
pub(crate) const PERSISTENT_RESERVE_OUT: u8 = 0x5F;
pub(crate) const EXTENDED_COPY: u8 = 0x83;
pub(crate) const RECEIVE_COPY_RESULTS: u8 = 0x84;
pub(crate) const READ_16: u8 = 0x88;
pub(crate) const COMPARE_AND_WRITE: u8 = 0x89;
pub(crate) const WRITE_16: u8 = 0x8A;
pub(crate) const OR_WRITE_16: u8 = 0x8B;
pub(crate) const WRITE_AND_VERIFY_16: u8 = 0x8E;
pub(crate) const VERIFY_16: u8 = 0x8F;
pub(crate) const PRE_FETCH_16: u8 = 0x90;
pub(crate) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
pub(crate) const WRITE_SAME_16: u8 = 0x93;
pub(crate) const WRITE_ATOMIC_16: u8 = 0x9C;
pub(crate) const SERVICE_ACTION_IN_16: u8 = 0x9E;
pub(crate) const REPORT_LUNS: u8 = 0xA0;
pub(crate) const MAINTENANCE_IN: u8 = 0xA3;
pub(crate) const MAINTENANCE_OUT: u8 = 0xA4;
pub(crate) const READ_12: u8 = 0xA8;
pub(crate) const WRITE_12: u8 = 0xAA;
pub(crate) const WRITE_AND_VERIFY_12: u8 = 0xAE;
pub(crate) const VERIFY_12: u8 = 0xAF;

/// SERVICE ACTION IN(16) / READ CAPACITY(16).
pub(crate) const READ_CAPACITY_16: u8 = 0x10;
/// SERVICE ACTION IN(16) / GET LBA STATUS.
pub(crate) const GET_LBA_STATUS: u8 = 0x12;
/// MAINTENANCE IN / REPORT IDENTIFYING INFORMATION.
pub(crate) const REPORT_IDENTIFYING_INFORMATION: u8 = 0x05;
/// MAINTENANCE IN / REPORT TARGET PORT GROUPS, MAINTENANCE OUT / SET TARGET PORT GROUPS.
pub(crate) const TARGET_PORT_GROUPS: u8 = 0x0A;
/// MAINTENANCE IN / REPORT TIMESTAMP.
pub(crate) const REPORT_TIMESTAMP: u8 = 0x0F;
/// MAINTENANCE IN / REPORT SUPPORTED OPERATION CODES.
pub(crate) const REPORT_SUPPORTED_OPERATION_CODES: u8 = 0x0C;
/// MAINTENANCE IN / REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
pub(crate) const REPORT_SUPPORTED_TMFS: u8 = 0x0D;
