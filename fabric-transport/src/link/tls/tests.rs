//! Two ends with certificates of a CA that the test makes, and whoever else may come.

use super::*;
use crate::frame::{FrameHeader, PAYLOAD_BYTES_MAX};
use crate::link::tests::{frames_cross, sealed};
use crate::link::{LinkAddress, LinkOptions, Listener, connect};
use pki::{Order, issue};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// A CA with a certificate for director1 and host1.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki::init(folder.path()).unwrap();
        let lab = Self { folder };
        lab.issue("director1", 30);
        lab.issue("host1", 30);
        lab
    }

    pub(crate) fn issue(&self, name: &str, days: i64) {
        issue(self.folder.path(), &Order::new(name, days)).unwrap();
    }

    fn files(&self, name: &str) -> TlsFiles {
        let file = |name: String| self.folder.path().join(name);
        TlsFiles {
            ca: file("ca.pem".into()),
            cert: file(format!("{name}.pem")),
            key: file(format!("{name}.key")),
        }
    }

    pub(crate) fn config(&self, name: &str) -> Arc<TlsConfig> {
        Arc::new(TlsConfig::load(self.files(name)).unwrap())
    }

    /// Of `name`, who looks for director1.
    pub(crate) fn options(&self, name: &str) -> LinkOptions {
        options(self.config(name), Some("director1"))
    }

    fn listener(&self, name: &str) -> Listener {
        listener(self.config(name))
    }
}

fn options(config: Arc<TlsConfig>, director: Option<&str>) -> LinkOptions {
    LinkOptions {
        tls: Some(config),
        director: director.map(str::to_owned),
        insecure: false,
    }
}

fn listener(config: Arc<TlsConfig>) -> Listener {
    let address = "tls:127.0.0.1:0".parse().unwrap();
    Listener::bind(&address, &options(config, None)).unwrap()
}

fn join(listener: &Listener, options: &LinkOptions) -> (Link, Link) {
    let near = connect(&listener.address().unwrap(), PATIENCE, options).unwrap();
    (near, listener.accept().unwrap().unwrap())
}

/// Both ends of a link whose handshake has yet to begin.
pub(crate) fn tls_pair() -> (Link, Link) {
    let lab = Lab::new();
    join(&lab.listener("director1"), &lab.options("host1"))
}

fn socket(listener: &Listener) -> TcpStream {
    match listener.address().unwrap() {
        LinkAddress::Tcp(address) | LinkAddress::Tls(address) => {
            TcpStream::connect(address).unwrap()
        }
        LinkAddress::Unix(_) | LinkAddress::SharedMemory(_) | LinkAddress::Rdma(_) => {
            panic!("not TCP")
        }
    }
}

