//! Command requests of the guest and the responses it gets (virtio 1.2 section 5.6.6.1).
//!
//! | request | bytes | | response | bytes |
//! | --- | --- | --- | --- | --- |
//! | lun | 8 | | sense length | u32 |
//! | id | u64 | | residual | u32 |
//! | task attribute | u8 | | status qualifier | u16 |
//! | priority, crn | u8, u8 | | status | u8 |
//! | cdb | 32 | | response | u8 |
//! | data-out | rest | | sense | 96 |
//! | | | | data-in | rest |
//!
//! Little-endian. CDB and sense sizes are the defaults, which QEMU does not let a guest change.

use fabric_payload::scsi::{
    CDB_BYTES_MAX, LunBytes, SENSE_BYTES_MAX, ServiceResponse, TRANSFER_BYTES_MAX,
};

use crate::lun;

/// Bytes in front of the data-out.
pub(crate) const REQUEST_BYTES: usize = 51;
/// Bytes in front of the data-in.
pub(crate) const RESPONSE_BYTES: usize = 12 + SENSE_BYTES_MAX;
/// The last task attribute, ACA.
const ATTRIBUTE_MAX: u8 = 3;
/// CHECK CONDITION (SAM-5 section 5.3.1).
const CHECK_CONDITION: u8 = 2;
/// Fixed format, ILLEGAL REQUEST, INVALID FIELD IN CDB (SPC-4 section 4.5.3 and annex D).
const INVALID_FIELD_IN_CDB: [u8; 18] =
    [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0];

/// Response codes of virtio-scsi.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ResponseCode {
    Ok = 0,
    Aborted = 2,
    BadTarget = 3,
    Reset = 4,
    Busy = 5,
    TransportFailure = 6,
    TargetFailure = 7,
    Failure = 9,
    FunctionSucceeded = 10,
    FunctionRejected = 11,
    IncorrectLun = 12,
}

impl ResponseCode {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Aborted => 2,
            Self::BadTarget => 3,
            Self::Reset => 4,
            Self::Busy => 5,
            Self::TransportFailure => 6,
            Self::TargetFailure => 7,
            Self::Failure => 9,
            Self::FunctionSucceeded => 10,
            Self::FunctionRejected => 11,
            Self::IncorrectLun => 12,
        }
    }
}

impl From<ServiceResponse> for ResponseCode {
    fn from(response: ServiceResponse) -> Self {
        match response {
            ServiceResponse::TaskComplete => Self::Ok,
            ServiceResponse::BadTarget => Self::BadTarget,
            ServiceResponse::Aborted => Self::Aborted,
            ServiceResponse::Reset => Self::Reset,
            ServiceResponse::TargetFailure => Self::TargetFailure,
        }
    }
}

/// A command that may go on the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// SAM address.
    pub(crate) lun: LunBytes,
    /// The guest's name for it.
    pub(crate) id: u64,
    pub(crate) attribute: u8,
    pub(crate) cdb: [u8; CDB_BYTES_MAX],
    pub(crate) data_out_bytes: u32,
    pub(crate) data_in_bytes: u32,
}

/// Why a request does not go on the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no room for a response: the chain goes back empty.
    Unanswerable,
    /// It is answered here.
    Answer(Response),
}

/// A response without its data-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) code: ResponseCode,
    pub(crate) status: u8,
    /// Bytes of the data buffers that were not transferred.
    pub(crate) residual: u32,
    sense: [u8; SENSE_BYTES_MAX],
    sense_bytes: u8,
}

impl Response {
    pub(crate) fn new(code: ResponseCode, residual: u32) -> Self {
        Self {
            code,
            status: 0,
            residual,
            sense: [0; SENSE_BYTES_MAX],
            sense_bytes: 0,
        }
    }

    pub(crate) fn with_status(mut self, status: u8, sense: &[u8]) -> Self {
        self.status = status;
        let sense = sense.get(..SENSE_BYTES_MAX).unwrap_or(sense);
        for (room, byte) in self.sense.iter_mut().zip(sense) {
            *room = *byte;
        }
        self.sense_bytes = u8::try_from(sense.len()).unwrap_or(u8::MAX);
        self
    }

    pub(crate) fn encode(&self) -> [u8; RESPONSE_BYTES] {
        let mut bytes = [0; RESPONSE_BYTES];
        let [a, b, c, d] = u32::from(self.sense_bytes).to_le_bytes();
        let [e, f, g, h] = self.residual.to_le_bytes();
        let fixed = [a, b, c, d, e, f, g, h, 0, 0, self.status, self.code.byte()];
        if let Some((head, sense)) = bytes.split_first_chunk_mut() {
            *head = fixed;
            sense.copy_from_slice(&self.sense);
        }
        bytes
    }
}

