//! What a whole lab file promises, hop by hop.

use super::*;

/// A host whose six VMs have one vNIC each, with these committed rates for what they send.
fn lab(link: &str, port: &str, rates: &[&str]) -> LabConfig {
    let mut text = format!(
        "[director]\nname = \"director1\"\n\
         [[ethernet-port]]\nport = \"10/1\"\ntap = \"orimono0\"\n{port}\n\
         [[host]]\nname = \"host1\"\nembedded = true\nrun-dir = \"/run/orimono\"\n{link}\n"
    );
    for (number, rate) in (1..).zip(rates) {
        text += &format!(
            "[[host.vm]]\nname = \"vm{number}\"\n[[host.vm.vnic]]\nname = \"vn01\"\n\
             id = {number}\nport = \"10/1\"\nmac = \"02:00:00:00:00:{number:02x}\"\n\
             ingress = {{ cir = \"{rate}\" }}\n"
        );
    }
    text.parse().unwrap()
}

const DECK: [&str; 6] = ["2G", "500M", "1G", "2G", "2G", "1G"];

fn lines(lab: &LabConfig) -> Vec<String> {
    lab.admit().iter().map(Admission::to_string).collect()
}

#[test]
fn the_decks_set_fits_a_10g_link_with_9g_reservable() {
    let lab = lab("rate = \"10G\"\nreservable = \"9.0G\"", "", &DECK);
    assert_eq!(
        lines(&lab),
        [
            "host1 uplink ingress: nominal 10 Gb/s, payload 10 Gb/s, reservable 9 Gb/s, reserved \
             8.5 Gb/s, free 500 Mb/s",
            "host1 downlink egress: nominal 10 Gb/s, payload 10 Gb/s, reservable 9 Gb/s, \
             reserved 0 bit/s, free 9 Gb/s",
        ]
    );
    assert_eq!(require_admitted(&lab.admit()), Ok(()));
}

#[test]
fn the_decks_set_is_refused_with_8g_reservable_naming_what_is_missing() {
    let lab = lab("rate = \"10G\"\nreservable = \"8.0G\"", "", &DECK);
    let error = require_admitted(&lab.admit()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vnic vn01.vm6: ingress: host1 uplink: 1 Gb/s asked, 500 Mb/s free of 8 Gb/s reservable; \
         500 Mb/s missing; ask for less, raise reservable, or oversubscribe the hop"
    );
    assert_eq!(
        error.refusals[0].error.missing(),
        Some("500M".parse().unwrap())
    );
    let uplink = &lab.admit()[0];
    assert_eq!(
        (uplink.reserved, uplink.free()),
        ("7.5G".parse().unwrap(), "500M".parse().unwrap())
    );
}

#[test]
fn ports_are_hops_of_both_directions_and_of_all_hosts() {
    let port = "rate = \"5G\"\nreservable = \"3G\"";
    let one = lab("rate = \"10G\"", port, &["2G", "500M"]);
    let mut two = one.clone();
    let mut second = one.hosts[0].clone();
    second.name = "host2".into();
    two.hosts.push(second);
    assert_eq!(require_admitted(&one.admit()), Ok(()));
    assert_eq!(
        lines(&two)[4..],
        [
            "ethernet-port 10/1 ingress: nominal 5 Gb/s, payload 5 Gb/s, reservable 3 Gb/s, \
             reserved 3 Gb/s, free 0 bit/s",
            "ethernet-port 10/1 egress: nominal 5 Gb/s, payload 5 Gb/s, reservable 3 Gb/s, \
             reserved 0 bit/s, free 3 Gb/s",
        ]
    );
    let error = require_admitted(&two.admit()).unwrap_err();
    let [refusal] = &error.refusals[..] else {
        panic!("{error}")
    };
    assert_eq!(
        refusal.to_string(),
        "vnic vn01.vm1: ingress: ethernet-port 10/1: 2 Gb/s asked, 500 Mb/s free of 3 Gb/s \
         reservable; 1500 Mb/s missing"
    );
}

