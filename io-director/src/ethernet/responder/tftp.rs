//! A TFTP server for one guest (RFC 1350, options RFC 2347 to 2349, windows RFC 7440): reads only.
//!
//! ```text
//! RRQ --> OACK --ACK 0--> DATA 1..=w --ACK w--> ... --ACK of a short block--> gone
//!    `--(no options)--> DATA 1                  `-- ERROR, or a new RRQ --> gone
//! ```
//!
//! It has no timer. Whatever is lost, the client has not got what it waits for, and asks again: with its
//! request, or with the last ACK that it sent. Either says which blocks are next, so the answer is made
//! anew. Only an ACK that comes again within [`REPEAT`] is not answered, as RFC 1123 section 4.2.3.1
//! wants it: a client that merely was slow would otherwise get each block twice from then on.
//!
//! All transfers have one port of the server, [`PORT`], and are known by the client's: so of the ports of
//! an address that a router has too, no others are taken.

use core::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use fabric_config::VnicConfig;
use qos::MonotonicTime;

use super::frame::{self, Datagram, Packet};
use super::{Bucket, Event, Own};

/// Where requests go to, and where everything comes from.
pub(in super::super) const PORT: u16 = 69;
/// Transfers of a guest at a time; the one that was silent for longest goes when there are more.
const TRANSFERS_MAX: usize = 4;
/// A client that was silent for so long does not come back.
pub(in super::super) const IDLE: Duration = Duration::from_secs(60);
/// An ACK that is there again within this time is a duplicate. Clients wait for longer: iPXE, which
/// is the quickest, a quarter of a second.
const REPEAT: Duration = Duration::from_millis(100);
/// Bytes of a block (RFC 2348).
const BLOCK_BYTES_DEFAULT: usize = 512;
const BLOCK_BYTES_MIN: usize = 8;
/// Blocks in front of an ACK at most: what a ring of 256 buffers takes at once in any case.
const WINDOW_MAX: u16 = 16;
/// Headers of IPv4, UDP and a block.
const HEADER_BYTES: u16 = 20 + 8 + 4;
/// Requests at once and per second, each for up to [`WINDOW_MAX`] blocks.
const REQUESTS: (u32, u32) = (1000, 20_000);
/// Bytes of a request: a file name and options.
const REQUEST_BYTES_MAX: usize = 512;

const RRQ: u16 = 1;
const WRQ: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

/// Where boot files are. Reading may wait for a disk; so whoever has one is not on the way of frames.
pub(in super::super) trait BootFolder {
    /// An open file.
    type File: BootFile;

    /// Opens the file `name`, a path from the folder, which leads out of it or to something else in
    /// vain.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn open(&self, name: &str) -> Result<Self::File, NoFile>;
}

/// An open boot file.
pub(in super::super) trait BootFile {
    /// Its length when it was opened.
    fn bytes(&self) -> u64;

    /// Up to `bytes` of it from `offset` on, less only at its end; `None` if it cannot be read.
    fn read(&self, offset: u64, bytes: usize) -> Option<Vec<u8>>;
}

/// Why a file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum NoFile {
    /// There is none of this name.
    Missing,
    /// It may not be read.
    Refused,
}

#[derive(Debug)]
struct Transfer<F> {
    client: (Ipv4Addr, u16),
    file: F,
    block_bytes: usize,
    window: u16,
    /// Blocks that the client has. Its 16 bits on the wire start again at 0.
    acknowledged: u64,
    answered: MonotonicTime,
}

/// The transfers of one guest.
#[derive(Debug)]
pub(in super::super) struct Tftp<D: BootFolder> {
    own: Own,
    folder: D,
    transfers: Vec<Transfer<D::File>>,
    requests: Bucket,
}

/// What goes back, and what is counted.
type Answer = (Event, Vec<Vec<u8>>);

impl<D: BootFolder> Tftp<D> {
    /// Of `vnic`, which boots from `folder`; `None` if it has no static address.
    pub(in super::super) fn new(vnic: &VnicConfig, folder: D) -> Option<Self> {
        Some(Self {
            own: Own::of(vnic)?,
            folder,
            transfers: Vec::new(),
            requests: Bucket::new(REQUESTS),
        })
    }

