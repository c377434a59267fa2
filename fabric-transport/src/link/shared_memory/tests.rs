use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::epoll::EpollTimeout;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::memory::RING_BYTES_MIN;
use super::ring::{RingMemory, Word};
use super::*;
use crate::frame::{
    DeviceId, FrameBuffer, FrameError, FrameHeader, FrameKind, HEADER_BYTES, VirtualLane,
};
use crate::link::{
    BATCH_FRAMES_MAX, Filled, LinkAddress, LinkOptions, LinkReceiver, Listener, SendQueue, Sent,
    connect, fill_or_spin,
};

/// When a wake-up counts as lost.
const PATIENCE_MS: u16 = 20_000;

/// One end of a link, driven by hand.
struct Peer {
    socket: UnixStream,
    mapping: Mapping,
}

impl Peer {
    /// It, and the end that has accepted it.
    fn connect() -> (Self, Link) {
        let (socket, accepting) = UnixStream::pair().unwrap();
        let mapping = Mapping::create(RING_BYTES_MIN).unwrap();
        let greeting = Greeting::new(RING_BYTES_MIN);
        greet(&socket, greeting.as_bytes(), &[mapping.as_fd()]);
        socket.set_nonblocking(true).unwrap();
        let mut link = accepted(accepting, Path::new("/test")).unwrap();
        assert_eq!(link.receiver.fill().unwrap(), Filled::Blocked);
        (Self { socket, mapping }, link)
    }

    fn outward(&self) -> MappedRing {
        self.mapping.ring(Direction::FromConnector)
    }

    fn inward(&self) -> MappedRing {
        self.mapping.ring(Direction::FromAcceptor)
    }

    /// What its socket has received.
    fn heard(&self) -> Vec<u8> {
        let mut bytes = [0; 512];
        match (&self.socket).read(&mut bytes) {
            Ok(count) => bytes[..count].to_vec(),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                Vec::new()
            }
        }
    }
}

fn greet(socket: &UnixStream, greeting: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let bytes = [IoSlice::new(greeting)];
    sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
}

fn frame(payload_bytes: usize, sequence: u32) -> FrameBuffer {
    let fill = sequence.to_le_bytes()[0];
    let mut frame = FrameBuffer::from_payload(&vec![fill; payload_bytes]);
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
    frame.seal(&header, false);
    frame
}

fn pair(ring_bytes: u32) -> (Link, Link) {
    let (near, far) = UnixStream::pair().unwrap();
    let path = Path::new("/test");
    (
        connected_by(near, path, ring_bytes).unwrap(),
        accepted(far, path).unwrap(),
    )
}

/// Waits for edges as the thread of a link does.
struct Waiter(Epoll);

impl Waiter {
    fn new(receiver: &dyn LinkReceiver) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll
            .add(receiver.poll_fd(), EpollEvent::new(edges, 0))
            .unwrap();
        Self(epoll)
    }

    fn rings(&self, millis: u16) -> bool {
        let mut events = [EpollEvent::empty()];
        self.0.wait(&mut events, EpollTimeout::from(millis)) == Ok(1)
    }

    fn wait(&self) {
        assert!(self.rings(PATIENCE_MS), "a wake-up is lost");
    }
}

