//! VLANs on a real interface. The kernel takes the tag off before a socket sees the frame, and tells
//! it beside it.

use std::io::IoSliceMut;
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::SetBool};

use super::*;

#[derive(Clone, Copy)]
struct AuxiliaryData;
nix::setsockopt_impl!(
    AuxiliaryData,
    libc::SOL_PACKET,
    libc::PACKET_AUXDATA,
    bool,
    SetBool
);

/// The next frame of ours that leaves by the interface, and the VLAN of its tag.
#[expect(clippy::host_endian_bytes, reason = "the kernel writes them so")]
fn next_seen(kernel: &std::fs::File) -> (Option<u16>, Vec<u8>) {
    let mut frame = [0; 2048];
    loop {
        let mut control = nix::cmsg_space!([u8; 64]);
        let mut pieces = [IoSliceMut::new(&mut frame)];
        let fd = kernel.as_raw_fd();
        let message =
            recvmsg::<()>(fd, &mut pieces, Some(&mut control), MsgFlags::empty()).unwrap();
        let bytes = message.bytes;
        let mut tag = None;
        for message in message.cmsgs().unwrap() {
            // struct tpacket_auxdata: a status at 0, the tag's control information at 16.
            if let ControlMessageOwned::Unknown(auxiliary) = message {
                let data = auxiliary.data_bytes;
                let status = u32::from_ne_bytes(data[..4].try_into().unwrap());
                let tci = u16::from_ne_bytes(data[16..18].try_into().unwrap());
                tag = (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(tci);
            }
        }
        if frame[12..14] == ETHERTYPE {
            return (tag, frame[..bytes].to_vec());
        }
    }
}

fn tagged(payload: &[u8], vlan: u8) -> Vec<u8> {
    let mut payload = payload.to_vec();
    let at = HEADER_BYTES + 12;
    payload.splice(at..at, [0x81, 0, 0, vlan]);
    payload
}

/// The next frame with our EtherType, behind a tag or not.
fn receive(host: &Host) -> (DeviceId, Vec<u8>) {
    loop {
        if let (device, Seen::Frame(frame)) = host.seen.recv_timeout(PATIENCE).unwrap()
            && [12, 16]
                .iter()
                .any(|at| frame[HEADER_BYTES + at..].starts_with(&ETHERTYPE))
        {
            return (device, frame);
        }
    }
}

/// A is in VLAN 100 and knows nothing of it; B is a trunk of 100 and 200. Seen from the kernel, and
/// by each other.
#[test]
fn n09_frames_stay_in_their_vlan_from_guest_to_interface_and_back() {
    for offloads in [true, false] {
        in_namespace(move || {
            let mut lab = lab(offloads);
            let [a, b] = &mut lab.hosts[0].vms[0].vnics[..] else {
                panic!("two vNICs")
            };
            let vlan = |number| fabric_config::VlanId::new(number).unwrap();
            let mut allowed = fabric_config::VlanSet::empty();
            for number in [100, 200] {
                allowed.insert(vlan(number));
            }
            a.vlans = fabric_config::VlanMembership::Access(vlan(100));
            b.vlans = fabric_config::VlanMembership::Trunk {
                allowed,
                native: None,
            };
            let host = Host::of(&lab);
            let kernel = packet_socket();
            setsockopt(&kernel, AuxiliaryData, &true).unwrap();
            let frame = payload(OUTSIDE, mac(A), 60);
            host.send(A, &frame);
            assert_eq!(
                next_seen(&kernel),
                (Some(100), frame[HEADER_BYTES..].to_vec())
            );
            let frame = payload(OUTSIDE, mac(B), 61);
            // Neither may be in 101, nor B in none: those come to nothing.
            host.send(A, &tagged(&payload(OUTSIDE, mac(A), 62), 100));
            host.send(B, &frame);
            host.send(B, &tagged(&frame, 101));
            host.send(B, &tagged(&frame, 200));
            assert_eq!(
                next_seen(&kernel),
                (Some(200), frame[HEADER_BYTES..].to_vec())
            );
            assert_eq!(host.counter("vnic vn01.vm1", "dropped_vlan"), 1);
            assert_eq!(host.counter("vnic vn02.vm1", "dropped_vlan"), 2);
            // Between both, and from the interface.
            let frame = payload(mac(B), mac(A), 63);
            host.send(A, &frame);
            assert_eq!(receive(&host), (B, tagged(&frame, 100)));
            let frame = payload(mac(A), mac(B), 64);
            host.send(B, &tagged(&frame, 100));
            assert_eq!(receive(&host), (A, frame));
            let frame = payload(MacAddress::BROADCAST, OUTSIDE, 65);
            send_from_kernel(&tagged(&frame, 100));
            let mut received = [receive(&host), receive(&host)];
            received.sort();
            assert_eq!(received, [(A, frame.clone()), (B, tagged(&frame, 100))]);
            // Of 200 only B hears; of a frame without a tag nobody does.
            send_from_kernel(&payload(MacAddress::BROADCAST, OUTSIDE, 66));
            send_from_kernel(&tagged(&frame, 200));
            assert_eq!(receive(&host), (B, tagged(&frame, 200)));
            host.send(A, &payload(mac(B), mac(A), 67));
            assert_eq!(
                receive(&host),
                (B, tagged(&payload(mac(B), mac(A), 67), 100))
            );
        });
    }
}

#[test]
fn private_port_joins_its_vnics_and_nobody_else() {
    let mut lab = lab(true);
    lab.ethernet_ports[0].interfaces.clear();
    let host = Host::of(&lab);
    host.send(A, &payload(OUTSIDE, mac(A), 60));
    host.send(A, &payload(MacAddress::BROADCAST, mac(A), 61));
    let received = host.receive();
    assert_eq!(received, (B, payload(MacAddress::BROADCAST, mac(A), 61)));
    assert_eq!(host.counter("vnic vn01.vm1", "dropped_not_here"), 1);
    assert_eq!(host.counter("ethernet-port 10/1", "sent_frames"), 0);
}
