//! PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE, by three nexuses.

use std::sync::{Arc, Mutex};

use super::ram_device::{LUN_0, RamDevice, run_at, second_nexus, sense_of};
use crate::{
    Identity, ItNexus, LogicalUnit, PortGroup, ReservationStore, ReservationStoreError, Status,
    TaskManagementFunction, TaskManagementResponse,
};

const READY: [u8; 6] = [0; 6];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const RESERVE_6: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE_6: [u8; 6] = [0x17, 0, 0, 0, 0, 0];

const REJECTED: TaskManagementResponse = TaskManagementResponse::FunctionRejected;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const REGISTER_AND_MOVE: u8 = 7;

const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

/// Remembers what it was given, and may fail.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<(Vec<u8>, bool)>, bool);

impl Store {
    fn keeping_all() -> Self {
        Self(Mutex::default(), true)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().0.clone()
    }

    fn fail(&self, fails: bool) {
        self.0.lock().unwrap().1 = fails;
    }
}

impl ReservationStore for Store {
    fn store(&self, reservations: &[u8]) -> Result<(), ReservationStoreError> {
        let mut inside = self.0.lock().unwrap();
        if inside.1 {
            return Err(ReservationStoreError);
        }
        inside.0 = reservations.to_vec();
        Ok(())
    }

    fn keeps_all(&self) -> bool {
        self.1
    }
}

fn bare_unit() -> LogicalUnit {
    let identity = Identity::from_serial("lun-0001").unwrap();
    LogicalUnit::new(identity, Arc::new(RamDevice::new(512, 64, true))).unwrap()
}

/// A unit that starts with what `store` has.
fn stored_unit(store: &Arc<Store>) -> LogicalUnit {
    let unit = bare_unit().with_reservation_store(store.clone());
    unit.load_reservations(&store.bytes()).unwrap();
    unit
}

/// A unit and nexuses with nothing pending.
fn three(unit: LogicalUnit) -> (Arc<LogicalUnit>, [ItNexus; 3]) {
    let unit = Arc::new(unit);
    let nexuses = [1, 2, 3].map(|port| {
        let nexus = second_nexus(&unit, port);
        assert_eq!(ready(&nexus), Some((6, 0x29, 0)));
        nexus
    });
    (unit, nexuses)
}

fn ready(nexus: &ItNexus) -> Option<(u8, u8, u8)> {
    let sense = run_at(nexus, LUN_0, &READY, &[]).0.sense?;
    let additional = sense.additional;
    Some((sense.key.code(), additional.asc, additional.ascq))
}

fn status(nexus: &ItNexus, cdb: &[u8]) -> Status {
    run_at(nexus, LUN_0, cdb, &[7; 512]).0.status
}

fn list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