fn memfd(flags: MFdFlags, bytes: u64, seals: SealFlag) -> OwnedFd {
    let file = File::from(memfd_create("hostile", flags | MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(bytes).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

/// What is wrong with an end that greets so, and what it is told.
fn refusal(greeting: &[u8], descriptors: &[OwnedFd]) -> String {
    let (socket, accepting) = UnixStream::pair().unwrap();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    greet(&socket, greeting, &borrowed);
    let mut link = accepted(accepting, Path::new("/test")).unwrap();
    let problem = link.receiver.fill().unwrap_err().to_string();
    drop(link);
    let mut told = Vec::new();
    match (&socket).read_to_end(&mut told) {
        Ok(_) => {}
        // What it sent was not read to its end.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    assert_eq!(told[0], REFUSED);
    assert_eq!(String::from_utf8_lossy(&told[1..]), problem);
    problem
}

#[test]
fn p03_greeting_that_makes_no_sense_is_refused() {
    let good = Greeting::new(RING_BYTES_MIN);
    let memory = || {
        vec![
            Mapping::create(RING_BYTES_MIN)
                .unwrap()
                .as_fd()
                .try_clone_to_owned()
                .unwrap(),
        ]
    };
    let with = |change: fn(&mut Greeting)| {
        let mut greeting = Greeting::new(RING_BYTES_MIN);
        change(&mut greeting);
        refusal(greeting.as_bytes(), &memory())
    };
    assert!(refusal(&good.as_bytes()[..31], &memory()).contains("does not greet"));
    assert!(refusal(frame(10, 0).frame(), &[]).contains("does not greet"));
    assert!(with(|greeting| greeting.version = 2.into()).contains("version 2"));
    with(|greeting| greeting.reserved = 1.into());
    with(|greeting| greeting.reserved_too[4] = 1.into());
    for ring_bytes in [0, 1, 4096, 100_000, 8 << 20, 1 << 31, u32::MAX] {
        let problem = refusal(Greeting::new(ring_bytes).as_bytes(), &memory());
        assert!(problem.contains("power of two"), "{problem}");
    }
    assert!(
        refusal(Greeting::new(2 * RING_BYTES_MIN).as_bytes(), &memory()).contains("bytes, not")
    );
}

#[test]
fn p06_memory_that_could_be_taken_away_is_refused() {
    let greeting = Greeting::new(RING_BYTES_MIN);
    let bytes = 4096 + 2 * u64::from(RING_BYTES_MIN);
    let sealed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    let normal = MFdFlags::empty();
    let refused = |descriptors: Vec<OwnedFd>| refusal(greeting.as_bytes(), &descriptors);

    assert!(refused(vec![]).contains("no descriptor"));
    for count in [2, 3, 20] {
        let many = (0..count).map(|_| memfd(normal, bytes, sealed)).collect();
        assert!(
            refused(many).contains("more than one descriptor"),
            "{count}"
        );
    }
    for seal in [
        SealFlag::F_SEAL_SHRINK,
        SealFlag::F_SEAL_GROW,
        SealFlag::F_SEAL_SEAL,
    ] {
        let problem = refused(vec![memfd(normal, bytes, sealed.difference(seal))]);
        assert!(problem.contains("not sealed"), "{problem}");
    }
    for wrong in [0, bytes - 1, bytes - 4096, bytes + 1, bytes * 2] {
        let problem = refused(vec![memfd(normal, wrong, sealed)]);
        assert!(problem.contains("bytes, not"), "{problem}");
    }
    let huge = memfd(MFdFlags::MFD_HUGETLB, 0, sealed);
    assert!(refused(vec![huge]).contains("tmpfs"));
    let write_sealed = memfd(normal, bytes, sealed | SealFlag::F_SEAL_WRITE);
    assert!(refused(vec![write_sealed]).contains("cannot be mapped"));
    let writable = memfd(normal, bytes, sealed);
    let read_only = File::open(format!("/proc/self/fd/{}", writable.as_raw_fd())).unwrap();
    assert!(refused(vec![read_only.into()]).contains("cannot be mapped"));

    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    let others: [OwnedFd; 4] = [
        file.into(),
        File::open("/dev/zero").unwrap().into(),
        EventFd::new().unwrap().into(),
        UnixStream::pair().unwrap().0.into(),
    ];
    for other in others {
        let problem = refused(vec![other]);
        assert!(problem.contains("memfd"), "{problem}");
    }
}

#[test]
fn only_root_and_the_same_user_may_share_memory() {
    assert!(may_share(0, 1000) && may_share(1000, 1000) && may_share(0, 0));
    assert!(!may_share(1000, 0) && !may_share(1001, 1000));
}

#[test]
fn p03_unix_link_at_the_other_side_is_noticed_by_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fabric");
    let listener =
        Listener::bind(&LinkAddress::Unix(path.clone()), &LinkOptions::default()).unwrap();
    let patience = Duration::from_secs(5);
    let mut near = connect(
        &LinkAddress::SharedMemory(path),
        patience,
        &LinkOptions::default(),
    )
    .unwrap();
    let mut far = listener.accept().unwrap().expect("a connection waits");
    assert_eq!(far.receiver.fill().unwrap(), Filled::Some);
    assert_eq!(
        far.receiver.frames(),
        Err(FrameError::Magic { magic: 0x534f })
    );
    let mut queue = SendQueue::default();
    queue.push(frame(10, 0), false);
    far.sender.send(&mut queue).unwrap();
    let problem = near.receiver.fill().unwrap_err().to_string();
    assert!(problem.contains("does not speak"), "{problem}");
}

#[test]
fn side_that_is_refused_learns_why() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut link = connected(near, Path::new("/test")).unwrap();
    let waiter = Waiter::new(&*link.receiver);
    assert_eq!(link.receiver.fill().unwrap(), Filled::Blocked);
    (&far).write_all(b"\x02no\nsuch thing").unwrap();
    waiter.wait();
    let problem = link.receiver.fill().unwrap_err();
    assert_eq!(problem.kind(), io::ErrorKind::ConnectionRefused);
    assert!(
        problem.to_string().ends_with(r#"link: "no\nsuch thing""#),
        "{problem}"
    );
}

#[test]
fn greeting_may_come_late_or_never() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut far = accepted(far, Path::new("/test")).unwrap();
    let waiter = Waiter::new(&*far.receiver);
    let mut queue = SendQueue::default();
    queue.push(frame(10, 0), false);
    assert_eq!(far.receiver.fill().unwrap(), Filled::Blocked);
    assert_eq!(far.sender.send(&mut queue).unwrap(), Sent::Blocked);
    let mut near = connected(near, Path::new("/test")).unwrap();
    waiter.wait();
    // The sending half need not wait for the other to have seen the greeting.
    assert_eq!(far.sender.send(&mut queue).unwrap(), Sent::All);
    assert_eq!(near.receiver.fill().unwrap(), Filled::Some);
    assert_eq!(near.receiver.frames().unwrap().len(), 1);

    let (near, far) = UnixStream::pair().unwrap();
    let mut far = accepted(far, Path::new("/test")).unwrap();
    drop(near);
    assert_eq!(far.receiver.fill().unwrap(), Filled::End);
}

#[test]
fn p06_positions_that_cannot_be_end_the_link() {
    for garbage in [u32::MAX, RING_BYTES_MIN + 1, 1 << 31] {
        let (peer, mut link) = Peer::connect();
        peer.outward().store(Word::Head, garbage).unwrap();
        let problem = link.receiver.fill().unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::InvalidData);

        let (peer, mut link) = Peer::connect();
        peer.inward().store(Word::Tail, garbage).unwrap();
        let mut queue = SendQueue::default();
        queue.push(frame(60_000, 0), false);
        queue.push(frame(60_000, 1), false);
        let problem = link.sender.send(&mut queue).unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn p06_garbage_in_the_words_while_frames_flow_does_no_harm() {
    let (peer, mut link) = Peer::connect();
    let (inward, outward) = (peer.inward(), peer.outward());
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = ended.clone();
    let scribbler = thread::spawn(move || {
        let mut random = 1_u32;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            for word in [
                Word::Head,
                Word::Tail,
                Word::ConsumerSleeps,
                Word::ProducerSleeps,
            ] {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                inward.store(word, random).unwrap();
                // Now and then a position that can be.
                outward.store(word, random >> (random % 32)).unwrap();
            }
        }
    });
    // Each round ends in an error, or in bytes of which at most one ring is there.
    for _ in 0..2_000 {
        match link.receiver.fill() {
            Ok(_) => drop(link.receiver.frames()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData),
        }
        let mut queue = SendQueue::default();
        queue.push(frame(9000, 0), false);
        if let Err(error) = link.sender.send(&mut queue) {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        peer.heard();
    }
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    scribbler.join().unwrap();
}

#[test]
fn p06_flood_of_the_socket_ends_the_link() {
    let (peer, mut link) = Peer::connect();
    (&peer.socket).write_all(&[BYTES; 64 * 1024]).unwrap();
    let problem = link.receiver.fill().unwrap_err();
    assert!(problem.to_string().contains("floods"), "{problem}");
}

#[test]
fn p02_peer_that_dies_in_a_frame_ends_the_link_behind_what_it_sent() {
    let (peer, mut link) = Peer::connect();
    let waiter = Waiter::new(&*link.receiver);
    let mut producer = Producer::new(peer.outward());
    let (whole, half) = (frame(100, 0), frame(100, 1));
    let bytes = [
        IoSlice::new(whole.frame()),
        IoSlice::new(&half.frame()[..HEADER_BYTES + 50]),
    ];
    producer.push(&bytes).unwrap();
    drop((peer, producer));
    waiter.wait();
    assert_eq!(link.receiver.fill().unwrap(), Filled::Some);
    assert_eq!(link.receiver.frames().unwrap(), [whole.frame()]);
    assert_eq!(link.receiver.fill().unwrap(), Filled::End);
    assert!(link.receiver.frames().unwrap().is_empty());
}

#[test]
fn p06_peer_that_never_reads_costs_one_ring() {
    let (mut near, mut far) = pair(RING_BYTES_MIN);
    let waiter = Waiter::new(&*near.receiver);
    let mut queue = SendQueue::default();
    for sequence in 0..100 {
        queue.push(frame(2000, sequence), false);
    }
    assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::Blocked);
    assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::Blocked);
    assert_eq!(
        queue.waiting(),
        100 - (RING_BYTES_MIN as usize / (2000 + HEADER_BYTES))
    );
    assert_eq!(near.receiver.fill().unwrap(), Filled::Blocked);
    // What registering has to say.
    while waiter.rings(0) {}
    // Once it reads, the rest goes.
    assert_eq!(far.receiver.fill().unwrap(), Filled::Some);
    waiter.wait();
    assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::Blocked);
}