/// Checks the sizes of a request, before anything of it is read.
pub(crate) fn check_sizes(readable_bytes: u64, writable_bytes: u64) -> Result<(), Refusal> {
    if writable_bytes < size(RESPONSE_BYTES) {
        return Err(Refusal::Unanswerable);
    }
    if readable_bytes < size(REQUEST_BYTES) {
        return Err(Refusal::Answer(Response::new(ResponseCode::Failure, 0)));
    }
    Ok(())
}

/// Reads a request whose sizes passed [`check_sizes`].
pub(crate) fn parse(
    header: &[u8; REQUEST_BYTES],
    readable_bytes: u64,
    writable_bytes: u64,
) -> Result<Request, Refusal> {
    let data_out = saturated(readable_bytes.saturating_sub(size(REQUEST_BYTES)));
    let data_in = saturated(writable_bytes.saturating_sub(size(RESPONSE_BYTES)));
    // Whichever there is; nothing of it has been transferred.
    let residual = data_out.max(data_in);
    let answer = |code| Refusal::Answer(Response::new(code, residual));
    let (lun, rest) = header
        .split_first_chunk()
        .ok_or(answer(ResponseCode::Failure))?;
    let (id, rest) = rest
        .split_first_chunk()
        .ok_or(answer(ResponseCode::Failure))?;
    let (&[attribute, _priority, _crn], cdb) = rest
        .split_first_chunk()
        .ok_or(answer(ResponseCode::Failure))?;
    let cdb = *cdb.first_chunk().ok_or(answer(ResponseCode::Failure))?;
    let lun = lun::from_guest(*lun).ok_or(answer(ResponseCode::BadTarget))?;
    // Bidirectional commands need VIRTIO_SCSI_F_INOUT, which is not offered.
    if (data_out > 0 && data_in > 0) || attribute > ATTRIBUTE_MAX {
        return Err(answer(ResponseCode::Failure));
    }
    if usize::try_from(residual).is_ok_and(|bytes| bytes > TRANSFER_BYTES_MAX) {
        let response = Response::new(ResponseCode::Ok, residual)
            .with_status(CHECK_CONDITION, &INVALID_FIELD_IN_CDB);
        return Err(Refusal::Answer(response));
    }
    Ok(Request {
        lun,
        id: u64::from_le_bytes(*id),
        attribute,
        cdb,
        data_out_bytes: data_out,
        data_in_bytes: data_in,
    })
}