fn out_cdb(action: u8, kind: u8) -> [u8; 10] {
    [0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

/// PERSISTENT RESERVE OUT that ends without sense data.
fn out(nexus: &ItNexus, action: u8, kind: u8, key: u64, action_key: u64) -> Status {
    let list = list(key, action_key, 0);
    let (completion, _) = run_at(nexus, LUN_0, &out_cdb(action, kind), &list);
    assert_eq!(completion.sense, None);
    completion.status
}

fn good(nexus: &ItNexus, action: u8, kind: u8, key: u64, action_key: u64) {
    let status = out(nexus, action, kind, key, action_key);
    assert_eq!(status, Status::Good, "{action} {kind}");
}

fn conflict(nexus: &ItNexus, action: u8, kind: u8, key: u64, action_key: u64) {
    let status = out(nexus, action, kind, key, action_key);
    assert_eq!(status, Status::ReservationConflict, "{action} {kind}");
}

fn read_in(nexus: &ItNexus, action: u8) -> Vec<u8> {
    let (completion, data) = run_at(nexus, LUN_0, &[0x5E, action, 0, 0, 0, 0, 0, 16, 0, 0], &[]);
    assert_eq!(completion.status, Status::Good);
    data
}

fn keys(nexus: &ItNexus) -> Vec<u64> {
    let data = read_in(nexus, 0);
    let keys = data[8..].chunks(8);
    keys.map(|key| u64::from_be_bytes(key.try_into().unwrap()))
        .collect()
}

/// Key and type of the reservation.
fn held(nexus: &ItNexus) -> Option<(u64, u8)> {
    let data = read_in(nexus, 1);
    let body = data[8..].first_chunk::<16>()?;
    Some((u64::from_be_bytes(*body.first_chunk().unwrap()), body[13]))
}

fn register_all(nexuses: &[ItNexus; 3]) {
    for (nexus, key) in nexuses.iter().zip([0xA, 0xB, 0xC]) {
        good(nexus, REGISTER, 0, 0, key);
    }
}

#[test]
fn registrations_follow_their_keys() {
    let (_, [a, b, c]) = three(bare_unit());
    good(&a, REGISTER, 0, 0, 0xA);
    conflict(&a, REGISTER, 0, 0, 0xAA);
    good(&a, REGISTER, 0, 0xA, 0xAA);
    conflict(&b, REGISTER, 0, 1, 0xB);
    // Nothing was registered, and nothing is.
    good(&b, REGISTER, 0, 0, 0);
    good(&c, REGISTER_AND_IGNORE, 0, 99, 0xC);
    good(&c, REGISTER_AND_IGNORE, 0, 99, 0xCC);
    assert_eq!(keys(&b), [0xAA, 0xCC]);
    assert_eq!(read_in(&b, 0)[..8], [0, 0, 0, 5, 0, 0, 0, 16]);
    good(&a, REGISTER, 0, 0xAA, 0);
    good(&c, REGISTER_AND_IGNORE, 0, 0, 0);
    assert_eq!(keys(&b), [0; 0]);
    for nexus in [&a, &b, &c] {
        assert_eq!(ready(nexus), None);
    }
}

#[test]
fn every_type_shuts_out_whom_it_should() {
    let (_, nexuses) = three(bare_unit());
    let [holder, registered, stranger] = &nexuses;
    good(holder, REGISTER, 0, 0, 0xA);
    good(registered, REGISTER, 0, 0, 0xB);
    for kind in TYPES {
        good(holder, RESERVE, kind, 0xA, 0);
        good(holder, RESERVE, kind, 0xA, 0);
        let all_registrants = kind >= 7;
        let key = if all_registrants { 0 } else { 0xA };
        assert_eq!(held(stranger), Some((key, kind)));
        let exclusive = [3, 6, 8].contains(&kind);
        let registrants = kind >= 5;
        let reads = |nexus| status(nexus, &READ) == Status::Good;
        let writes = |nexus| status(nexus, &WRITE) == Status::Good;
        assert!(reads(holder) && writes(holder));
        assert_eq!(reads(registered), registrants || !exclusive, "{kind}");
        assert_eq!(writes(registered), registrants, "{kind}");
        assert_eq!(reads(stranger), !exclusive, "{kind}");
        assert!(!writes(stranger), "{kind}");
        // Whatever the type.
        for cdb in [
            &READY[..],
            &[0x12, 0, 0, 0, 36, 0],
            &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            &[0x4D, 0, 0x40, 0, 0, 0, 0, 0, 64, 0],
            &[0x1B, 0, 0, 0, 1, 0],
            &[0x1E, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(status(stranger, cdb), Status::Good, "{cdb:02x?}");
        }
        for cdb in [
            &[0x1B, 0, 0, 0, 0, 0][..],
            &[0x1E, 0, 0, 0, 1, 0],
            &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x15, 0x10, 0, 0, 24, 0],
            &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
            &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0],
        ] {
            let found = status(stranger, cdb);
            assert_eq!(found, Status::ReservationConflict, "{cdb:02x?}");
        }
        if all_registrants {
            good(registered, RESERVE, kind, 0xB, 0);
        } else {
            conflict(registered, RESERVE, kind, 0xB, 0);
        }
        conflict(stranger, RESERVE, kind, 0, 0);
        // Another type than the one that is held.
        conflict(holder, RESERVE, if kind == 1 { 3 } else { 1 }, 0xA, 0);
        let wrong = out_cdb(RELEASE, if kind == 1 { 3 } else { 1 });
        let sense = sense_of(holder, LUN_0, &wrong, &list(0xA, 0, 0));
        assert_eq!(sense, (5, 0x26, 4));
        good(holder, RELEASE, kind, 0xA, 0);
        assert_eq!(held(stranger), None);
        let told = registrants.then_some((6, 0x2A, 4));
        assert_eq!(ready(registered), told, "{kind}");
        assert_eq!((ready(holder), ready(stranger)), (None, None));
    }
}

#[test]
fn release_by_others_does_nothing() {
    let (_, nexuses) = three(bare_unit());
    register_all(&nexuses);
    let [a, b, _] = &nexuses;
    good(a, RELEASE, 1, 0xA, 0);
    good(a, RESERVE, 1, 0xA, 0);
    good(b, RELEASE, 1, 0xB, 0);
    conflict(b, RELEASE, 1, 0xA, 0);
    assert_eq!(held(b), Some((0xA, 1)));
}

#[test]
fn unregistering_the_holder_releases_and_tells_registrants() {
    for kind in TYPES {
        let (_, nexuses) = three(bare_unit());
        register_all(&nexuses);
        let [a, b, c] = &nexuses;
        good(a, RESERVE, kind, 0xA, 0);
        good(a, REGISTER, 0, 0xA, 0);
        if kind >= 7 {
            assert_eq!(held(b), Some((0, kind)), "the others hold it as well");
            good(b, REGISTER, 0, 0xB, 0);
            good(c, REGISTER, 0, 0xC, 0);
        }
        let told = [5, 6].contains(&kind).then_some((6, 0x2A, 4));
        assert_eq!([ready(a), ready(b), ready(c)], [None, told, told], "{kind}");
        assert_eq!(held(b), None);
    }
}

#[test]
fn clear_takes_everything_and_tells_the_others() {
    let (_, nexuses) = three(bare_unit());
    register_all(&nexuses);
    let [a, b, c] = &nexuses;
    good(b, RESERVE, 3, 0xB, 0);
    conflict(a, CLEAR, 0, 0xB, 0);
    good(a, CLEAR, 0, 0xA, 0);
    assert_eq!((keys(a), held(a)), (Vec::new(), None));
    let told = Some((6, 0x2A, 3));
    assert_eq!([ready(a), ready(b), ready(c)], [None, told, told]);
}

#[test]
fn preempting_the_holder_takes_its_reservation() {
    let (_, nexuses) = three(bare_unit());
    register_all(&nexuses);
    let [a, b, c] = &nexuses;
    good(a, RESERVE, 1, 0xA, 0);
    good(b, PREEMPT, 5, 0xB, 0xA);
    assert_eq!((keys(b), held(b)), (vec![0xB, 0xC], Some((0xB, 5))));
    // The type changed: those that are still registered hear of it.
    let told = [Some((6, 0x2A, 5)), None, Some((6, 0x2A, 4))];
    assert_eq!([ready(a), ready(b), ready(c)], told);
    // Of its own reservation a holder changes the type, and stays registered.
    good(b, PREEMPT, 6, 0xB, 0xB);
    assert_eq!((keys(b), held(b)), (vec![0xB, 0xC], Some((0xB, 6))));
    let sense = sense_of(b, LUN_0, &out_cdb(PREEMPT, 2), &list(0xB, 0xB, 0));
    assert_eq!(sense, (5, 0x24, 0));
}

#[test]
fn preempting_others_removes_registrations_only() {
    let (_, nexuses) = three(bare_unit());
    register_all(&nexuses);
    let [a, b, c] = &nexuses;
    good(a, RESERVE, 1, 0xA, 0);
    conflict(b, PREEMPT, 1, 0xA, 0xC);
    conflict(b, PREEMPT, 1, 0xB, 0xDD);
    let zero = sense_of(b, LUN_0, &out_cdb(PREEMPT, 1), &list(0xB, 0, 0));
    assert_eq!(zero, (5, 0x26, 0));
    good(b, PREEMPT, 1, 0xB, 0xC);
    assert_eq!((keys(b), held(b)), (vec![0xA, 0xB], Some((0xA, 1))));
    let told = [None, None, Some((6, 0x2A, 5))];
    assert_eq!([ready(a), ready(b), ready(c)], told);
    conflict(c, PREEMPT, 1, 0xC, 0xA);
    // Its own key: its own registration.
    good(b, PREEMPT, 1, 0xB, 0xB);
    assert_eq!((keys(b), ready(b)), (vec![0xA], None));
}

#[test]
fn preempting_all_registrants_needs_key_zero() {
    let (_, nexuses) = three(bare_unit());
    register_all(&nexuses);
    let [a, b, c] = &nexuses;
    good(a, RESERVE, 7, 0xA, 0);
    // The one who made it is preempted: the others hold it.
    good(b, PREEMPT, 7, 0xB, 0xA);
    assert_eq!((keys(b), held(b)), (vec![0xB, 0xC], Some((0, 7))));
    assert_eq!([ready(a), ready(c)], [Some((6, 0x2A, 5)), None]);
    good(b, PREEMPT, 3, 0xB, 0);
    assert_eq!((keys(b), held(b)), (vec![0xB], Some((0xB, 3))));
    assert_eq!([ready(b), ready(c)], [None, Some((6, 0x2A, 5))]);
}

#[test]
fn preempt_and_abort_names_those_whose_tasks_end() {
    let (_, nexuses) = three(bare_unit());
    register_all(&nexuses);
    let [a, b, c] = &nexuses;
    good(c, REGISTER, 0, 0xC, 0xA);
    let preempt = |action| {
        let list = list(0xB, 0xA, 0);
        run_at(b, LUN_0, &out_cdb(action, 1), &list).0
    };
    assert_eq!(preempt(PREEMPT_AND_ABORT).preempted_ports, [1, 3]);
    let again = preempt(PREEMPT_AND_ABORT);
    assert_eq!(again.status, Status::ReservationConflict);
    assert_eq!(again.preempted_ports, [0; 0]);
    assert_eq!(ready(a), Some((6, 0x2A, 5)));
    good(a, REGISTER, 0, 0, 0xA);
    let plain = preempt(PREEMPT);
    assert_eq!(
        (plain.status, plain.preempted_ports),
        (Status::Good, vec![])
    );
}

#[test]
fn registrations_belong_to_the_port_and_outlive_nexus_and_resets() {
    let (unit, nexuses) = three(bare_unit());
    register_all(&nexuses);
    let [a, b, c] = nexuses;
    good(&a, RESERVE, 3, 0xA, 0);
    for function in [
        TaskManagementFunction::LogicalUnitReset,
        TaskManagementFunction::TargetReset,
        TaskManagementFunction::ItNexusReset,
    ] {
        let _complete = a.task_management(function, LUN_0);
    }
    drop(a);
    assert!(ready(&b).is_some());
    assert_eq!(held(&b), Some((0xA, 3)));
    let again = second_nexus(&unit, 1);
    assert!(ready(&again).is_some());
    assert_eq!(status(&again, &WRITE), Status::Good);
    assert!(ready(&c).is_some());
    assert_eq!(status(&c, &READ), Status::ReservationConflict);
}

#[test]
fn full_status_names_the_port_and_the_holder() {
    let (_, [a, b, _]) = three(bare_unit());
    good(&a, REGISTER, 0, 0, 0xA);
    good(&b, REGISTER, 0, 0, 0xB);
    good(&b, RESERVE, 6, 0xB, 0);
    let data = read_in(&a, 3);
    assert_eq!(data[..8], [0, 0, 0, 2, 0, 0, 0, 96]);
    let entry = |key: u8, flag: u8, kind: u8, port: u8| {
        let mut entry = vec![0, 0, 0, 0, 0, 0, 0, key, 0, 0, 0, 0, flag, kind];
        entry.extend([0, 0, 0, 0, 0, 1, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0]);
        entry.extend([0, 0, 0, 0, 0, 0, 0, port, 0, 0, 0, 0, 0, 0, 0, 0]);
        entry
    };
    assert_eq!(
        data[8..],
        [entry(0xA, 0, 0, 1), entry(0xB, 1, 6, 2)].concat()
    );
    // The length tells of what was cut off.
    let (_, cut) = run_at(&a, LUN_0, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[]);
    assert_eq!(cut, [0, 0, 0, 2, 0, 0, 0, 16]);
}

#[test]
fn all_target_ports_are_registered_at_once() {
    let groups = vec![PortGroup::of_port(1, 1), PortGroup::of_port(2, 2)];
    let unit = Arc::new(bare_unit().with_port_groups(groups, false).unwrap());
    let nexus = |port| {
        let nexus = ItNexus::through(7, port);
        nexus.attach(crate::Lun::ZERO, unit.clone()).unwrap();
        assert!(ready(&nexus).is_some());
        nexus
    };
    let (first, second) = (nexus(1), nexus(2));
    good(&first, REGISTER, 0, 0, 0xA);
    good(&first, RESERVE, 3, 0xA, 0);
    assert_eq!(status(&second, &READ), Status::ReservationConflict);
    good(&first, CLEAR, 0, 0xA, 0);
    let all = list(0, 0xA, 0x04);
    let (completion, _) = run_at(&first, LUN_0, &out_cdb(REGISTER, 0), &all);
    assert_eq!(completion.status, Status::Good);
    assert_eq!(keys(&first), [0xA, 0xA]);
    good(&second, RESERVE, 5, 0xA, 0);
    assert_eq!(status(&first, &WRITE), Status::Good);
}

fn move_list(key: u64, action_key: u64, unregister: u8, to: u64) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    list.extend([0, unregister, 0, 1, 0, 0, 0, 24]);
    list.extend([0; 8]);
    list.extend(to.to_be_bytes());
    list.extend([0; 8]);
    list
}

