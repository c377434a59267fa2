//! Target port groups and their states.

use std::sync::Arc;

use super::ram_device::{Fixture, LUN_0, RamDevice, run_at, sense_of};
use crate::{
    AccessState, Identity, ItNexus, LogicalUnit, Lun, PortGroup, PortGroupError, Status, TargetPort,
};

const READY: [u8; 6] = [0; 6];
const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 96, 0];
const REPORT: [u8; 12] = [0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

fn set_cdb(bytes: u8) -> [u8; 12] {
    [0xA4, 0x0A, 0, 0, 0, 0, 0, 0, 0, bytes, 0, 0]
}

/// Groups 1 (ports 1 and 2) and 0x202 (port 3, not optimized), and a nexus through each.
fn unit(explicit: bool) -> (Arc<LogicalUnit>, [ItNexus; 2]) {
    let port = |relative, name| TargetPort { relative, name };
    let first = PortGroup {
        ports: vec![port(1, Some(0x5000_0000_0000_0001)), port(2, None)],
        preferred: true,
        ..PortGroup::of_port(1, 1)
    };
    let second = PortGroup {
        state: AccessState::ActiveNonOptimized,
        ..PortGroup::of_port(0x202, 3)
    };
    let identity = Identity::from_serial("s").unwrap();
    let unit = LogicalUnit::new(identity, Arc::new(RamDevice::new(512, 64, true))).unwrap();
    let unit = unit
        .with_port_groups(vec![first, second], explicit)
        .unwrap();
    let unit = Arc::new(unit);
    let nexuses = [1, 3].map(|port| {
        let nexus = ItNexus::through(9, port);
        nexus.attach(Lun::ZERO, unit.clone()).unwrap();
        assert_eq!(sense_of(&nexus, LUN_0, &READY, &[]), (6, 0x29, 0));
        nexus
    });
    (unit, nexuses)
}

fn good(nexus: &ItNexus, cdb: &[u8], data_out: &[u8]) -> Vec<u8> {
    let (completion, data) = run_at(nexus, LUN_0, cdb, data_out);
    assert_eq!(completion.status, Status::Good, "{cdb:02x?}");
    data
}

#[test]
fn default_is_one_optimized_group_of_one_port() {
    let fixture = Fixture::new(8);
    let group = [0x00, 0x8F, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
    let short = [&[0, 0, 0, 12][..], &group].concat();
    assert_eq!(fixture.good(&REPORT, &[]), short);
    let mut extended = REPORT;
    extended[1] |= 0x20;
    let long = [&[0, 0, 0, 16, 0x10, 0, 0, 0][..], &group].concat();
    assert_eq!(fixture.good(&extended, &[]), long);
    extended[1] |= 0x40;
    assert_eq!(fixture.sense(&extended, &[]), (5, 0x24, 0));
    assert_eq!(fixture.sense(&set_cdb(0), &[]), (5, 0x20, 0));
}

#[test]
fn ports_see_their_own_group() {
    let (_, [first, second]) = unit(true);
    let inquiry = good(&first, &INQUIRY, &[]);
    assert_eq!(inquiry[5..7], [0x38, 0x10], "TPGS 3, 3PC, MULTIP");
    let ports = |nexus| good(nexus, &[0x12, 1, 0x83, 1, 0, 0], &[])[45..].to_vec();
    let name = [1, 0x93, 0, 8, 0x50, 0, 0, 0, 0, 0, 0, 1];
    let numbers = [1, 0x14, 0, 4, 0, 0, 0, 1, 1, 0x15, 0, 4, 0, 0, 0, 1];
    assert_eq!(ports(&first), [&name[..], &numbers].concat());
    assert_eq!(
        ports(&second),
        [1, 0x14, 0, 4, 0, 0, 0, 3, 1, 0x15, 0, 4, 0, 0, 2, 2]
    );
    let scsi_ports = good(&second, &[0x12, 1, 0x88, 1, 0, 0], &[]);
    assert_eq!(scsi_ports.len(), 4 + 3 * 12 + 12);
    assert_eq!(scsi_ports[16..28], name);
    assert_eq!(
        good(&second, &REPORT, &[]),
        [
            0, 0, 0, 28, 0x80, 0x8F, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x01, 0x8F, 2, 2, 0,
            0, 0, 1, 0, 0, 0, 3
        ]
    );
}

#[test]
fn states_decide_which_commands_run_through_which_port() {
    let (unit, [first, second]) = unit(false);
    // By state: sense of TEST UNIT READY, and the last of the groups of commands that runs.
    for (state, ascq, last) in [
        (AccessState::Standby, 0x0B, 1),
        (AccessState::Unavailable, 0x0C, 0),
        (AccessState::Transitioning, 0x0A, 0),
    ] {
        unit.set_access_state(1, state).unwrap();
        for nexus in [&first, &second] {
            assert_eq!(sense_of(nexus, LUN_0, &READY, &[]), (6, 0x2A, 6));
        }
        // The same again is no change.
        unit.set_access_state(1, state).unwrap();
        assert_eq!(sense_of(&first, LUN_0, &READY, &[]), (2, 0x04, ascq));
        assert_eq!(good(&first, &[3, 0, 0, 0, 18, 0], &[])[13], ascq);
        let commands: [&[&[u8]]; 3] = [
            &[&INQUIRY, &REPORT, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]],
            &[
                &[0x1A, 8, 8, 0, 64, 0],
                &[0x4D, 0, 0x40, 0, 0, 0, 0, 0, 64, 0],
                &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0],
                &[0x1D, 0x04, 0, 0, 0, 0],
            ],
            &[
                &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0],
                &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[0x16, 0, 0, 0, 0, 0],
                &[0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            ],
        ];
        for (at, group) in commands.into_iter().enumerate() {
            for cdb in group {
                if at <= last {
                    good(&first, cdb, &[]);
                } else {
                    assert_eq!(sense_of(&first, LUN_0, cdb, &[]), (2, 0x04, ascq));
                }
                good(&second, cdb, &[]);
                if cdb[0] == 0x16 {
                    good(&second, &[0x17, 0, 0, 0, 0, 0], &[]);
                }
            }
        }
    }
    assert_eq!(good(&second, &REPORT, &[])[4..10], [0x8F, 0x8F, 0, 1, 0, 2]);
    assert_eq!(
        unit.target_port_groups()[0].state,
        AccessState::Transitioning
    );
    let absent = unit.set_access_state(3, AccessState::Standby);
    assert_eq!(absent, Err(PortGroupError::NoSuchGroup { id: 3 }));
}