#[test]
fn a_vm_reserves_its_own_rate_for_its_devices() {
    let mut lab = lab("rate = \"10G\"\nreservable = \"3G\"", "", &["500M", "1G"]);
    lab.hosts[0].vms[0].ingress.cir = "2G".parse().unwrap();
    assert_eq!(lab.admit()[0].reserved, "3G".parse().unwrap());
    assert_eq!(require_admitted(&lab.admit()), Ok(()));
    lab.hosts[0].vms[0].ingress.cir = "4G".parse().unwrap();
    let error = require_admitted(&lab.admit()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("vm vm1: ingress: host1 uplink: 4 Gb/s asked, 3 Gb/s free"),
        "{error}"
    );
}

#[test]
fn an_oversubscribed_hop_takes_everything_and_says_so() {
    let mut lab = lab(
        "rate = \"10G\"\nreservable = \"8.0G\"",
        "rate = \"8G\"",
        &DECK,
    );
    assert_eq!(
        require_admitted(&lab.admit()).unwrap_err().refusals.len(),
        2
    );
    lab.oversubscribe();
    let admissions = lab.admit();
    assert_eq!(require_admitted(&admissions), Ok(()));
    assert_eq!(
        lines(&lab)[..2],
        [
            "host1 uplink ingress: nominal 10 Gb/s, payload 10 Gb/s, reservable 8 Gb/s, reserved \
             8.5 Gb/s, free 0 bit/s, oversubscribed by 500 Mb/s",
            "host1 downlink egress: nominal 10 Gb/s, payload 10 Gb/s, reservable 8 Gb/s, \
             reserved 0 bit/s, free 8 Gb/s, may be oversubscribed",
        ]
    );
    let over = admissions.iter().filter(|hop| !hop.over().is_zero());
    let over: Vec<_> = over.map(|hop| (hop.budget.hop(), hop.direction)).collect();
    assert_eq!(
        over,
        [
            ("host1 uplink", Direction::Ingress),
            ("ethernet-port 10/1", Direction::Ingress)
        ]
    );
}

#[test]
fn protected_reservations_fit_the_link_that_survives_and_unprotected_ones_need_not() {
    let mut lab = lab("rate = \"10G\"\nprotected = \"2G\"", "", &["2G", "1G"]);
    let error = require_admitted(&lab.admit()).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "vnic vn01.vm2: ingress: host1 uplink: 1 Gb/s asked, 0 bit/s free of 2 Gb/s that \
             survive the failure of a link; 1000 Mb/s missing"
        ),
        "{error}"
    );
    lab.hosts[0].vms[1].vnics[0].ingress.unprotected = true;
    assert_eq!(require_admitted(&lab.admit()), Ok(()));
}

#[test]
fn delay_bounds_are_admitted_too() {
    let mut lab = lab("rate = \"1G\"", "", &["100M", "100M"]);
    for vm in &mut lab.hosts[0].vms {
        vm.vnics[0].ingress.delay_max = Some(Duration::from_micros(1_000));
    }
    let error = require_admitted(&lab.admit()).unwrap_err();
    let [Refusal { object, error, .. }] = &error.refusals[..] else {
        panic!("{error}")
    };
    assert_eq!(object, "vnic vn01.vm2");
    assert!(
        matches!(error, qos::AdmissionError::DelayBound { .. }),
        "{error}"
    );
}

proptest::proptest! {
    /// The definition: what is taken of each hop fits, and what is refused would not.
    #[test]
    fn what_is_taken_fits_and_what_is_refused_does_not(
        rates in proptest::collection::vec(0..4_000_u64, 1..12), reservable in 0..10_000_u64,
    ) {
        let texts: Vec<_> = rates.iter().map(|rate| format!("{rate}M")).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let lab = lab(&format!("rate = \"10G\"\nreservable = \"{reservable}M\""), "", &texts);
        let uplink = &lab.admit()[0];
        let (mut sum, mut refused) = (0, Vec::new());
        for (number, rate) in (1..).zip(&rates) {
            if sum + rate <= reservable {
                sum += rate;
            } else {
                refused.push(format!("vnic vn01.vm{number}"));
            }
        }
        proptest::prop_assert_eq!(uplink.reserved, format!("{sum}M").parse().unwrap());
        let objects: Vec<_> = uplink.refusals.iter().map(|refusal| refusal.object.clone()).collect();
        proptest::prop_assert_eq!(objects, refused);
    }
}
