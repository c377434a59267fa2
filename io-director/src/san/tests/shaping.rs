//! Ports with a rate and vHBAs with a limit of operations: what is held, and who may take it away.

use fabric_config::SanPortConfig;
use qos::OperationLimit;

use super::*;
use qos::LinkBudget;

const VHBA: &str = "vhba vh01.vm1";

fn peak(pir: &str) -> DeviceRate {
    DeviceRate {
        pbs_bytes: 1,
        ..DeviceRate::new("0".parse().unwrap(), Some(pir.parse().unwrap())).unwrap()
    }
}

fn operations(per_second: u32) -> DeviceRate {
    DeviceRate {
        operations: Some(OperationLimit {
            per_second,
            burst: 1,
        }),
        ..DeviceRate::best_effort()
    }
}

fn rate_of_port(lab: &mut LabConfig, rate: &str) {
    lab.san_ports.push(SanPortConfig {
        port: "12/1".parse().unwrap(),
        budget: Some(LinkBudget::new("san-port 12/1", rate.parse().unwrap())),
    });
}

/// A lab in which the first vHBA gets no more commands for as long as a test looks: one of each
/// direction has used up what there was.
fn stopped() -> Lab {
    let lab = Lab::with(|lab| rate_of_port(lab, "8G"));
    // At the port alone: the link to the host has these words as well, and answers have to pass.
    let slow = peak("100");
    lab.director.set_port_rates(MIXED, slow, slow).unwrap();
    lab.send(MIXED, [read(8000, 0, 0, 1)]);
    assert_eq!(lab.status(8000).1, 0);
    lab.send(MIXED, write(8001, 0, 0, &[0; 512]));
    assert_eq!(lab.status(8001).1, 0);
    lab
}

impl Lab {
    fn wait_count(&self, name: &str, wanted: u64) {
        let start = Instant::now();
        while self.counter(name) != wanted {
            let count = self.counter(name);
            assert!(
                start.elapsed() < PATIENCE,
                "{VHBA} {name}: {count}, not {wanted}"
            );
            std::thread::yield_now();
        }
    }

    fn release(&self) {
        let fast = DeviceRate::best_effort();
        self.director.set_port_rates(MIXED, fast, fast).unwrap();
    }
}

#[test]
fn commands_above_the_rate_are_held_and_end_in_order() {
    let lab = stopped();
    let block = |tag: u64| [u8::try_from(tag).unwrap(); 512];
    for tag in 2..20 {
        if tag % 2 == 0 {
            lab.send(MIXED, write(tag, 0, 1, &block(tag)));
        } else {
            lab.send(MIXED, [read(tag, 0, 1, 1)]);
        }
    }
    lab.wait_count("port_held_commands", 18);
    assert_eq!(lab.counter("commands"), 3);
    // The other vHBA of the port has its own words.
    lab.send(SHARING, [command(1, 7, &[0x12, 0, 0, 0, 96, 0], 0, 96)]);
    assert_eq!(lab.status(1).1, 0);
    lab.release();
    for tag in 2..20 {
        let (response, status, _, data) = lab.status(tag);
        assert_eq!((response, status), GOOD);
        if tag % 2 == 1 {
            assert_eq!(data, block(tag - 1), "what the write before it wrote");
        }
    }
    assert_eq!(lab.counter("port_held_commands"), 0);
    assert!(lab.counter("port_held_us") > 0);
}

/// Without a rate of the port, too; reads and writes together.
#[test]
fn operations_above_the_limit_are_held() {
    for rate in [None, Some("8G")] {
        let lab = Lab::with(|lab| {
            if let Some(rate) = rate {
                rate_of_port(lab, rate);
            }
            lab.hosts[0].vms[0].vhbas[0].ingress = operations(1);
        });
        for tag in 1..=3 {
            lab.send(MIXED, write(2 * tag, 0, 1, &[1; 512]));
            lab.send(MIXED, [read(2 * tag + 1, 0, 1, 1)]);
        }
        let in_order = 2..=7;
        for tag in in_order {
            if tag == 3 {
                // The rest would take seconds.
                lab.release();
            }
            assert_eq!(lab.status(tag).1, 0);
        }
        assert_eq!(lab.counter("commands"), 7);
        assert!(lab.counter("port_held_us") > 0);
    }
}

#[test]
fn held_commands_are_found_and_aborted_as_such_that_have_not_begun() {
    let lab = stopped();
    lab.send(MIXED, (1..=4).map(|tag| read(tag, 0, 0, 8)));
    // QUERY TASK finds it.
    lab.wait_queued(MIXED, 4, 0);
    lab.wait_count("port_held_commands", 4);
    lab.send(MIXED, [manage(TaskFunction::AbortTask, 51, 2, 0)]);
    let mut ended = Vec::new();
    for _ in 0..2 {
        ended.push(match lab.next() {
            Seen::Status {
                tag,
                response: ServiceResponse::Aborted,
                ..
            } => tag,
            Seen::Management {
                tag,
                response: TaskResponse::Complete,
            } => tag,
            other => panic!("{other:?}"),
        });
    }
    ended.sort_unstable();
    assert_eq!(ended, [2, 51]);
    assert_eq!(lab.counter("port_held_commands"), 3);
    // The tag is free: its next command comes last.
    lab.send(MIXED, [read(2, 0, 0, 8)]);
    lab.wait_count("port_held_commands", 4);
    lab.release();
    for tag in [1, 3, 4, 2] {
        assert_eq!(lab.status(tag).1, 0);
    }
    assert_eq!(lab.counter("aborted"), 1);
}