#[test]
fn register_and_move_gives_the_reservation_to_another_port() {
    const CDB: [u8; 10] = [0x5F, REGISTER_AND_MOVE, 1, 0, 0, 0, 0, 0, 48, 0];
    let (_, [a, b, c]) = three(bare_unit());
    let run = |nexus: &ItNexus, list: &[u8]| run_at(nexus, LUN_0, &CDB, list).0;
    let asc = |nexus: &ItNexus, list: &[u8]| {
        let sense = run(nexus, list).sense.unwrap();
        (sense.additional.asc, sense.field.unwrap().byte)
    };
    let wanted = move_list(0xA, 0xB, 2, 2);
    assert_eq!(run(&a, &wanted).status, Status::ReservationConflict);
    good(&a, REGISTER, 0, 0, 0xA);
    assert_eq!(asc(&a, &wanted), (0x24, 1), "there is no reservation");
    good(&a, RESERVE, 1, 0xA, 0);
    good(&c, REGISTER, 0, 0, 0xC);
    let other = run(&c, &move_list(0xC, 0xB, 0, 2));
    assert_eq!(other.status, Status::ReservationConflict);
    assert_eq!(asc(&a, &move_list(0xA, 0, 0, 2)), (0x26, 8));
    assert_eq!(asc(&a, &move_list(0xA, 0xB, 0, 1)), (0x26, 24));
    for (at, value, byte) in [(19, 9, 18), (23, 23, 20), (24, 5, 24), (17, 1, 17)] {
        let mut wrong = wanted.clone();
        wrong[at] = value;
        assert_eq!(asc(&a, &wrong), (0x26, byte));
    }
    assert_eq!(run(&a, &wanted).status, Status::Good);
    assert_eq!((keys(&c), held(&c)), (vec![0xC, 0xB], Some((0xB, 1))));
    assert_eq!(status(&a, &WRITE), Status::ReservationConflict);
    assert_eq!(status(&b, &WRITE), Status::Good);
}

