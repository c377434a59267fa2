//! Links: they move whole frames from one end to the other, in order, and know only their length.
//!
//! A link is two halves, so that one thread can write while another reads. Both are non-blocking:
//! [`LinkReceiver::poll_fd`] becomes readable or writable (edge-triggered) when a half that had to
//! stop can go on.

mod buffer;
mod in_process;
mod options;
mod queue;
#[cfg(feature = "rdma")]
mod rdma;
mod shared_memory;
mod stream;
mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use crate::frame::FrameError;

pub use in_process::in_process_pair;
pub use options::{LinkOptions, LinkRefused};
pub use queue::SendQueue;
#[cfg(all(test, feature = "rdma"))]
pub(crate) use rdma::tests::pair as rdma_pair;
pub use stream::{Listener, connect};
#[cfg(test)]
pub(crate) use tls::tests::{Lab as TlsLab, tls_pair};
pub use tls::{TlsConfig, TlsError, TlsFiles};

/// Frames of one write at most.
pub const BATCH_FRAMES_MAX: usize = 64;
/// Bytes of one write at which no more frames are added.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Both halves of one end of a link.
#[derive(Debug)]
pub struct Link {
    /// Towards the peer.
    pub sender: Box<dyn LinkSender>,
    /// From the peer.
    pub receiver: Box<dyn LinkReceiver>,
    /// Whether bits may flip underway, so that frames need their CRC32C.
    pub checksummed: bool,
    /// The peer, for logs.
    pub peer: String,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Everything is handed over.
    All,
    /// The rest must wait for [`LinkReceiver::poll_fd`].
    Blocked,
}

/// The half of a link that sends.
pub trait LinkSender: Send + fmt::Debug {
    /// Sends what waits in `queue`, from its front: by [`SendQueue::gather`] and
    /// [`SendQueue::advance`], or, on a link that cannot lose frames, by [`SendQueue::take`].
    ///
    /// # Errors
    /// The link is broken.
    fn send(&mut self, queue: &mut SendQueue) -> io::Result<Sent>;
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Something, perhaps no frame; there may be more, and a sender that was blocked may go on.
    Some,
    /// Nothing now.
    Blocked,
    /// The peer closed the link.
    End,
}

/// The half of a link that receives.
pub trait LinkReceiver: Send + fmt::Debug {
    /// Forgets the frames of the last call and reads what is there, a bounded amount.
    ///
    /// # Errors
    /// The link is broken.
    fn fill(&mut self) -> io::Result<Filled>;

    /// As [`Self::fill`], for a thread that looks again soon: it does not ask to be woken, so a
    /// thread that goes to sleep calls [`Self::fill`] before. It may miss the end of the link.
    /// Over shared memory it makes no system call when there is nothing.
    ///
    /// # Errors
    /// The link is broken.
    fn poll(&mut self) -> io::Result<Filled> {
        self.fill()
    }

    /// The whole frames that [`Self::fill`] found, in order.
    ///
    /// # Errors
    /// The bytes are no frames; nothing after them can be read.
    fn frames(&self) -> Result<Vec<&[u8]>, FrameError>;

    /// Readable and writable edges of the link.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// The host or director that the peer's certificate names. `None` on a link without
    /// certificates, and before the first frame has arrived.
    fn peer_name(&self) -> Option<String> {
        None
    }
}

/// Polls between two looks at the clock and at the other work of a thread that spins.
const POLLS_PER_LOOK: u32 = 32;

/// [`LinkReceiver::fill`], but what comes within `longest` is waited for without sleep. The wait
/// ends early when `stop` says that the thread has something else to do. When the answer is
/// [`Filled::Blocked`], the thread may sleep.
///
/// A wake-up costs tens of microseconds, so 50 us are worth their processor time where frames
/// come often; with zero this is `fill`. With one processor, whoever spins keeps the peer from
/// running: see [`spin_allowed`].
///
/// # Errors
/// The link is broken.
pub fn fill_or_spin(
    receiver: &mut dyn LinkReceiver,
    longest: Duration,
    mut stop: impl FnMut() -> bool,
) -> io::Result<Filled> {
    if !longest.is_zero() {
        let start = Instant::now();
        loop {
            for _ in 0..POLLS_PER_LOOK {
                match receiver.poll()? {
                    Filled::Blocked => std::hint::spin_loop(),
                    found => return Ok(found),
                }
            }
            if stop() || start.elapsed() >= longest {
                break;
            }
        }
    }
    receiver.fill()
}

/// Whether this process has processors enough for [`fill_or_spin`]: more than one.
#[must_use]
pub fn spin_allowed() -> bool {
    std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1)
}

/// Where a director listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LinkAddress {
    /// `tcp:ADDRESS:PORT`.
    Tcp(SocketAddr),
    /// `tls:ADDRESS:PORT`: TLS over TCP, both ends with certificates.
    Tls(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `shm:PATH`: shared memory, for a host agent beside its director. The two meet at the Unix
    /// socket PATH and must run as one user, or the host agent as root.
    SharedMemory(PathBuf),
    /// `rdma:ADDRESS:PORT`: a queue pair of an RDMA device. Only for programs that were built with
    /// the feature `rdma`; others refuse it ([`LinkRefused::NoRdma`]).
    Rdma(SocketAddr),
}