fn size(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn saturated(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// READ(10) of 8 blocks at LBA 5 of LUN 1, with id 0x0102030405060708, ORDERED.
    fn header() -> [u8; REQUEST_BYTES] {
        let mut header = [0; REQUEST_BYTES];
        header[..8].copy_from_slice(&[1, 0, 0x40, 1, 0, 0, 0, 0]);
        header[8..16].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        header[16] = 1;
        header[19..29].copy_from_slice(&[0x28, 0, 0, 0, 0, 5, 0, 0, 8, 0]);
        header
    }

    #[test]
    fn request_is_read_as_the_table_says() {
        let request = parse(&header(), 51, 108 + 4096).unwrap();
        assert_eq!(request.lun, [0x40, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!((request.id, request.attribute), (0x0102_0304_0506_0708, 1));
        assert_eq!(request.cdb[..10], [0x28, 0, 0, 0, 0, 5, 0, 0, 8, 0]);
        assert_eq!((request.data_out_bytes, request.data_in_bytes), (0, 4096));
        let request = parse(&header(), 51 + 512, 108).unwrap();
        assert_eq!((request.data_out_bytes, request.data_in_bytes), (512, 0));
    }

    #[test]
    fn response_is_written_as_the_table_says() {
        let response =
            Response::new(ResponseCode::Ok, 0x0102).with_status(2, &INVALID_FIELD_IN_CDB);
        let bytes = response.encode();
        assert_eq!(bytes.len(), 108);
        assert_eq!(bytes[..12], [18, 0, 0, 0, 2, 1, 0, 0, 0, 0, 2, 0]);
        assert_eq!(bytes[12..30], INVALID_FIELD_IN_CDB);
        assert!(bytes[30..].iter().all(|byte| *byte == 0));
        assert_eq!(Response::new(ResponseCode::BadTarget, 0).encode()[11], 3);
    }

    #[test]
    fn g12_sizes_are_checked_before_anything_is_read() {
        let failure = Refusal::Answer(Response::new(ResponseCode::Failure, 0));
        assert_eq!(check_sizes(51, 107), Err(Refusal::Unanswerable));
        assert_eq!(check_sizes(51, 0), Err(Refusal::Unanswerable));
        assert_eq!(check_sizes(50, 108), Err(failure));
        assert_eq!(check_sizes(51, 108), Ok(()));
    }

    #[test]
    fn both_directions_and_unknown_attributes_fail() {
        let answer = |residual| Refusal::Answer(Response::new(ResponseCode::Failure, residual));
        assert_eq!(parse(&header(), 52, 110), Err(answer(2)));
        let mut odd = header();
        odd[16] = 4;
        assert_eq!(parse(&odd, 51, 108), Err(answer(0)));
    }

    #[test]
    fn other_targets_are_answered_here() {
        let mut other = header();
        other[1] = 3;
        let answer = Refusal::Answer(Response::new(ResponseCode::BadTarget, 36));
        assert_eq!(parse(&other, 51, 108 + 36), Err(answer));
    }

    #[test]
    fn g09_transfer_beyond_the_limit_is_an_illegal_request() {
        assert!(parse(&header(), 51, 108 + 1_048_576).is_ok());
        for (readable, writable) in [
            (51, 108 + 1_048_577),
            (51 + 1_048_577, 108),
            (u64::MAX, 108),
        ] {
            let Err(Refusal::Answer(response)) = parse(&header(), readable, writable) else {
                panic!("{readable} readable and {writable} writable bytes were accepted");
            };
            let data = u32::try_from(readable.max(writable) - 51).unwrap_or(u32::MAX);
            assert_eq!((response.code, response.status), (ResponseCode::Ok, 2));
            assert!(response.residual == data || response.residual + 57 == data);
            // Sense key 5, ASC 24h (SPC-4).
            assert_eq!(response.encode()[12 + 2], 5);
            assert_eq!(response.encode()[12 + 12], 0x24);
        }
    }

    proptest! {
        #[test]
        fn any_header_is_answered(
            bytes in proptest::collection::vec(any::<u8>(), REQUEST_BYTES),
            readable in 51_u64..3_000_000, writable in 108_u64..3_000_000,
        ) {
            let header: &[u8; REQUEST_BYTES] = bytes.first_chunk().unwrap();
            if let Ok(request) = parse(header, readable, writable) {
                prop_assert!(request.data_in_bytes <= 1 << 20 && request.data_out_bytes <= 1 << 20);
                prop_assert!(request.data_in_bytes == 0 || request.data_out_bytes == 0);
            }
        }
    }

    /// Sizes of both halves of the chain, then the request.
    #[test]
    fn g12_any_damaged_request_is_answered() {
        let chain = |readable: u64, writable: u64| {
            let sizes = [readable.to_le_bytes(), writable.to_le_bytes()];
            [sizes.as_flattened(), &header()].concat()
        };
        let good = [chain(51, 108 + 4096), chain(51 + 512, 108), chain(51, 107)];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/request");
        orimono_fuzz::fuzz(
            folder,
            &good,
            orimono_fuzz::inputs(100_000, 1_000_000),
            |bytes| {
                let Some((sizes, rest)) = bytes.split_first_chunk::<16>() else {
                    return;
                };
                let Some(header) = rest.first_chunk() else {
                    return;
                };
                let (readable, writable) = sizes.split_at(8);
                let size = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
                let (readable, writable) = (size(readable), size(writable));
                if check_sizes(readable, writable).is_err() {
                    return;
                }
                match parse(header, readable, writable) {
                    Ok(request) => {
                        let data = request.data_in_bytes.max(request.data_out_bytes);
                        assert!(data as usize <= TRANSFER_BYTES_MAX);
                        assert_eq!(request.data_in_bytes.min(request.data_out_bytes), 0);
                        let event = lun::to_event(request.lun);
                        let known = request.lun[0] == 0xc1 || event.is_some();
                        assert!(known, "{:?}", request.lun);
                    }
                    Err(Refusal::Answer(response)) => {
                        assert!(response.encode().len() as u64 <= writable)
                    }
                    Err(Refusal::Unanswerable) => panic!("its sizes were good"),
                }
            },
        );
    }
}
