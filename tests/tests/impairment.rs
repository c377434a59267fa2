//! The bad link of the suites, held against a plain echo server: each control does what it says,
//! to connections that exist already.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use fabric_transport::link::LinkAddress;
use orimono_tests::front_end::PATIENCE;
use orimono_tests::impairment::{Direction, Hole, Impairment};

/// How a connection of the echo server ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Finished,
    Reset,
}

/// Sends back what comes, on any number of connections; tells how each ended.
struct Echo {
    address: LinkAddress,
    ends: mpsc::Receiver<End>,
    _folder: Option<tempfile::TempDir>,
}

/// Sends everything back until the end; what has not gone back by then still does.
fn echo(stream: impl Read + Write) -> End {
    let mut stream = stream;
    let mut bytes = [0; 64 * 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return End::Finished,
            Ok(count) => {
                if stream.write_all(bytes.get(..count).unwrap()).is_err() {
                    return End::Reset;
                }
            }
            Err(_) => return End::Reset,
        }
    }
}

impl Echo {
    fn tcp() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = LinkAddress::Tcp(listener.local_addr().unwrap());
        let (tell, ends) = mpsc::channel();
        // Ends with the test's process, as it waits for connections.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, tell) = (stream.unwrap(), tell.clone());
                thread::spawn(move || drop(tell.send(echo(stream))));
            }
        });
        Self {
            address,
            ends,
            _folder: None,
        }
    }

    fn unix() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("echo");
        let listener = UnixListener::bind(&path).unwrap();
        let (tell, ends) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, tell) = (stream.unwrap(), tell.clone());
                thread::spawn(move || drop(tell.send(echo(stream))));
            }
        });
        Self {
            address: LinkAddress::Unix(path),
            ends,
            _folder: Some(folder),
        }
    }

    fn end(&self) -> End {
        self.ends.recv_timeout(PATIENCE).unwrap()
    }

    fn no_end(&self) -> bool {
        self.ends.try_recv().is_err()
    }
}

