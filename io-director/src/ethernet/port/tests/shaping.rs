//! Ports with a rate: what waits, what it costs whom, and that nothing is lost.

use std::fs::File;
use std::time::Instant;

use super::*;
use qos::LinkBudget;

/// So slow that nothing but the first frame leaves while a test looks.
const STOPPED: &str = "1k";

pub(super) fn shaped(rate: &str, change: impl FnOnce(&mut LabConfig)) -> LabConfig {
    let mut lab = lab(true);
    let budget = LinkBudget::new("ethernet-port 10/1", rate.parse().unwrap());
    lab.ethernet_ports[0].budget = Some(budget);
    change(&mut lab);
    lab
}

fn peak(pir: &str) -> DeviceRate {
    DeviceRate {
        pbs_bytes: 1,
        ..DeviceRate::new("0".parse().unwrap(), Some(pir.parse().unwrap())).unwrap()
    }
}

/// A frame of 1014 bytes to outside with a number in it.
fn numbered(from: DeviceId, number: u32) -> Vec<u8> {
    let mut payload = payload(OUTSIDE, mac(from), 1000);
    let at = HEADER_BYTES + ETHERNET_HEADER_BYTES;
    payload[at..at + 4].copy_from_slice(&number.to_be_bytes());
    payload
}

/// The number in the next frame of ours that the kernel sees.
fn next_number(kernel: &mut File) -> u32 {
    let mut frame = [0; 2048];
    loop {
        let bytes = kernel.read(&mut frame).unwrap();
        if bytes >= 18 && frame[12..14] == ETHERTYPE {
            return u32::from_be_bytes(frame[14..18].try_into().unwrap());
        }
    }
}

impl Host {
    fn wait_count(&self, object: &str, name: &str, wanted: u64) {
        let start = Instant::now();
        while self.counter(object, name) != wanted {
            let count = self.counter(object, name);
            assert!(
                start.elapsed() < PATIENCE,
                "{object} {name}: {count}, not {wanted}"
            );
            std::thread::yield_now();
        }
    }

    /// Sends numbered frames of A to outside until no credit is left; returns how many.
    fn send_until_blocked(&self) -> u32 {
        for number in 0.. {
            let frame = FrameBuffer::from_payload(&numbered(A, number));
            let mut frames = vec![(VirtualLane::Network, frame)];
            let mut arrived = 0;
            while let Err(refused) = self.lanes[&A].try_send(&mut frames) {
                assert_eq!(refused, SendRefused::Blocked);
                if arrived == u64::from(number) {
                    return number;
                }
                // Once all others have arrived it is not the queue that is full, but the window.
                self.wait_count("vnic vn01.vm1", "ingress_frames", number.into());
                arrived = number.into();
            }
        }
        unreachable!("the window is finite")
    }
}

