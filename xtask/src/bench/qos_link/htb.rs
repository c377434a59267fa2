//! Linux HTB with the same words: a veth pair between two network namespaces, one class a device.
//!
//! Ethernet devices send UDP datagrams that fill frames of 1500 bytes, storage devices TCP, which
//! the kernel cuts into segments behind the classes (GSO). Senders are held up by their socket
//! buffers, as our devices are by their queues.
//!
//! HTB gets the most exact words of those that were tried, not its defaults:
//!
//! | word | without it |
//! | --- | --- |
//! | `gso_max_size` 16 KiB | 64 KiB: errors over 10 ms double; 4 KiB: 0.84 to 0.97 of the rate, uneven |
//! | `quantum` by weight, at least the largest packet | not tried: smaller ones count packets, not bytes |
//! | link `burst` 128 KiB, what our link may catch up | 0.88 to 0.99 of the rate |
//! | class `burst` 16 KiB | devices up to 50 % off, once the link has its burst |

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use orimono_tests::lab::Namespace;

use super::arrivals::tick;
use super::case::{Case, Device, LINK_MEGABITS, Traffic};
use super::far_end::{Kind, Running};
use super::windows::Measured;
use super::{TICKS, WARM_UP, span};

const NEAR: &str = "10.117.0.1";
const FAR: &str = "10.117.0.2";
/// Payload of a frame of 1500 bytes: less IPv4 and UDP, or IPv4 and TCP with time stamps.
const DATAGRAM_BYTES: usize = 1_472;
const SEGMENT_BYTES: usize = 1_448;
/// The same frame as HTB charges it: with its Ethernet header.
const FRAME_BYTES: u32 = 1_514;
/// The longest packet before the kernel cuts it.
const PACKET_BYTES_MAX: u32 = 16 * 1024;
/// Asked for; the kernel doubles it, for its own use. With its default a datagram sender was not
/// always backlogged, and a class whose queue runs empty gives up its turn.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// One run of `case`.
pub(super) fn run(case: Case) -> Result<Measured> {
    let (near, far) = (Namespace::new()?, Namespace::new()?);
    let running = far.run(|| Running::start(Kind::Sockets, case))?;
    let pid = running.pid();
    near.ip(&format!(
        "link add near0 type veth peer name far0 netns {pid}"
    ))?;
    for (namespace, device, address) in [(&near, "near0", NEAR), (&far, "far0", FAR)] {
        namespace.ip(&format!("addr add {address}/24 dev {device}"))?;
        namespace.ip(&format!("link set {device} up"))?;
    }
    add_classes(&near, case)?;
    let devices = case.devices().iter().zip(running.addresses.split(' '));
    let connect = |(index, (device, port)): (usize, (&Device, &str))| {
        near.run(|| Sender::connect(device, index, port.parse()?))
    };
    let senders: Vec<_> = devices.enumerate().map(connect).collect::<Result<_>>()?;
    let stop = AtomicBool::new(false);
    let first = std::thread::scope(|scope| {
        for sender in senders {
            let stop = &stop;
            scope.spawn(move || sender.saturate(stop));
        }
        std::thread::sleep(WARM_UP);
        let first = tick() + 1;
        std::thread::sleep(span());
        stop.store(true, Ordering::Relaxed);
        first
    });
    let rows = running.finish()?.rows(first, TICKS)?;
    let factors: Vec<_> = case.devices().iter().map(charged_by_payload).collect();
    Ok(Measured::new(&rows, &factors))
}

/// Bytes that HTB charges for a byte of payload.
fn charged_by_payload(device: &Device) -> f64 {
    let payload_bytes = match device.traffic {
        Traffic::Ethernet => DATAGRAM_BYTES,
        Traffic::Storage => SEGMENT_BYTES,
    };
    f64::from(FRAME_BYTES) / payload_bytes as f64
}

/// Minor number of a device's class.
fn class(index: usize) -> usize {
    0x10 + index
}

fn add_classes(namespace: &Namespace, case: Case) -> Result<()> {
    let tc = |words: String| namespace.output(Command::new("tc").args(words.split_whitespace()));
    let catch_up = "burst 128k cburst 128k";
    namespace.ip(&format!("link set near0 gso_max_size {PACKET_BYTES_MAX}"))?;
    tc("qdisc add dev near0 root handle 1: htb".to_owned())?;
    tc(format!(
        "class add dev near0 parent 1: classid 1:1 htb \
         rate {LINK_MEGABITS}mbit ceil {LINK_MEGABITS}mbit {catch_up}"
    ))?;
    let quanta = case.devices().iter().map(|device| {
        let packet_bytes = match device.traffic {
            Traffic::Ethernet => FRAME_BYTES,
            Traffic::Storage => PACKET_BYTES_MAX,
        };
        packet_bytes.div_ceil(device.weight)
    });
    let quantum_of_one = quanta.max().context("a case without devices")?;
    for (index, device) in case.devices().iter().enumerate() {
        let (class, cir) = (class(index), device.cir_megabits);
        let quantum = quantum_of_one * device.weight;
        tc(format!(
            "class add dev near0 parent 1:1 classid 1:{class:x} htb rate {cir}mbit \
             ceil {LINK_MEGABITS}mbit burst 16k cburst 128k quantum {quantum}"
        ))?;
    }
    Ok(())
}

enum Sender {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Sender {
    fn connect(device: &Device, index: usize, port: u16) -> Result<Self> {
        let sender = match device.traffic {
            Traffic::Ethernet => {
                let socket = UdpSocket::bind((NEAR, 0))?;
                setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
                socket.connect((FAR, port))?;
                Self::Udp(socket)
            }
            Traffic::Storage => Self::Tcp(TcpStream::connect((FAR, port))?),
        };
        // A priority that is a class's handle chooses the class, without a filter.
        let handle = i32::try_from(0x1_0000 + class(index))?;
        setsockopt(&sender.as_fd(), sockopt::Priority, &handle)?;
        Ok(sender)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(socket) => socket.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }

    /// Sends as fast as the class lets it, until `stop`.
    fn saturate(self, stop: &AtomicBool) {
        let payload = [0x5a; 64 * 1024];
        let datagram = payload.get(..DATAGRAM_BYTES).unwrap_or_default();
        let mut sent = true;
        while sent && !stop.load(Ordering::Relaxed) {
            sent = match &self {
                Self::Udp(socket) => socket.send(datagram).is_ok(),
                Self::Tcp(stream) => (&*stream).write_all(&payload).is_ok(),
            };
        }
    }
}