#[test]
fn malformed_lists_and_fields_are_refused() {
    let (_, [a, ..]) = three(bare_unit());
    let good_list = list(0, 0xA, 0);
    for length in [0, 8, 23, 25, 48] {
        let cdb = [0x5F, 0, 0, 0, 0, 0, 0, 0, length, 0];
        assert_eq!(sense_of(&a, LUN_0, &cdb, &[0; 64]), (5, 0x1A, 0));
    }
    // Less arrives than the CDB says.
    let short = sense_of(&a, LUN_0, &out_cdb(REGISTER, 0), &good_list[..23]);
    assert_eq!(short, (5, 0x1A, 0));
    // SPEC_I_PT, and APTPL without a store.
    for flags in [0x08, 0x01] {
        let sense = sense_of(&a, LUN_0, &out_cdb(REGISTER, 0), &list(0, 0xA, flags));
        assert_eq!(sense, (5, 0x26, 0));
    }
    good(&a, REGISTER, 0, 0, 0xA);
    // Element scope, and types that are none.
    for kind in [0x11, 0x21, 0, 2, 4, 9, 15] {
        for action in [RESERVE, RELEASE] {
            let sense = sense_of(&a, LUN_0, &out_cdb(action, kind), &list(0xA, 0, 0));
            assert_eq!(sense, (5, 0x24, 0));
        }
    }
    for action in 8..32 {
        let sense = sense_of(&a, LUN_0, &out_cdb(action, 1), &good_list);
        assert_eq!(sense, (5, 0x24, 0));
    }
    for action in 4..32 {
        let sense = sense_of(&a, LUN_0, &[0x5E, action, 0, 0, 0, 0, 0, 1, 0, 0], &[]);
        assert_eq!(sense, (5, 0x24, 0));
    }
    assert_eq!(keys(&a), [0xA]);
}

