//! What leads out of an Ethernet port: one interface, or the members of a LAG.
//!
//! Each is watched through netlink: it is up while it has carrier, is administratively up, and the
//! operator wants it.
//!
//! | mode | frames out | frames in |
//! | --- | --- | --- |
//! | active-backup | by the active member: it stays so while it is up | from the active member |
//! | hash | each flow (addresses, ports) by one of those that are up | from all |
//!
//! The write side may be used from many threads at once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use fabric_config::{EthernetPortConfig, InterfaceConfig, InterfaceKind, LagMode, PortName};
use fabric_payload::ethernet::{HEADER_BYTES, Offloads};

use super::netlink::{Found, Interfaces, News, Wanted, Watch, in_namespace};
use super::packet::{Packet, Upper};
use super::packet_socket::PacketSocket;
use super::tap::{Tap, TapError};

/// What frames are read from and written to.
enum Medium {
    Tap(Tap),
    Packet(PacketSocket),
}

/// An interface of the machine that a port has opened.
pub(super) struct Member {
    port: PortName,
    name: String,
    medium: Medium,
    interfaces: Interfaces,
    watch: Watch,
    found: Found,
    /// What it has to be again at the end: it was there before us.
    before: Option<Wanted>,
    has_carrier: AtomicBool,
    /// The operator wants the member, and the port.
    wanted: AtomicBool,
    /// It cannot be read any more.
    failed: AtomicBool,
}

impl Member {
    fn open(config: &InterfaceConfig, port: &EthernetPortConfig) -> Result<Self, TapError> {
        let open = || Self::open_here(config, port);
        match &config.namespace {
            None => open(),
            Some(namespace) => {
                in_namespace(namespace, open).map_err(|source| TapError::Namespace {
                    namespace: namespace.clone(),
                    source,
                })?
            }
        }
    }

    fn open_here(config: &InterfaceConfig, port: &EthernetPortConfig) -> Result<Self, TapError> {
        let name = &config.name;
        let step = |step| {
            move |source| TapError::Step {
                name: name.clone(),
                step,
                source,
            }
        };
        let interfaces = Interfaces::open().map_err(step("ask the kernel"))?;
        // Before it is asked: what happens in between is heard.
        let watch = Watch::open().map_err(step("watch the state"))?;
        let up = port.up && config.up;
        let (medium, found, before) = match config.kind {
            InterfaceKind::Tap => {
                let tap = Tap::open(name, port.offloads, port.mtu)?;
                (Medium::Tap(tap), find(&interfaces, name)?, None)
            }
            InterfaceKind::Present => {
                let found = find(&interfaces, name)?;
                let socket = PacketSocket::open(found.index, port.offloads)
                    .map_err(step("open the packet socket"))?;
                let before = Wanted {
                    up: Some(found.wanted_up),
                    mtu: Some(found.mtu),
                    bridge: None,
                };
                (Medium::Packet(socket), found, Some(before))
            }
        };
        let bridge = config.bridge.as_ref().map(|bridge| {
            let known = interfaces.find(bridge);
            known.map_err(|source| TapError::Bridge {
                name: bridge.clone(),
                source,
            })
        });
        let bridge = bridge.transpose()?.map(|bridge| bridge.index);
        let member = Self {
            port: config.port,
            name: name.clone(),
            medium,
            interfaces,
            watch,
            found,
            before,
            has_carrier: AtomicBool::new(found.is_up),
            wanted: AtomicBool::new(up),
            failed: AtomicBool::new(false),
        };
        let wanted = Wanted {
            up: Some(up),
            mtu: Some(port.mtu.into()),
            bridge,
        };
        let set = member.interfaces.set(found.index, wanted);
        set.map_err(step("set the mtu, state or bridge"))?;
        let found = find(&member.interfaces, name)?;
        member.has_carrier.store(found.is_up, Ordering::Relaxed);
        Ok(member)
    }