fn try_connect(proxy: &Impairment) -> std::io::Result<TcpStream> {
    let LinkAddress::Tcp(address) = proxy.address() else {
        panic!("{} is not TCP", proxy.address());
    };
    let stream = TcpStream::connect_timeout(address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connect(proxy: &Impairment) -> TcpStream {
    try_connect(proxy).unwrap()
}

fn connect_unix(proxy: &Impairment) -> UnixStream {
    let LinkAddress::Unix(path) = proxy.address() else {
        panic!("{} is not Unix", proxy.address());
    };
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// `bytes` come back as they are.
fn round_trip(stream: &mut (impl Read + Write), bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    assert_eq!(read(stream, bytes.len()), bytes);
}

fn read(stream: &mut impl Read, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    stream.read_exact(&mut buffer).unwrap();
    buffer
}

/// Nothing waits to be read.
fn is_silent(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let answer = (&*stream).read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn pattern(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..bytes).map(|_| random.u8(..)).collect()
}

/// Writes from another thread, so that reading goes on meanwhile.
fn write_beside(stream: &TcpStream, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    thread::spawn(move || stream.write_all(&bytes).unwrap())
}

#[test]
fn bytes_and_ends_pass_and_are_counted() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    let bytes = pattern(3_000_000);
    let writer = write_beside(&stream, bytes.clone());
    assert!(read(&mut stream, bytes.len()) == bytes);
    writer.join().unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(echo.end(), End::Finished);
    let counters = proxy
        .wait("the end", |counters| counters.open == 0)
        .unwrap();
    assert_eq!(counters.connections, 1);
    assert_eq!(
        (counters.to_target, counters.from_target),
        (3_000_000, 3_000_000)
    );
}

#[test]
fn unix_sockets_are_joined_and_closed() {
    let echo = Echo::unix();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect_unix(&proxy);
    round_trip(&mut stream, b"thread");
    proxy.reset().unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(echo.end(), End::Finished);
    proxy.refuse(true).unwrap();
    let LinkAddress::Unix(path) = proxy.address() else {
        panic!("not Unix");
    };
    let refused = UnixStream::connect(path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    proxy.refuse(false).unwrap();
    round_trip(&mut connect_unix(&proxy), b"again");
}

#[test]
fn delay_holds_back_and_its_end_is_noticed_at_once() {
    const DELAY: Duration = Duration::from_millis(60);
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, b"before");
    for (direction, delay) in [
        (Direction::ToTarget, DELAY),
        (Direction::FromTarget, 2 * DELAY),
    ] {
        proxy.delay(direction, DELAY, Duration::ZERO).unwrap();
        let sent = Instant::now();
        round_trip(&mut stream, b"late");
        assert!(sent.elapsed() >= delay, "{direction:?}");
    }
    // Held for longer than anybody waits, until the delay is taken away.
    proxy
        .delay(Direction::Both, 100 * PATIENCE, Duration::ZERO)
        .unwrap();
    stream.write_all(b"held").unwrap();
    assert_eq!(proxy.counters().unwrap().to_target, 6 + 4 + 4);
    proxy
        .delay(Direction::Both, Duration::ZERO, Duration::ZERO)
        .unwrap();
    assert_eq!(read(&mut stream, 4), b"held");
}

#[test]
fn jitter_keeps_the_order() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    proxy
        .delay(Direction::Both, Duration::ZERO, Duration::from_millis(20))
        .unwrap();
    let bytes = pattern(20_000);
    let mut writer = stream.try_clone().unwrap();
    let pieces = bytes.clone();
    let writer = thread::spawn(move || {
        for piece in pieces.chunks(50) {
            writer.write_all(piece).unwrap();
        }
    });
    assert!(read(&mut stream, bytes.len()) == bytes);
    writer.join().unwrap();
}

#[test]
fn rate_limits_what_is_passed_on() {
    const BYTES: usize = 100_000;
    const RATE: u64 = 500_000;
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, b"before");
    proxy.rate(Direction::FromTarget, Some(RATE)).unwrap();
    let start = Instant::now();
    round_trip(&mut stream, &pattern(BYTES));
    // 200 ms, less the pieces and arrears of 15 ms that pass in advance.
    assert!(start.elapsed() >= Duration::from_millis(180));
    proxy.rate(Direction::FromTarget, Some(1)).unwrap();
    stream.write_all(b"held").unwrap();
    proxy
        .wait("the target", |counters| {
            counters.to_target == 6 + 100_000 + 4
        })
        .unwrap();
    proxy.rate(Direction::FromTarget, None).unwrap();
    assert_eq!(read(&mut stream, 4), b"held");
}

#[test]
fn connections_share_a_rate() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let streams = [connect(&proxy), connect(&proxy)];
    // One alone would keep the other waiting for 100 s.
    proxy.rate(Direction::ToTarget, Some(10_000)).unwrap();
    for stream in &streams {
        (&*stream).write_all(&vec![0; 1_000_000]).unwrap();
    }
    proxy
        .wait("all bytes", |counters| counters.held >= 1_900_000)
        .unwrap();
    for mut stream in &streams {
        assert_eq!(read(&mut stream, 100), [0; 100]);
    }
}

#[test]
fn slow_reader_fills_the_senders_socket() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let stream = connect(&proxy);
    proxy.slow_reader(Direction::ToTarget, Some(100)).unwrap();
    stream.set_nonblocking(true).unwrap();
    let block = vec![0; 1 << 20];
    let mut written = 0;
    // The kernel's buffers grow while they fill, to 10 MiB or so in all.
    while let Ok(count) = (&stream).write(&block) {
        written += count;
        assert!(written < 200 << 20);
    }
    assert!(written > 0);
    stream.set_nonblocking(false).unwrap();
    let start = Instant::now();
    let before = proxy.counters().unwrap().to_target;
    proxy
        .wait("a little", |counters| counters.to_target >= before + 10)
        .unwrap();
    // 100 ms at this rate, less arrears of 10 ms and a byte.
    assert!(start.elapsed() >= Duration::from_millis(70));
    proxy.slow_reader(Direction::ToTarget, None).unwrap();
    let mut reader = stream;
    assert_eq!(read(&mut reader, written).len(), written);
}

