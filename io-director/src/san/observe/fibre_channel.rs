//! SCSI as the Fibre Channel frames that would carry it: FC-FS-3 headers, FCP-4 payloads.
//!
//! Nothing here was on a Fibre Channel; this is a language that network analysers know. One frame
//! has the data of one unit of our fabric, which is more than a real one may. What the words of
//! FCP do not say goes into a comment of the captured frame.

use fabric_payload::scsi::{Command, LunBytes, Status, TaskFunction, TaskResponse};

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 24;
/// Bytes of FCP_CMND without additional CDB: the shortest CDB field is 16 bytes.
const CDB_BYTES: usize = 16;

/// R_CTL: routing and information category (FC-FS-3 table 24).
const SOLICITED_DATA: u8 = 0x01;
const COMMAND: u8 = 0x06;
const RESPONSE: u8 = 0x07;
const ABTS: u8 = 0x81;
const BA_ACC: u8 = 0x84;
/// TYPE of FCP and of basic link services.
const FCP: u8 = 0x08;
const BASIC_LINK_SERVICE: u8 = 0x00;
/// F_CTL (FC-FS-3 table 29): from the responder, first and last sequence of the exchange, last
/// frame of its sequence, initiative goes to the other side, parameter is an offset.
const FROM_RESPONDER: u32 = 1 << 23;
const FIRST_SEQUENCE: u32 = 1 << 21;
const LAST_SEQUENCE: u32 = 1 << 20;
const END_SEQUENCE: u32 = 1 << 19;
const SEQUENCE_INITIATIVE: u32 = 1 << 16;
const RELATIVE_OFFSET: u32 = 1 << 3;
/// The responder has not chosen.
const NO_RX_ID: [u8; 2] = [0xff, 0xff];

/// A Fibre Channel address, 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) [u8; 3]);

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [domain, area, port] = self.0;
        write!(f, "{domain:02x}.{area:02x}.{port:02x}")
    }
}

/// Who speaks with whom in an exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct Between {
    pub(super) initiator: Address,
    pub(super) target: Address,
    /// OX_ID.
    pub(super) exchange: u16,
}

impl Between {
    fn header(self, r_ctl: u8, kind: u8, f_ctl: u32, parameter: u32) -> Vec<u8> {
        let (from, to) = if f_ctl & FROM_RESPONDER == 0 {
            (self.initiator, self.target)
        } else {
            (self.target, self.initiator)
        };
        let mut frame = Vec::with_capacity(128);
        frame.push(r_ctl);
        frame.extend(to.0);
        // CS_CTL, then S_ID.
        frame.push(0);
        frame.extend(from.0);
        frame.extend((u32::from(kind) << 24 | f_ctl).to_be_bytes());
        // SEQ_ID, DF_CTL, SEQ_CNT.
        frame.extend([0; 4]);
        frame.extend(self.exchange.to_be_bytes());
        frame.extend(NO_RX_ID);
        frame.extend(parameter.to_be_bytes());
        frame
    }

    /// FCP_CMND of a command (FCP-4 section 9.1).
    pub(super) fn command(self, command: &Command<'_>) -> Vec<u8> {
        // Both ways is never asked for here.
        let data_bytes = command.data_out_bytes.max(command.data_in_bytes);
        let writes = u8::from(command.data_out_bytes > 0);
        let reads = u8::from(command.data_in_bytes > 0) << 1;
        // SIMPLE 0, HEAD OF QUEUE 1, ORDERED 2, ACA 4.
        let attribute = match command.attribute {
            0 => 0,
            1 => 2,
            2 => 1,
            _ => 4,
        };
        let (cdb, more) = command
            .cdb
            .split_at_checked(CDB_BYTES)
            .unwrap_or((command.cdb, &[]));
        // In words of four bytes.
        let more_words = more.len().div_ceil(4);
        let more_length = u8::try_from(more_words << 2).unwrap_or(0);
        let mut frame = self.fcp_command(command.lun, [attribute, 0, more_length | reads | writes]);
        pad(&mut frame, cdb, CDB_BYTES);
        pad(&mut frame, more, more_words * 4);
        frame.extend(data_bytes.to_be_bytes());
        frame
    }

    fn fcp_command(self, lun: LunBytes, flags: [u8; 3]) -> Vec<u8> {
        let f_ctl = FIRST_SEQUENCE | END_SEQUENCE | SEQUENCE_INITIATIVE;
        let mut frame = self.header(COMMAND, FCP, f_ctl, 0);
        frame.extend(lun);
        // COMMAND REFERENCE NUMBER.
        frame.push(0);
        frame.extend(flags);
        frame
    }