    /// The interface's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn is_up(&self) -> bool {
        let (carrier, wanted) = (&self.has_carrier, &self.wanted);
        carrier.load(Ordering::Relaxed)
            && wanted.load(Ordering::Relaxed)
            && !self.failed.load(Ordering::Relaxed)
    }

    /// Whether it can still be read.
    pub(super) fn is_readable(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Reads one header and frame.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; any other: the interface is gone.
    pub(super) fn read(&self, payload: &mut [u8]) -> io::Result<usize> {
        match &self.medium {
            Medium::Tap(tap) => tap.read(payload),
            Medium::Packet(socket) => socket.read(payload),
        }
    }

    fn write(&self, pieces: [&[u8]; 2]) -> io::Result<()> {
        match &self.medium {
            Medium::Tap(tap) => tap.write(pieces),
            Medium::Packet(socket) => socket.write(pieces),
        }
    }

    /// Readable when something has happened to the interface.
    pub(super) fn watch_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl AsFd for Member {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.medium {
            Medium::Tap(tap) => tap.as_fd(),
            Medium::Packet(socket) => socket.as_fd(),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = self.interfaces.set(self.found.index, before)
        {
            let (port, name) = (self.port, &self.name);
            tracing::debug!(%port, name, %error, "interface is not as it was before");
        }
    }
}

fn find(interfaces: &Interfaces, name: &str) -> Result<Found, TapError> {
    interfaces.find(name).map_err(|source| {
        let name = name.to_owned();
        if source.raw_os_error() == Some(libc::ENODEV) {
            TapError::Missing { name, source }
        } else {
            let step = "ask the kernel";
            TapError::Step { name, step, source }
        }
    })
}

/// See the module.
pub(super) struct Uplink {
    mode: LagMode,
    members: Vec<Member>,
    /// Bit n: member n is up.
    up: AtomicU32,
    /// The member that carries all in active-backup; the last one that did, when none is up.
    active: AtomicUsize,
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.members.iter().map(Member::name);
        f.debug_list().entries(names).finish()
    }
}

/// What a look at the members has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shift {
    /// Whether any member is up.
    pub(super) is_up: bool,
    /// Another member than before carries everything.
    pub(super) moved: bool,
}