#[test]
fn room_is_not_forgotten_by_the_half_that_receives() {
    let (mut near, mut far) = pair(RING_BYTES_MIN);
    let mut queue = SendQueue::default();
    queue.push(frame(60_000, 0), false);
    queue.push(frame(60_000, 1), false);
    assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::Blocked);
    // A new receiver reads in small steps.
    while far.receiver.frames().unwrap().is_empty() {
        assert_eq!(far.receiver.fill().unwrap(), Filled::Some);
    }
    // The wake-up is in the socket now. It must not be used up by somebody who goes to sleep.
    assert_eq!(near.receiver.fill().unwrap(), Filled::Some);
    assert!(near.receiver.frames().unwrap().is_empty());
    assert_eq!(near.receiver.fill().unwrap(), Filled::Blocked);
    assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::All);
}

#[test]
fn only_a_half_that_sleeps_is_woken() {
    let (peer, mut link) = Peer::connect();
    let mut consumer = Consumer::new(peer.inward());
    let mut send = || {
        let mut queue = SendQueue::default();
        queue.push(frame(10, 0), false);
        assert_eq!(link.sender.send(&mut queue).unwrap(), Sent::All);
    };
    send();
    assert!(peer.heard().is_empty());
    consumer.ask_to_wake(|| Ok(())).unwrap();
    send();
    send();
    assert_eq!(peer.heard(), [BYTES]);
    // This side has asked when it was connected; what `poll` finds takes that back.
    let mut producer = Producer::new(peer.outward());
    let frame = frame(10, 0);
    let frame = [IoSlice::new(frame.frame())];
    producer.push(&frame).unwrap();
    assert_eq!(link.receiver.poll().unwrap(), Filled::Some);
    assert_eq!(link.receiver.poll().unwrap(), Filled::Blocked);
    producer.push(&frame).unwrap();
    assert!(!producer.consumer_must_wake().unwrap());
    assert_eq!(link.receiver.fill().unwrap(), Filled::Some);
    assert_eq!(link.receiver.fill().unwrap(), Filled::Blocked);
    producer.push(&frame).unwrap();
    assert!(producer.consumer_must_wake().unwrap());
}