#[test]
fn reset_reaches_both_ends() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, b"before");
    proxy.reset().unwrap();
    assert_eq!(
        stream.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(echo.end(), End::Reset);
    round_trip(&mut connect(&proxy), b"after");
}

#[test]
fn an_ends_own_reset_is_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = LinkAddress::Tcp(listener.local_addr().unwrap());
    let proxy = Impairment::start(target).unwrap();
    let mut stream = connect(&proxy);
    let (accepted, _) = listener.accept().unwrap();
    stream.write_all(b"never read").unwrap();
    proxy
        .wait("the bytes", |counters| counters.to_target == 10)
        .unwrap();
    // Linux resets a connection that is closed with bytes unread.
    drop(accepted);
    assert_eq!(
        stream.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn close_is_an_orderly_end_for_both() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, b"before");
    // Bytes on their way must not turn the end into a reset.
    proxy
        .black_hole(Direction::FromTarget, Hole::Silent)
        .unwrap();
    stream.write_all(b"unread").unwrap();
    proxy
        .wait("the bytes", |counters| counters.to_target == 12)
        .unwrap();
    proxy.close().unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(echo.end(), End::Finished);
}

#[test]
fn half_open_tells_one_end_only() {
    for direction in [Direction::ToTarget, Direction::FromTarget] {
        let echo = Echo::tcp();
        let proxy = Impairment::start(echo.address.clone()).unwrap();
        let mut stream = connect(&proxy);
        round_trip(&mut stream, b"before");
        proxy.half_open(direction).unwrap();
        if direction == Direction::ToTarget {
            assert_eq!(echo.end(), End::Finished);
            stream.write_all(b"nobody").unwrap();
            proxy
                .wait("discarding", |counters| counters.discarded == 6)
                .unwrap();
            assert!(is_silent(&stream));
        } else {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            drop(stream);
            proxy.counters().unwrap();
            assert!(echo.no_end());
        }
        assert_eq!(proxy.counters().unwrap().open, 1);
    }
}

#[test]
fn silent_black_hole_tells_nobody_and_heals() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, b"before");
    proxy
        .black_hole(Direction::FromTarget, Hole::Silent)
        .unwrap();
    stream.write_all(b"one way").unwrap();
    proxy
        .wait("the way there", |counters| counters.to_target == 13)
        .unwrap();
    proxy.black_hole(Direction::Both, Hole::Silent).unwrap();
    stream.write_all(b" and back").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut later = connect(&proxy);
    let counters = proxy.counters().unwrap();
    assert_eq!((counters.to_target, counters.from_target), (13, 6));
    assert_eq!(counters.connections, 1);
    assert!(is_silent(&stream) && echo.no_end());
    proxy.black_hole(Direction::Both, Hole::Off).unwrap();
    assert_eq!(read(&mut stream, 16), b"one way and back");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(echo.end(), End::Finished);
    round_trip(&mut later, b"waited");
}

#[test]
fn silent_black_hole_holds_what_is_underway() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    let delay = |delay| {
        proxy
            .delay(Direction::ToTarget, delay, Duration::ZERO)
            .unwrap()
    };
    delay(100 * PATIENCE);
    stream.write_all(b"underway").unwrap();
    proxy
        .wait("the bytes", |counters| counters.held == 8)
        .unwrap();
    proxy.black_hole(Direction::ToTarget, Hole::Silent).unwrap();
    delay(Duration::ZERO);
    assert_eq!(proxy.counters().unwrap().held, 8);
    proxy.black_hole(Direction::ToTarget, Hole::Off).unwrap();
    assert_eq!(read(&mut stream, 8), b"underway");
}

#[test]
fn silent_black_hole_keeps_a_reset_until_it_heals() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = LinkAddress::Tcp(listener.local_addr().unwrap());
    let proxy = Impairment::start(target).unwrap();
    let stream = connect(&proxy);
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(PATIENCE)).unwrap();
    proxy.black_hole(Direction::ToTarget, Hole::Silent).unwrap();
    socket_reset(stream);
    // The way back is open: the proxy learns of it once it writes, the target must not.
    let end = Instant::now() + PATIENCE;
    while proxy.counters().unwrap().discarded == 0 {
        accepted.write_all(b"to nobody").unwrap();
        assert!(Instant::now() < end);
    }
    assert!(is_silent(&accepted));
    proxy.black_hole(Direction::ToTarget, Hole::Off).unwrap();
    let told = accepted.read(&mut [0]).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::ConnectionReset);
}

