//! Basic header segments (RFC 7143 section 11), one enum for each direction.
//!
//! All numbers are big-endian. Bytes 0 to 19 are alike in all of them ([`Prefix`]), and so are the
//! sequence numbers of each direction:
//!
//! | bytes | request | response |
//! | --- | --- | --- |
//! | 20-23 | expected length, tag or CID | target transfer tag |
//! | 24-27 | CmdSN | StatSN |
//! | 28-31 | ExpStatSN | ExpCmdSN |
//! | 32-35 | CDB, RefCmdSN | MaxCmdSN |
//! | 36-47 | CDB, DataSN, offset | counters, offset, length, status |

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

/// Bytes of a basic header segment.
pub(crate) const BHS_BYTES: usize = 48;
/// The tag that stands for no task.
pub(crate) const NO_TAG: u32 = u32::MAX;
/// Bytes of a CDB that fit into the basic header segment.
pub(crate) const CDB_BYTES: usize = 16;

const IMMEDIATE: u8 = 0x40;
const OPCODE: u8 = 0x3f;
/// Last PDU of a sequence; of a login: goes on to the next stage.
const FINAL: u8 = 0x80;
/// The text goes on in the next PDU.
const CONTINUE: u8 = 0x40;

/// Bytes 0 to 19.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Prefix {
    opcode: u8,
    flags: u8,
    specific: [u8; 2],
    /// Written by the framing, as is the next.
    ahs_words: u8,
    data_bytes: [u8; 3],
    lun: [u8; 8],
    task_tag: U32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestHeader {
    prefix: Prefix,
    word: U32,
    cmd_sn: U32,
    exp_stat_sn: U32,
    tail: [u8; 16],
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ResponseHeader {
    prefix: Prefix,
    transfer_tag: U32,
    stat_sn: U32,
    exp_cmd_sn: U32,
    max_cmd_sn: U32,
    words: [U32; 3],
}

/// What an initiator sends, without sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Section 11.18. A ping has a task tag, the answer to one a transfer tag.
    NopOut {
        lun: [u8; 8],
        task_tag: u32,
        transfer_tag: u32,
    },
    /// Section 11.3.
    Command {
        /// No unsolicited Data-Out follows.
        last: bool,
        read: bool,
        write: bool,
        /// Section 11.3.1, 3 bits.
        attribute: u8,
        lun: [u8; 8],
        task_tag: u32,
        expected_bytes: u32,
        cdb: [u8; CDB_BYTES],
    },
    /// Section 11.5; always immediate here.
    Task {
        function: u8,
        lun: [u8; 8],
        task_tag: u32,
        referenced_tag: u32,
        referenced_cmd_sn: u32,
    },
    /// Section 11.12; always immediate.
    Login {
        transit: bool,
        /// Current and next stage, 2 bits each.
        stages: (u8, u8),
        isid: [u8; 6],
        tsih: u16,
        task_tag: u32,
    },
    /// Section 11.10; immediate here, and its text is complete.
    Text { task_tag: u32, transfer_tag: u32 },
    /// Section 11.7.
    DataOut {
        last: bool,
        lun: [u8; 8],
        task_tag: u32,
        transfer_tag: u32,
        data_sn: u32,
        offset: u32,
    },
    /// Section 11.14, reason 0: close the session. Immediate here.
    Logout { task_tag: u32 },
}