    /// Forgets transfers whose client was silent for [`IDLE`].
    pub(in super::super) fn expire(&mut self, now: MonotonicTime) {
        let lives = |at| now.saturating_duration_since(at) < IDLE;
        self.transfers.retain(|transfer| lives(transfer.answered));
    }

    /// What `frame` is answered with, for which the responder said
    /// [`Verdict::Tftp`](super::Verdict::Tftp).
    pub(in super::super) fn receive(&mut self, now: MonotonicTime, frame: &[u8]) -> Answer {
        let malformed = (Event::Malformed, Vec::new());
        let Some(Packet::Udp(datagram)) = frame::read(frame) else {
            return malformed;
        };
        let Datagram {
            source: IpAddr::V4(address),
            source_port,
            payload,
            tagged: false,
            ..
        } = datagram
        else {
            return malformed;
        };
        if !self.requests.take(now) {
            return (Event::TooMany, Vec::new());
        }
        self.expire(now);
        let client = (address, source_port);
        match payload.split_first_chunk() {
            Some((code, rest)) => match u16::from_be_bytes(*code) {
                RRQ => self.open(now, client, rest),
                WRQ => self.refuse(client, 2, "files are read here"),
                ACK => self.acknowledged(now, client, rest),
                ERROR => {
                    self.forget(client);
                    (Event::BootDone, Vec::new())
                }
                _ => malformed,
            },
            None => malformed,
        }
    }

    fn forget(&mut self, client: (Ipv4Addr, u16)) {
        self.transfers.retain(|transfer| transfer.client != client);
    }

    fn frame(&self, client: (Ipv4Addr, u16), payload: &[u8]) -> Option<Vec<u8>> {
        let ends = (self.own.server().into(), client.0.into());
        frame::udp(self.own.guest, ends, (PORT, client.1), payload)
    }

    fn refuse(&mut self, client: (Ipv4Addr, u16), code: u16, text: &str) -> Answer {
        self.forget(client);
        let code = code.to_be_bytes();
        let payload = [&ERROR.to_be_bytes(), &code[..], text.as_bytes(), &[0]].concat();
        let frame = self.frame(client, &payload);
        (Event::BootRefused, frame.into_iter().collect())
    }

    fn open(&mut self, now: MonotonicTime, client: (Ipv4Addr, u16), request: &[u8]) -> Answer {
        let Some(request) = Request::read(request) else {
            return self.refuse(client, 4, "request is malformed");
        };
        if !request.mode.eq_ignore_ascii_case("octet") {
            return self.refuse(client, 4, "mode is not octet");
        }
        // Firmware likes to begin at a root.
        let file = match self.folder.open(request.name.trim_start_matches('/')) {
            Ok(file) => file,
            Err(NoFile::Missing) => return self.refuse(client, 1, "no such file"),
            Err(NoFile::Refused) => return self.refuse(client, 2, "file cannot be read"),
        };
        let room = usize::from(self.own.mtu.saturating_sub(HEADER_BYTES)).max(BLOCK_BYTES_DEFAULT);
        let mut taken = Vec::new();
        let mut transfer = Transfer {
            client,
            file,
            block_bytes: BLOCK_BYTES_DEFAULT,
            window: 1,
            acknowledged: 0,
            answered: now,
        };
        for (name, value) in &request.options {
            let number = value.parse::<usize>().ok();
            let value = match (name.to_ascii_lowercase().as_str(), number) {
                ("blksize", Some(bytes)) if bytes >= BLOCK_BYTES_MIN => {
                    transfer.block_bytes = bytes.min(room);
                    transfer.block_bytes.to_string()
                }
                ("windowsize", Some(blocks)) if blocks > 0 => {
                    let blocks = u16::try_from(blocks).unwrap_or(u16::MAX);
                    transfer.window = blocks.min(WINDOW_MAX);
                    transfer.window.to_string()
                }
                ("tsize", Some(_)) => transfer.file.bytes().to_string(),
                // Without a timer there is none to set.
                _ => continue,
            };
            taken.extend([name.as_bytes(), &[0], value.as_bytes(), &[0]].concat());
        }
        let frames = if taken.is_empty() {
            self.blocks(&transfer)
        } else {
            let payload = [&OACK.to_be_bytes(), &taken[..]].concat();
            self.frame(client, &payload).map(|frame| vec![frame])
        };
        let Some(frames) = frames else {
            return self.refuse(client, 0, "file cannot be read");
        };
        self.forget(client);
        if self.transfers.len() >= TRANSFERS_MAX {
            let silent = self.transfers.iter().map(|other| other.answered).min();
            self.transfers
                .retain(|other| Some(other.answered) != silent);
        }
        self.transfers.push(transfer);
        (Event::BootFile, frames)
    }