#[test]
fn side_that_reads_a_wake_up_wakes_nobody() {
    let (mut near, mut far) = pair(RING_BYTES_MIN);
    let waiters = [Waiter::new(&*near.receiver), Waiter::new(&*far.receiver)];
    assert_eq!(far.receiver.fill().unwrap(), Filled::Blocked);
    // What registering has to say.
    for waiter in &waiters {
        while waiter.rings(0) {}
    }
    let mut queue = SendQueue::default();
    queue.push(frame(10, 0), false);
    assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::All);
    waiters[1].wait();
    assert_eq!(far.receiver.fill().unwrap(), Filled::Some);
    assert_eq!(far.receiver.fill().unwrap(), Filled::Blocked);
    assert!(!waiters[0].rings(0));
}

/// Sends and receives `count` frames on one thread, which sleeps whenever it can do neither.
fn exchange(mut link: Link, count: u32, seed: u64, longest_spin: Duration) {
    let mut random = fastrand::Rng::with_seed(seed);
    let waiter = Waiter::new(&*link.receiver);
    let mut queue = SendQueue::default();
    let (mut offered, mut arrived) = (0, 0);
    while arrived < count || offered < count || !queue.is_sent() {
        while offered < count && queue.waiting() < BATCH_FRAMES_MAX {
            let most = if random.u8(..) == 0 { 65_000 } else { 1500 };
            queue.push(frame(random.usize(..most), offered), false);
            offered += 1;
        }
        let sent = link.sender.send(&mut queue).unwrap();
        match fill_or_spin(&mut *link.receiver, longest_spin, || false).unwrap() {
            Filled::Some => {
                for frame in link.receiver.frames().unwrap() {
                    let (header, payload) = FrameHeader::parse(frame, false).unwrap();
                    assert_eq!(header.sequence, arrived);
                    let fill = arrived.to_le_bytes()[0];
                    assert!(payload.iter().all(|byte| *byte == fill));
                    arrived += 1;
                }
                // Slower than the other side, now and then.
                for _ in 0..random.u8(..4) {
                    thread::yield_now();
                }
            }
            Filled::Blocked if sent == Sent::All && offered < count => {}
            Filled::Blocked => waiter.wait(),
            // It has everything: so has this side.
            Filled::End => assert_eq!((arrived, offered), (count, count)),
        }
    }
}

