//! Messages as they stand on the socket (vhost-user protocol, "Message Specification").
//!
//! ```text
//! offset  bytes
//!      0      4  request number
//!      4      4  flags: bits 0-1 version (1), bit 2 reply, bit 3 reply wanted
//!      8      4  payload size
//!     12      …  payload
//! ```
//! Fields are in the host's byte order; the hosts supported here are little-endian.

use crate::Refusal;

#[cfg(target_endian = "big")]
compile_error!("vhost-user uses the host's byte order; only little-endian hosts are supported");

/// Largest payload accepted; the longest request, a table of 32 regions, has 1032 bytes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 4096;

const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEEDS_REPLY: u32 = 1 << 3;

/// The requests that a front-end may send to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SendRarp = 19,
    NetSetMtu = 20,
    ResetDevice = 34,
}

impl Request {
    const ALL: [Self; 20] = [
        Self::GetFeatures,
        Self::SetFeatures,
        Self::SetOwner,
        Self::ResetOwner,
        Self::SetMemTable,
        Self::SetLogBase,
        Self::SetVringNum,
        Self::SetVringAddr,
        Self::SetVringBase,
        Self::GetVringBase,
        Self::SetVringKick,
        Self::SetVringCall,
        Self::SetVringErr,
        Self::GetProtocolFeatures,
        Self::SetProtocolFeatures,
        Self::GetQueueNum,
        Self::SetVringEnable,
        Self::SendRarp,
        Self::NetSetMtu,
        Self::ResetDevice,
    ];

    /// Name in the protocol's text.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::GetFeatures => "GET_FEATURES",
            Self::SetFeatures => "SET_FEATURES",
            Self::SetOwner => "SET_OWNER",
            Self::ResetOwner => "RESET_OWNER",
            Self::SetMemTable => "SET_MEM_TABLE",
            Self::SetLogBase => "SET_LOG_BASE",
            Self::SetVringNum => "SET_VRING_NUM",
            Self::SetVringAddr => "SET_VRING_ADDR",
            Self::SetVringBase => "SET_VRING_BASE",
            Self::GetVringBase => "GET_VRING_BASE",
            Self::SetVringKick => "SET_VRING_KICK",
            Self::SetVringCall => "SET_VRING_CALL",
            Self::SetVringErr => "SET_VRING_ERR",
            Self::GetProtocolFeatures => "GET_PROTOCOL_FEATURES",
            Self::SetProtocolFeatures => "SET_PROTOCOL_FEATURES",
            Self::GetQueueNum => "GET_QUEUE_NUM",
            Self::SetVringEnable => "SET_VRING_ENABLE",
            Self::SendRarp => "SEND_RARP",
            Self::NetSetMtu => "NET_SET_MTU",
            Self::ResetDevice => "RESET_DEVICE",
        }
    }

    const fn number(self) -> u32 {
        self as u32
    }

    fn from_number(number: u32) -> Result<Self, Refusal> {
        if let Some(request) = Self::ALL
            .into_iter()
            .find(|request| request.number() == number)
        {
            return Ok(request);
        }
        Err(
            not_offered(number).map_or(Refusal::UnknownRequest { request: number }, |request| {
                Refusal::NotNegotiated { request }
            }),
        )
    }

    /// Whether a payload of `bytes` can be this request's.
    const fn accepts_payload(self, bytes: usize) -> bool {
        match self {
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::ResetDevice => bytes == 0,
            Self::SetFeatures
            | Self::SetVringNum
            | Self::SetVringBase
            | Self::GetVringBase
            | Self::SetVringKick
            | Self::SetVringCall
            | Self::SetVringErr
            | Self::SetProtocolFeatures
            | Self::SetVringEnable
            | Self::SendRarp
            | Self::NetSetMtu => bytes == 8,
            Self::SetLogBase => bytes == 16,
            Self::SetVringAddr => bytes == 40,
            // Checked against the number of regions in the payload.
            Self::SetMemTable => bytes >= 8 && bytes <= PAYLOAD_BYTES_MAX,
        }
    }

    /// Most file descriptors this request comes with.
    pub(super) const fn descriptors_max(self) -> usize {
        match self {
            Self::SetMemTable => super::memory_table::REGIONS_MAX,
            Self::SetLogBase | Self::SetVringKick | Self::SetVringCall | Self::SetVringErr => 1,
            _ => 0,
        }
    }
}