    /// FCP_DATA: `bytes` of the data at `offset`.
    pub(super) fn data(self, from_target: bool, offset: u32, bytes: &[u8]) -> Vec<u8> {
        let direction = if from_target { FROM_RESPONDER } else { 0 };
        let f_ctl = direction | END_SEQUENCE | RELATIVE_OFFSET;
        let mut frame = self.header(SOLICITED_DATA, FCP, f_ctl, offset);
        frame.extend(bytes);
        frame
    }

    /// FCP_RSP of a command (FCP-4 section 9.5), which has `missing_bytes` of what it may have had.
    pub(super) fn status(self, status: &Status<'_>, missing_bytes: u32) -> Vec<u8> {
        let sense_valid = u8::from(!status.sense.is_empty()) << 1;
        let underrun = u8::from(missing_bytes > 0) << 3;
        let flags = [sense_valid | underrun, status.status];
        let sense_bytes = u32::try_from(status.sense.len()).unwrap_or(0);
        let mut frame = self.fcp_response(flags, missing_bytes, sense_bytes, 0);
        frame.extend(status.sense);
        frame
    }

    fn fcp_response(self, flags: [u8; 2], residual: u32, sense: u32, information: u32) -> Vec<u8> {
        let f_ctl = FROM_RESPONDER | LAST_SEQUENCE | END_SEQUENCE | SEQUENCE_INITIATIVE;
        let mut frame = self.header(RESPONSE, FCP, f_ctl, 0);
        // Reserved, and STATUS QUALIFIER.
        frame.extend([0; 10]);
        frame.extend(flags);
        for number in [residual, sense, information] {
            frame.extend(number.to_be_bytes());
        }
        frame
    }

    /// A task management function: ABTS for ABORT TASK, else FCP_CMND with its flag. FCP has none
    /// for QUERY TASK and I_T NEXUS RESET, which stand as those for more tasks.
    pub(super) fn manage(self, function: TaskFunction, lun: LunBytes) -> Vec<u8> {
        let flag = match function {
            TaskFunction::AbortTask => {
                let f_ctl = END_SEQUENCE | SEQUENCE_INITIATIVE;
                return self.header(ABTS, BASIC_LINK_SERVICE, f_ctl, 0);
            }
            TaskFunction::QueryTask | TaskFunction::QueryTaskSet => 1,
            TaskFunction::AbortTaskSet => 1 << 1,
            TaskFunction::ClearTaskSet => 1 << 2,
            TaskFunction::LogicalUnitReset => 1 << 4,
            TaskFunction::ItNexusReset => 1 << 5,
        };
        let mut frame = self.fcp_command(lun, [0, flag, 0]);
        // No CDB and no data.
        frame.extend([0; CDB_BYTES + 4]);
        frame
    }

    /// Its answer: BA_ACC, or FCP_RSP with a response code (FCP-4 table 24).
    pub(super) fn managed(self, function: TaskFunction, response: TaskResponse) -> Vec<u8> {
        if function == TaskFunction::AbortTask {
            let f_ctl = FROM_RESPONDER | LAST_SEQUENCE | END_SEQUENCE;
            let mut frame = self.header(BA_ACC, BASIC_LINK_SERVICE, f_ctl, 0);
            // No sequence is named; the exchange, and all of its sequences.
            frame.extend([0; 4]);
            frame.extend(self.exchange.to_be_bytes());
            frame.extend(NO_RX_ID);
            frame.extend([0, 0, 0xff, 0xff]);
            return frame;
        }
        let code = match response {
            TaskResponse::Complete => 0,
            TaskResponse::Succeeded => 8,
            TaskResponse::Rejected => 4,
            TaskResponse::IncorrectLun => 9,
        };
        let mut frame = self.fcp_response([1, 0], 0, 0, 8);
        frame.extend([0, 0, 0, code, 0, 0, 0, 0]);
        frame
    }
}

/// Appends `bytes` and zeroes up to `length`.
fn pad(frame: &mut Vec<u8>, bytes: &[u8], length: usize) {
    frame.extend(bytes);
    frame.extend(std::iter::repeat_n(0, length.saturating_sub(bytes.len())));
}

/// What has no words of its own in FCP.
pub(super) const fn comment(function: TaskFunction) -> Option<&'static str> {
    match function {
        TaskFunction::QueryTask => Some("QUERY TASK"),
        TaskFunction::ItNexusReset => Some("I_T NEXUS RESET"),
        _ => None,
    }
}