#[test]
fn frames_cross_both_ways_between_threads_that_sleep_and_spin() {
    for (seed, spin_us) in [(1, 0), (2, 20), (3, 0)] {
        let (near, far) = pair(RING_BYTES_MIN);
        let spin = Duration::from_micros(spin_us);
        let other = thread::spawn(move || exchange(far, 20_000, seed, spin));
        exchange(near, 20_000, seed + 100, Duration::ZERO);
        other.join().unwrap();
    }
}

/// Set in the process that counts its own descriptors and mappings.
const ALONE: &str = "ORIMONO_TEST_ALONE";

#[test]
fn links_leave_no_descriptor_and_no_mapping_behind() {
    if std::env::var_os(ALONE).is_none() {
        // Other tests open descriptors too: this one needs a process.
        let name = "link::shared_memory::tests::links_leave_no_descriptor_and_no_mapping_behind";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(ALONE, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    let used = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        (descriptors, maps.matches("memfd:").count())
    };
    let before = used();
    for round in 0..1000 {
        let (mut near, mut far) = pair(RING_BYTES_MIN);
        let mut queue = SendQueue::default();
        queue.push(frame(round, 0), false);
        near.sender.send(&mut queue).unwrap();
        assert_eq!(far.receiver.fill().unwrap(), Filled::Some);
        if round == 0 {
            let during = used();
            assert!(during.0 > before.0 && during.1 == before.1 + 2, "it counts");
        }
        let unsealed = memfd(MFdFlags::empty(), 4096, SealFlag::empty());
        let many = std::array::from_fn::<_, 3, _>(|_| unsealed.try_clone().unwrap());
        refusal(
            Greeting::new(RING_BYTES_MIN).as_bytes(),
            &many[..1 + round % 3],
        );
    }
    assert_eq!(used(), before);
}

/// A peer that says and writes whatever it likes, driven by the bytes of a script: at every step the
/// link answers, with an error at the latest, and none of its calls goes on for ever.
fn suffer(script: &[u8]) {
    let (peer, mut link) = Peer::connect();
    let mut queue = SendQueue::default();
    queue.push(frame(100, 0), true);
    let words = [
        Word::Head,
        Word::Tail,
        Word::ConsumerSleeps,
        Word::ProducerSleeps,
    ];
    // The rest of a step that is cut short is 0.
    for step in script.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..step.len()].copy_from_slice(step);
        let [what, which, data @ ..] = bytes;
        let value = u32::from_le_bytes(*data.first_chunk().unwrap());
        let ring = if which & 1 == 0 {
            peer.outward()
        } else {
            peer.inward()
        };
        match what % 5 {
            0 => ring
                .store(words[usize::from(which >> 1 & 3)], value)
                .unwrap(),
            1 => ring
                .write(value as usize % (RING_BYTES_MIN as usize - 6), &data)
                .unwrap(),
            // A whole frame, published.
            2 => {
                let good = frame(usize::from(which), value);
                let at = ring.load(Word::Head).unwrap();
                let space = RING_BYTES_MIN as usize - good.frame_bytes();
                ring.write(at as usize % space, good.frame()).unwrap();
                let end = at.wrapping_add(u32::try_from(good.frame_bytes()).unwrap());
                ring.store(Word::Head, end).unwrap();
            }
            3 => drop((&peer.socket).write(&data[..usize::from(which % 6) + 1])),
            _ => {}
        }
        if link.receiver.fill().is_err() || link.receiver.frames().is_err() {
            return;
        }
        if link.sender.send(&mut queue).is_err() {
            return;
        }
        peer.heard();
    }
}