    /// The blocks that the client has not acknowledged, as many as it takes.
    fn blocks(&self, transfer: &Transfer<D::File>) -> Option<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        for ahead in 0..u64::from(transfer.window) {
            let before = transfer.acknowledged.checked_add(ahead)?;
            let offset = before.checked_mul(u64::try_from(transfer.block_bytes).ok()?)?;
            let data = transfer.file.read(offset, transfer.block_bytes)?;
            let [.., high, low] = before.wrapping_add(1).to_be_bytes();
            let payload = [&DATA.to_be_bytes(), &[high, low], &data[..]].concat();
            frames.push(self.frame(transfer.client, &payload)?);
            if data.len() < transfer.block_bytes {
                break;
            }
        }
        Some(frames)
    }

    fn acknowledged(&mut self, now: MonotonicTime, client: (Ipv4Addr, u16), rest: &[u8]) -> Answer {
        let malformed = (Event::Malformed, Vec::new());
        let Some((number, _)) = rest.split_first_chunk() else {
            return malformed;
        };
        let known = self
            .transfers
            .iter()
            .position(|transfer| transfer.client == client);
        let Some(mut transfer) = known.map(|known| self.transfers.swap_remove(known)) else {
            // Its end was acknowledged twice, or the director was started anew: it is to begin again.
            return self.refuse(client, 5, "no such transfer");
        };
        let [.., high, low] = transfer.acknowledged.to_be_bytes();
        let new = u16::from_be_bytes(*number).wrapping_sub(u16::from_be_bytes([high, low]));
        let again = now.saturating_duration_since(transfer.answered) < REPEAT;
        if new > transfer.window || (new == 0 && transfer.acknowledged > 0 && again) {
            self.transfers.push(transfer);
            return (Event::Foreign, Vec::new());
        }
        transfer.acknowledged = transfer.acknowledged.saturating_add(new.into());
        transfer.answered = now;
        let block_bytes = u64::try_from(transfer.block_bytes).unwrap_or(u64::MAX);
        // A file of whole blocks ends with an empty one.
        let blocks = (transfer.file.bytes() / block_bytes).saturating_add(1);
        if transfer.acknowledged >= blocks {
            return (Event::BootDone, Vec::new());
        }
        let Some(frames) = self.blocks(&transfer) else {
            return self.refuse(client, 0, "file cannot be read");
        };
        self.transfers.push(transfer);
        (Event::BootBlocks, frames)
    }
}

/// A read request behind its code: texts that end with 0.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    name: &'a str,
    mode: &'a str,
    options: Vec<(&'a str, &'a str)>,
}

impl<'a> Request<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let bytes = bytes.get(..bytes.len().min(REQUEST_BYTES_MAX))?;
        let (texts, _padding) = bytes.split_at(bytes.iter().rposition(|byte| *byte == 0)?);
        let mut texts = texts.split(|byte| *byte == 0).map(std::str::from_utf8);
        let mut next = || texts.next()?.ok();
        let (name, mode) = (next()?, next()?);
        let mut options = Vec::new();
        while let (Some(name), Some(value)) = (next(), next()) {
            options.push((name, value));
        }
        (!name.is_empty()).then_some(Self {
            name,
            mode,
            options,
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