#[test]
fn initiators_set_states_where_they_may() {
    let (unit, [first, second]) = unit(true);
    let list = [0, 0, 0, 0, 0x02, 0, 0, 1, 0x00, 0, 2, 2];
    good(&second, &set_cdb(12), &list);
    let states = || {
        let groups = unit.target_port_groups();
        groups.iter().map(|group| group.state).collect::<Vec<_>>()
    };
    assert_eq!(
        states(),
        [AccessState::Standby, AccessState::ActiveOptimized]
    );
    assert_eq!(sense_of(&first, LUN_0, &READY, &[]), (6, 0x2A, 6));
    assert_eq!(sense_of(&first, LUN_0, &READY, &[]), (2, 4, 0x0B));
    good(&second, &READY, &[]);
    assert_eq!(good(&second, &REPORT, &[])[9], 1, "set by command");
    // Refused as a whole: a state that is none, a group that is none, half a descriptor.
    for (wrong, sense) in [
        (vec![0, 0, 0, 0, 0, 0, 0, 1, 0x0F, 0, 2, 2], (5, 0x26, 0)),
        (vec![0, 0, 0, 0, 0, 0, 0, 1, 0x0E, 0, 2, 2], (5, 0x26, 0)),
        (vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 3], (5, 0x26, 0)),
        (vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0], (5, 0x1A, 0)),
        (vec![0, 0, 0], (5, 0x1A, 0)),
    ] {
        let cdb = set_cdb(u8::try_from(wrong.len()).unwrap());
        assert_eq!(sense_of(&second, LUN_0, &cdb, &wrong), sense);
        assert_eq!(states()[0], AccessState::Standby);
    }
    good(&second, &set_cdb(0), &[]);
    // Through a port that is not active, back to one that is.
    unit.set_access_state(0x202, AccessState::Unavailable)
        .unwrap();
    assert_eq!(sense_of(&second, LUN_0, &READY, &[]), (6, 0x2A, 6));
    good(&second, &set_cdb(8), &[0, 0, 0, 0, 0, 0, 2, 2]);
    good(&second, &READY, &[]);
}

#[test]
fn groups_that_cannot_be_are_refused() {
    let group = PortGroup::of_port;
    let empty = PortGroup {
        ports: Vec::new(),
        ..group(1, 1)
    };
    for (groups, error) in [
        (vec![], PortGroupError::Number),
        (vec![empty], PortGroupError::Number),
        (
            vec![group(1, 1), group(1, 2)],
            PortGroupError::NotUnique { id: 1 },
        ),
        (
            vec![group(1, 1), group(2, 1)],
            PortGroupError::NotUnique { id: 2 },
        ),
        (vec![group(1, 0)], PortGroupError::NotUnique { id: 1 }),
    ] {
        let identity = Identity::from_serial("s").unwrap();
        let device = Arc::new(RamDevice::new(512, 8, true));
        let unit = LogicalUnit::new(identity, device).unwrap();
        assert_eq!(unit.with_port_groups(groups, false).err(), Some(error));
    }
}