#[test]
fn p06_any_content_of_the_rings_is_answered() {
    let step = |what, which, value: u32| {
        let mut step = vec![what, which];
        step.extend(value.to_le_bytes());
        step.resize(8, 0);
        step
    };
    let good = [
        step(2, 10, 0),
        [step(2, 0, 0), step(2, 100, 1), step(3, 0, 0)].concat(),
        [step(1, 0, 0), step(0, 0, 6), step(0, 0, 64 * 1024)].concat(),
        [step(0, 3, 50), step(0, 5, 1), step(0, 7, 1), step(4, 0, 0)].concat(),
    ];
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/corpus/shared-memory-ring"
    );
    orimono_fuzz::fuzz(folder, &good, orimono_fuzz::inputs(1000, 50_000), suffer);
}

#[test]
fn p03_any_greeting_of_a_shared_memory_link_is_answered() {
    let good = [
        Greeting::new(RING_BYTES_MIN).as_bytes().to_vec(),
        Greeting::new(RING_BYTES).as_bytes().to_vec(),
        frame(4, 0).frame().to_vec(),
    ];
    let mapping = Mapping::create(RING_BYTES_MIN).unwrap();
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/corpus/shared-memory-greeting"
    );
    orimono_fuzz::fuzz(
        folder,
        &good,
        orimono_fuzz::inputs(5000, 200_000),
        |bytes| {
            let (socket, accepting) = UnixStream::pair().unwrap();
            if !bytes.is_empty() {
                greet(&socket, bytes, &[mapping.as_fd()]);
            }
            let mut link = accepted(accepting, Path::new("/test")).unwrap();
            for _ in 0..3 {
                if link.receiver.fill().is_err() {
                    return;
                }
                assert!(link.receiver.frames().unwrap().is_empty());
            }
            // What it waits for has not come, or it is the one greeting there is.
            let right = bytes.get(..32) == Some(Greeting::new(RING_BYTES_MIN).as_bytes());
            assert!(right || bytes.is_empty());
        },
    );
}

/// The peer writes the ring's bytes and words while they are read.
#[test]
fn p06_a_ring_that_changes_while_it_is_read_is_answered() {
    let rounds = if std::env::var_os("ORIMONO_TEST_FULL").is_some() {
        5000
    } else {
        100
    };
    for round in 0..rounds {
        let (peer, mut link) = Peer::connect();
        let stop = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = orimono_fuzz::Rng::with_seed(round);
                let (ring, good) = (peer.outward(), frame(200, 0));
                let mut head = 0_u32;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let space = RING_BYTES_MIN as usize - good.frame_bytes();
                    let noise: [u8; 7] = std::array::from_fn(|_| random.u8(..));
                    ring.write(random.usize(..space), &noise).unwrap();
                    ring.write(head as usize % space, good.frame()).unwrap();
                    head = head.wrapping_add(random.u32(..300));
                    // It goes too far ahead now and then.
                    let lie = if random.u8(..) == 0 {
                        random.u32(..)
                    } else {
                        0
                    };
                    ring.store(Word::Head, head.wrapping_add(lie)).unwrap();
                    ring.swap(Word::ConsumerSleeps, random.u32(..2)).unwrap();
                }
            });
            for _ in 0..1000 {
                if link.receiver.fill().is_err() {
                    break;
                }
                match link.receiver.frames() {
                    // What was found is ours: it does not change any more.
                    Ok(frames) => {
                        for frame in &frames {
                            let length = FrameHeader::frame_bytes(frame);
                            assert_eq!(length, Ok(Some(frame.len())));
                        }
                    }
                    Err(_) => break,
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