impl Uplink {
    /// Opens the interfaces of a port; `None`: it is private.
    ///
    /// # Errors
    /// [`TapError`]; nothing is left behind.
    pub(super) fn open(config: &EthernetPortConfig) -> Result<Option<Self>, TapError> {
        let members = config.interfaces.iter();
        let members: Result<Vec<_>, _> = members.map(|it| Member::open(it, config)).collect();
        let members = members?;
        if members.is_empty() {
            return Ok(None);
        }
        let uplink = Self {
            mode: config.mode,
            members,
            up: AtomicU32::new(0),
            active: AtomicUsize::new(0),
        };
        uplink.look();
        Ok(Some(uplink))
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// What frames to the interfaces may leave unfinished: what all of them take.
    pub(super) fn offloads(&self) -> Offloads {
        let first = self.members.first().map(|member| match &member.medium {
            Medium::Tap(tap) => tap.offloads(),
            Medium::Packet(socket) => socket.offloads(),
        });
        // They have the port's word in common.
        first.unwrap_or_default()
    }

    /// Whether what a member received counts.
    pub(super) fn takes_from(&self, member: usize) -> bool {
        self.mode == LagMode::Hash || self.active.load(Ordering::Relaxed) == member
    }

    /// Writes one header and frame in two pieces, whole or not at all.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full; any other: the kernel refused this frame, or no member is
    /// up.
    pub(super) fn write(&self, pieces: [&[u8]; 2]) -> io::Result<()> {
        let member = match self.mode {
            LagMode::ActiveBackup => self.active.load(Ordering::Relaxed),
            LagMode::Hash => self.by_flow(pieces).ok_or(io::ErrorKind::NetworkDown)?,
        };
        let member = self.members.get(member);
        member.ok_or(io::ErrorKind::NetworkDown)?.write(pieces)
    }

    fn by_flow(&self, pieces: [&[u8]; 2]) -> Option<usize> {
        let up = self.up.load(Ordering::Relaxed);
        let count = u64::from(up.count_ones());
        if count < 2 {
            return (up != 0).then(|| bit_at(up, 0));
        }
        let chosen = flow_hash(pieces) % count;
        Some(bit_at(up, u32::try_from(chosen).ok()?))
    }

    /// Has members be what the operator wants of them: the states of `config`.
    ///
    /// # Errors
    /// An interface does not do it; the others have.
    pub(super) fn set_states(&self, config: &EthernetPortConfig) -> io::Result<()> {
        let mut done = Ok(());
        for (member, words) in self.members.iter().zip(&config.interfaces) {
            let up = config.up && words.up;
            member.wanted.store(up, Ordering::Relaxed);
            let wanted = Wanted {
                up: Some(up),
                ..Wanted::default()
            };
            done = done.and(member.interfaces.set(member.found.index, wanted));
        }
        done
    }

    /// Takes what has happened to a member's interface. [`Self::look`] says what it comes to.
    ///
    /// # Errors
    /// The member cannot be watched any more.
    pub(super) fn take_news(&self, member: &Member) -> io::Result<()> {
        let carrier = match member.watch.news(member.found.index)? {
            Some(News::Up(up)) => up,
            // The descriptor of a TAP goes with it, to another namespace too; reading says if it is gone.
            Some(News::Gone) if matches!(member.medium, Medium::Tap(_)) => return Ok(()),
            Some(News::Gone) => return Err(io::ErrorKind::NotFound.into()),
            Some(News::Lost) => member.interfaces.find(&member.name)?.is_up,
            None => return Ok(()),
        };
        member.has_carrier.store(carrier, Ordering::Relaxed);
        Ok(())
    }

    /// Counts a member out for good.
    pub(super) fn fail(&self, member: &Member) {
        member.failed.store(true, Ordering::Relaxed);
    }

    /// Chooses among the members as they are now.
    pub(super) fn look(&self) -> Shift {
        let members = self.members.iter().enumerate();
        let up = members
            .filter(|(_, member)| member.is_up())
            .fold(0_u32, |up, (number, _)| up | 1 << number);
        self.up.store(up, Ordering::Relaxed);
        let active = self.active.load(Ordering::Relaxed);
        let moves = up != 0 && up & 1 << active == 0;
        if moves {
            self.active.store(bit_at(up, 0), Ordering::Relaxed);
        }
        Shift {
            is_up: up != 0,
            moved: moves && self.mode == LagMode::ActiveBackup,
        }
    }
}

/// The number of the bit that is set, after `skip` others from the lowest.
fn bit_at(mut bits: u32, skip: u32) -> usize {
    for _ in 0..skip {
        bits &= bits.wrapping_sub(1);
    }
    usize::try_from(bits.trailing_zeros()).unwrap_or_default()
}

/// The same for all frames of a flow: IP addresses, protocol and, unless it is in fragments, ports;
/// of other frames their addresses.
fn flow_hash([head, tail]: [&[u8]; 2]) -> u64 {
    let mut hasher = DefaultHasher::new();
    // A head that was rewritten has the frame's first bytes only.
    let joined;
    let frame = if head.is_empty() {
        tail
    } else {
        const LOOKED_AT: usize = 512;
        let tail = tail.get(..LOOKED_AT.min(tail.len())).unwrap_or_default();
        joined = [head, tail].concat();
        &joined
    };
    let frame = frame.get(HEADER_BYTES..).unwrap_or_default();
    match Packet::read(frame).ok().and_then(|packet| packet.ip) {
        Some(ip) => {
            (ip.source, ip.destination, ip.protocol).hash(&mut hasher);
            if matches!(ip.upper, Upper::Whole(_)) {
                ip.ports().hash(&mut hasher);
            }
        }
        None => frame.get(..12).hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_found_from_the_lowest() {
        assert_eq!(bit_at(0b1, 0), 0);
        assert_eq!([0, 1, 2].map(|skip| bit_at(0b1_0110, skip)), [1, 2, 4]);
    }

    /// A UDP datagram behind a virtio-net header.
    fn datagram(ports: [u16; 2], more_fragments: bool) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut payload = vec![0; HEADER_BYTES];
        let data = [1; 40];
        builder
            .udp(ports[0], ports[1])
            .write(&mut payload, &data)
            .unwrap();
        if more_fragments {
            payload[HEADER_BYTES + 14 + 6] = 0x20;
        }
        payload
    }

    #[test]
    fn flows_are_told_apart_by_ports_and_fragments_are_not() {
        let whole = |port| flow_hash([&[], &datagram([port, 53], false)]);
        assert_eq!(whole(1), whole(1));
        assert!((2..20).any(|port| whole(port) % 2 != whole(1) % 2));
        let part = |port| flow_hash([&[], &datagram([port, 53], true)]);
        assert_eq!(part(1), part(2));
        // In pieces it is the same frame.
        let payload = datagram([7, 53], false);
        let (head, tail) = payload.split_at(HEADER_BYTES + 16);
        assert_eq!(flow_hash([head, tail]), whole(7));
    }
}
