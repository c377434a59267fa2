//! A vNIC with a static address, and everybody else on its port.

use fabric_config::VnicConfig;

use super::*;

const DISCOVER: &[u8] = include_bytes!("../../../../tests/frames/udhcpc-discover");
const UDP_PORTS_AT: usize = HEADER_BYTES + 34;

fn lab_text(folder: &std::path::Path) -> String {
    let folder = folder.display();
    let text = format!(
        r#"
        [director]
        name = "director1"
        boot-dir = "{folder}"
        [[ethernet-port]]
        port = "10/1"
        tap = "ori-test0"
        [[host]]
        name = "host1"
        embedded = true
        run-dir = "/nonexistent"
        rate = "10G"
        [[host.vm]]
        name = "vm1"
        [[host.vm.vnic]]
        name = "vn01"
        id = 1
        port = "10/1"
        mac = "02:00:00:00:00:01"
        addr-type = "static"
        ip-addr = "192.168.10.201/24"
        server-addr = "192.168.10.9"
        boot-file = "kernel"
        [[host.vm.vnic]]
        name = "vn02"
        id = 2
        port = "10/1"
        mac = "02:00:00:00:00:02"
        "#
    );
    text
}

fn static_lab(folder: &std::path::Path) -> LabConfig {
    lab_text(folder).parse().unwrap()
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES], frame].concat()
}

/// The next frame to A of IPv4; the kernel's own are of IPv6.
fn answer(host: &Host) -> Vec<u8> {
    loop {
        let seen = host.seen.recv_timeout(PATIENCE).unwrap();
        if let (A, Seen::Frame(frame)) = seen
            && frame.get(HEADER_BYTES + 12..HEADER_BYTES + 14) == Some(&[8, 0])
        {
            return frame;
        }
    }
}

/// An offer of another server's: the guest's question with its ports exchanged.
fn offer(from: MacAddress) -> Vec<u8> {
    let mut frame = with_header(DISCOVER);
    frame[HEADER_BYTES..][..6].copy_from_slice(&mac(A).0);
    frame[HEADER_BYTES + 6..][..6].copy_from_slice(&from.0);
    frame[UDP_PORTS_AT..][..4].copy_from_slice(&[0, 67, 0, 68]);
    frame
}

#[test]
fn the_guest_has_its_address_from_the_director_and_from_nobody_else() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::of(&static_lab(folder.path()));
        let addresses = "addresses of vnic vn01.vm1";
        let mut kernel = packet_socket();
        host.send(A, &with_header(DISCOVER));
        let frame = answer(&host);
        assert_eq!(frame[UDP_PORTS_AT..][..4], [0, 67, 0, 68]);
        assert_eq!(frame[HEADER_BYTES + 42 + 16..][..4], [192, 168, 10, 201]);
        // Neither the LAN nor the other vNIC saw the question.
        host.send(A, &payload(MacAddress::BROADCAST, mac(A), 60));
        assert_eq!(host.receive().0, B);
        let mut seen = [0; 2048];
        loop {
            let bytes = kernel.read(&mut seen).unwrap();
            assert_ne!(seen[..bytes], *DISCOVER);
            if seen[12..14] == ETHERTYPE {
                break;
            }
        }
        // Both try to answer; what comes behind their answers arrives.
        host.send(B, &offer(mac(B)));
        host.send(B, &payload(mac(A), mac(B), 1));
        assert_eq!(host.receive(), (A, payload(mac(A), mac(B), 1)));
        send_from_kernel(&offer(OUTSIDE));
        send_from_kernel(&payload(mac(A), OUTSIDE, 2));
        assert_eq!(host.receive(), (A, payload(mac(A), OUTSIDE, 2)));
        // A guest is no DHCP server; one of the LAN is none for this guest.
        assert_eq!(host.counter("vnic vn02.vm1", "dropped_server"), 1);
        assert_eq!(host.counter(addresses, "dropped_foreign_answers"), 1);
        assert_eq!(host.counter(addresses, "offers"), 1);
        // One without a static address asks whom it likes.
        let mut question = with_header(DISCOVER);
        question[HEADER_BYTES + 11] = 2;
        host.send(B, &question);
        assert_eq!(answer(&host), question);
        assert_eq!(host.counter("vnic vn01.vm1", "dropped_foreign_source"), 0);
    });
}

#[test]
fn another_address_is_in_force_for_the_next_question() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut lab = static_lab(folder.path());
        let host = Host::of(&lab);
        let offered = |last| {
            host.send(A, &with_header(DISCOVER));
            let frame = answer(&host);
            assert_eq!(frame[HEADER_BYTES + 42 + 16..][..4], [192, 168, 10, last]);
        };
        offered(201);
        let vnic = &mut lab.hosts[0].vms[0].vnics[0];
        let text = lab_text(folder.path()).replace("10.201/24", "10.77/24");
        let other: LabConfig = text.parse().unwrap();
        vnic.static_address = other.hosts[0].vms[0].vnics[0].static_address.clone();
        host.director.apply(lab).unwrap();
        offered(77);
    });
}

#[test]
fn boot_files_come_from_the_folder() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernel"), [7; 600]).unwrap();
        let host = Host::of(&static_lab(folder.path()));
        let tftp = |payload: &[u8]| {
            let mut frame = Vec::new();
            let packet =
                etherparse::PacketBuilder::ethernet2(mac(A).0, [0x0a, 0x13, 0x97, 0, 0, 1])
                    .ipv4([192, 168, 10, 201], [192, 168, 10, 9], 64)
                    .udp(1000, 69);
            packet.write_to_vec(&mut frame, payload).unwrap();
            host.send(A, &with_header(&frame));
            answer(&host)[UDP_PORTS_AT + 8..].to_vec()
        };
        assert_eq!(
            tftp(b"\0\x01kernel\0octet\0"),
            [&[0, 3, 0, 1][..], &[7; 512]].concat()
        );
        assert_eq!(
            tftp(b"\0\x04\0\x01"),
            [&[0, 3, 0, 2][..], &[7; 88]].concat()
        );
        assert_eq!(tftp(b"\0\x01../kernel\0octet\0")[..4], [0, 5, 0, 2]);
        let count = |name| host.counter("addresses of vnic vn01.vm1", name);
        // The answer is sent after it was counted.
        assert_eq!((count("boot_files"), count("boot_refusals")), (1, 1));
    });
}

#[test]
fn a_vnic_without_a_static_address_has_no_counters_of_it() {
    let vnic: fn(&LabConfig) -> Option<&VnicConfig> = |lab| lab.hosts[0].vnics().next();
    assert!(AddressService::new(vnic(&lab(true)).unwrap(), || None).is_none());
}