impl Request {
    /// The basic header segment; lengths are the framing's to fill in.
    pub(crate) fn to_bytes(self, cmd_sn: u32, exp_stat_sn: u32) -> [u8; BHS_BYTES] {
        let mut header = RequestHeader {
            cmd_sn: U32::new(cmd_sn),
            exp_stat_sn: U32::new(exp_stat_sn),
            ..RequestHeader::default()
        };
        let prefix = &mut header.prefix;
        prefix.flags = FINAL;
        match self {
            Self::NopOut {
                lun,
                task_tag,
                transfer_tag,
            } => {
                prefix.opcode = IMMEDIATE;
                prefix.lun = lun;
                prefix.task_tag = U32::new(task_tag);
                header.word = U32::new(transfer_tag);
            }
            Self::Command {
                last,
                read,
                write,
                attribute,
                lun,
                task_tag,
                expected_bytes,
                cdb,
            } => {
                prefix.opcode = 0x01;
                prefix.flags =
                    flag(last, FINAL) | flag(read, 0x40) | flag(write, 0x20) | (attribute & 7);
                prefix.lun = lun;
                prefix.task_tag = U32::new(task_tag);
                header.word = U32::new(expected_bytes);
                header.tail = cdb;
            }
            Self::Task {
                function,
                lun,
                task_tag,
                referenced_tag,
                referenced_cmd_sn,
            } => {
                prefix.opcode = IMMEDIATE | 0x02;
                prefix.flags |= function & 0x7f;
                prefix.lun = lun;
                prefix.task_tag = U32::new(task_tag);
                header.word = U32::new(referenced_tag);
                header.tail =
                    transmute!([U32::new(referenced_cmd_sn), U32::ZERO, U32::ZERO, U32::ZERO]);
            }
            Self::Login {
                transit,
                stages: (current, next),
                isid,
                tsih,
                task_tag,
            } => {
                prefix.opcode = IMMEDIATE | 0x03;
                prefix.flags = flag(transit, FINAL) | ((current & 3) << 2);
                if transit {
                    prefix.flags |= next & 3;
                }
                let [a, b, c, d, e, f] = isid;
                let [g, h] = tsih.to_be_bytes();
                prefix.lun = [a, b, c, d, e, f, g, h];
                prefix.task_tag = U32::new(task_tag);
            }
            Self::Text {
                task_tag,
                transfer_tag,
            } => {
                prefix.opcode = IMMEDIATE | 0x04;
                prefix.task_tag = U32::new(task_tag);
                header.word = U32::new(transfer_tag);
            }
            Self::DataOut {
                last,
                lun,
                task_tag,
                transfer_tag,
                data_sn,
                offset,
            } => {
                prefix.opcode = 0x05;
                prefix.flags = flag(last, FINAL);
                prefix.lun = lun;
                prefix.task_tag = U32::new(task_tag);
                header.word = U32::new(transfer_tag);
                header.cmd_sn = U32::ZERO;
                header.tail =
                    transmute!([U32::ZERO, U32::new(data_sn), U32::new(offset), U32::ZERO]);
            }
            Self::Logout { task_tag } => {
                prefix.opcode = IMMEDIATE | 0x06;
                prefix.task_tag = U32::new(task_tag);
            }
        }
        transmute!(header)
    }
}

const fn flag(on: bool, bit: u8) -> u8 {
    if on { bit } else { 0 }
}

/// Sequence numbers that every response but Data-In without status carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
}

/// What the target did not move, or would have moved beyond the expected length (section 11.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residual {
    /// All of it moved.
    #[default]
    None,
    /// This many bytes were not moved.
    Underflow(u32),
    /// This many bytes found no room.
    Overflow(u32),
}

impl Residual {
    const OVERFLOW: u8 = 0x04;
    const UNDERFLOW: u8 = 0x02;

    const fn parse(flags: u8, count: u32) -> Self {
        if flags & Self::OVERFLOW != 0 {
            Self::Overflow(count)
        } else if flags & Self::UNDERFLOW != 0 {
            Self::Underflow(count)
        } else {
            Self::None
        }
    }
}

/// What a target sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// Section 11.19. The answer to a ping has its task tag, a ping a transfer tag.
    NopIn {
        lun: [u8; 8],
        task_tag: u32,
        transfer_tag: u32,
    },
    /// Section 11.4; the data segment holds sense.
    Command {
        residual: Residual,
        response: u8,
        status: u8,
        task_tag: u32,
    },
    /// Section 11.6.
    Task { response: u8, task_tag: u32 },
    /// Section 11.13.
    Login {
        transit: bool,
        continues: bool,
        stages: (u8, u8),
        tsih: u16,
        task_tag: u32,
        class: u8,
        detail: u8,
    },
    /// Section 11.11.
    Text {
        last: bool,
        continues: bool,
        task_tag: u32,
        transfer_tag: u32,
    },
    /// Section 11.7. With a status the task is done.
    DataIn {
        status: Option<(u8, Residual)>,
        task_tag: u32,
        data_sn: u32,
        offset: u32,
    },
    /// Section 11.15.
    Logout { response: u8, task_tag: u32 },
    /// Section 11.8.
    ReadyToTransfer {
        lun: [u8; 8],
        task_tag: u32,
        transfer_tag: u32,
        r2t_sn: u32,
        offset: u32,
        desired_bytes: u32,
    },
    /// Section 11.9; the data segment may hold sense.
    Async {
        lun: [u8; 8],
        event: u8,
        parameter2: u16,
        parameter3: u16,
    },
    /// Section 11.17; the data segment is the header of what was rejected.
    Reject { reason: u8 },
}