/// Reads until something other than waiting happens: the frames, or what ended the link.
fn outcome(link: &mut Link) -> Result<Vec<Vec<u8>>, String> {
    loop {
        match link.receiver.fill() {
            Ok(Filled::Blocked) => {}
            Ok(Filled::End) => return Err("end".to_owned()),
            Ok(Filled::Some) => match link.receiver.frames() {
                Ok(frames) if frames.is_empty() => {}
                Ok(frames) => return Ok(frames.into_iter().map(<[u8]>::to_vec).collect()),
                Err(error) => return Err(error.to_string()),
            },
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// How both ends end when a frame is sent each way; none may get through.
fn refused(listener: &Listener, options: &LinkOptions) -> (String, String) {
    let (mut near, mut far) = join(listener, options);
    let mut ends = [None, None];
    let mut queues = [SendQueue::default(), SendQueue::default()];
    for queue in &mut queues {
        queue.push(sealed(b"hello", 0), true);
    }
    while ends.iter().any(Option::is_none) {
        for ((link, end), queue) in [&mut near, &mut far]
            .into_iter()
            .zip(&mut ends)
            .zip(&mut queues)
        {
            if end.is_some() {
                continue;
            }
            link.sender.send(queue).unwrap();
            match link.receiver.fill() {
                Ok(Filled::Blocked) => {}
                Ok(Filled::Some) => assert_eq!(link.receiver.frames().unwrap().len(), 0),
                Ok(Filled::End) => *end = Some("end".to_owned()),
                Err(error) => *end = Some(error.to_string()),
            }
        }
    }
    let [near, far] = ends.map(Option::unwrap);
    (near, far)
}

#[test]
fn tls_link_keeps_frames_whole_and_in_order() {
    let (near, far) = tls_pair();
    assert!(!near.checksummed && !far.checksummed);
    assert!(far.peer.starts_with("tls:127.0.0.1:"));
    frames_cross(near, far);
}

#[test]
fn both_ends_learn_the_name_in_the_others_certificate() {
    let lab = Lab::new();
    lab.issue("host_2", 30);
    for host in ["host1", "host_2"] {
        // Whether or not the director's name is known before.
        for director in [Some("director1"), None] {
            let options = options(lab.config(host), director);
            let (mut near, mut far) = join(&lab.listener("director1"), &options);
            assert_eq!(near.receiver.peer_name(), None);
            assert_eq!(far.receiver.peer_name(), None);
            let mut queue = SendQueue::default();
            queue.push(sealed(b"hello", 0), true);
            while far.receiver.frames().unwrap().is_empty() {
                near.sender.send(&mut queue).unwrap();
                near.receiver.fill().unwrap();
                far.receiver.fill().unwrap();
            }
            assert!(queue.is_sent());
            assert_eq!(near.receiver.peer_name().as_deref(), Some("director1"));
            assert_eq!(far.receiver.peer_name().as_deref(), Some(host));
        }
    }
}

#[test]
fn p02_encrypted_bytes_that_are_no_frame_are_an_error() {
    let lab = Lab::new();
    let listener = lab.listener("director1");
    let config = Arc::unwrap_or_clone(lab.config("host1").current().client);
    let (mut hostile, stream) = raw_client(config, &listener);
    let mut far = listener.accept().unwrap().unwrap();
    hostile
        .writer()
        .write_all(b"GET / HTTP/1.1\r\nHost: fabric.example\r\n\r\n")
        .unwrap();
    let error = loop {
        drive(&mut hostile, &stream).unwrap();
        far.receiver.fill().unwrap();
        if let Err(error) = far.receiver.frames() {
            break error;
        }
    };
    assert_eq!(error, crate::frame::FrameError::Magic { magic: 0x4547 });
}

#[test]
fn p14_certificate_of_another_ca_is_refused_at_both_ends() {
    let (lab, other) = (Lab::new(), Lab::new());
    let (near, far) = refused(&lab.listener("director1"), &other.options("host1"));
    assert!(near.contains("of another CA"), "{near}");
    assert!(
        far.contains("peer refused us: our certificate is of another CA"),
        "{far}"
    );

    // A host that trusts the director's CA, but is of another one.
    let files = TlsFiles {
        ca: lab.files("host1").ca,
        ..other.files("host1")
    };
    let stranger = options(Arc::new(TlsConfig::load(files).unwrap()), Some("director1"));
    let (near, far) = refused(&lab.listener("director1"), &stranger);
    assert!(
        near.contains("peer refused us: our certificate is of another CA"),
        "{near}"
    );
    assert!(far.contains("peer's certificate is of another CA"), "{far}");
}

#[test]
fn p13_expired_certificate_is_refused_at_both_ends() {
    let lab = Lab::new();
    lab.issue("old", -10);
    let (near, far) = refused(&lab.listener("director1"), &lab.options("old"));
    assert!(
        far.contains("peer's certificate has expired 10 days ago"),
        "{far}"
    );
    assert!(near.contains("our certificate has expired"), "{near}");
    let host = options(lab.config("host1"), Some("old"));
    let (near, far) = refused(&lab.listener("old"), &host);
    assert!(
        near.contains("peer's certificate has expired 10 days ago"),
        "{near}"
    );
    assert!(far.contains("our certificate has expired"), "{far}");
}

#[test]
fn p14_certificate_of_another_director_is_refused() {
    let lab = Lab::new();
    let (near, far) = refused(&lab.listener("host1"), &lab.options("host1"));
    assert!(near.contains("is for host1, not for director1"), "{near}");
    assert!(
        far.contains("our certificate is not for the name it expects"),
        "{far}"
    );
    let listener = lab.listener("director1");
    for name in ["not a name", "127.0.0.1", "::1", "12", ""] {
        let nobody = options(lab.config("host1"), Some(name));
        let error = connect(&listener.address().unwrap(), PATIENCE, &nobody).unwrap_err();
        assert!(
            error.to_string().contains("can be in no certificate"),
            "{error}"
        );
    }
}

/// A TLS client that rustls would not be: whatever its configuration says.
fn raw_client(config: rustls::ClientConfig, listener: &Listener) -> (ClientConnection, TcpStream) {
    let name = ServerName::try_from("director1").unwrap();
    let stream = socket(listener);
    stream.set_nonblocking(true).unwrap();
    (
        ClientConnection::new(Arc::new(config), name).unwrap(),
        stream,
    )
}

/// Moves what `client` wants to move now.
fn drive(client: &mut ClientConnection, mut stream: &TcpStream) -> Result<(), rustls::Error> {
    // Neither side may be ready.
    drop(client.write_tls(&mut stream));
    match client.read_tls(&mut stream) {
        Ok(_) => client.process_new_packets().map(drop),
        Err(_) => Ok(()),
    }
}

#[test]
fn p14_client_without_certificate_is_refused() {
    let lab = Lab::new();
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(lab.files("host1").ca).unwrap();
    let ca = rustls::pki_types::pem::PemObject::from_pem_slice(&ca).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = lab.listener("director1");
    let (mut client, stream) = raw_client(config, &listener);
    let frame = sealed(b"hello", 0);
    client.writer().write_all(frame.frame()).unwrap();
    let mut far = listener.accept().unwrap().unwrap();
    let error = loop {
        drive(&mut client, &stream).unwrap();
        match far.receiver.fill() {
            Ok(_) => assert!(far.receiver.frames().unwrap().is_empty()),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("shows no certificate"), "{error}");
    assert_eq!(far.receiver.peer_name(), None);
    let alert = std::iter::repeat_with(|| drive(&mut client, &stream)).find_map(Result::err);
    let alert = alert.unwrap();
    let explained = explained(&alert).to_string();
    assert!(explained.contains("it wants a certificate"), "{explained}");
}

#[test]
fn plain_peers_of_tls_ends_are_told_apart() {
    let lab = Lab::new();
    // A host that says tcp: where the director says tls:.
    let listener = lab.listener("director1");
    let stream = socket(&listener);
    let mut far = listener.accept().unwrap().unwrap();
    (&stream).write_all(sealed(b"hello", 0).frame()).unwrap();
    let error = outcome(&mut far).unwrap_err();
    assert!(error.contains("peer does not speak TLS"), "{error}");

    // The other way round: the director sees no frame, the host no TLS.
    let plain = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), &LinkOptions::default());
    let plain = plain.unwrap();
    let LinkAddress::Tcp(address) = plain.address().unwrap() else {
        panic!("tcp")
    };
    let connect = || connect(&LinkAddress::Tls(address), PATIENCE, &lab.options("host1")).unwrap();
    let mut near = connect();
    let mut far = plain.accept().unwrap().unwrap();
    near.sender.send(&mut SendQueue::default()).unwrap();
    let error = outcome(&mut far).unwrap_err();
    assert!(error.contains("magic"), "{error}");
    let mut queue = SendQueue::default();
    queue.push(sealed(b"goodbye", 0), true);
    far.sender.send(&mut queue).unwrap();
    let error = outcome(&mut near).unwrap_err();
    assert!(error.contains("peer does not speak TLS"), "{error}");
    // Or the director says nothing and hangs up.
    let mut near = connect();
    drop(plain.accept().unwrap().unwrap());
    let error = outcome(&mut near).unwrap_err();
    assert!(error.contains("it may not speak TLS"), "{error}");
}

#[test]
fn p08_half_a_handshake_and_silence_holds_nothing_but_itself() {
    let lab = Lab::new();
    let listener = lab.listener("director1");
    let config = Arc::unwrap_or_clone(lab.config("host1").current().client);
    let (mut client, stream) = raw_client(config, &listener);
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut far = listener.accept().unwrap().unwrap();
    let mut queue = SendQueue::default();
    queue.push(sealed(b"early", 0), true);
    for byte in &hello {
        (&stream).write_all(&[*byte]).unwrap();
        while far.receiver.fill().unwrap() == Filled::Blocked {}
        assert!(far.receiver.frames().unwrap().is_empty());
        // Nothing is said to whoever has not shown who it is.
        assert_eq!(far.sender.send(&mut queue).unwrap(), Sent::Blocked);
        assert_eq!(queue.waiting(), 1);
    }
    // Silence: nothing to do, until the session gives it up. Others go on.
    assert_eq!(far.receiver.fill().unwrap(), Filled::Blocked);
    let (near, other) = join(&listener, &lab.options("host1"));
    frames_cross(near, other);
    drop(stream);
    let error = outcome(&mut far).unwrap_err();
    assert!(error.contains("in the TLS handshake"), "{error}");
}

#[test]
fn p01_endless_handshake_message_is_refused() {
    let lab = Lab::new();
    let listener = lab.listener("director1");
    let mut stream = socket(&listener);
    let mut far = listener.accept().unwrap().unwrap();
    // Handshake records of 1 KiB of a client hello that says it is 16 MiB long.
    let mut record = vec![22, 3, 1, 4, 0, 1, 0xff, 0xff, 0xff];
    record.resize(5 + 1024, 0);
    let mut sent = 0;
    let error = loop {
        if let Err(error) = stream.write_all(&record) {
            break error;
        }
        sent += record.len();
        record.splice(5..9, [0; 4]);
        if let Err(error) = far.receiver.fill() {
            break error;
        }
    };
    assert!(sent < 1 << 20, "{error} only after {sent} bytes");
}

#[test]
fn peer_that_ends_is_told_from_one_that_is_cut_off() {
    let lab = Lab::new();
    let listener = lab.listener("director1");
    let config = Arc::unwrap_or_clone(lab.config("host1").current().client);
    for good in [true, false] {
        let (mut client, stream) = raw_client(config.clone(), &listener);
        let mut far = listener.accept().unwrap().unwrap();
        while client.is_handshaking() {
            drive(&mut client, &stream).unwrap();
            far.receiver.fill().unwrap();
        }
        let frame = sealed(&[7; 1000], 0);
        client.writer().write_all(frame.frame()).unwrap();
        client.writer().write_all(frame.frame()).unwrap();
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        if good {
            client.send_close_notify();
            client.write_tls(&mut bytes).unwrap();
        } else {
            // In the middle of the second frame's record.
            bytes.truncate(bytes.len() - 500);
        }
        (&stream).write_all(&bytes).unwrap();
        drop(stream);
        let mut seen = 0;
        let end = loop {
            match outcome(&mut far) {
                Ok(frames) => seen += frames.len(),
                Err(end) => break end,
            }
        };
        if good {
            assert_eq!((seen, end.as_str()), (2, "end"));
        } else {
            assert_eq!(
                (seen, end.as_str()),
                (1, "peer cut the link without closing TLS")
            );
        }
    }
}

#[test]
fn slow_reader_blocks_the_sender_at_a_bound() {
    let (mut near, mut far) = tls_pair();
    let payload = vec![7; PAYLOAD_BYTES_MAX];
    let mut queue = SendQueue::default();
    let mut queued = 0;
    // The handshake first.
    while near.receiver.peer_name().is_none() || far.receiver.peer_name().is_none() {
        near.receiver.fill().unwrap();
        far.receiver.fill().unwrap();
    }
    while near.sender.send(&mut queue).unwrap() == Sent::All {
        queue.push(sealed(&payload, queued), true);
        queued += 1;
    }
    // The socket is full; what is queued now waits where it can still be chosen anew.
    for _ in 0..100 {
        queue.push(sealed(&payload, queued), true);
        queued += 1;
        assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::Blocked);
    }
    assert!(queue.waiting() >= 100);
    let mut arrived = 0;
    while arrived < queued {
        near.receiver.fill().unwrap();
        near.sender.send(&mut queue).unwrap();
        if far.receiver.fill().unwrap() == Filled::Some {
            for frame in far.receiver.frames().unwrap() {
                let (header, payload) = FrameHeader::parse(frame, false).unwrap();
                assert_eq!(
                    (header.sequence, payload.len()),
                    (arrived, PAYLOAD_BYTES_MAX)
                );
                arrived += 1;
            }
        }
    }
}

#[test]
fn bytes_that_wait_encrypted_are_bounded() {
    let lab = Lab::new();
    let listener = lab.listener("director1");
    let (mut sender, mut receiver) = host_halves(&lab, &listener);
    // A socket that takes little, so that a whole batch cannot leave at once.
    let small = nix::sys::socket::sockopt::SndBuf;
    nix::sys::socket::setsockopt(&receiver.stream, small, &(64 * 1024)).unwrap();
    let mut far = listener.accept().unwrap().unwrap();
    while receiver.peer_name().is_none() || far.receiver.peer_name().is_none() {
        receiver.fill().unwrap();
        far.receiver.fill().unwrap();
    }
    let mut queue = SendQueue::default();
    let payload = vec![7; PAYLOAD_BYTES_MAX];
    for sequence in 0..256 {
        queue.push(sealed(&payload, sequence), true);
    }
    assert_eq!(sender.send(&mut queue).unwrap(), Sent::Blocked);
    let mut waiting = Vec::new();
    let mut tls = lock(&sender.0);
    while tls.connection.wants_write() {
        tls.connection.write_tls(&mut waiting).unwrap();
    }
    drop(tls);
    // Each record has its header and tag.
    let records = CIPHERTEXT_BYTES_MAX / (16 * 1024) + 1;
    assert!(!waiting.is_empty());
    assert!(
        waiting.len() <= CIPHERTEXT_BYTES_MAX + records * 64,
        "{}",
        waiting.len()
    );
}

/// A host's halves, with nothing around them.
fn host_halves(lab: &Lab, listener: &Listener) -> (TlsSender, TlsReceiver) {
    let stream = socket(listener);
    stream.set_nonblocking(true).unwrap();
    let name = ServerName::try_from("director1").unwrap();
    let client = ClientConnection::new(lab.config("host1").current().client, name).unwrap();
    halves(stream, client.into()).unwrap()
}

#[test]
fn keys_are_renewed_under_way() {
    let lab = Lab::new();
    let listener = lab.listener("director1");
    let (mut sender, mut receiver) = host_halves(&lab, &listener);
    let mut far = listener.accept().unwrap().unwrap();
    let mut queue = SendQueue::default();
    for sequence in 0..200 {
        queue.push(sealed(&[1; 100], sequence), true);
        loop {
            sender.send(&mut queue).unwrap();
            receiver.fill().unwrap();
            if far.receiver.fill().unwrap() == Filled::Some
                && !far.receiver.frames().unwrap().is_empty()
            {
                break;
            }
        }
        lock(&sender.0).connection.refresh_traffic_keys().unwrap();
    }
}

#[test]
fn new_links_use_new_certificates_and_running_links_go_on() {
    let lab = Lab::new();
    for name in ["host2", "director2"] {
        lab.issue(name, 30);
    }
    let host = options(lab.config("host1"), None);
    let listener = listener(lab.config("director1"));
    // The names that the ends see of each other.
    let names = |(near, far): &(Link, Link)| {
        let name = |link: &Link| link.receiver.peer_name().unwrap();
        [name(far), name(near)]
    };
    let greeted = || {
        let (mut near, mut far) = join(&listener, &host);
        while near.receiver.peer_name().is_none() || far.receiver.peer_name().is_none() {
            near.receiver.fill().unwrap();
            far.receiver.fill().unwrap();
        }
        (near, far)
    };
    let replace = |from: &Path, to: &Path| {
        let fresh = to.with_extension("fresh");
        std::fs::copy(from, &fresh).unwrap();
        std::fs::rename(fresh, to).unwrap();
    };
    let running = greeted();
    assert_eq!(names(&running), ["host1", "director1"]);

    // The host's, in the order in which they are issued: the key first.
    let (from, to) = (lab.files("host2"), lab.files("host1"));
    replace(&from.key, &to.key);
    assert_eq!(names(&greeted()), ["host1", "director1"]);
    replace(&from.cert, &to.cert);
    assert_eq!(names(&greeted()), ["host2", "director1"]);
    // The director's, in the other order.
    let (from, to) = (lab.files("director2"), lab.files("director1"));
    replace(&from.cert, &to.cert);
    assert_eq!(names(&greeted()), ["host2", "director1"]);
    replace(&from.key, &to.key);
    assert_eq!(names(&greeted()), ["host2", "director2"]);

    // Another CA altogether. One at a time, as it is done: first all trust both.
    let other = Lab::new();
    let both = [lab.files("host1").ca, other.files("host1").ca].map(std::fs::read);
    let both = both.map(Result::unwrap).concat();
    std::fs::write(lab.files("host1").ca, both).unwrap();
    for name in ["host1", "director1"] {
        replace(&other.files(name).cert, &lab.files(name).cert);
        replace(&other.files(name).key, &lab.files(name).key);
        drop(greeted());
    }
    replace(&other.files("host1").ca, &lab.files("host1").ca);
    assert_eq!(names(&greeted()), ["host1", "director1"]);

    // The first link has certificates that nobody has any more.
    let (near, far) = running;
    frames_cross(near, far);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let lab = Lab::new();
    let files = lab.files("host1");
    let refusal = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = files.clone();
        change(&mut files);
        TlsConfig::load(files).unwrap_err().to_string()
    };
    let text = refusal(&|files| files.ca = "/none/ca.pem".into());
    assert!(text.starts_with("cannot read /none/ca.pem; "), "{text}");
    let text = refusal(&|files| files.ca.clone_from(&files.key));
    assert!(text.contains("host1.key has no certificate"), "{text}");
    let text = refusal(&|files| files.key.clone_from(&files.cert));
    assert!(text.contains("host1.pem has no private key"), "{text}");
    let text = refusal(&|files| files.key = lab.files("director1").key);
    assert!(text.contains("do not fit together"), "{text}");
}
