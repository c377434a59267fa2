//! Units shared by several nexuses: unit attentions, LUN maps, resets.

use std::sync::Arc;

use super::ram_device::{Fixture, LUN_0, RamDevice, run_at, second_nexus, sense_of};
use crate::{
    AttachError, Identity, ItNexus, LogicalUnit, Lun, Status, TaskAttribute,
    TaskManagementFunction, TaskManagementResponse,
};

const READY: [u8; 6] = [0; 6];
const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
const WCE_OFF: [u8; 24] = [
    0, 0, 0, 0, 8, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const SELECT: [u8; 6] = [0x15, 0x10, 0, 0, 24, 0];

fn lun(number: u16) -> Lun {
    Lun::new(number).unwrap()
}

fn ready(nexus: &ItNexus, number: u16) -> Option<(u8, u8, u8)> {
    let (completion, _) = run_at(nexus, lun(number).to_bytes(), &READY, &[]);
    let sense = completion.sense?;
    Some((
        sense.key.code(),
        sense.additional.asc,
        sense.additional.ascq,
    ))
}

fn unit(serial: &str) -> Arc<LogicalUnit> {
    let identity = Identity::from_serial(serial).unwrap();
    Arc::new(LogicalUnit::new(identity, Arc::new(RamDevice::new(512, 8, true))).unwrap())
}

#[test]
fn power_on_is_told_once_and_never_by_inquiry_or_report_luns() {
    let nexus = second_nexus(&unit("a"), 1);
    for cdb in [
        &[0x12, 0, 0, 0, 36, 0][..],
        &REPORT_LUNS,
        &[0x12, 1, 0x80, 0, 36, 0],
    ] {
        assert_eq!(run_at(&nexus, LUN_0, cdb, &[]).0.status, Status::Good);
    }
    // Also told to commands that would be refused.
    assert_eq!(sense_of(&nexus, LUN_0, &[0xFF; 6], &[]), (6, 0x29, 0));
    assert_eq!(ready(&nexus, 0), None);
}

#[test]
fn request_sense_tells_a_unit_attention_as_data_and_ends_it() {
    let nexus = second_nexus(&unit("a"), 1);
    let (completion, data) = run_at(&nexus, LUN_0, &[3, 0, 0, 0, 255, 0], &[]);
    assert_eq!(completion.status, Status::Good);
    assert_eq!(
        data,
        [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0]
    );
    let (_, data) = run_at(&nexus, LUN_0, &[3, 0, 0, 0, 255, 0], &[]);
    assert_eq!((data[2], data[12]), (0, 0));
    assert_eq!(ready(&nexus, 0), None);
}

#[test]
fn mode_change_is_told_to_the_others_and_only_when_something_changed() {
    let fixture = Fixture::new(8);
    let other = second_nexus(&fixture.unit, 2);
    assert_eq!(ready(&other, 0), Some((6, 0x29, 0)));
    fixture.good(&SELECT, &WCE_OFF);
    assert_eq!(ready(&fixture.nexus, 0), None);
    assert_eq!(ready(&other, 0), Some((6, 0x2A, 0x01)));
    assert_eq!(ready(&other, 0), None);
    fixture.good(&SELECT, &WCE_OFF);
    assert_eq!(ready(&other, 0), None);
}

#[test]
fn parameter_change_and_a_dependent_command_never_mix() {
    // S-07: the second initiator hears of the change before its write runs.
    let fixture = Fixture::new(8);
    let other = second_nexus(&fixture.unit, 2);
    assert_eq!(ready(&other, 0), Some((6, 0x29, 0)));
    let protect = [&[0, 0, 0, 0, 0x0A, 0x0A, 0x22, 0x10, 8][..], &[0; 7]].concat();
    fixture.good(&[0x15, 0x10, 0, 0, 16, 0], &protect);
    let write = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(sense_of(&other, LUN_0, &write, &[1; 512]), (6, 0x2A, 0x01));
    assert_eq!(sense_of(&other, LUN_0, &write, &[1; 512]), (7, 0x27, 0x02));
}

#[test]
fn capacity_change_is_told_to_every_nexus() {
    let fixture = Fixture::new(8);
    let other = second_nexus(&fixture.unit, 2);
    assert_eq!(ready(&other, 0), Some((6, 0x29, 0)));
    fixture.unit.capacity_changed();
    fixture.unit.capacity_changed();
    for nexus in [&fixture.nexus, &other] {
        assert_eq!(ready(nexus, 0), Some((6, 0x2A, 0x09)));
        assert_eq!(ready(nexus, 0), None);
    }
}

#[test]
fn lun_map_changes_are_told_once_per_nexus_and_end_with_report_luns() {
    let nexus = ItNexus::new(1);
    for number in [0, 1] {
        nexus.attach(lun(number), unit("x")).unwrap();
    }
    assert_eq!(ready(&nexus, 0), Some((6, 0x29, 0)));
    assert_eq!(ready(&nexus, 0), Some((6, 0x3F, 0x0E)));
    assert_eq!(ready(&nexus, 1), Some((6, 0x29, 0)));
    assert_eq!(ready(&nexus, 1), None);
    // Told on LUN 1, and thereby also gone from LUN 0 (LUICLR).
    nexus.attach(lun(2), unit("y")).unwrap();
    assert_eq!(ready(&nexus, 1), Some((6, 0x3F, 0x0E)));
    assert_eq!(ready(&nexus, 0), None);
    assert!(nexus.detach(lun(2)).is_some());
    assert_eq!(ready(&nexus, 0), Some((6, 0x3F, 0x0E)));
    // Not told at all when the initiator asks for the list first.
    nexus.attach(lun(2), unit("z")).unwrap();
    assert!(nexus.detach(lun(2)).is_some());
    assert_eq!(
        run_at(&nexus, LUN_0, &REPORT_LUNS, &[]).0.status,
        Status::Good
    );
    assert_eq!(ready(&nexus, 0), None);
    assert_eq!(ready(&nexus, 1), None);
    assert_eq!(ready(&nexus, 2), Some((5, 0x25, 0)));
    assert!(nexus.detach(lun(2)).is_none());
}

#[test]
fn lun_in_use_is_refused_without_a_trace() {
    let fixture = Fixture::new(8);
    let refused = fixture.nexus.attach(Lun::ZERO, unit("b"));
    assert_eq!(refused, Err(AttachError::InUse { lun: Lun::ZERO }));
    assert_eq!(ready(&fixture.nexus, 0), None);
    assert_eq!(fixture.nexus.luns(), [Lun::ZERO]);
    assert!(Arc::ptr_eq(
        &fixture.nexus.unit(Lun::ZERO).unwrap(),
        &fixture.unit
    ));
}

#[test]
fn nexus_sees_only_its_own_luns() {
    // S-13
    let (a, b) = (unit("a"), unit("b"));
    let (first, second) = (second_nexus(&a, 1), second_nexus(&b, 2));
    let serial = |nexus: &ItNexus| run_at(nexus, LUN_0, &[0x12, 1, 0x80, 0, 36, 0], &[]).1;
    assert_eq!(serial(&first)[4..], *b"a");
    assert_eq!(serial(&second)[4..], *b"b");
    first.attach(lun(5), b).unwrap();
    assert_eq!(run_at(&second, LUN_0, &REPORT_LUNS, &[]).1.len(), 16);
    assert_eq!(ready(&second, 5), Some((5, 0x25, 0)));
    // The new LUN of the other nexus is no event for this one.
    assert_eq!(ready(&second, 0), Some((6, 0x29, 0)));
    assert_eq!(ready(&second, 0), None);
}

#[test]
fn logical_unit_reset_restores_the_unit_and_tells_every_nexus() {
    let fixture = Fixture::new(8);
    let other = second_nexus(&fixture.unit, 2);
    assert_eq!(ready(&other, 0), Some((6, 0x29, 0)));
    let third = second_nexus(&unit("c"), 3);
    assert_eq!(ready(&third, 0), Some((6, 0x29, 0)));
    fixture.good(&SELECT, &WCE_OFF);
    fixture.good(&[0x1B, 0, 0, 0, 0, 0], &[]);
    let response = fixture
        .nexus
        .task_management(TaskManagementFunction::LogicalUnitReset, LUN_0);
    assert_eq!(response, TaskManagementResponse::FunctionComplete);
    for nexus in [&fixture.nexus, &other] {
        assert_eq!(ready(nexus, 0), Some((6, 0x29, 0x03)));
        assert_eq!(ready(nexus, 0), None);
    }
    assert_eq!(ready(&third, 0), None);
    assert_eq!(fixture.good(&[0x1A, 8, 8, 0, 255, 0], &[])[6], 0x04);
}

#[test]
fn nexus_reset_is_told_to_this_nexus_and_target_reset_to_all() {
    let shared = unit("a");
    let (first, second) = (second_nexus(&shared, 1), second_nexus(&shared, 2));
    first.attach(lun(9), unit("b")).unwrap();
    for (nexus, number) in [(&first, 0), (&second, 0), (&first, 9)] {
        assert_eq!(ready(nexus, number), Some((6, 0x29, 0)));
    }
    assert_eq!(ready(&first, 0), Some((6, 0x3F, 0x0E)));
    assert_eq!(
        first.task_management(TaskManagementFunction::ItNexusReset, [0xFF; 8]),
        TaskManagementResponse::FunctionComplete
    );
    assert_eq!(ready(&first, 0), Some((6, 0x29, 0x07)));
    assert_eq!(ready(&first, 9), Some((6, 0x29, 0x07)));
    assert_eq!(ready(&second, 0), None);
    assert_eq!(
        first.task_management(TaskManagementFunction::TargetReset, LUN_0),
        TaskManagementResponse::FunctionComplete
    );
    for (nexus, number) in [(&first, 0), (&second, 0), (&first, 9)] {
        assert_eq!(ready(nexus, number), Some((6, 0x29, 0x02)));
        assert_eq!(ready(nexus, number), None);
    }
}

#[test]
fn task_management_checks_the_lun_and_leaves_queues_to_the_caller() {
    // S-10, and the reset of an absent unit that brought a peer down.
    use TaskManagementFunction as Function;
    use TaskManagementResponse as Response;
    let fixture = Fixture::new(8);
    let absent = lun(200).to_bytes();
    for function in [
        Function::AbortTask,
        Function::AbortTaskSet,
        Function::ClearTaskSet,
        Function::ClearAca,
        Function::LogicalUnitReset,
        Function::QueryTask,
        Function::QueryTaskSet,
        Function::QueryAsynchronousEvent,
    ] {
        for lun in [absent, [0xFF; 8]] {
            let response = fixture.nexus.task_management(function, lun);
            assert_eq!(
                response,
                Response::IncorrectLogicalUnitNumber,
                "{function:?}"
            );
        }
        let rejected = function == Function::ClearAca;
        let response = fixture.nexus.task_management(function, LUN_0);
        let reset = function == Function::LogicalUnitReset;
        assert_eq!(
            response == Response::FunctionRejected,
            rejected,
            "{function:?}"
        );
        assert_eq!(ready(&fixture.nexus, 0).is_some(), reset, "{function:?}");
    }
    let query = || {
        fixture
            .nexus
            .task_management(Function::QueryAsynchronousEvent, LUN_0)
    };
    assert_eq!(query(), Response::FunctionComplete);
    fixture.unit.capacity_changed();
    assert_eq!(query(), Response::FunctionSucceeded);
    assert_eq!(ready(&fixture.nexus, 0), Some((6, 0x2A, 0x09)));
}

#[test]
fn aca_attribute_is_refused_and_the_others_run() {
    let fixture = Fixture::new(8);
    let mut data = Vec::new();
    for attribute in [
        TaskAttribute::Simple,
        TaskAttribute::Ordered,
        TaskAttribute::HeadOfQueue,
    ] {
        let completion = fixture
            .nexus
            .execute(LUN_0, &READY, attribute, &[], &mut data, 0);
        assert_eq!(completion.status, Status::Good);
    }
    let completion = fixture
        .nexus
        .execute(LUN_0, &READY, TaskAttribute::Aca, &[], &mut data, 0);
    assert_eq!(completion.sense.unwrap().additional.asc, 0x24);
}

#[test]
fn units_forget_nexuses_that_are_gone() {
    let shared = unit("a");
    for port in 0..1000 {
        drop(second_nexus(&shared, port));
    }
    let last = second_nexus(&shared, 1000);
    shared.capacity_changed();
    assert_eq!(ready(&last, 0), Some((6, 0x29, 0)));
    assert_eq!(ready(&last, 0), Some((6, 0x2A, 0x09)));
    assert_eq!(shared.known_nexuses(), 1);
}