#[test]
fn reset_of_another_vhba_ends_held_commands() {
    let lab = stopped();
    lab.send(MIXED, (1..=4).map(|tag| read(tag, 1, 0, 8)));
    lab.wait_count("port_held_commands", 4);
    lab.send(SHARING, [manage(TaskFunction::LogicalUnitReset, 52, 0, 0)]);
    let mut ended = Vec::new();
    for _ in 0..5 {
        ended.push(match lab.next() {
            Seen::Status {
                tag,
                response: ServiceResponse::Reset,
                ..
            } => tag,
            Seen::Management {
                tag,
                response: TaskResponse::Complete,
            } => tag,
            other => panic!("{other:?}"),
        });
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 2, 3, 4, 52]);
    assert_eq!(lab.counter("port_held_commands"), 0);
}

/// Many times the window of write data passes through held commands that are aborted.
#[test]
fn credit_of_held_commands_never_leaks() {
    let lab = stopped();
    let data = vec![5; 128 * 1024];
    for _ in 0..100 {
        lab.send(MIXED, write(5000, 0, 0, &data));
        lab.wait_queued(MIXED, 5000, 0);
        lab.send(MIXED, [manage(TaskFunction::AbortTaskSet, 6000, 0, 0)]);
        for _ in 0..2 {
            match lab.next() {
                Seen::Status {
                    tag: 5000,
                    response: ServiceResponse::Aborted,
                    ..
                }
                | Seen::Management {
                    tag: 6000,
                    response: TaskResponse::Complete,
                } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(lab.counter("port_held_commands"), 0);
}

#[test]
fn session_that_is_lost_takes_its_held_commands_with_it() {
    let mut lab = stopped();
    lab.send(MIXED, (1..=3).map(|tag| read(tag, 0, 0, 8)));
    lab.wait_count("port_held_commands", 3);
    lab.endpoint.close("test");
    for _ in 0..2 {
        assert!(matches!(lab.next(), Seen::Down));
    }
    lab.wait_count("port_held_commands", 0);
    lab.wait_count("lost", 3);
    lab.release();
    let (endpoint, seen, writable) = connect(&lab.director);
    (lab.endpoint, lab.seen, lab.writable) = (endpoint, seen, writable);
    lab.wait_lanes();
    // I_T NEXUS LOSS OCCURRED is told, and nothing of before is executed.
    lab.send(MIXED, [command(1, 0, &[0; 6], 0, 0)]);
    let (_, status, sense, _) = lab.status(1);
    assert_eq!((status, sense[12], sense[13]), (2, 0x29, 7));
    assert_eq!(lab.counter("commands"), 4);
}

#[test]
fn detached_vhba_loses_its_held_commands_and_nobody_else_does() {
    let lab = stopped();
    lab.send(MIXED, (1..=3).map(|tag| read(tag, 0, 0, 8)));
    lab.wait_count("port_held_commands", 3);
    lab.endpoint.detach(MIXED);
    assert!(matches!(lab.next(), Seen::Down));
    lab.wait_count("lost", 3);
    lab.wait_count("port_held_commands", 0);
    lab.send(SHARING, [command(1, 7, &[0x12, 0, 0, 0, 96, 0], 0, 96)]);
    assert_eq!(lab.status(1).1, 0);
}

#[test]
fn vhba_that_nothing_limits_passes_by_the_port() {
    let lab = Lab::new();
    lab.send(MIXED, [read(1, 0, 0, 8)]);
    assert_eq!(lab.status(1).1, 0);
    let snapshots = lab.director.snapshot();
    let vhba = snapshots.iter().find(|snapshot| snapshot.object == VHBA);
    assert_eq!(vhba.unwrap().count("port_held_commands"), None);
}

#[test]
fn vhba_that_the_port_cannot_carry_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    rate_of_port(&mut config, "1G");
    for vhba in &mut config.hosts[0].vms[0].vhbas {
        vhba.ingress = DeviceRate::new("500M".parse().unwrap(), None).unwrap();
    }
    let director = Director::start(&config).unwrap();
    let directory = director.books();
    let first = directory.attach("host1", MIXED, 0).unwrap();
    let refused = directory.attach("host1", SHARING, 0).unwrap_err();
    assert_eq!(
        refused,
        "san-port 12/1 ingress: 500 Mb/s asked, 450 Mb/s free of 950 Mb/s reservable; \
         50 Mb/s missing; lower a cir on this port or detach a device"
    );
    // A grant that nobody took up gives its reservation back.
    drop(first);
    assert!(directory.attach("host1", SHARING, 0).is_ok());
}