/// A text that is no link address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no link address; write tls:ADDRESS:PORT, tcp:ADDRESS:PORT, rdma:ADDRESS:PORT, unix:/PATH or shm:/PATH"
)]
pub struct LinkAddressError {
    /// What was given.
    pub text: String,
}

impl FromStr for LinkAddress {
    type Err = LinkAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || LinkAddressError {
            text: text.to_owned(),
        };
        match text.split_once(':').ok_or_else(error)? {
            ("tcp", address) => address.parse().map(Self::Tcp).map_err(|_parse| error()),
            ("tls", address) => address.parse().map(Self::Tls).map_err(|_parse| error()),
            ("rdma", address) => address.parse().map(Self::Rdma).map_err(|_parse| error()),
            ("unix", path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            ("shm", path) if path.starts_with('/') => Ok(Self::SharedMemory(path.into())),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Tls(address) => write!(f, "tls:{address}"),
            Self::Rdma(address) => write!(f, "rdma:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::SharedMemory(path) => write!(f, "shm:{}", path.display()),
        }
    }
}

/// Wakes whoever waits for `event`.
pub(crate) fn ring(event: &EventFd) {
    // A full counter is a wake-up that is pending already.
    if let Err(error) = event.write(1)
        && error != nix::Error::EAGAIN
    {
        tracing::error!(%error, "eventfd cannot be written");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::frame::{DeviceId, FrameBuffer, FrameHeader, FrameKind, VirtualLane};
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;

    pub(crate) fn sealed(payload: &[u8], sequence: u32) -> FrameBuffer {
        let mut frame = FrameBuffer::from_payload(payload);
        let header = FrameHeader {
            version: 2,
            attachment: 0,
            kind: FrameKind::Data,
            lane: Some(VirtualLane::Network),
            more: false,
            epoch: 1,
            device: DeviceId(1),
            payload_bytes: 0,
            sequence,
            credit_limit: 0,
            acknowledge: 0,
        };
        frame.seal(&header, true);
        frame
    }

    /// The next link of a listener, waited for: a connection may take a moment after `connect`.
    pub(crate) fn accepted(listener: &Listener) -> Link {
        loop {
            if let Some(link) = listener.accept().unwrap() {
                return link;
            }
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            assert_ne!(poll(&mut fds, 20_000_u16), Ok(0), "nobody connects");
        }
    }

    /// Waits with the descriptor alone, as a session does, until the link says something.
    pub(crate) fn outcome(link: &mut Link) -> io::Result<Filled> {
        loop {
            match link.receiver.fill() {
                Ok(Filled::Blocked) => {
                    let mut fds = [PollFd::new(link.receiver.poll_fd(), PollFlags::POLLIN)];
                    assert_ne!(poll(&mut fds, 20_000_u16), Ok(0), "nothing happens");
                }
                other => return other,
            }
        }
    }

    /// Sends `count` frames through a link whose far end reads at its own pace.
    pub(crate) fn frames_cross(mut near: Link, mut far: Link) {
        const COUNT: u32 = 3000;
        let mut queue = SendQueue::default();
        let (mut queued, mut arrived) = (0, 0);
        while arrived < COUNT {
            while queue.waiting() < BATCH_FRAMES_MAX && queued < COUNT {
                let payload =
                    vec![u8::try_from(queued % 251).unwrap(); (queued as usize * 37) % 9000];
                queue.push(sealed(&payload, queued), true);
                queued += 1;
            }
            near.sender.send(&mut queue).unwrap();
            // A handshake needs both ways.
            near.receiver.fill().unwrap();
            if far.receiver.fill().unwrap() == Filled::Some {
                for frame in far.receiver.frames().unwrap() {
                    let (header, payload) = FrameHeader::parse(frame, true).unwrap();
                    assert_eq!(header.sequence, arrived);
                    assert_eq!(payload.len(), (arrived as usize * 37) % 9000);
                    arrived += 1;
                }
            }
        }
        drop(near);
        while outcome(&mut far).unwrap() == Filled::Some {}
    }

    #[test]
    fn in_process_link_keeps_frames_whole_and_in_order() {
        let (near, far) = in_process_pair("test");
        frames_cross(near, far);
    }

    #[test]
    fn links_between_processes_keep_frames_whole_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let unix = LinkAddress::Unix(directory.path().join("fabric"));
        let shared_memory = LinkAddress::SharedMemory(directory.path().join("fabric"));
        for address in [unix, shared_memory, "tcp:127.0.0.1:0".parse().unwrap()] {
            let options = LinkOptions::default();
            let listener = Listener::bind(&address, &options).unwrap();
            let address = listener.address().unwrap();
            let near = connect(&address, Duration::from_secs(5), &options).unwrap();
            let far = listener.accept().unwrap().expect("a connection waits");
            frames_cross(near, far);
        }
    }

    #[test]
    fn spinning_finds_what_comes_and_stops_when_told() {
        let directory = tempfile::tempdir().unwrap();
        let address = LinkAddress::SharedMemory(directory.path().join("fabric"));
        let listener = Listener::bind(&address, &LinkOptions::default()).unwrap();
        let mut near = connect(&address, Duration::from_secs(5), &LinkOptions::default()).unwrap();
        let mut far = listener.accept().unwrap().expect("a connection waits");
        let long = Duration::from_secs(3600);
        let mut looks = 0;
        let found = fill_or_spin(&mut *far.receiver, long, || {
            looks += 1;
            looks == 3
        });
        assert_eq!((found.unwrap(), looks), (Filled::Blocked, 3));
        let mut queue = SendQueue::default();
        queue.push(sealed(&[1], 0), true);
        let found = fill_or_spin(&mut *far.receiver, long, || {
            near.sender.send(&mut queue).unwrap();
            false
        });
        assert_eq!(found.unwrap(), Filled::Some);
        assert_eq!(far.receiver.frames().unwrap().len(), 1);
        let none = fill_or_spin(&mut *far.receiver, Duration::ZERO, || panic!("no spin"));
        assert_eq!(none.unwrap(), Filled::Blocked);
    }

    #[test]
    fn p02_bytes_that_are_no_frame_are_an_error() {
        use std::io::Write;
        let listener =
            Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), &LinkOptions::default()).unwrap();
        let LinkAddress::Tcp(address) = listener.address().unwrap() else {
            panic!("tcp")
        };
        let mut hostile = std::net::TcpStream::connect(address).unwrap();
        let mut link = listener.accept().unwrap().expect("a connection waits");
        hostile
            .write_all(b"GET / HTTP/1.1\r\nHost: fabric.example\r\n\r\n")
            .unwrap();
        while link.receiver.fill().unwrap() == Filled::Blocked {}
        assert_eq!(
            link.receiver.frames(),
            Err(FrameError::Magic { magic: 0x4547 })
        );
    }

    #[test]
    fn plain_tcp_stays_on_this_machine_unless_it_is_wanted() {
        let careful = LinkOptions::default();
        let careless = LinkOptions {
            insecure: true,
            ..LinkOptions::default()
        };
        for (text, local) in [
            ("tcp:127.0.0.1:1", true),
            ("tcp:127.1.2.3:1", true),
            ("tcp:[::1]:1", true),
            ("tcp:[::ffff:127.0.0.1]:1", true),
            ("unix:/run/fabric", true),
            ("tcp:0.0.0.0:1", false),
            ("tcp:[::]:1", false),
            ("tcp:192.0.2.1:1", false),
        ] {
            let address: LinkAddress = text.parse().unwrap();
            assert_eq!(careful.check(&address).is_ok(), local, "{text}");
            assert_eq!(careless.check(&address), Ok(()));
        }
        let wide = "tcp:0.0.0.0:0".parse().unwrap();
        for error in [
            Listener::bind(&wide, &careful).unwrap_err(),
            connect(&wide, Duration::from_secs(5), &careful).unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let text = error.to_string();
            assert!(text.starts_with("tcp:0.0.0.0:0 leaves"), "{text}");
            assert!(text.contains("use tls:, or set insecure = true"), "{text}");
        }
        Listener::bind(&wide, &careless).unwrap();
        let secure = "tls:127.0.0.1:0".parse().unwrap();
        for options in [careful, careless] {
            let error = Listener::bind(&secure, &options).unwrap_err();
            assert!(error.to_string().contains("needs a certificate"), "{error}");
        }
    }

    #[test]
    fn rdma_needs_its_feature_and_stays_on_this_machine_unless_it_is_wanted() {
        let check = |text: &str, insecure| {
            let address = text.parse().unwrap();
            let refused = LinkRefused::check(&address, false, insecure);
            refused.map_err(|refused| refused.to_string())
        };
        for (text, insecure) in [("rdma:192.0.2.1:1", true), ("rdma:127.0.0.1:1", false)] {
            let checked = check(text, insecure);
            assert_eq!(checked.is_ok(), cfg!(feature = "rdma"), "{checked:?}");
            if let Err(error) = checked {
                let hint = "--features fabric-transport/rdma";
                assert!(error.contains(hint), "{error}");
            }
        }
        assert!(check("rdma:192.0.2.1:1", false).is_err());
    }

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in [
            "tcp:127.0.0.1:7471",
            "tcp:[::1]:7471",
            "tls:192.0.2.1:7471",
            "rdma:192.0.2.1:7471",
            "unix:/run/orimono/fabric",
            "shm:/run/orimono/fabric",
        ] {
            assert_eq!(text.parse::<LinkAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "tcp:",
            "tcp:localhost",
            "tls:host1:7471",
            "rdma:host1:7471",
            "udp:127.0.0.1:1",
            "unix:relative",
            "shm:relative",
            "/run/x",
        ] {
            assert!(text.parse::<LinkAddress>().is_err(), "{text}");
        }
    }
}