/// The guest is shaped by its credit: it comes back only as frames are written. A changed rate
/// lets them go, all of them, in their order.
#[test]
fn frames_above_the_rate_wait_with_their_credit_and_none_is_lost() {
    in_namespace(|| {
        let lab = shaped("1G", |lab| {
            lab.hosts[0].vms[0].vnics[0].ingress = peak(STOPPED)
        });
        let host = Host::of(&lab);
        let mut kernel = packet_socket();
        let sent = host.send_until_blocked();
        // Header, frame and the fabric's own header are 17 blocks of the 16 Ki; the credit of the
        // frame that left may be back or not.
        let window = 16 * 1024 / 17;
        assert!((window..=window + 1).contains(&sent), "{sent}");
        let vnic = "vnic vn01.vm1";
        host.wait_count(vnic, "port_queued_frames", u64::from(sent) - 1);
        assert_eq!(next_number(&mut kernel), 0);
        // The other vNIC has its own.
        host.send(B, &numbered(B, 4711)[..HEADER_BYTES + 900]);
        assert_eq!(next_number(&mut kernel), 4711);
        let fast = DeviceRate::best_effort();
        host.director.set_port_rates(A, fast, fast).unwrap();
        for number in 1..sent {
            assert_eq!(next_number(&mut kernel), number);
        }
        // And the credit is there again: more than half a window, in order.
        for number in sent..sent + 600 {
            loop {
                let frame = FrameBuffer::from_payload(&numbered(A, number));
                match host.lanes[&A].try_send(&mut vec![(VirtualLane::Network, frame)]) {
                    Ok(()) => break,
                    Err(SendRefused::Blocked) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(next_number(&mut kernel), number);
        }
        assert_eq!(host.counter(vnic, "port_queued_frames"), 0);
        for reason in ["dropped_full", "dropped_refused"] {
            assert_eq!(host.counter("ethernet-port 10/1", reason), 0, "{reason}");
        }
    });
}

#[test]
fn burst_beyond_the_rate_of_the_port_arrives_whole_and_in_order() {
    in_namespace(|| {
        let host = Host::of(&shaped("50M", |_| {}));
        let mut kernel = packet_socket();
        for number in 0..500 {
            host.send(A, &numbered(A, number));
        }
        for number in 0..500 {
            assert_eq!(next_number(&mut kernel), number);
        }
        host.wait_count("vnic vn01.vm1", "port_queued_frames", 0);
        assert!(host.counter("vnic vn01.vm1", "port_waited_us") > 0);
    });
}

#[test]
fn frames_between_vnics_do_not_wait_for_the_wire() {
    in_namespace(|| {
        let stopped = |lab: &mut LabConfig| {
            for vnic in &mut lab.hosts[0].vms[0].vnics {
                vnic.ingress = peak(STOPPED);
            }
        };
        let host = Host::of(&shaped("1G", stopped));
        for number in 0..10 {
            host.send(A, &numbered(A, number));
        }
        // A broadcast goes to the others at once, and to the wire when it is its turn.
        host.send(A, &payload(MacAddress::BROADCAST, mac(A), 100));
        host.send(A, &payload(mac(B), mac(A), 100));
        let broadcast = payload(MacAddress::BROADCAST, mac(A), 100);
        assert_eq!(host.receive(), (B, broadcast));
        assert_eq!(host.receive(), (B, payload(mac(B), mac(A), 100)));
        host.wait_count("vnic vn01.vm1", "port_queued_frames", 10);
    });
}

#[test]
fn detached_vnic_loses_what_it_had_queued_and_nobody_else_does() {
    in_namespace(|| {
        let lab = shaped("1G", |lab| {
            lab.hosts[0].vms[0].vnics[0].ingress = peak(STOPPED)
        });
        let host = Host::of(&lab);
        let mut kernel = packet_socket();
        for number in 0..20 {
            host.send(A, &numbered(A, number));
        }
        let vnic = "vnic vn01.vm1";
        host.wait_count(vnic, "port_queued_frames", 19);
        host.endpoint.detach(A);
        host.wait_count(vnic, "dropped_session_ended", 19);
        assert_eq!(host.counter(vnic, "port_queued_frames"), 0);
        host.send(B, &numbered(B, 4711)[..HEADER_BYTES + 900]);
        assert_eq!(next_number(&mut kernel), 0);
        assert_eq!(next_number(&mut kernel), 4711);
    });
}

#[test]
fn lost_session_takes_its_queued_frames_and_reservations_with_it() {
    in_namespace(|| {
        let lab = shaped("1G", |lab| {
            let vnics = &mut lab.hosts[0].vms[0].vnics;
            vnics[0].ingress = peak(STOPPED);
            vnics[1].ingress.cir = "900M".parse().unwrap();
        });
        let host = Host::of(&lab);
        for number in 0..20 {
            host.send(A, &numbered(A, number));
        }
        let vnic = "vnic vn01.vm1";
        host.wait_count(vnic, "port_queued_frames", 19);
        // More than is free, as long as the session of B has its 900 Mb/s.
        let more = DeviceRate::new("100M".parse().unwrap(), None).unwrap();
        let none = DeviceRate::best_effort();
        let refused = host.director.set_port_rates(A, more, none).unwrap_err();
        assert!(refused.to_string().contains("50 Mb/s free"), "{refused}");
        host.endpoint.close("test");
        host.wait_count(vnic, "dropped_session_ended", 19);
        // B may go last.
        let start = Instant::now();
        while let Err(error) = host.director.set_port_rates(A, more, none) {
            assert!(start.elapsed() < PATIENCE, "{error}");
            std::thread::yield_now();
        }
    });
}

#[test]
fn vnic_that_the_port_cannot_carry_is_refused_by_name() {
    in_namespace(|| {
        let lab = shaped("1G", |lab| {
            for vnic in &mut lab.hosts[0].vms[0].vnics {
                vnic.egress.cir = "600M".parse().unwrap();
            }
        });
        let director = Director::start(&lab).unwrap();
        let directory = director.books();
        let first = directory.attach("host1", A, 0).unwrap();
        // The same vNIC in a newer session reserves nothing twice.
        let again = directory.attach("host1", A, 0).unwrap();
        let refused = directory.attach("host1", B, 0).unwrap_err();
        assert_eq!(
            refused,
            "ethernet-port 10/1 egress: 600 Mb/s asked, 350 Mb/s free of 950 Mb/s reservable; \
             250 Mb/s missing; lower a cir on this port or detach a device"
        );
        drop(first);
        assert!(directory.attach("host1", B, 0).is_err());
        drop(again);
        // A grant that nobody took up has given its reservation back.
        assert!(directory.attach("host1", B, 0).is_ok());
        assert!(directory.attach("host1", A, 0).is_ok());
    });
}

#[test]
fn frames_from_the_lan_are_taken_at_the_rate_of_the_port_and_all_of_them() {
    in_namespace(|| {
        let host = Host::of(&shaped("20M", |_| {}));
        for number in 0..100_usize {
            send_from_kernel(&payload(mac(A), OUTSIDE, 500 + number));
        }
        for number in 0..100 {
            assert_eq!(host.receive(), (A, payload(mac(A), OUTSIDE, 500 + number)));
        }
        assert_eq!(host.counter("vnic vn01.vm1", "dropped_blocked"), 0);
    });
}

#[test]
fn o09_port_that_failed_gives_credit_back_all_the_same() {
    in_namespace(|| {
        let host = Host::of(&shaped("10M", |_| {}));
        ip(&["link", "delete", "ori-test0"]);
        for number in 0..100 {
            host.send(A, &numbered(A, number));
        }
        host.wait_count("ethernet-port 10/1", "dropped_refused", 100);
        host.send(A, &payload(mac(B), mac(A), 100));
        assert_eq!(host.receive(), (B, payload(mac(B), mac(A), 100)));
    });
}