/// Requests of the protocol that belong to features we never offer.
const fn not_offered(number: u32) -> Option<&'static str> {
    Some(match number {
        7 => "SET_LOG_FD",
        21 => "SET_BACKEND_REQ_FD",
        22 => "IOTLB_MSG",
        23 => "SET_VRING_ENDIAN",
        24 => "GET_CONFIG",
        25 => "SET_CONFIG",
        26 => "CREATE_CRYPTO_SESSION",
        27 => "CLOSE_CRYPTO_SESSION",
        28 => "POSTCOPY_ADVISE",
        29 => "POSTCOPY_LISTEN",
        30 => "POSTCOPY_END",
        31 => "GET_INFLIGHT_FD",
        32 => "SET_INFLIGHT_FD",
        33 => "GPU_SET_SOCKET",
        35 => "VRING_KICK",
        36 => "GET_MAX_MEM_SLOTS",
        37 => "ADD_MEM_REG",
        38 => "REM_MEM_REG",
        39 => "SET_STATUS",
        40 => "GET_STATUS",
        41 => "GET_SHARED_OBJECT",
        42 => "SET_DEVICE_STATE_FD",
        43 => "CHECK_DEVICE_STATE",
        44 => "GET_SHMEM_CONFIG",
        _ => return None,
    })
}

/// A message's first 12 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    number: u32,
    flags: u32,
    bytes: u32,
}

impl Header {
    pub(super) const BYTES: usize = 12;

    pub(super) fn parse(raw: [u8; Self::BYTES]) -> Self {
        let word = |at: usize| {
            let bytes = raw.get(at..).and_then(|rest| rest.first_chunk::<4>());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        Self {
            number: word(0),
            flags: word(4),
            bytes: word(8),
        }
    }

    /// The header of a reply to request `number`.
    pub(super) fn reply(request: Request, payload_bytes: usize) -> Self {
        Self::new(request, VERSION | FLAG_REPLY, payload_bytes)
    }

    /// The header of a request that we send on, wanting an answer.
    pub(super) fn forwarded(request: Request, payload_bytes: usize) -> Self {
        Self::new(request, VERSION | FLAG_NEEDS_REPLY, payload_bytes)
    }

    fn new(request: Request, flags: u32, payload_bytes: usize) -> Self {
        let bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        Self {
            number: request.number(),
            flags,
            bytes,
        }
    }

    /// Header and payload, ready to be sent.
    pub(super) fn message(self, payload: &[u8]) -> Vec<u8> {
        let mut message = Vec::with_capacity(Self::BYTES + payload.len());
        for word in [self.number, self.flags, self.bytes] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(payload);
        message
    }

    /// Payload size in bytes.
    pub(super) fn size(self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX)
    }

    pub(super) const fn needs_reply(self) -> bool {
        self.flags & FLAG_NEEDS_REPLY != 0
    }

    /// Checks what a front-end sent; the payload's size is then at most [`PAYLOAD_BYTES_MAX`].
    pub(super) fn check(self) -> Result<Request, Refusal> {
        if self.flags & !FLAG_NEEDS_REPLY != VERSION {
            return Err(Refusal::HeaderFlags { flags: self.flags });
        }
        let request = Request::from_number(self.number)?;
        if !request.accepts_payload(self.size()) {
            return Err(Refusal::PayloadSize {
                request: request.name(),
                bytes: self.bytes,
            });
        }
        Ok(request)
    }
}