#[test]
fn s12_one_registration_too_many_is_refused_and_the_rest_reloads() {
    let store = Arc::new(Store::default());
    let unit = Arc::new(stored_unit(&store));
    let register = |port| {
        let nexus = second_nexus(&unit, port);
        assert!(ready(&nexus).is_some());
        let list = list(0, port, 0x01);
        let (completion, _) = run_at(&nexus, LUN_0, &out_cdb(REGISTER, 0), &list);
        (nexus, completion.sense.map(|sense| sense.additional))
    };
    for port in 1..=128 {
        assert_eq!(register(port).1, None);
    }
    let (nexus, sense) = register(129);
    let sense = sense.unwrap();
    assert_eq!((sense.asc, sense.ascq), (0x55, 4));
    let before = keys(&nexus);
    assert_eq!(before.len(), 128);
    assert!(store.bytes().len() < 3 * 1024);
    let nexus = second_nexus(&Arc::new(stored_unit(&store)), 1);
    assert!(ready(&nexus).is_some());
    assert_eq!(keys(&nexus), before);
}

#[test]
fn aptpl_decides_what_outlives_a_restart() {
    let store = Arc::new(Store::default());
    let restart = || three(stored_unit(&store));
    let register = |nexus: &ItNexus, key, action_key, flags| {
        let list = list(key, action_key, flags);
        run_at(nexus, LUN_0, &out_cdb(REGISTER, 0), &list).0
    };
    let (_, [a, b, _]) = restart();
    assert_eq!(read_in(&a, 2), [0, 8, 0x15, 0x80, 0xEA, 1, 0, 0]);
    assert_eq!(register(&a, 0, 0xA, 0x01).status, Status::Good);
    assert_eq!(read_in(&a, 2)[3], 0x81);
    good(&a, RESERVE, 6, 0xA, 0);
    let (_, [a, c, _]) = restart();
    assert_eq!((keys(&c), held(&c)), (vec![0xA], Some((0xA, 6))));
    assert_eq!(status(&c, &READ), Status::ReservationConflict);
    assert_eq!(read_in(&a, 0)[..4], [0; 4], "PRGENERATION begins again");
    // A store that cannot be written: nothing has changed.
    store.fail(true);
    let failed = register(&c, 0, 0xC, 0x01).sense.unwrap();
    assert_eq!((failed.key.code(), failed.additional.asc), (4, 0x44));
    let clear = sense_of(&a, LUN_0, &out_cdb(CLEAR, 0), &list(0xA, 0, 0));
    assert_eq!(clear, (4, 0x44, 0));
    assert_eq!((keys(&c), ready(&c)), (vec![0xA], None));
    store.fail(false);
    // The last registration decides for all.
    assert_eq!(register(&c, 0, 0xC, 0).status, Status::Good);
    assert_eq!(store.bytes(), [0; 0]);
    let (_, [a, ..]) = restart();
    assert_eq!((keys(&a), held(&a)), (Vec::new(), None));
    drop(b);
    assert!(bare_unit().load_reservations(b"OPR").is_err());
}