impl Response {
    /// Reads a basic header segment; `None` if it is none that a target may send.
    pub(crate) fn parse(bytes: [u8; BHS_BYTES]) -> Option<(Self, Sequence)> {
        let header: ResponseHeader = transmute!(bytes);
        let prefix = header.prefix;
        let flags = prefix.flags;
        let [first, second] = prefix.specific;
        let [word1, word2, word3] = header.words.map(U32::get);
        let task_tag = prefix.task_tag.get();
        let transfer_tag = header.transfer_tag.get();
        let lun = prefix.lun;
        let response = match prefix.opcode & OPCODE {
            0x20 => Self::NopIn {
                lun,
                task_tag,
                transfer_tag,
            },
            0x21 => Self::Command {
                residual: Residual::parse(flags, word3),
                response: first,
                status: second,
                task_tag,
            },
            0x22 => Self::Task {
                response: first,
                task_tag,
            },
            0x23 => {
                let [.., high, low] = lun;
                let [class, detail, ..] = word1.to_be_bytes();
                Self::Login {
                    transit: flags & FINAL != 0,
                    continues: flags & CONTINUE != 0,
                    stages: ((flags >> 2) & 3, flags & 3),
                    tsih: u16::from_be_bytes([high, low]),
                    task_tag,
                    class,
                    detail,
                }
            }
            0x24 => Self::Text {
                last: flags & FINAL != 0,
                continues: flags & CONTINUE != 0,
                task_tag,
                transfer_tag,
            },
            0x25 => Self::DataIn {
                status: (flags & 1 != 0).then(|| (second, Residual::parse(flags, word3))),
                task_tag,
                data_sn: word1,
                offset: word2,
            },
            0x26 => Self::Logout {
                response: first,
                task_tag,
            },
            0x31 => Self::ReadyToTransfer {
                lun,
                task_tag,
                transfer_tag,
                r2t_sn: word1,
                offset: word2,
                desired_bytes: word3,
            },
            0x32 => {
                let words: [[U16; 2]; 3] = transmute!(header.words);
                let [[event_and_code, _], [parameter2, parameter3], _] = words;
                Self::Async {
                    lun,
                    event: event_and_code.get().to_be_bytes()[0],
                    parameter2: parameter2.get(),
                    parameter3: parameter3.get(),
                }
            }
            0x3f => Self::Reject { reason: first },
            _ => return None,
        };
        let sequence = Sequence {
            stat_sn: header.stat_sn.get(),
            exp_cmd_sn: header.exp_cmd_sn.get(),
            max_cmd_sn: header.max_cmd_sn.get(),
        };
        Some((response, sequence))
    }

    /// Its name in the RFC.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::NopIn { .. } => "NOP-In",
            Self::Command { .. } => "SCSI Response",
            Self::Task { .. } => "Task Management Function Response",
            Self::Login { .. } => "Login Response",
            Self::Text { .. } => "Text Response",
            Self::DataIn { .. } => "SCSI Data-In",
            Self::Logout { .. } => "Logout Response",
            Self::ReadyToTransfer { .. } => "R2T",
            Self::Async { .. } => "Asynchronous Message",
            Self::Reject { .. } => "Reject",
        }
    }
}

/// The task tag of any basic header segment, such as the one in a Reject.
pub(crate) fn task_tag_of(bytes: [u8; BHS_BYTES]) -> u32 {
    let header: ResponseHeader = transmute!(bytes);
    header.prefix.task_tag.get()
}

/// The other half, for the tests' target.
#[cfg(test)]
pub(crate) mod target_side {
    use super::*;

    impl Residual {
        fn flags(self) -> (u8, u32) {
            match self {
                Self::None => (0, 0),
                Self::Underflow(count) => (Self::UNDERFLOW, count),
                Self::Overflow(count) => (Self::OVERFLOW, count),
            }
        }
    }