/// A payload and the request it belongs to, for reading fields.
pub(super) struct Payload<'a> {
    request: Request,
    bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    pub(super) const fn new(request: Request, bytes: &'a [u8]) -> Self {
        Self { request, bytes }
    }

    pub(super) const fn request(&self) -> Request {
        self.request
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn u32_at(&self, offset: usize) -> Result<u32, Refusal> {
        self.chunk(offset).map(u32::from_le_bytes)
    }

    pub(super) fn u64_at(&self, offset: usize) -> Result<u64, Refusal> {
        self.chunk(offset).map(u64::from_le_bytes)
    }

    /// A payload that is too short, which the header's check has ruled out for fixed sizes.
    pub(super) fn wrong_size(&self) -> Refusal {
        let bytes = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        Refusal::PayloadSize {
            request: self.request.name(),
            bytes,
        }
    }

    fn chunk<const N: usize>(&self, offset: usize) -> Result<[u8; N], Refusal> {
        let found = self
            .bytes
            .get(offset..)
            .and_then(|rest| rest.first_chunk::<N>());
        found.copied().ok_or_else(|| self.wrong_size())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::super::memory_table::MemoryTable;
    use super::super::rings::Rings;
    use super::*;

    fn check(number: u32, flags: u32, bytes: u32) -> Result<Request, Refusal> {
        Header {
            number,
            flags,
            bytes,
        }
        .check()
    }

    #[test]
    fn only_version_1_requests_of_the_right_size_pass() {
        assert_eq!(check(1, 1, 0).unwrap(), Request::GetFeatures);
        assert_eq!(check(2, 9, 8).unwrap(), Request::SetFeatures);
        for (number, flags, bytes) in [
            (1, 1, 1),
            (2, 1, 0),
            (5, 1, 4097),
            (5, 1, 7),
            (1, 0, 0),
            (1, 5, 0),
            (1, 0x11, 0),
            (0, 1, 0),
            (45, 1, 0),
            (u32::MAX, 1, 0),
        ] {
            assert!(
                check(number, flags, bytes).is_err(),
                "{number} {flags} {bytes}"
            );
        }
    }

    #[test]
    fn every_number_of_the_protocol_has_a_name_or_is_served() {
        for number in 1..=44 {
            let served = Request::from_number(number).is_ok();
            assert_ne!(served, not_offered(number).is_some(), "{number}");
        }
    }

    /// Messages as they come from the socket, one after the other, on rings and a memory table that keep
    /// what they were told. A script is a number of descriptors, then the message.
    fn serve(script: &[u8]) {
        let mut rings = Rings::new(4, 256);
        let mut table = MemoryTable::new(true);
        let mut rest = script;
        while let Some((descriptors, bytes)) = rest.split_first() {
            let Some((raw, payload)) = bytes.split_first_chunk() else {
                return;
            };
            let header = Header::parse(*raw);
            let Ok(request) = header.check() else {
                return;
            };
            assert!(header.size() <= PAYLOAD_BYTES_MAX);
            let Some((payload, others)) = payload.split_at_checked(header.size()) else {
                return;
            };
            rest = others;
            let count = usize::from(*descriptors).min(request.descriptors_max());
            let file = || std::fs::File::open("/dev/null").unwrap().into();
            let files: Vec<OwnedFd> = std::iter::repeat_with(file).take(count).collect();
            let body = Payload::new(request, payload);
            let index = match request {
                Request::SetMemTable => {
                    if let Ok(checked) = table.check(&body, &files) {
                        table.accept(checked);
                    }
                    continue;
                }
                Request::SetVringNum => rings.set_size(&body).map(|()| 0),
                Request::SetVringBase => rings.check_base(&body).map(|()| 0),
                Request::SetVringAddr => rings.set_addresses(&body, &table).map(|_| 0),
                Request::GetVringBase => rings.index(&body),
                Request::SetVringEnable => rings.enable(&body).map(|(index, _)| index),
                Request::SetVringKick | Request::SetVringCall | Request::SetVringErr => {
                    rings.descriptor_index(&body, &files)
                }
                _ => {
                    // Those whose payload is one number, or none.
                    assert!(payload.is_empty() || body.u64_at(0).is_ok());
                    continue;
                }
            };
            let Ok(index) = index else {
                continue;
            };
            assert!(index < 4);
            match request {
                Request::SetVringKick if rings.check_start(index, files.is_empty()).is_ok() => {
                    rings.started(index);
                }
                Request::GetVringBase => rings.stopped(index),
                _ => {}
            }
        }
    }

    #[test]
    fn f01_any_messages_are_answered() {
        let message = |descriptors, request: Request, payload: &[u8]| {
            let message = Header::new(request, VERSION, payload.len()).message(payload);
            [vec![descriptors], message].concat()
        };
        let words = |words: &[u64]| {
            words
                .iter()
                .flat_map(|it| it.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let ring = |value: u32| [1_u32.to_le_bytes(), value.to_le_bytes()].concat();
        let table = [words(&[1]), words(&[0x1000, 0x10000, 0x7000_0000, 0])].concat();
        let addresses = words(&[1, 0x7000_0000, 0x7000_1000, 0x7000_2000, 0]);
        let good = [
            message(1, Request::SetMemTable, &table),
            [
                message(0, Request::SetVringNum, &ring(256)),
                message(0, Request::SetVringBase, &ring(7)),
                message(0, Request::SetVringAddr, &addresses),
                message(1, Request::SetVringKick, &words(&[1])),
                message(0, Request::SetVringEnable, &ring(1)),
                message(0, Request::GetVringBase, &ring(0)),
            ]
            .concat(),
            message(0, Request::GetFeatures, &[]),
            message(0, Request::SetFeatures, &words(&[1 << 32])),
        ];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/message");
        orimono_fuzz::fuzz(
            folder,
            &good,
            orimono_fuzz::inputs(50_000, 1_000_000),
            serve,
        );
    }
}