#[test]
fn units_that_share_a_store_go_on_with_each_others_reservations() {
    let store = Arc::new(Store::keeping_all());
    let (first, [a, b, _]) = three(stored_unit(&store));
    good(&a, REGISTER, 0, 0, 0xA);
    good(&b, REGISTER, 0, 0, 0xB);
    good(&a, RESERVE, 5, 0xA, 0);
    // Nobody asked for APTPL.
    let (second, [a_there, b_there, c_there]) = three(stored_unit(&store));
    assert_eq!(
        (keys(&a_there), held(&a_there)),
        (vec![0xA, 0xB], Some((0xA, 5)))
    );
    assert_eq!(status(&c_there, &WRITE), Status::ReservationConflict);
    good(&b_there, PREEMPT, 5, 0xB, 0xA);
    first.load_reservations(&store.bytes()).unwrap();
    assert_eq!((keys(&a), held(&a)), (vec![0xB], Some((0xB, 5))));
    assert!(first.load_reservations(b"OPR").is_err());
    assert_eq!(keys(&a), vec![0xB], "damaged bytes change nothing");
    // The last one leaves nothing behind.
    good(&b, CLEAR, 0, 0xB, 0);
    assert_eq!(store.bytes(), [0; 0]);
    second.load_reservations(&store.bytes()).unwrap();
    assert_eq!(keys(&b_there), [0; 0]);
}