fn socket_reset(stream: TcpStream) {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &at_once).unwrap();
}

#[test]
fn discarding_black_hole_takes_bytes_and_leaves_a_gap() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    // Underway when the hole opens, and so part of the gap.
    proxy
        .delay(Direction::ToTarget, 100 * PATIENCE, Duration::ZERO)
        .unwrap();
    stream.write_all(b"underway").unwrap();
    proxy.counters().unwrap();
    proxy
        .black_hole(Direction::ToTarget, Hole::Discard)
        .unwrap();
    proxy
        .delay(Direction::ToTarget, Duration::ZERO, Duration::ZERO)
        .unwrap();
    let lost = pattern(20_000_000);
    // More than all buffers hold: it is taken.
    stream.write_all(&lost).unwrap();
    proxy
        .wait("the gap", |counters| counters.discarded == 20_000_008)
        .unwrap();
    proxy.black_hole(Direction::ToTarget, Hole::Off).unwrap();
    round_trip(&mut stream, b"after");
    assert_eq!(proxy.counters().unwrap().to_target, 5);
}

#[test]
fn flipped_bits_are_the_same_for_the_same_seed() {
    const BYTES: usize = 50_000;
    let echo = Echo::tcp();
    let flipped = |seed| {
        let proxy = Impairment::start(echo.address.clone()).unwrap();
        let mut stream = connect(&proxy);
        round_trip(&mut stream, b"before");
        proxy.flip_bits(Direction::FromTarget, 1000, seed).unwrap();
        let mut bytes = pattern(BYTES);
        stream.write_all(&bytes).unwrap();
        let back = read(&mut stream, BYTES);
        let counted = proxy.counters().unwrap().flipped_bits;
        for (byte, original) in bytes.iter_mut().zip(&back) {
            *byte ^= original;
        }
        let bits: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(u64::from(bits), counted);
        // 400 are to be expected.
        assert!((300..500).contains(&bits), "{bits}");
        proxy.flip_bits(Direction::FromTarget, 0, 0).unwrap();
        round_trip(&mut stream, b"after");
        bytes
    };
    let first = flipped(1);
    assert!(first == flipped(1));
    assert!(first != flipped(2));
}

#[test]
fn refused_connections_leave_the_others_alone() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, b"before");
    for _ in 0..20 {
        proxy.refuse(true).unwrap();
        let refused = try_connect(&proxy).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        round_trip(&mut stream, b"meanwhile");
        proxy.refuse(false).unwrap();
        round_trip(&mut connect(&proxy), b"after");
    }
}

#[test]
fn a_target_that_is_not_there_resets_whoever_comes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = LinkAddress::Tcp(listener.local_addr().unwrap());
    drop(listener);
    let proxy = Impairment::start(target).unwrap();
    let mut stream = connect(&proxy);
    assert_eq!(
        stream.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn held_bytes_are_bounded() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    proxy
        .delay(Direction::ToTarget, 100 * PATIENCE, Duration::ZERO)
        .unwrap();
    let bytes = pattern(30_000_000);
    let writer = write_beside(&stream, bytes.clone());
    proxy
        .wait("the bound", |counters| counters.held >= 4 << 20)
        .unwrap();
    // In as many rounds everything would have been read.
    for _ in 0..500 {
        let held = proxy.counters().unwrap().held;
        assert!(held < (4 << 20) + (64 << 10), "{held}");
    }
    proxy
        .delay(Direction::ToTarget, Duration::ZERO, Duration::ZERO)
        .unwrap();
    assert!(read(&mut stream, bytes.len()) == bytes);
    writer.join().unwrap();
}

#[test]
fn dropped_it_closes_everything() {
    let echo = Echo::tcp();
    let proxy = Impairment::start(echo.address.clone()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, b"before");
    let LinkAddress::Tcp(address) = proxy.address().clone() else {
        panic!("not TCP");
    };
    drop(proxy);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(echo.end(), End::Finished);
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}