    impl Request {
        /// Reads a basic header segment; returns CmdSN and ExpStatSN too.
        pub(crate) fn parse(bytes: [u8; BHS_BYTES]) -> Option<(Self, u32, u32)> {
            let header: RequestHeader = transmute!(bytes);
            let prefix = header.prefix;
            let flags = prefix.flags;
            let tail: [U32; 4] = transmute!(header.tail);
            let lun = prefix.lun;
            let task_tag = prefix.task_tag.get();
            let transfer_tag = header.word.get();
            let request = match prefix.opcode & OPCODE {
                0x00 => Self::NopOut {
                    lun,
                    task_tag,
                    transfer_tag,
                },
                0x01 => Self::Command {
                    last: flags & FINAL != 0,
                    read: flags & 0x40 != 0,
                    write: flags & 0x20 != 0,
                    attribute: flags & 7,
                    lun,
                    task_tag,
                    expected_bytes: header.word.get(),
                    cdb: header.tail,
                },
                0x02 => Self::Task {
                    function: flags & 0x7f,
                    lun,
                    task_tag,
                    referenced_tag: header.word.get(),
                    referenced_cmd_sn: tail[0].get(),
                },
                0x03 => Self::Login {
                    transit: flags & FINAL != 0,
                    stages: ((flags >> 2) & 3, flags & 3),
                    isid: *lun.first_chunk().unwrap(),
                    tsih: u16::from_be_bytes([lun[6], lun[7]]),
                    task_tag,
                },
                0x04 => Self::Text {
                    task_tag,
                    transfer_tag,
                },
                0x05 => Self::DataOut {
                    last: flags & FINAL != 0,
                    lun,
                    task_tag,
                    transfer_tag,
                    data_sn: tail[1].get(),
                    offset: tail[2].get(),
                },
                0x06 => Self::Logout { task_tag },
                _ => return None,
            };
            Some((request, header.cmd_sn.get(), header.exp_stat_sn.get()))
        }
    }

    impl Response {
        pub(crate) fn to_bytes(self, sequence: Sequence) -> [u8; BHS_BYTES] {
            let mut header = ResponseHeader {
                stat_sn: U32::new(sequence.stat_sn),
                exp_cmd_sn: U32::new(sequence.exp_cmd_sn),
                max_cmd_sn: U32::new(sequence.max_cmd_sn),
                ..ResponseHeader::default()
            };
            let prefix = &mut header.prefix;
            prefix.flags = FINAL;
            let mut words = [0; 3];
            let (opcode, tag) = match self {
                Self::NopIn {
                    lun,
                    task_tag,
                    transfer_tag,
                } => {
                    prefix.lun = lun;
                    header.transfer_tag = U32::new(transfer_tag);
                    (0x20, task_tag)
                }
                Self::Command {
                    residual,
                    response,
                    status,
                    task_tag,
                } => {
                    let (flags, count) = residual.flags();
                    prefix.flags |= flags;
                    prefix.specific = [response, status];
                    words[2] = count;
                    (0x21, task_tag)
                }
                Self::Task { response, task_tag } => {
                    prefix.specific = [response, 0];
                    (0x22, task_tag)
                }
                Self::Login {
                    transit,
                    continues,
                    stages: (current, next),
                    tsih,
                    task_tag,
                    class,
                    detail,
                } => {
                    prefix.flags =
                        flag(transit, FINAL) | flag(continues, CONTINUE) | (current << 2) | next;
                    prefix.lun[6..].copy_from_slice(&tsih.to_be_bytes());
                    words[0] = u32::from_be_bytes([class, detail, 0, 0]);
                    (0x23, task_tag)
                }
                Self::Text {
                    last,
                    continues,
                    task_tag,
                    transfer_tag,
                } => {
                    prefix.flags = flag(last, FINAL) | flag(continues, CONTINUE);
                    header.transfer_tag = U32::new(transfer_tag);
                    (0x24, task_tag)
                }
                Self::DataIn {
                    status,
                    task_tag,
                    data_sn,
                    offset,
                } => {
                    prefix.flags = 0;
                    words = [data_sn, offset, 0];
                    if let Some((status, residual)) = status {
                        let (flags, count) = residual.flags();
                        prefix.flags = FINAL | 1 | flags;
                        prefix.specific[1] = status;
                        words[2] = count;
                    }
                    (0x25, task_tag)
                }
                Self::Logout { response, task_tag } => {
                    prefix.specific = [response, 0];
                    (0x26, task_tag)
                }
                Self::ReadyToTransfer {
                    lun,
                    task_tag,
                    transfer_tag,
                    r2t_sn,
                    offset,
                    desired_bytes,
                } => {
                    prefix.lun = lun;
                    header.transfer_tag = U32::new(transfer_tag);
                    words = [r2t_sn, offset, desired_bytes];
                    (0x31, task_tag)
                }
                Self::Async {
                    lun,
                    event,
                    parameter2,
                    parameter3,
                } => {
                    prefix.lun = lun;
                    words[0] = u32::from_be_bytes([event, 0, 0, 0]);
                    words[1] = (u32::from(parameter2) << 16) | u32::from(parameter3);
                    (0x32, NO_TAG)
                }
                Self::Reject { reason } => {
                    prefix.specific = [reason, 0];
                    (0x3f, NO_TAG)
                }
            };
            prefix.opcode = opcode;
            prefix.task_tag = U32::new(tag);
            header.words = words.map(U32::new);
            transmute!(header)
        }
    }
}