#[test]
fn reserve_shuts_out_the_others_until_release_reset_or_loss() {
    let (_, [a, b, _]) = three(bare_unit());
    let ends: [fn(&ItNexus); 4] = [
        |a| assert_eq!(status(a, &RELEASE_6), Status::Good),
        |a| assert_eq!(status(a, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Status::Good),
        |a| {
            assert_ne!(
                a.task_management(TaskManagementFunction::LogicalUnitReset, LUN_0),
                REJECTED
            )
        },
        |a| {
            assert_ne!(
                a.task_management(TaskManagementFunction::ItNexusReset, LUN_0),
                REJECTED
            )
        },
    ];
    for end in ends {
        assert_eq!(status(&a, &RESERVE_6), Status::Good);
        assert_eq!(status(&a, &RESERVE_6), Status::Good);
        for cdb in [
            &READY[..],
            &READ,
            &WRITE,
            &RESERVE_6,
            &[0x1A, 8, 8, 0, 64, 0],
        ] {
            assert_eq!(status(&b, cdb), Status::ReservationConflict, "{cdb:02x?}");
            if cdb != RESERVE_6 {
                assert_ne!(status(&a, cdb), Status::ReservationConflict, "{cdb:02x?}");
            }
        }
        for cdb in [
            &RELEASE_6[..],
            &[0x12, 0, 0, 0, 36, 0],
            &[0x03, 0, 0, 0, 18, 0],
            &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(status(&b, cdb), Status::Good, "{cdb:02x?}");
        }
        // Not beside persistent reservations, whoever asks.
        for nexus in [&a, &b] {
            conflict(nexus, REGISTER, 0, 0, 1);
            let read_keys = [0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0];
            assert_eq!(status(nexus, &read_keys), Status::ReservationConflict);
        }
        end(&a);
        while ready(&a).is_some() {}
        while ready(&b).is_some() {}
        assert_eq!(status(&b, &WRITE), Status::Good);
    }
}

#[test]
fn reserve_beside_persistent_reservations_follows_crh() {
    let (_, [a, b, c]) = three(bare_unit());
    good(&a, REGISTER, 0, 0, 0xA);
    for cdb in [RESERVE_6, RELEASE_6] {
        for nexus in [&a, &c] {
            assert_eq!(status(nexus, &cdb), Status::ReservationConflict);
        }
    }
    good(&a, RESERVE, 5, 0xA, 0);
    good(&b, REGISTER, 0, 0, 0xB);
    for cdb in [RESERVE_6, RELEASE_6] {
        assert_eq!(status(&a, &cdb), Status::Good);
        assert_eq!(status(&b, &cdb), Status::Good);
        assert_eq!(status(&c, &cdb), Status::ReservationConflict);
    }
    assert_eq!(held(&c), Some((0xA, 5)));
    assert_eq!(status(&b, &WRITE), Status::Good, "nothing was reserved");
}
